"""What may stand in a checkpoint: tensors and plain values, for nothing else is read again.

What unpickles objects runs what a file says, so a checkpoint with any other object could be
written, and never resumed from. Callbacks, optimizers and networks that anyone has written add to
it what they like.
"""

from __future__ import annotations

import reprlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError

# what torch.load reads with weights_only; a subclass of one of them it does not
PLAIN = (Tensor, nn.Parameter, str, bytes, bytearray, int, float, complex, bool, type(None))
PLAIN += (torch.Size, torch.dtype, torch.device)
MAPPINGS, SEQUENCES = (dict, OrderedDict, Counter), (list, tuple, set)


def require_storable(checkpoint: dict[str, Any]) -> None:
    """Refuse a checkpoint that could not be read again.

    Raises:
        ConfigError: CONFIG-TARGET, with the place of what is no plain value.
    """
    for place, value in _leaves(checkpoint, ""):
        if type(value) not in PLAIN:
            raise ConfigError(
                "CONFIG-TARGET",
                f"{place} of the checkpoint is {reprlib.repr(value)} ({type(value).__name__}), and "
                "no training could go on from it: save tensors, plain numbers, texts, lists and "
                "dicts alone",
            )


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield what the containers hold, and where; the type alone tells, for so it is pickled."""
    if type(value) in MAPPINGS:
        for key, inner in value.items():
            if type(key) not in PLAIN:
                yield f"a key of {place}", key
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    elif type(value) in SEQUENCES:
        for inner in value:
            yield from _leaves(inner, place)
    else:
        yield place, value
