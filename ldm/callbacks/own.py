"""The callbacks that a configuration names, which anyone may have written."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

from pytorch_lightning.callbacks import Callback

from ldm.errors import ConfigError
from ldm.util import instantiate_from_config


def built_callbacks(lightning: Mapping[str, Any]) -> list[Callback]:
    """Return the callbacks of ``lightning.callbacks``, those that are null left out.

    Raises:
        ConfigError: see :func:`ldm.util.instantiate_from_config`; CONFIG-TARGET for a hook that
            could not be called.
    """
    built = []
    for name, node in (lightning.get("callbacks") or {}).items():
        if node:
            where = f"lightning.callbacks.{name}"
            built.append(instantiate_from_config(node, where=where))
            _require_hooks(built[-1], where)
    return built


def _require_hooks(callback: Callback, where: str) -> None:
    """Refuse a hook that takes other arguments than Lightning gives it, here or hours later."""
    for name, hook in vars(Callback).items():
        own = getattr(callback, name)
        if name.startswith("_") or isinstance(hook, property) or own.__func__ is hook:
            continue
        parameters = list(signature(hook).parameters.values())[1:]
        given = [p.name for p in parameters if p.default is Parameter.empty]
        named = {n: n for n in given if n == "stage"}  # all others are given by their place
        try:
            signature(own).bind(*(n for n in given if n not in named), **named)
        except TypeError as error:
            raise ConfigError(
                "CONFIG-TARGET",
                f"{where}: {type(callback).__name__}.{name}: {error}; it is called as "
                f"{name}({', '.join(given)})",
            ) from error
