"""The arguments that a configuration gives a class, checked against its constructor."""

from __future__ import annotations

import inspect
import reprlib
import sys
import types
import typing
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.errors import bad_value
from ldm.ranges import check_ranges
from ldm.typed import annotations
from ldm.util import (
    accepted_parameters,
    check_parameter_names,
    current_path,
    params_of,
    resolve_target,
)

QUOTED = """, in quotes where YAML takes it for a number, as "['12']\""""
OURS = ("ldm.", "guided_diffusion.", "UNet_DS_Diff.", "torch.optim.")


def validate_node(node: Any, where: str) -> None:
    """Check a ``target`` / ``params`` mapping and those nested in it; build nothing.

    Raises:
        ConfigError: CONFIG-TARGET, CONFIG-UNKNOWN or CONFIG-VALUE.
    """
    cls, params = resolve_target(node, where), params_of(node)
    validate_arguments(cls, params, f"{where}.params")
    if current_path(node["target"]).startswith(OURS):  # another class may mean something else
        check_ranges(params, f"{where}.params")


def validate_arguments(cls: type, params: Mapping[str, Any], path: str) -> None:
    """Check names and types of constructor arguments, and the nodes nested in them.

    Raises:
        ConfigError: CONFIG-UNKNOWN or CONFIG-VALUE.
    """
    check_parameter_names(cls, params, path)
    named, _ = accepted_parameters(cls)
    scope = ChainMap(*(vars(sys.modules[c.__module__]) for c in cls.__mro__))
    hints = annotations(named.values(), scope)
    for name, value in params.items():
        # Foreign annotations lie (`x: int = None`): a value of the default's type is right too.
        as_default = name in named and type(value) is type(named[name].default)
        if name in hints and not as_default and admits(hints[name], value) is False:
            expected = inspect.formatannotation(hints[name])
            hint = QUOTED if "str]" in expected and isinstance(value, list) else ""
            raise bad_value(
                f"{path}.{name} is {reprlib.repr(value)} ({type(value).__name__}): "
                f"expected {expected}{hint}"
            )
        for nested_path, nested in _nested_nodes(value, f"{path}.{name}"):
            validate_node(nested, nested_path)


def _nested_nodes(value: Any, path: str) -> list[tuple[str, Mapping]]:
    if isinstance(value, Mapping):
        if "target" in value:
            return [(path, value)]
        return [n for key, v in value.items() for n in _nested_nodes(v, f"{path}.{key}")]
    if isinstance(value, list):
        return [n for i, v in enumerate(value) for n in _nested_nodes(v, f"{path}[{i}]")]
    return []


def admits(hint: Any, value: Any) -> bool | None:
    """Return whether an annotation admits a YAML value; None if YAML cannot write such a thing."""
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        answers = [admits(alternative, value) for alternative in arguments]
        return True if True in answers else (False if False in answers else None)
    if origin is typing.Literal:
        return type(value) in {type(a) for a in arguments}
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin in (bool, str, types.NoneType):
        return isinstance(value, origin)
    if origin in (Any, object) or not isinstance(origin, type):
        return True
    if issubclass(origin, Path):
        return isinstance(value, str)
    if issubclass(origin, Sequence) or issubclass(list, origin):
        return isinstance(value, list) and _admits_elements(arguments, value)
    return isinstance(value, Mapping) if issubclass(dict, origin) else None


def _admits_elements(hints: Sequence[Any], values: list[Any]) -> bool:
    hints = [hint for hint in hints if hint is not Ellipsis] or [Any]
    return all(any(admits(hint, value) is not False for hint in hints) for value in values)
