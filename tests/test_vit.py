"""The other Transformers: ViT with long skips, plain Transformer, U-Net with Transformer middle."""

import inspect

import parity
import pytest
import torch
from families import (
    call_inputs,
    check_gradients,
    check_samples_are_independent,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ldm.errors import ConfigError
from ldm.modules.diffusionmodules.hybrid import HybridUNet
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.diffusionmodules.transformer import Transformer
from ldm.modules.diffusionmodules.vit import TransformerBlock, ViT

CHANNELS = {"in_channels": 4, "out_channels": 1}
SMALL = {
    ViT: {"image_size": 8, "patch_size": 2, "hidden_size": 24, "depth": 3, "num_heads": 4},
    Transformer: {
        "stem_channels": 64,
        "num_downsamplings": 1,
        "hidden_size": 64,
        "depth": 2,
        "num_heads": 4,
    },
    HybridUNet: {
        "model_channels": 64,
        "num_res_blocks": 1,
        "attention_resolutions": [],
        "channel_mult": [1, 1],
        "middle_depth": 2,
        "middle_heads": 4,
    },
}
FAMILIES = pytest.mark.parametrize("family", SMALL, ids=lambda family: family.__name__)


def build(family, **options):
    return family(**{**CHANNELS, **SMALL[family], **options})


# ---- what holds with every option ---------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("size", [(8, 6), (4, 6, 8)], ids=["2-D", "3-D"])
def test_gradient_in_every_parameter(family, size):
    model = build(family, dims=len(size))
    check_gradients(model, call_inputs(4, size), (3, 1, *size))


@FAMILIES
@settings(max_examples=8)
@given(factors=st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_every_multiple_of_the_divisor_is_a_size(family, factors):
    model = build(family)
    size = [n * model.size_divisor for n in factors]
    with torch.no_grad():
        assert model(**call_inputs(4, size)).shape == (3, 1, *size)


@FAMILIES
def test_constructor_names_the_facts_that_models_pass_down(family):
    assert {"in_channels", "out_channels"} <= set(inspect.signature(family).parameters)


@FAMILIES
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(3, 3, 8, 8)}, "4 channels"),
        ({"x": torch.zeros(3, 4, 8, 7)}, "multiples of 2"),
        ({"y": torch.zeros(3)}, "'y' came"),
        ({"context": torch.zeros(3, 2, 2)}, "'context' came"),
    ],
    ids=["channels", "size", "y", "context"],
)
def test_inputs_that_do_not_fit_are_refused(family, change, words):
    with pytest.raises(ConfigError, match=words):
        build(family)(**{**call_inputs(4, (8, 8)), **change})


# ---- ViT -----------------------------------------------------------------------------------------


def test_transformer_block_is_the_encoder_layer_of_torch():
    own = parity.fill(TransformerBlock(16, 4)).eval()
    torchs = nn.TransformerEncoderLayer(
        16, 4, dim_feedforward=64, activation="gelu", norm_first=True, batch_first=True, dropout=0.0
    )
    names = {"attn": "self_attn", "mlp.0": "linear1", "mlp.2": "linear2"}

    def renamed(key):
        for name, other in names.items():
            key = key.replace(name, other)
        return key

    torchs.load_state_dict({renamed(key): value for key, value in own.state_dict().items()})
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(own(x), torchs(x))


def test_vit_sequence_is_time_conditions_if_any_and_image():
    lengths = []
    for channels in (4, 1):
        model = build(ViT, in_channels=channels)
        model.mid_block.register_forward_hook(lambda m, args, out: lengths.append(out.shape[1]))
        model(**call_inputs(channels, (8, 8)))
    assert lengths == [1 + 16 + 16, 1 + 16]


def test_vit_skips_join_mirrored_blocks():
    """With the path through the middle cut, the first block still reaches the last by its skip."""
    model = parity.fill(build(ViT, depth=5)).eval()
    for block in (*model.in_blocks[1:], model.mid_block, *model.out_blocks[:-1]):
        block.register_forward_hook(lambda m, args, out: torch.zeros_like(out))
    kwargs = call_inputs(4, (8, 8))
    with torch.no_grad():
        assert (model(**kwargs)[0] - model(**kwargs)[1]).abs().max() > 1e-2


def test_vit_needs_a_middle_block():
    with pytest.raises(ConfigError, match="depth is 4"):
        build(ViT, depth=4)


# ---- plain Transformer ---------------------------------------------------------------------------


def test_transformer_has_no_parameter_that_depends_on_the_image_size():
    model = parity.fill(build(Transformer)).eval()
    with torch.no_grad():
        for size in [(2, 2), (8, 8), (10, 4)]:
            assert model(**call_inputs(4, size)).shape == (3, 1, *size)


def test_transformer_sees_positions():
    """Without them, blocks over tokens would commute with a flip of the token grid."""
    model = parity.fill(build(Transformer)).eval()
    model.stem, model.head, model.out = (nn.Conv2d(4, 64, 1), nn.Identity(), nn.Conv2d(64, 1, 1))
    kwargs = call_inputs(4, (4, 4))
    flipped = {**kwargs, "x": kwargs["x"].flip(3)}
    with torch.no_grad():
        assert (model(**flipped).flip(3) - model(**kwargs)).abs().max() > 1e-3


# ---- hybrid --------------------------------------------------------------------------------------


def test_hybrid_encoder_and_decoder_are_those_of_the_u_net():
    shared = {k: v for k, v in SMALL[HybridUNet].items() if not k.startswith("middle")}
    unet = UNetModel(**CHANNELS, **shared).state_dict()
    hybrid = build(HybridUNet).state_dict()
    differing = {key.split(".")[0] for key in unet.keys() ^ hybrid.keys()}
    assert differing == {"middle_block"}


def test_hybrid_takes_a_context_where_its_settings_say_so():
    options = {"use_spatial_transformer": True, "context_dim": 6, "attention_resolutions": [2]}
    model = build(HybridUNet, **options)
    kwargs = call_inputs(4, (8, 8), context=torch.randn(3, 5, 6))
    check_gradients(model, kwargs, (3, 1, 8, 8))
    check_samples_are_independent(model, kwargs)


@pytest.mark.parametrize("family", [ViT, Transformer], ids=lambda family: family.__name__)
def test_heads_must_divide_the_width(family):
    with pytest.raises(ConfigError, match="num_heads is 5"):
        build(family, num_heads=5)
