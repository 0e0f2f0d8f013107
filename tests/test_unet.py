"""The U-Net: public reference numbers, and properties that hold for every choice of options."""

import inspect
import math

import parity
import pytest
import torch
import torch.utils.checkpoint
from families import SMALL_UNET
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ldm.errors import ConfigError
from ldm.modules.attention import CrossAttention, SpatialTransformer
from ldm.modules.diffusionmodules.blocks import AttentionBlock
from ldm.modules.diffusionmodules.openaimodel import (
    UNetDecoder,
    UNetEncoder,
    UNetModel,
    UNetSettings,
    middle_block,
)
from ldm.modules.diffusionmodules.util import Downsample, Upsample, timestep_embedding

TARGET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
SMALL = {"in_channels": 2, **SMALL_UNET}
TRANSFORMER = {"use_spatial_transformer": True, "context_dim": 12}


@pytest.fixture(autouse=True)
def one_thread_and_one_seed():
    """Tensors this small are slower on several threads, many times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def unet(**options):
    """A small U-Net without the zeros of its initialisation."""
    return parity.fill(UNetModel(**{**SMALL, **options})).eval()


def call_inputs(model, batch=2, size=8):
    """Inputs that fit ``model``, the same at each call."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    own = model.settings
    kwargs = {
        "x": draw(batch, model.in_channels, *[size] * own.dims),
        "timesteps": torch.arange(batch) * 300 + 10,
    }
    if own.use_spatial_transformer:
        shared = isinstance(own.context_dim, int)
        widths = [own.context_dim] if shared else own.context_dim
        contexts = [draw(batch, 5, width) for width in widths]
        kwargs["context"] = contexts[0] if shared else contexts
    if isinstance(model.num_classes, int):
        kwargs["y"] = torch.arange(batch) % model.num_classes
    elif model.num_classes == "continuous":
        kwargs["y"] = draw(batch, 1)
    elif model.num_classes == "sequential":
        kwargs["y"] = draw(batch, model.label_emb[0][0].in_features)
    return kwargs


# ---- the public implementations -----------------------------------------------------------------


@pytest.mark.parametrize("name", parity.cases(TARGET))
def test_reference(name):
    parity.check(name)


def test_size_of_the_network_of_the_paper():
    with torch.device("meta"):
        model = UNetModel(
            image_size=256,
            in_channels=4,
            out_channels=1,
            model_channels=96,
            num_res_blocks=2,
            attention_resolutions=[8, 16, 32],
            channel_mult=[1, 1, 2, 2, 3, 3],
            num_head_channels=48,
        )
    assert sum(p.numel() for p in model.parameters()) == 45_107_041
    assert model.size_divisor == 32


def test_constructor_shows_every_option_and_takes_lists_of_omegaconf():
    names = inspect.signature(UNetModel).parameters
    assert {"in_channels", "num_classes", "channel_mult", "legacy"} <= set(names)
    assert "settings" not in names
    options = OmegaConf.create(
        {**SMALL, **TRANSFORMER, "context_dim": [12], "num_res_blocks": [1, 2]}
    )
    model = UNetModel(**options)
    assert model.settings.num_res_blocks == (1, 2)
    assert model(**call_inputs(model)).shape == (2, 1, 8, 8)


