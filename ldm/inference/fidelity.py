"""Does the fast path of a network give what 32 bit gives? Its first call says so."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

LIMIT = 0.05  # of the spread of the output: bf16 keeps 8 bits, and is off by 1 to 2 %


class FirstCall:
    """Compares the first call of a network with the same call in 32 bit, on one item.

    The output is not touched. What exceeds the limit is warned of in one line.

    Args:
        network: as it is before it is made fast: a copy is kept until the first call.
    """

    def __init__(self, network: nn.Module) -> None:
        self.difference: float | None = None
        self._plain: nn.Module | None = copy.deepcopy(network).eval()
        self._hook = network.register_forward_hook(self._compare, with_kwargs=True)

    def _compare(
        self, network: nn.Module, given: tuple[Any, ...], options: dict[str, Any], output: Tensor
    ) -> None:
        self._hook.remove()
        plain, self._plain = self._plain, None
        if plain is None:  # another thread was first
            return
        with torch.no_grad():
            expected = plain(*_first(given), **_first(options)).float()
            error = (output[:1].float() - expected).square().mean().sqrt()
            self.difference = float(error / expected.std())
        if not self.difference <= LIMIT:  # NaN too
            log.warning("%s, more than rounding explains: give --precision 32", self)

    def __str__(self) -> str:
        if self.difference is None:
            return "the network was not called"
        return f"first network call: {self.difference:.1%} of its spread from that in 32 bit"


def _first(given: Any) -> Any:
    """The first item of each tensor in the arguments of a call."""
    if isinstance(given, Tensor):
        return given[:1]
    if isinstance(given, Mapping):
        return {name: _first(value) for name, value in given.items()}
    return type(given)(map(_first, given)) if isinstance(given, list | tuple) else given
