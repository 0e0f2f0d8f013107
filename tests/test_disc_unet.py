"""DisC-Diff's multi-stream U-Net: reference numbers, streams by name, disentangled features."""

import parity
import pytest
import torch
from families import SMALL_UNET, STREAM_OPTIONS, call_inputs, check_gradients

from guided_diffusion.unet import UNet_disc_Model
from ldm.errors import ConfigError
from ldm.util import instantiate_from_config

TARGET = "guided_diffusion.unet.UNet_disc_Model"


def build(**options):
    return UNet_disc_Model(**{**SMALL_UNET, **options})


# ---- the public implementation -------------------------------------------------------------------


@pytest.mark.parametrize("name", parity.cases(TARGET))
def test_reference(name):
    parity.check(name)


@pytest.mark.parametrize("name", parity.cases(TARGET))
@torch.inference_mode()
def test_reference_features(name):
    _, features = parity.build(name).forward_with_features(**parity.inputs(name))
    for kind in ("common", "distinct"):
        means = torch.stack([feature.mean() for feature in features[kind]])
        torch.testing.assert_close(means, parity.expected(f"{name}/{kind}_mean"), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        (
            {"model_channels": 160, "channel_mult": [1, 2, 4, 4], "attention_resolutions": [16]},
            272_104_161,
        ),
        (
            {
                "model_channels": 96,
                "channel_mult": [1, 1, 2, 2, 3, 3],
                "attention_resolutions": [8, 16, 32],
            },
            85_260_865,
        ),
    ],
    ids=["published", "96-channels"],
)
def test_sizes_of_the_published_networks(options, parameters):
    with torch.device("meta"):
        model = build(num_res_blocks=2, num_head_channels=32, **options)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_yaml_of_the_research_code_instantiates():
    params = {
        **{"image_size": 64, "in_channels": 1, "use_fp16": False, "num_classes": None},
        **{"dropout": 0.0, "num_heads": 4, "num_head_channels": 32, "num_heads_upsample": -1},
        **{"use_checkpoint": False, "use_scale_shift_norm": True, "resblock_updown": True},
        **{"use_new_attention_order": False, "conv_resample": True, "dims": 2, "out_channels": 2},
        **{"model_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 1]},
        **{"attention_resolutions": [16]},
    }
    model = instantiate_from_config({"target": TARGET, "params": params})
    assert model(torch.zeros(1, 4, 8, 8), torch.tensor([5])).shape == (1, 2, 8, 8)


# ---- what holds with every option ---------------------------------------------------------------


@pytest.mark.parametrize("options", STREAM_OPTIONS, ids=str)
def test_gradient_in_every_parameter(options):
    model = build(**options)
    size = (8,) * model.settings.dims
    check_gradients(model, call_inputs(model.in_channels, size), (3, model.out_channels, *size))


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"num_classes": 3}, {"y": torch.arange(3)}),
        (
            {"use_spatial_transformer": True, "context_dim": 12},
            {"context": parity.normal("context", (3, 5, 12))},
        ),
    ],
    ids=["y", "context"],
)
def test_classes_and_contexts_reach_every_parameter_too(options, more):
    check_gradients(build(**options), call_inputs(4, (8, 8), **more), (3, 1, 8, 8))


# ---- streams and features ------------------------------------------------------------------------


def encoders(model):
    return {key.split(".")[0] for key in model.state_dict() if key.startswith("input_blocks")}


@pytest.mark.parametrize("names", [["t1"], ["t1", "t2", "flair", "pd"]], ids=len)
def test_any_number_of_conditions(names):
    model = build(condition_names=names)
    own = {f"input_blocks_{name.upper()}" for name in names}
    assert encoders(model) == {"input_blocks", *own}
    kwargs = call_inputs(1 + len(names), (8, 8))
    check_gradients(model, kwargs, (3, 1, 8, 8))
    _, features = model.forward_with_features(**kwargs)
    shapes = {kind: [tuple(f.shape) for f in maps] for kind, maps in features.items()}
    expected = [(3, 32, 4, 4)] * (1 + len(names))
    assert shapes == {"common": expected, "distinct": expected}


@torch.no_grad()
def test_streams_are_found_by_name_wherever_their_contrast_stands():
    streams = {"T1": ["t1"], "T2": ["t2"], "DWI": ["flair"]}
    first = parity.fill(build(condition_names=["t1", "t2", "flair"], streams=streams)).eval()
    other = parity.fill(build(condition_names=["flair", "t1", "t2"], streams=streams)).eval()
    assert encoders(first) == encoders(build())  # weights trained with DWI load
    kwargs = call_inputs(4, (8, 8))
    moved = {**kwargs, "x": kwargs["x"][:, [0, 3, 1, 2]]}
    torch.testing.assert_close(other(**moved), first(**kwargs), rtol=0, atol=0)
    assert (other(**kwargs) - first(**kwargs)).abs().max() > 1e-2


def test_neighbouring_slices_enter_the_stream_of_their_contrast():
    model = build(condition_names=["t1", "t2"] * 3, in_channels=2)
    widths = {n: model.get_submodule(n)[0][0].in_channels for n in encoders(model)}
    assert widths == {"input_blocks": 2, "input_blocks_T1": 6, "input_blocks_T2": 6}
    images = torch.arange(7.0).repeat_interleave(2)[
        None, :, None, None
    ]  # each image holds its place
    noisy, t1, t2 = (stream[0, ::2, 0, 0].tolist() for stream in model.split(images))
    assert (noisy, t1, t2) == ([0], [1, 3, 5], [2, 4, 6])


@torch.no_grad()
def test_each_feature_sees_its_own_image_only():
    model = parity.fill(build()).eval()
    kwargs = call_inputs(4, (8, 8))
    _, features = model.forward_with_features(**kwargs)
    for place in range(4):
        x = kwargs["x"].clone()
        x[:, place] += 1
        _, changed = model.forward_with_features(x, kwargs["timesteps"])
        for kind in ("common", "distinct"):
            pairs = zip(features[kind], changed[kind], strict=True)
            differs = [not torch.allclose(a, b, atol=1e-4) for a, b in pairs]
            assert differs == [stream == place for stream in range(4)]


@torch.no_grad()
def test_prediction_is_the_same_with_and_without_features():
    model, kwargs = parity.fill(build()).eval(), call_inputs(4, (8, 8))
    output, _ = model.forward_with_features(**kwargs)
    torch.testing.assert_close(model(**kwargs), output, rtol=0, atol=0)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"streams": {"T1": ["t1"], "T2": ["t2"], "DWI": ["flair"]}}, "reads 'flair'"),
        ({"streams": {"T1": ["t1"], "T2": ["t2"]}}, "'dwi' is read by no stream"),
        ({"streams": {"T1": ["t1", "t2", "dwi"], "T2": []}}, "'T2' reads no contrast"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_streams_that_do_not_fit_the_conditions_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        build(**options)


def test_wrong_number_of_images_is_refused():
    with pytest.raises(ConfigError, match=r"expected \(batch, 4 channels\)"):
        build()(torch.zeros(1, 3, 8, 8), torch.tensor([5]))