# ---- every option --------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"dims": 1},
    {"dims": 3},
    {"dims": 3, "resblock_updown": True},
    {"dims": 3, "conv_resample": False},
    {"dims": 1, **TRANSFORMER},
    {"dims": 3, **TRANSFORMER},
    {"num_res_blocks": [1, 2]},
    {"attention_resolutions": [1, 2]},
    {"attention_resolutions": []},
    {"num_res_blocks": 2, "num_attention_blocks": [0, 1]},
    {"channel_mult": [2, 1]},
    {"channel_mult": [1.5, 1]},
    {"conv_resample": False},
    {"dropout": 0.5},
    {"use_scale_shift_norm": True},
    {"resblock_updown": True, "use_scale_shift_norm": True},
    {"use_new_attention_order": True},
    {"num_heads": -1, "num_head_channels": 16},
    {"num_heads_upsample": 2},
    {"num_classes": 3},
    {"num_classes": "continuous"},
    {"num_classes": "sequential", "adm_in_channels": 6},
    TRANSFORMER,
    {**TRANSFORMER, "use_linear_in_transformer": True, "legacy": False},
    {**TRANSFORMER, "transformer_depth": [1, 2], "attention_resolutions": [1, 2]},
    {**TRANSFORMER, "transformer_depth": 2, "context_dim": [12, 20]},
    {**TRANSFORMER, "disable_self_attentions": [False, True], "disable_middle_self_attn": True},
    {**TRANSFORMER, "num_classes": "sequential", "adm_in_channels": 6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_gives_a_finite_output_and_a_gradient_in_every_parameter(options):
    model = unet(**options).train()
    kwargs = call_inputs(model)
    output = model(**kwargs)
    assert output.shape == (2, 1, *kwargs["x"].shape[2:])
    assert output.isfinite().all()
    output.square().mean().backward()
    idle = [n for n, p in model.named_parameters() if not p.grad.abs().max() > 1e-7]
    assert not idle


@settings(max_examples=10, deadline=None)
@given(
    levels=st.integers(1, 3),
    factors=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    res_blocks=st.integers(1, 2),
    updown=st.booleans(),
)
def test_every_multiple_of_the_divisor_is_a_size(levels, factors, res_blocks, updown):
    model = unet(
        channel_mult=[1] * levels,
        num_res_blocks=res_blocks,
        resblock_updown=updown,
    )
    size = [factor * model.size_divisor for factor in factors]
    with torch.no_grad():
        assert model(torch.zeros(1, 2, *size), torch.tensor([5])).shape == (1, 1, *size)


def test_codebook_head_replaces_the_output():
    model = unet(n_embed=11)
    output = model(**call_inputs(model))
    assert output.shape == (2, 11, 8, 8)
    assert {"id_predictor.1.weight", "out.2.weight"} <= set(model.state_dict())


def test_a_volume_keeps_its_first_axis():
    model = unet(dims=3, model_channels=32)
    assert model(torch.zeros(1, 2, 5, 4, 6), torch.tensor([5])).shape == (1, 1, 5, 4, 6)


def test_state_dict_does_not_depend_on_checkpointing_or_precision_flags():
    plain = unet().state_dict()
    assert (
        plain.keys() == unet(use_checkpoint=True, use_fp16=True, use_bf16=True).state_dict().keys()
    )


# ---- what the output depends on ------------------------------------------------------------------


def test_output_is_zero_at_initialisation():
    model = UNetModel(**SMALL)
    kwargs = call_inputs(model)
    assert torch.equal(model(**kwargs), torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}, TRANSFORMER], ids=str)
def test_samples_of_a_batch_do_not_see_each_other(options):
    model = unet(**options)
    kwargs = call_inputs(model, batch=3)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        output = model(**kwargs)
        permuted = model(**{name: value[order] for name, value in kwargs.items()})
    torch.testing.assert_close(permuted, output[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "timesteps"),
        ({"num_classes": 3}, "y"),
        ({"num_classes": "continuous"}, "y"),
        ({"num_classes": "sequential", "adm_in_channels": 6}, "y"),
        (TRANSFORMER, "context"),
    ],
    ids=str,
)
def test_output_follows_each_condition(options, name):
    model = unet(**options)
    kwargs = call_inputs(model)
    changed = {**kwargs, name: kwargs[name].flip(0)}
    with torch.no_grad():
        assert (model(**kwargs) - model(**changed)).abs().max() > 1e-2


def test_timesteps_may_be_fractional_and_the_output_is_continuous_in_them():
    model = unet()
    x = call_inputs(model)["x"]
    with torch.no_grad():
        whole, same, near = (model(x, torch.full((2,), t)) for t in (10, 10.0, 10.001))
    torch.testing.assert_close(whole, same, rtol=0, atol=0)
    assert 0 < (near - whole).abs().max() < 1e-2


def test_shared_context_equals_the_same_context_for_each_block():
    one = unet(**TRANSFORMER, transformer_depth=2)
    two = unet(**{**TRANSFORMER, "context_dim": [12, 12]}, transformer_depth=2)
    kwargs = call_inputs(one)
    context = kwargs.pop("context")
    with torch.no_grad():
        shared = one(**kwargs, context=context)
        listed = two(**kwargs, context=[context, context])
        other = two(**kwargs, context=[context, context.flip(0)])
    torch.testing.assert_close(shared, listed, rtol=0, atol=0)
    assert (listed - other).abs().max() > 1e-3


# ---- parts against closed forms ------------------------------------------------------------------


