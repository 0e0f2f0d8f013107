"""The Diffusion Transformer: public reference numbers, closed forms, and what it must hold."""

import math

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

from ldm.errors import ConfigError
from ldm.modules.diffusionmodules.dit import (
    DiT,
    DiTBlock,
    PatchEmbed,
    position_table,
    resize_positions,
    unpatchify,
)

TARGET = "ldm.modules.diffusionmodules.dit.DiT"
SMALL = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 24,
    "depth": 2,
    "num_heads": 4,
    "num_classes": 0,
    "learn_sigma": False,
    "out_channels": 1,
}


def dit(**options):
    return DiT(**{**SMALL, **options})


# ---- the public implementation -------------------------------------------------------------------


@pytest.mark.parametrize("name", parity.cases(TARGET))
def test_reference(name):
    parity.check(name)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "patch", "millions"),
    [
        pytest.param(384, 12, 6, 2, 33.0, id="DiT-S/2"),
        pytest.param(768, 12, 12, 4, 130.5, id="DiT-B/4"),
        pytest.param(1024, 24, 16, 2, 458.1, id="DiT-L/2"),
        pytest.param(1152, 28, 16, 2, 675.1, id="DiT-XL/2"),
    ],
)
def test_published_sizes(width, depth, heads, patch, millions):
    size = {"hidden_size": width, "depth": depth, "num_heads": heads, "patch_size": patch}
    with torch.device("meta"):
        model = DiT(**size, input_size=32)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.5)


def test_output_is_zero_at_initialisation_and_the_blocks_are_the_identity():
    model = dit()
    assert not model(**call_inputs(4, (8, 8))).any()
    tokens = torch.randn(2, 5, 24)
    assert torch.equal(DiTBlock(24, 4)(tokens, torch.randn(2, 24)), tokens)


# ---- positions and patches -----------------------------------------------------------------------


def test_positions_are_sines_then_cosines_of_the_last_axis_then_of_the_first():
    table = position_table((2, 3), 8)
    row, column = 1, 2
    angles = [column, column / 100], [row, row / 100]
    expected = [f(a) for axis in angles for f in (math.sin, math.cos) for a in axis]
    torch.testing.assert_close(table[0, row * 3 + column], torch.tensor(expected))


def test_a_width_that_does_not_divide_is_filled_with_zeros():
    table = position_table((2, 2, 2), 20)
    assert table.shape == (1, 8, 20)
    assert not table[..., 18:].any()
    assert len({tuple(row) for row in table[0].tolist()}) == 8


def test_a_resized_table_stretches_the_positions():
    """A table linear in the position stays so inside, up to the 3/64 that torch's cubic is off."""
    column = torch.arange(8.0).repeat(8).reshape(1, 64, 1)
    wide = resize_positions(column, (8, 8), (8, 16)).reshape(8, 16)
    expected = (torch.arange(4.0, 12) / 2 - 0.25).expand(8, 8)
    torch.testing.assert_close(wide[:, 4:12], expected, rtol=0, atol=0.05)
    assert resize_positions(column, (8, 8), (8, 8)) is column


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_projection_of_patches_is_the_convolution(dims, dtype):
    """In bfloat16 too, where the strided kernels of some CPUs are wrong."""
    conv = getattr(torch.nn, f"Conv{dims}d")(16, 24, 4, stride=4).double()
    product = PatchEmbed(16, 24, 4, dims).proj.double()
    product.load_state_dict(conv.state_dict())
    x = torch.randn(2, 16, *[8, 12, 4][:dims], dtype=torch.float64)
    difference = product.to(dtype)(x.to(dtype)).double() - conv(x)
    assert difference.norm() < (1e-12 if dtype is torch.float64 else 0.01) * conv(x).norm()


