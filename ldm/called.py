"""What is asked of the classes that a configuration names, which anyone may have written."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from inspect import signature
from typing import Any

from torch import Tensor, nn

from ldm.errors import DIVISOR, ConfigError, calling
from ldm.util import instantiate_from_config

PAGE = "docs/add-a-backbone.md"
ADAPTER = "ldm.modules.adapter.ForeignBackbone"


def module_from_config(
    config: Mapping[str, Any], *, where: str, called: str | None, **options: Any
) -> Any:
    """Return the module that a configuration describes.

    Args:
        where, options: see :func:`ldm.util.instantiate_from_config`.
        called: how its ``forward`` is called, as ``x, timesteps, y=``; None: it is not.

    Raises:
        ConfigError: see there; CONFIG-TARGET for what is no module, or could not be called so.
    """
    made = instantiate_from_config(config, where=where, **options)
    require_module(made, where, called)
    return made


def require_module(made: Any, where: str, called: str | None) -> None:
    """Refuse what is no module, or could not be called; see :func:`module_from_config`."""
    wrong = _wrong_module(made) or (_wrong_call(made, called) if called else "")
    if wrong:
        raise ConfigError("CONFIG-TARGET", f"{where}: {type(made).__name__}{wrong} ({PAGE})")


def tensor_from(call: Callable, shape: Sequence[int | None], *args: Any, **named: Any) -> Tensor:
    """Return ``call(*args, **named)``, a tensor of real numbers.

    Args:
        call: a module or method of a class that a configuration names.
        shape: that is expected; None for a size that may be any.

    Raises:
        ConfigError: CONFIG-TARGET for an error of the class, CONFIG-SHAPE for another output.
    """
    with calling(call):
        made = call(*args, **named)
    require_tensor(call, made, shape, args[0])
    return made


def require_tensor(call: Callable, made: Any, shape: Sequence[int | None], given: Any) -> None:
    """Refuse an output that is no tensor of real numbers of a shape.

    Args:
        call: what has made it of ``given``.

    Raises:
        ConfigError: CONFIG-SHAPE.
    """
    is_real = isinstance(made, Tensor) and not made.is_complex()
    sizes = made.shape if is_real else ()
    fits = (want is None or have == want for have, want in zip(sizes, shape, strict=False))
    if is_real and len(sizes) == len(shape) and all(fits):
        return
    owner, method = getattr(call, "__self__", None), getattr(call, "__name__", "")
    name = type(call).__name__ if owner is None else f"{type(owner).__name__}.{method}"
    seen = str(tuple(made.shape)) if isinstance(made, Tensor) else type(made).__name__
    seen = f"complex numbers {seen}" if isinstance(made, Tensor) and made.is_complex() else seen
    is_double = is_real and any(sizes[1:2] == (2 * n,) for n in shape[1:2] if n)
    how = "give it this shape" if is_real else "return that alone"
    how = "where it has learn_sigma, set it to false" if is_double else how
    is_resized = is_real and len(sizes) == len(shape) and tuple(sizes[:2]) == tuple(shape[:2])
    how = f"{how}; {DIVISOR}" if is_resized else how
    of = f" for {tuple(given.shape)}" if isinstance(given, Tensor) else ""
    expected = ", ".join("*" if size is None else str(size) for size in shape)
    raise ConfigError(
        "CONFIG-SHAPE",
        f"{name} returned {seen}{of}: expected one tensor ({expected}) of real numbers; {how} "
        f"({PAGE})",
    )


def terms_from(loss: nn.Module, where: str, name: str, *args: Any) -> dict[str, Any]:
    """Return the terms of ``loss(*args)``: real numbers by name.

    Args:
        where: key path of the loss, for error messages.
        name: of a term that it may have, for them too.

    Raises:
        ConfigError: CONFIG-TARGET for an error of the class, or anything else that it returns.
    """
    with calling(loss):
        made: Any = loss(*args)
    is_named = isinstance(made, Mapping) and all(isinstance(key, str) for key in made)
    wrong = {n: term for n, term in made.items() if not _is_term(term)} if is_named else made
    if not is_named or wrong:
        raise ConfigError(
            "CONFIG-TARGET",
            f"{where}: {type(loss).__name__} returned {reprlib.repr(wrong)}: expected "
            f"{{'{name}': a real number, as a tensor without axes}} ({PAGE})",
        )
    return dict(made)


def _is_term(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.ndim and value.is_floating_point()
    return isinstance(value, int | float)


def _wrong_module(made: Any) -> str:
    if not isinstance(made, nn.Module):
        return " is no torch.nn.Module: derive the class from it"
    if not hasattr(made, "_parameters"):
        return ".__init__ does not call super().__init__(): let it do so first"
    return ""


def _wrong_call(module: nn.Module, called: str) -> str:
    if type(module).forward is nn.Module.forward:
        return " has no method forward: write it"
    names = [name.partition("=") for name in called.split(", ")]
    placed = [name for name, named, _ in names if not named]
    try:
        takes = signature(module.forward)
    except ValueError:  # one that is written in C, or compiled, does not tell
        return ""
    try:
        takes.bind(*placed, **{n: n for n, named, _ in names if named})
    except TypeError as error:
        beside = ", and with context or y if it is told more" if "timesteps" in called else ""
        how = "give all else defaults"
        with suppress(TypeError):
            if takes.bind("x") and "timesteps" in called:
                how = f"a network without timesteps goes into {ADAPTER}"
        return f".forward: {error}; it is called as forward({called}){beside}: {how}"
    return ""
