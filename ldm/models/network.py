"""What is asked of the network of a configuration, which anyone may have written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ldm.called import PAGE, require_module
from ldm.errors import ConfigError


def require_network(network: Any, where: str, called: str, dims: int) -> None:
    """Refuse what would fail at the first call, or when a training is saved.

    Args:
        network: what the class of a configuration has made.
        where: key path of the configuration, for error messages.
        called: how its ``forward`` is called, as ``x, timesteps``.
        dims: number of spatial axes of what it sees.

    Raises:
        ConfigError: CONFIG-TARGET.
    """
    require_module(network, where, called)
    name = type(network).__name__
    if wrong := _wrong_divisor(network, dims):
        raise ConfigError("CONFIG-TARGET", f"{where}: {name}{wrong} ({PAGE})")
    for key, value in network.state_dict().items():
        if wrong := _wrong_state(value):
            raise ConfigError("CONFIG-TARGET", f"{where}: {key} of {name} {wrong}")


def require_gradient(network: nn.Module, output: Tensor) -> None:
    """Refuse the output of a network in training that no weight of it can change.

    Raises:
        ConfigError: CONFIG-TARGET.
    """
    learns = network.training and torch.is_grad_enabled() and not output.requires_grad
    if learns and any(weight.requires_grad for weight in network.parameters()):
        raise ConfigError(
            "CONFIG-TARGET",
            f"the output of {type(network).__name__} does not depend on its weights, so nothing is "
            "learned: look for .detach(), torch.no_grad(), numpy or whole numbers in its forward",
        )


def size_divisors(network: Any, dims: int) -> tuple[int, ...]:
    """Return the number that must divide the size of what a network sees, for each of its axes."""
    given: int | Sequence[int] = getattr(network, "size_divisor", 1)
    return (given,) * dims if isinstance(given, int) else tuple(given)


def _wrong_divisor(network: nn.Module, dims: int) -> str:
    given = getattr(network, "size_divisor", 1)
    each = list(given) if isinstance(given, (list, tuple)) else [given] * dims
    if len(each) == dims and all(isinstance(number, int) and number > 0 for number in each):
        return ""
    return f".size_divisor is {given!r}: give a whole number from 1, or {dims} of them"


def _wrong_state(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, and a model file holds tensors: make it a buffer"
    if is_lazy(value):
        return "has no size before the first call: give its layer the number of channels"
    if 0 in value.stride() and value.numel():
        return "has one value for several places (expand): add .clone()"
    return ""
