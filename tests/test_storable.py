"""What a checkpoint may hold is what is read from one again."""

import io
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.errors import ConfigError
from ldm.storable import require_storable

PLAIN = ["text", b"bytes", bytearray(2), 1, 2.0, 3j, True, None, [1, (2, {3})], {"a": {4: 5}}]
PLAIN += [OrderedDict(a=1), Counter("aa"), torch.ones(2)]
PLAIN += [torch.nn.Parameter(torch.ones(1)), torch.Size([2]), torch.float32, torch.device("cpu")]


class Named(torch.Tensor):
    """A tensor with more, as other libraries have."""


OTHER = [
    torch.ones(2).as_subclass(Named),
    object(),
    defaultdict(list),
    Path(),
    np.float64(1),
    np.ones(2),
    len,
    int,
    {"a": [np.float64(1)]},
    {Path(): 1},
]


def is_read_again(value: object) -> bool:
    file = io.BytesIO()
    torch.save({"own": value}, file)
    file.seek(0)
    try:
        torch.load(file, weights_only=True)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_what_is_let_through_is_read_again(value):
    require_storable({"own": value})
    assert is_read_again(value)


@pytest.mark.parametrize("value", OTHER, ids=lambda value: type(value).__name__)
def test_what_is_not_read_again_is_refused_with_its_place(value):
    with pytest.raises(ConfigError, match="own.* of the checkpoint"):
        require_storable({"states": {"own": value}})
    assert not is_read_again(value)
