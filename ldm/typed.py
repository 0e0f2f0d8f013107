"""Calls from Python: an argument of a wrong type is refused by its name, before any work.

What a call takes is what its annotations say; the values of a configuration are checked by
:mod:`ldm.config_arguments` in the same spirit.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import reprlib
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, cast

from ldm.errors import bad_value

SEVERAL = (Sequence, Collection, Iterable)
Call = TypeVar("Call", bound=Callable[..., Any])


def typed(call: Call) -> Call:
    """Let a function or method refuse arguments that its annotations do not admit.

    Raises:
        ConfigError: CONFIG-VALUE, from the call.
    """
    signature = inspect.signature(call)

    @functools.wraps(call)
    def checked(*args: Any, **options: Any) -> Any:
        try:
            bound = signature.bind_partial(*args, **options)
        except TypeError:  # of a name that it has not: Python itself says so
            return call(*args, **options)
        hints = annotations(signature.parameters.values(), call.__globals__)
        for name, value in bound.arguments.items():
            if name in hints and not fits(hints[name], value):
                raise wrong_type(name, value, hints[name], signature.parameters[name])
            if name in hints and is_one_of_several(hints[name], value):
                bound.arguments[name] = [value]
        return call(*bound.args, **bound.kwargs)

    return cast(Call, checked)


def annotations(
    parameters: Iterable[inspect.Parameter], scope: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the annotations of parameters by name, as far as ``scope`` knows what they name."""
    hints: dict[str, Any] = {}
    for parameter in parameters:
        many = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.annotation is not parameter.empty and not many:
            named = {parameter.name: parameter.annotation}
            holder = types.SimpleNamespace(__annotations__=named)
            # A class may be annotated with names that only a type checker imports.
            with suppress(Exception):
                hints |= typing.get_type_hints(holder, {}, scope)  # type: ignore[arg-type]
    return hints


def fits(hint: Any, value: Any) -> bool:
    """Return whether an annotation admits a value of Python; of a Mapping no element is read.

    One text stands for a list of texts; numbers of numpy are numbers.
    """
    origin, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if is_union(hint):
        return any(fits(alternative, value) for alternative in inner)
    if origin in (Any, object) or not isinstance(origin, type):
        return True
    if origin is bool:
        return type(value).__name__ in ("bool", "bool_")  # the latter of numpy
    if origin in (int, float):
        kind = Integral if origin is int else Real
        return isinstance(value, kind) and not isinstance(value, bool)
    if issubclass(origin, Path):
        return isinstance(value, os.PathLike)
    if origin in SEVERAL:
        value = [value] if isinstance(value, str) else value
        several = isinstance(value, list | tuple) and inner
        whole = isinstance(value, Iterable) and not isinstance(value, bytes)
        return all(fits(inner[0], element) for element in value) if several else whole
    return isinstance(value, origin)


def is_one_of_several(hint: Any, value: Any) -> bool:
    """Return whether a text stands for a list of texts, which its letters are not."""
    alternatives = typing.get_args(hint) if is_union(hint) else (hint,)
    takes_several = any(typing.get_origin(one) in SEVERAL for one in alternatives)
    return isinstance(value, str) and str not in alternatives and takes_several


def is_union(hint: Any) -> bool:
    """Return whether an annotation has alternatives."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def wrong_type(name: str, value: Any, hint: Any, parameter: inspect.Parameter) -> Exception:
    """Return the refusal of an argument: what it is, and what it may be."""
    expected = re.sub(r"\b(?:\w+\.)+(?=\w)", "", inspect.formatannotation(hint))
    without = "" if parameter.default is parameter.empty else ", or leave it out"
    kind = type(value).__name__
    return bad_value(f"{name} is {reprlib.repr(value)} ({kind}): give {expected}{without}")
