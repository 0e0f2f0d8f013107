"""The group norm that is fast in bf16 training is torch's, in value, gradient and memory layout."""

import pytest
import torch
from torch import nn

from ldm.modules.diffusionmodules.util import normalization


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (torch.channels_last, (6, 5)),
        (torch.channels_last_3d, (3, 6, 5)),
        (torch.contiguous_format, (6, 5)),
    ],
    ids=str,
)
def test_same_as_torch(dtype, layout, size):
    results = []
    for own in (True, False):
        torch.manual_seed(0)
        norm = normalization(64).to(dtype)
        x = torch.randn(2, 64, *size, dtype=dtype).to(memory_format=layout).requires_grad_()
        y = norm(x) if own else nn.GroupNorm.forward(norm, x)
        assert y.is_contiguous(memory_format=layout)
        y.square().sum().backward()
        results.append((y.detach(), x.grad, norm.weight.grad, norm.bias.grad))
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **tolerance)
