"""DS-Diff's U-Net: reference numbers, roles of contrasts, fusion, edges, disentangled features."""

import parity
import pytest
import torch
from families import SMALL_UNET, STREAM_OPTIONS, call_inputs, check_gradients

from ldm.errors import ConfigError
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.blocks import AttentionBlock
from ldm.modules.edges import edge_map
from ldm.util import instantiate_from_config
from UNet_DS_Diff.model import DSUnetModel

TARGET = "UNet_DS_Diff.model.DSUnetModel"
CROSS_ATTENTION = {"use_spatial_transformer": True}
KINDS = {"style": 3, "content": 3, "anatomy": 2, "lesion": 2}


def build(**options):
    return DSUnetModel(**{**SMALL_UNET, **options})


# ---- the public implementation -------------------------------------------------------------------


@pytest.mark.parametrize("name", parity.cases(TARGET))
def test_reference(name):
    parity.check(name)


@pytest.mark.parametrize("name", parity.cases(TARGET))
@torch.inference_mode()
def test_reference_features(name):
    _, features = parity.build(name).forward_with_features(**parity.inputs(name))
    assert {kind: len(maps) for kind, maps in features.items()} == KINDS
    for kind, maps in features.items():
        moments = torch.stack([torch.stack([m.mean(), m.std()]) for m in maps])
        expected = parity.expected(f"{name}/features_{kind}")
        torch.testing.assert_close(moments, expected, rtol=0, atol=1e-4)


def test_size_of_the_published_network():
    with torch.device("meta"):
        model = build(
            model_channels=96,
            num_res_blocks=2,
            channel_mult=[1, 1, 2, 2, 3, 3],
            attention_resolutions=[8, 16, 32],
            num_head_channels=48,
            use_scale_shift_norm=True,
        )
    assert sum(p.numel() for p in model.parameters()) == 93_556_129