@pytest.mark.parametrize("size", [(4, 6), (2, 4, 6)], ids=str)
def test_unpatchify_inverts_the_order_of_a_patch_embedding(size):
    """An embedding that lists the pixels of a patch, channel last, is undone exactly."""
    dims, channels, patch = len(size), 3, 2
    embed = PatchEmbed(channels, channels * patch**dims, patch, dims)
    pixels = torch.eye(channels * patch**dims).unflatten(0, (patch**dims, channels))
    weight = pixels.permute(2, 1, 0).reshape(embed.proj.weight.shape)  # (out, in, *patch)
    embed.proj.weight.data, embed.proj.bias.data = weight, torch.zeros_like(embed.proj.bias)
    x = torch.randn(2, channels, *size)
    assert torch.equal(unpatchify(embed(x), [n // patch for n in size], patch), x)


def test_other_sizes_than_the_trained_one():
    model = parity.fill(dit())
    with torch.no_grad():
        assert model(**call_inputs(4, (8, 8))).shape == (3, 1, 8, 8)
        assert model(**call_inputs(4, (12, 6))).shape == (3, 1, 12, 6)


@settings(max_examples=10)
@given(
    trained=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    patch=st.sampled_from([1, 2, 4]),
)
def test_every_multiple_of_the_patch_is_a_size(trained, grid, patch):
    model = dit(input_size=trained, patch_size=patch, depth=1)
    size = [n * patch for n in grid]
    with torch.no_grad():
        assert model(**call_inputs(4, size)).shape == (3, 1, *size)


def test_image_size_is_the_input_size_by_another_name():
    assert dit(image_size=[16, 8]).grid == dit(input_size=(16, 8)).grid == (8, 4)


# ---- conditions ----------------------------------------------------------------------------------


def test_condition_tokens_reach_the_output_and_double_the_sequence():
    model = parity.fill(dit(condition_tokens=True)).eval()
    lengths = []
    model.blocks[0].register_forward_hook(lambda m, args, out: lengths.append(out.shape[1]))
    kwargs = call_inputs(4, (8, 8))
    changed = {**kwargs, "x": kwargs["x"].clone()}
    changed["x"][:, 3] += 1
    with torch.no_grad():
        assert (model(**kwargs) - model(**changed)).abs().max() > 1e-2
    assert lengths == [32, 32]


def test_labels_are_dropped_in_training_only():
    model = parity.fill(dit(num_classes=3, class_dropout_prob=1.0))
    kwargs = call_inputs(4, (8, 8))
    y = torch.tensor([0, 1, 2])
    with torch.no_grad():
        nothing = model.eval()(**kwargs, y=torch.full((3,), 3))
        named = model(**kwargs, y=y)
        dropped = model.train()(**kwargs, y=y)
    torch.testing.assert_close(dropped, nothing)
    assert (named - nothing).abs().max() > 1e-2


def test_table_of_classes_has_a_row_for_no_class_only_if_labels_are_dropped():
    rows = [
        dit(num_classes=5, class_dropout_prob=p).y_embedder.embedding_table.num_embeddings
        for p in (0.0, 0.1)
    ]
    assert rows == [5, 6]


# ---- what holds with every option ---------------------------------------------------------------

OPTIONS = [
    {},
    {"learn_sigma": True},
    {"condition_tokens": True},
    {"num_classes": 3, "class_dropout_prob": 0.0},
    {"dims": 3, "input_size": 4},
    {"mlp_ratio": 2.5},
]


def full_inputs(options):
    dims = options.get("dims", 2)
    more = {"y": torch.tensor([0, 1, 2])} if options.get("num_classes") else {}
    return call_inputs(4, [8, 6, 4][-dims:], **more)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradient_in_every_parameter(options):
    kwargs = full_inputs(options)
    channels = 2 if options.get("learn_sigma") else 1
    check_gradients(dit(**options), kwargs, (3, channels, *kwargs["x"].shape[2:]))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_samples_do_not_see_each_other(options):
    check_samples_are_independent(dit(**options), full_inputs(options))


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        ({"num_heads": 5}, {}, "num_heads is 5"),
        ({"dims": 4}, {}, "4 dimensions"),
        ({"input_size": [8, 8, 8]}, {}, "2 dimensions"),
        ({"condition_tokens": True, "out_channels": 4}, {}, "4 input channels"),
        ({}, {"x": torch.zeros(3, 3, 8, 8)}, "4 channels"),
        ({}, {"x": torch.zeros(3, 4, 8, 7)}, "multiples of 2"),
        ({}, {"y": torch.zeros(3)}, "y is given"),
        ({"num_classes": 3}, {}, "y is missing"),
        ({}, {"context": torch.zeros(3, 2, 2)}, "'context' came"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_refused(options, change, words):
    with pytest.raises(ConfigError, match=words):
        dit(**options)(**{**call_inputs(4, (8, 8)), **change})
