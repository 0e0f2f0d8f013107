"""Attention gates and the Transformer bottleneck: reference numbers, and what gates promise."""

import json

import numpy as np
import parity
import pytest
import torch
from torch import nn

from ldm.modules.gates import GATES, AdditiveGate, MultiScaleGate, StableGate, TransformerBottleneck

CASES = json.loads((parity.REFERENCE / "gates.json").read_text())
BUILDERS = {
    "gate_same_size": lambda: AdditiveGate(8, 6, 4),
    "gate_half_size": lambda: AdditiveGate(8, 6, 4),
    "transformer_bottleneck": lambda: TransformerBottleneck(16, num_heads=4, mlp_ratio=4),
}
EVERY_GATE = pytest.mark.parametrize("name", GATES)
SIZES = pytest.mark.parametrize("size", [(6, 8), (4, 6, 8)], ids=["2-D", "3-D"])


def gate_inputs(size, ratio=1):
    """A gating signal g, ``ratio`` times smaller, and a skip x: 16 and 8 channels."""
    g = parity.normal("g", (2, 16, *[n // ratio for n in size]))
    return g, parity.normal("x", (2, 8, *size))


def gate(name, size):
    return GATES[name](16, 8, 4, dims=len(size))


@pytest.mark.parametrize("name", BUILDERS)
def test_reference(name):
    module, case = BUILDERS[name]().eval(), CASES[name]
    assert {key: list(v.shape) for key, v in module.state_dict().items()} == case["keys"]
    inputs = {key: parity.normal(**value) for key, value in case["inputs"].items()}
    with np.load(parity.REFERENCE / "gates.npz") as arrays, torch.no_grad():
        expected = torch.from_numpy(arrays[name])
        torch.testing.assert_close(parity.fill(module)(**inputs), expected, rtol=1e-5, atol=1e-5)


@EVERY_GATE
@SIZES
@pytest.mark.parametrize("ratio", [1, 2])
def test_gate_keeps_the_skip_s_shape_and_uses_every_parameter(name, size, ratio):
    g, x = gate_inputs(size, ratio)
    module = parity.fill(gate(name, size)).eval()  # in training a batch norm cancels biases
    output = module(g, x)
    assert output.shape == x.shape
    output.square().sum().backward()
    assert not [n for n, p in module.named_parameters() if not p.grad.abs().max() > 1e-7]


@EVERY_GATE
@SIZES
def test_attention_map_is_one_share_for_each_position(name, size):
    g, x = gate_inputs(size, 2)
    alpha = parity.fill(gate(name, size)).eval().attention_map(g, x)
    assert alpha.shape == (2, 1, *size)
    assert 0 <= alpha.min() < alpha.max() <= 1


@pytest.mark.parametrize("name", ["additive", "stable", "multi_scale"])
@SIZES
def test_output_is_the_skip_times_the_map(name, size):
    g, x = gate_inputs(size)
    module = parity.fill(gate(name, size)).eval()
    assert torch.equal(module(g, x), x * module.attention_map(g, x))


def test_dual_gate_weighs_positions_then_channels():
    """Over the additive part the ratio of the output to it is one number for each channel."""
    g, x = gate_inputs((6, 8))
    module = parity.fill(gate("dual", (6, 8))).eval()
    with torch.no_grad():
        share = module(g, x) / (x * module.attention_map(g, x))
    torch.testing.assert_close(share, share[..., :1, :1].expand_as(share), rtol=1e-4, atol=1e-4)
    assert share.std(dim=1).max() > 1e-3


@SIZES
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_stable_gate_starts_open_at_0_73(size, mode):
    alpha = getattr(StableGate(16, 8, 4, dims=len(size)), mode)().attention_map(*gate_inputs(size))
    assert alpha.mean().item() == pytest.approx(0.73, abs=0.02)
    assert alpha.std() < 0.02


@pytest.mark.parametrize(("logit", "limit"), [(-100.0, 0.01), (100.0, 0.99)])
def test_stable_gate_is_never_shut_nor_fully_open(logit, limit):
    module = StableGate(16, 8, 4)
    nn.init.constant_(module.psi[0].bias, logit)
    alpha = module.attention_map(*gate_inputs((6, 8)))
    torch.testing.assert_close(alpha, torch.full_like(alpha, limit))


def test_stable_gate_has_a_gradient_where_a_clamp_would_have_none():
    module = StableGate(16, 8, 4)
    nn.init.constant_(module.psi[0].bias, 5.0)  # sigmoid(5) = 0.993
    module.attention_map(*gate_inputs((6, 8))).sum().backward()
    assert module.psi[0].bias.grad.abs() > 0


def test_stable_gate_does_not_look_at_the_rest_of_the_batch():
    g, x = gate_inputs((6, 8))
    module = parity.fill(StableGate(16, 8, 4)).train()
    torch.testing.assert_close(module(g, x)[:1], module(g[:1], x[:1]))


def test_multi_scale_gate_sees_wider_surroundings_than_the_additive_gate():
    """A change at one position of g reaches that position, or whole blocks of 4 x 4."""
    g, x = gate_inputs((16, 16))
    changed = g.clone()
    changed[..., 5, 5] += 3

    def reach(module):
        module = parity.fill(module).eval()
        difference = (module.attention_map(g, x) - module.attention_map(changed, x)).abs()
        return int((difference > 1e-6).any(dim=0).sum())

    with torch.no_grad():
        assert reach(AdditiveGate(16, 8, 4)) <= 1
        assert reach(MultiScaleGate(16, 8, 4)) >= 16


def test_bottleneck_commutes_with_a_permutation_of_positions():
    module = parity.fill(TransformerBottleneck(16, num_heads=4)).eval()
    x = parity.normal("x", (2, 16, 3, 4, 5))
    with torch.no_grad():
        torch.testing.assert_close(module(x.flip(2, 4)).flip(2, 4), module(x))