def test_timestep_embedding_is_cosines_then_sines_of_geometric_frequencies():
    embedding = timestep_embedding(torch.tensor([0.0, 2.5]), 7, max_period=100.0)
    frequencies = [1.0, 100 ** (-1 / 3), 100 ** (-2 / 3)]
    angles = [2.5 * f for f in frequencies]
    expected = [[1.0] * 3 + [0.0] * 4, [*map(math.cos, angles), *map(math.sin, angles), 0.0]]
    torch.testing.assert_close(embedding, torch.tensor(expected))


def test_resampling_without_convolution_is_a_mean_and_a_copy():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    small = Downsample(1, use_conv=False)(x)
    assert small.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(Downsample(1, use_conv=False)(Upsample(1, use_conv=False)(small)), small)


def test_attention_is_softmax_of_scaled_products():
    attention = parity.fill(CrossAttention(6, context_dim=4, heads=1, dim_head=8))
    x, context = torch.randn(2, 5, 6), torch.randn(2, 3, 4)
    q, k, v = attention.to_q(x), attention.to_k(context), attention.to_v(context)
    weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(8), dim=-1)
    torch.testing.assert_close(attention(x, context), attention.to_out(weights @ v))


def test_qkv_orders_differ_by_a_permutation_of_rows():
    heads, dim = 4, 8
    old, new = (AttentionBlock(32, heads, use_new_attention_order=flag) for flag in (False, True))
    parity.fill(old)
    new.load_state_dict(old.state_dict())
    rows = torch.arange(96).reshape(heads, 3, dim).transpose(0, 1).flatten()
    new.qkv.weight.data, new.qkv.bias.data = old.qkv.weight[rows], old.qkv.bias[rows]
    x = torch.randn(2, 32, 4, 4)
    torch.testing.assert_close(new(x), old(x))


def test_linear_and_convolutional_projections_are_the_same_mathematics():
    linear, conv = (SpatialTransformer(32, 2, 16, use_linear=flag) for flag in (True, False))
    state = parity.fill(linear).state_dict()
    own = conv.state_dict()
    conv.load_state_dict({key: value.reshape(own[key].shape) for key, value in state.items()})
    x = torch.randn(2, 32, 4, 4)
    torch.testing.assert_close(conv(x), linear(x))


def test_heads_of_the_decoder_follow_the_legacy_rule():
    def heads(**options):
        model = UNetModel(**SMALL, num_heads_upsample=2, **options)
        blocks = [m for m in model.output_blocks.modules() if isinstance(m, AttentionBlock)]
        return {block.num_heads for block in blocks}

    assert heads() == {2}
    assert heads(legacy=False) == {4}
    assert heads(num_head_channels=8) == {8}


def test_parts_combine_into_another_backbone():
    own = UNetSettings(
        model_channels=32, num_res_blocks=2, attention_resolutions=[2], channel_mult=[1, 2]
    )
    encoders = [UNetEncoder(own, in_channels=1) for _ in range(2)]
    middle, decoder = middle_block(own), UNetDecoder(own)
    x, emb = torch.randn(2, 1, 8, 8), torch.randn(2, own.emb_channels)
    streams = [encoder(x, emb) for encoder in encoders]
    assert [h.shape[1] for h in streams[0]] == own.skip_channels
    skips = [a + b for a, b in zip(*streams, strict=True)]
    assert decoder(middle(skips[-1], emb), skips, emb).shape == (2, 32, 8, 8)
    assert skips == []


# ---- precision, memory format, checkpointing -----------------------------------------------------


