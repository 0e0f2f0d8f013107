"""Attention U-Net and its relatives, as denoisers and as segmenters."""

import inspect

import parity
import pytest
import torch
from families import (
    call_inputs,
    check_bf16,
    check_gradients,
    check_samples_are_independent,
    check_timestep_matters,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import ConfigError
from ldm.modules.diffusionmodules.attention_unet import AttentionUNet
from ldm.modules.gates import GATES, AdditiveGate

SMALL = {"in_channels": 4, "out_channels": 1, "channels": [64, 64, 96]}
RELATIVES = {
    "plain": {"gated_levels": []},
    "residual_se": {"block": "residual_se", "gated_levels": []},
    **{f"gate_{name}": {"gate": name} for name in GATES},
    "deepest_gate_only": {"gated_levels": [1]},
    "transformer": {"gate": "stable", "transformer_depth": 2, "num_heads": 4},
}
EVERY_RELATIVE = pytest.mark.parametrize("options", RELATIVES.values(), ids=RELATIVES)


def unet(**options):
    return AttentionUNet(**{**SMALL, **options})


# ---- what every backbone holds -------------------------------------------------------------------


@EVERY_RELATIVE
@pytest.mark.parametrize("size", [(8, 12), (8, 4, 8)], ids=["2-D", "3-D"])
def test_gradient_in_every_parameter(options, size):
    check_gradients(unet(**options, dims=len(size)), call_inputs(4, size), (3, 1, *size))


@EVERY_RELATIVE
def test_samples_do_not_see_each_other(options):
    check_samples_are_independent(unet(**options), call_inputs(4, (8, 8)))


@EVERY_RELATIVE
def test_output_follows_the_timestep(options):
    check_timestep_matters(unet(**options), call_inputs(4, (8, 8)))


@EVERY_RELATIVE
def test_bf16_weights_stay_close(options):
    check_bf16(unet(**options), call_inputs(4, (8, 8)))


@settings(max_examples=8)
@given(levels=st.integers(2, 4), factors=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_every_multiple_of_the_divisor_is_a_size(levels, factors):
    model = unet(channels=[32] * levels).eval()
    size = [n * model.size_divisor for n in factors]
    with torch.no_grad():
        assert model(**call_inputs(4, size)).shape == (3, 1, *size)


def test_constructor_names_the_facts_that_models_pass_down():
    assert {"in_channels", "out_channels"} <= set(inspect.signature(AttentionUNet).parameters)


# ---- segmenters ----------------------------------------------------------------------------------


@EVERY_RELATIVE
def test_a_segmenter_has_no_layer_that_only_timesteps_use(options):
    model = parity.fill(unet(**options, timestep_conditioning=False, out_channels=3))
    output = model(call_inputs(4, (8, 8))["x"])
    assert output.shape == (3, 3, 8, 8)
    output.square().mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_a_denoiser_segments_when_no_timestep_comes():
    model = parity.fill(unet()).eval()
    kwargs = call_inputs(4, (8, 8))
    with torch.no_grad():
        assert (model(kwargs["x"]) - model(**kwargs)).abs().max() > 1e-2


def test_deep_supervision_predicts_at_every_level():
    model = parity.fill(unet(channels=[32, 32, 64, 64], deep_supervision=True)).eval()
    x = call_inputs(4, (16, 8))["x"]
    prediction, features = model.forward_with_features(x)
    shapes = [tuple(p.shape) for p in (prediction, *features["deep_supervision"])]
    assert shapes == [(3, 1, 16, 8), (3, 1, 8, 4), (3, 1, 4, 2)]
    assert torch.equal(prediction, model(x))
    total = prediction.mean() + sum(p.mean() for p in features["deep_supervision"])
    total.backward()
    assert all(head.weight.grad.abs().max() > 0 for head in model.heads)


def test_without_deep_supervision_there_is_one_head():
    model = unet()
    assert len(model.heads) == 1
    assert model.forward_with_features(call_inputs(4, (8, 8))["x"])[1] == {"deep_supervision": []}


# ---- structure -----------------------------------------------------------------------------------


def test_default_is_the_published_network():
    """Oktay et al.: five levels from 64 to 1024 and four gates. The plain U-Net has 31.0 M."""
    with torch.device("meta"):
        plain = AttentionUNet(
            in_channels=1, out_channels=1, gated_levels=[], timestep_conditioning=False
        )
        gated = AttentionUNet(in_channels=1, out_channels=1, timestep_conditioning=False)
    gates = [AdditiveGate(c, c, c // 2) for c in (64, 128, 256, 512)]
    sizes = [sum(p.numel() for p in m.parameters()) for m in (plain, gated, *gates)]
    assert sizes[0] / 1e6 == pytest.approx(31.0, abs=0.1)
    assert sizes[1] == sizes[0] + sum(sizes[2:])


def test_attention_maps_are_what_the_gates_apply():
    model = parity.fill(unet(gate="stable")).eval()
    kwargs = call_inputs(4, (8, 12))
    maps = model.get_attention_maps(kwargs["x"], kwargs["timesteps"])
    assert {level: tuple(alpha.shape) for level, alpha in maps.items()} == {
        0: (3, 1, 8, 12),
        1: (3, 1, 4, 6),
    }
    applied = {}
    model.gates["0"].register_forward_hook(
        lambda gate, inputs, output: applied.update(output=output, skip=inputs[1])
    )
    model(**kwargs)
    torch.testing.assert_close(applied["skip"] * maps[0], applied["output"])


def test_attention_maps_leave_no_hooks_behind_and_are_none_without_gates():
    model = unet().eval()
    model.get_attention_maps(torch.zeros(1, 4, 8, 8))
    assert not any(gate._forward_pre_hooks for gate in model.gates.values())
    assert unet(gated_levels=[]).get_attention_maps(torch.zeros(1, 4, 8, 8)) == {}


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        ({"gate": "aditive"}, {}, "nearest: 'additive'"),
        ({"block": "dense"}, {}, "block is 'dense'"),
        ({"gated_levels": [2]}, {}, "levels from 0 to 1"),
        ({"channels": [16, 32]}, {}, "16 channels"),
        ({"channels": [32]}, {}, "two levels"),
        ({"transformer_depth": 1, "num_heads": 5}, {}, "num_heads is 5"),
        ({"timestep_conditioning": False}, {}, "no timestep_conditioning"),
        ({}, {"x": torch.zeros(3, 3, 8, 8)}, "4 channels"),
        ({}, {"x": torch.zeros(3, 4, 8, 6)}, "multiples of 4"),
        ({}, {"y": torch.zeros(3)}, "'y' came"),
        ({}, {"context": torch.zeros(3, 2, 2)}, "'context' came"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_refused(options, change, words):
    with pytest.raises(ConfigError, match=words):
        unet(**options)(**{**call_inputs(4, (8, 8)), **change})