def test_yaml_of_the_research_code_instantiates():
    params = {
        **{"image_size": 320, "in_channels": 1, "out_channels": 1, "num_classes": None},
        **{"use_checkpoint": True, "use_fp16": False, "legacy": False, "num_head_channels": 32},
        **{"use_spatial_transformer": False, "context_dim": None, "transformer_depth": 1},
        **{"use_new_attention_order": True, "use_scale_shift_norm": True, "use_edge": False},
        **{"resblock_updown": False, "attention_resolutions": [32, 16, 8]},
        **{"model_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 1]},
    }
    model = instantiate_from_config({"target": TARGET, "params": params})
    assert model(torch.zeros(1, 4, 8, 8), torch.tensor([5])).shape == (1, 1, 8, 8)


# ---- what holds with every option ---------------------------------------------------------------

OPTIONS = [
    *STREAM_OPTIONS,
    {"use_edge": "sobel"},
    {"use_edge": "canny", "dims": 3},
    CROSS_ATTENTION,
    {**CROSS_ATTENTION, "dims": 3, "use_linear_in_transformer": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradient_in_every_parameter(options):
    model = build(**options)
    size = (8,) * model.settings.dims
    check_gradients(model, call_inputs(model.in_channels, size), (3, model.out_channels, *size))


# ---- features and fusion -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "changed"),
    [
        (0, {"style": [], "content": [], "anatomy": [], "lesion": []}),
        (1, {"style": [0], "content": [0], "anatomy": [0], "lesion": []}),
        (2, {"style": [1], "content": [1], "anatomy": [1], "lesion": [0]}),
        (3, {"style": [2], "content": [2], "anatomy": [], "lesion": [1]}),
    ],
    ids=["noisy", "anatomy", "anatomy-lesion", "lesion"],
)
@torch.no_grad()
def test_features_come_from_the_streams_of_their_role(place, changed):
    model, kwargs = parity.fill(build()).eval(), call_inputs(4, (8, 8))
    x = kwargs["x"].clone()
    x[:, place] += 1
    _, before = model.forward_with_features(**kwargs)
    _, after = model.forward_with_features(x, kwargs["timesteps"])
    differs = {
        kind: [
            i
            for i, (a, b) in enumerate(zip(before[kind], after[kind], strict=True))
            if not torch.allclose(a, b, atol=1e-4)
        ]
        for kind in KINDS
    }
    assert differs == changed


def test_cross_attention_replaces_the_fusion_of_the_bottleneck_and_nothing_else():
    concat, attending = build(), build(**CROSS_ATTENTION)
    transformer = attending.middle_block[1]
    assert isinstance(transformer, SpatialTransformer)
    assert [b.attn2.to_k.in_features for b in transformer.transformer_blocks] == [32] * 4
    assert isinstance(attending.input_blocks_a[3][1], AttentionBlock)
    own = {key.split(".")[0] for key in set(concat.state_dict()) ^ set(attending.state_dict())}
    assert own == {"middle_block", "all_proj"}


@pytest.mark.parametrize("kind", ["share_content", "style", "anatomy", "lesion"])
@pytest.mark.parametrize("options", [{}, CROSS_ATTENTION], ids=["concat", "cross-attention"])
@torch.no_grad()
def test_output_follows_every_kind_of_feature(options, kind):
    model, kwargs = parity.fill(build(**options)).eval(), call_inputs(4, (8, 8))
    before = model(**kwargs)
    model.get_submodule(f"{kind}_proj").register_forward_hook(lambda module, args, h: 0 * h)
    assert (model(**kwargs) - before).abs().max() > 1e-3


# ---- roles ---------------------------------------------------------------------------------------

ROLES = {"anatomy": ["t1"], "anatomy_lesion": ["t2"], "lesion": ["flair"]}


@torch.no_grad()
def test_roles_are_found_by_name_wherever_their_contrast_stands():
    first = parity.fill(build(roles=ROLES)).eval()
    other = parity.fill(build(roles=ROLES, condition_names=["flair", "t1", "t2"])).eval()
    kwargs = call_inputs(4, (8, 8))
    moved = {**kwargs, "x": kwargs["x"][:, [0, 3, 1, 2]]}
    torch.testing.assert_close(other(**moved), first(**kwargs), rtol=0, atol=0)
    torch.testing.assert_close(parity.fill(build()).eval()(**kwargs), first(**kwargs))


@pytest.mark.parametrize(
    ("names", "roles", "widths"),
    [
        (["t1", "flair"], {**ROLES, "anatomy_lesion": ["t1", "flair"]}, [1, 2, 1]),
        (["t1", "t2", "flair", "dwi"], {**ROLES, "lesion": ["flair", "dwi"]}, [1, 1, 2]),
        (["t1", "t2", "flair"] * 3, None, [3, 3, 3]),
    ],
    ids=["two-contrasts", "four-contrasts", "neighbouring-slices"],
)
def test_other_numbers_of_conditions(names, roles, widths):
    model = build(condition_names=names, roles=roles)
    streams = model.input_blocks_a, model.input_blocks_al, model.input_blocks_l
    assert [stream[0][0].in_channels for stream in streams] == widths
    check_gradients(model, call_inputs(1 + len(names), (8, 8)), (3, 1, 8, 8))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"condition_names": ["t1", "t2"]}, "three roles and the conditions are"),
        ({"condition_names": ["t1", "t2"], "roles": ROLES}, "reads 'flair'"),
        ({"roles": {**ROLES, "lesions": ["flair"]}}, "'lesions' is not known .nearest: 'lesion'"),
        ({"roles": {"anatomy": ["t1"], "lesion": ["flair"]}}, "'anatomy_lesion' is missing"),
        ({"roles": {**ROLES, "lesion": ["t2"]}}, "'flair' is read by no stream"),
        ({"use_edge": "sobol"}, "use_edge is 'sobol': expected sobel, laplacian, canny"),
        ({**CROSS_ATTENTION, "context_dim": 768}, "features of 32 channels"),
        ({"context_dim": 768}, "give both"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        build(**options)


# ---- edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sobel", "laplacian", "canny"])
def test_edges_of_the_anatomy_are_a_further_input_of_its_stream(kind):
    model, x = build(use_edge=kind), call_inputs(4, (8, 8))["x"]
    _, anatomy, *others = model.split(x)
    assert torch.equal(anatomy, torch.cat([x[:, 1:2], edge_map(x[:, 1:2], kind)], dim=1))
    assert [stream.shape[1] for stream in others] == [1, 1]
    plain, guided = build().state_dict(), model.state_dict()
    differs = [key for key, value in plain.items() if value.shape != guided[key].shape]
    assert differs == ["input_blocks_a.0.0.weight"]


def test_use_edge_may_be_a_flag():
    assert build(use_edge=True).edges == "sobel"