def gradients(model, autocast=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**call_inputs(model))
    output.square().mean().backward()
    return output.detach(), {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16-autocast"])
@pytest.mark.parametrize("options", [{"dropout": 0.3}, TRANSFORMER], ids=str)
def test_checkpointing_changes_nothing(options, autocast):
    results = []
    for flag in (False, True):
        torch.manual_seed(0)
        results.append(gradients(unet(**options, use_checkpoint=flag).train(), autocast))
    (plain, plain_grads), (recomputed, recomputed_grads) = results
    torch.testing.assert_close(recomputed, plain)
    torch.testing.assert_close(recomputed_grads, plain_grads)


def test_checkpointing_is_off_when_it_says_off_and_without_gradients(monkeypatch):
    calls = []
    original = torch.utils.checkpoint.checkpoint

    def counting(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counting)
    gradients(unet())
    assert not calls
    model = unet(use_checkpoint=True)
    with torch.no_grad():
        model(**call_inputs(model))
    assert not calls
    gradients(model)
    assert len(calls) == len(model.input_blocks) + len(model.output_blocks) + 1


@pytest.mark.parametrize(
    "options",
    [{}, {"use_scale_shift_norm": True, "num_classes": "continuous"}, TRANSFORMER],
    ids=str,
)
def test_bf16_weights_stay_close_to_fp32(options):
    model = unet(**options)
    kwargs = call_inputs(model)
    with torch.no_grad():
        exact = model(**kwargs)
        rounded = model.to(torch.bfloat16)(**kwargs)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.03 * exact.norm()


def test_bf16_weights_embed_timesteps_in_fp32():
    """In bf16, 999 and 1000 are the same number: neighbours must still differ."""
    model = unet().to(torch.bfloat16)
    first, second = model.time_embed(torch.tensor([999.0, 1000.0])).float()
    assert (first - second).abs().max() > 0.05


@pytest.mark.parametrize("options", [{}, TRANSFORMER, {"resblock_updown": True}], ids=str)
def test_channels_last_is_kept_and_changes_nothing(options):
    model = unet(**options)
    kwargs = call_inputs(model)
    with torch.no_grad():
        plain = model(**kwargs)
        model = model.to(memory_format=torch.channels_last)
        kwargs["x"] = kwargs["x"].to(memory_format=torch.channels_last)
        layouts = []
        for block in [*model.input_blocks, model.middle_block, *model.output_blocks]:
            block.register_forward_hook(
                lambda module, args, h: layouts.append(
                    h.is_contiguous(memory_format=torch.channels_last)
                )
            )
        output = model(**kwargs)
    assert layouts and all(layouts)
    torch.testing.assert_close(output, plain, rtol=1e-4, atol=1e-4)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"context_dim": 12}, "CONFIG-VALUE", "use_spatial_transformer is False"),
        ({"use_spatial_transformer": True}, "CONFIG-VALUE", "context_dim is None"),
        ({"num_heads": 3}, "CONFIG-SHAPE", "num_heads is 3"),
        ({"num_heads": -1}, "CONFIG-SHAPE", "num_heads is -1"),
        ({"num_head_channels": 48}, "CONFIG-SHAPE", "num_head_channels is 48"),
        ({"model_channels": 24}, "CONFIG-SHAPE", "24 channels"),
        ({"dims": 4}, "CONFIG-VALUE", "dims is 4"),
        ({"num_res_blocks": 0}, "CONFIG-VALUE", "num_res_blocks"),
        ({"num_res_blocks": [1, 2, 3]}, "CONFIG-SHAPE", "num_res_blocks has 3 entries"),
        ({"num_attention_blocks": [1]}, "CONFIG-SHAPE", "num_attention_blocks has 1 entries"),
        ({"num_classes": "sequential"}, "CONFIG-VALUE", "adm_in_channels"),
        ({"num_classes": "words"}, "CONFIG-VALUE", "'words'"),
        ({**TRANSFORMER, "context_dim": [12, 12]}, "CONFIG-SHAPE", "1 transformer blocks"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(options, code, words):
    with pytest.raises(ConfigError, match=words) as error:
        UNetModel(**{**SMALL, **options})
    assert error.value.code == code


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        ({"num_classes": 3}, {"y": None}, "y is missing"),
        ({}, {"y": torch.tensor([0, 1])}, "y is given"),
        ({}, {"context": torch.zeros(2, 5, 12)}, "would ignore it"),
        (TRANSFORMER, {"context": None}, r"\[None\] came"),
        (TRANSFORMER, {"context": torch.zeros(2, 5, 13)}, r"\[13\] came"),
        (TRANSFORMER, {"context": [torch.zeros(2, 5, 12)] * 2}, r"\[12, 12\] came"),
        ({}, {"x": torch.zeros(2, 2, 8, 7)}, "multiples of 2"),
        ({}, {"x": torch.zeros(2, 3, 8, 8)}, "2 channels"),
        ({}, {"x": torch.zeros(2, 2, 8, 8, 8)}, "2 spatial axes"),
    ],
    ids=["no-y", "y", "context", "no-context", "width", "depth", "size", "channels", "dims"],
)
def test_inputs_that_do_not_fit_are_refused(options, change, words):
    model = unet(**options)
    with pytest.raises(ConfigError, match=words):
        model(**{**call_inputs(model), **change})
