"""The group norm that is fast in bf16 on a CPU is torch's, in value, gradient and memory layout."""

import pytest
import torch
from torch import nn

from ldm.modules.diffusionmodules.util import CHANNELS_LAST, GroupNormLast, normalization

SIZES = [(6, 5), (40, 30), (3, 6, 5)]  # the second has as many pixels as torch is fast with


def channels_last(x):
    return x.contiguous(memory_format=CHANNELS_LAST[x.ndim])


@pytest.mark.parametrize("size", [(3, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("weights", [1, 3], ids=["one weight", "a weight of each sample"])
def test_derivative_is_the_limit_of_differences(size, weights):
    torch.manual_seed(0)
    x = channels_last(torch.randn(3, 15, *size, dtype=torch.double)).requires_grad_()
    weight, bias = torch.randn(2, weights, 15, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *inputs: GroupNormLast.apply(*inputs, 5, 1e-5), (x, weight, bias)
    )


def run(norm, x, scale_shift, dy):
    """Return the output and all gradients of norm and SiLU, in double precision."""
    norm.zero_grad()
    x = x.clone().requires_grad_()
    scale_shift = [each.clone().requires_grad_() for each in scale_shift]
    y = norm(x, *scale_shift)
    nn.functional.silu(y).backward(dy.to(y.dtype))
    inputs = (x, norm.weight, norm.bias, *scale_shift)
    return y, [each.double() for each in (y, *(each.grad for each in inputs))]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("modulated", [False, True], ids=["plain", "scale and shift"])
@pytest.mark.parametrize("own_type", [torch.float32, torch.bfloat16], ids=["autocast", "bf16"])
def test_bf16_is_exact_to_its_rounding(size, modulated, own_type):
    """Torch's own, which rounds after every step, misses this bound."""
    torch.manual_seed(0)
    norm = normalization(96).bfloat16()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, dy = torch.randn(2, 2, 96, *size).add(1).bfloat16()
    scale_shift = torch.randn(2, 2, 96).bfloat16().unbind() if modulated else []
    y, fast = run(norm.to(own_type), channels_last(x), scale_shift, dy)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=CHANNELS_LAST[y.ndim])
    exact = run(norm.double(), x.double(), [each.double() for each in scale_shift], dy)[1]
    for one, other in zip(fast, exact, strict=True):
        assert (one - other).norm() <= 2**-8 * other.norm()


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last])
def test_fp32_is_torchs_bit_by_bit(layout):
    torch.manual_seed(0)
    norm = normalization(64)
    x, dy = map(layout, torch.randn(2, 2, 64, 6, 5))
    scale, shift = torch.randn(2, 2, 64, 1, 1)
    _, values = run(norm, x, (scale[..., 0, 0], shift[..., 0, 0]), dy)
    x.requires_grad_()
    y = nn.GroupNorm.forward(norm, x) * (1 + scale) + shift
    nn.functional.silu(y).backward(dy)
    assert torch.equal(values[0], y.double())
    assert torch.equal(values[1], x.grad.double())
