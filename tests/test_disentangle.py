"""Disentanglement losses: reference values, labels, closed forms, and what must not change them."""

from itertools import combinations
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from guided_diffusion.losses import CommonDistinctLoss
from guided_diffusion.unet import UNet_disc_Model
from ldm.errors import ConfigError
from ldm.losses.prediction import PredictedBatch
from UNet_DS_Diff.losses import (
    ContrastiveDisentanglement,
    DistanceDisentanglement,
    distance_ratio,
    labelled_views,
    supervised_contrast,
)
from UNet_DS_Diff.model import DSUnetModel

KINDS = {"style": 3, "content": 3, "anatomy": 2, "lesion": 2}
FORMS = {"distance": DistanceDisentanglement, "contrastive_t005": ContrastiveDisentanglement}
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def of_features(features):
    """A prediction whose features alone are looked at."""
    return PredictedBatch(None, None, None, None, features)


def random_features(batch=3, kinds=KINDS, seed=""):
    """Features that depend on their name alone; those of batch 3 are the reference's."""
    return {
        kind: [parity.normal(f"feature.{kind}.{i}{seed}", (batch, 6, 4, 4)) for i in range(number)]
        for kind, number in kinds.items()
    }


def ideal_features(batch=3):
    """Features that are equal exactly where they should be: one map a label."""
    content = torch.randn(batch, 6, 4, 4)
    style = torch.randn(3, 1, 6, 4, 4).expand(3, batch, 6, 4, 4)
    anatomy, lesion = torch.randn(2, batch, 6, 4, 4)
    return {
        "style": list(style),
        "content": [content] * 3,
        "anatomy": [anatomy] * 2,
        "lesion": [lesion] * 2,
    }


# ---- content, style, anatomy, lesion -------------------------------------------------------------

with np.load(Path(__file__).parent / "reference" / "mathematics.npz") as arrays:
    REFERENCE = {key: float(arrays[key]) for key in arrays if key.startswith("disentangle/")}


@pytest.mark.parametrize("key", REFERENCE)
def test_reference(key):
    _, form, term = key.split("/")
    value = FORMS[form]()(of_features(random_features()))[term]
    torch.testing.assert_close(value.item(), REFERENCE[key], rtol=1e-5, atol=0)


def test_labels_say_which_views_agree():
    features = {kind: maps[:2] for kind, maps in random_features(batch=2).items()}
    labels = {kind: labelled_views(features, (kind,))[1].tolist() for kind in KINDS}
    assert labels == {  # two samples, two streams each
        "content": [0, 0, 1, 1],
        "style": [-1, -2, -1, -2],
        "anatomy": [0, 0, 2, 2],
        "lesion": [1, 1, 3, 3],
    }
    views, _ = labelled_views(features, ("style", "content"))
    assert torch.equal(views[0], features["style"][0][0].flatten())
    assert torch.equal(views[5], features["content"][1][0].flatten())


def test_distance_is_zero_for_ideal_features_and_a_ratio_of_counts_for_equidistant_ones():
    terms = DistanceDisentanglement()(of_features(ideal_features()))
    assert {name: value.item() for name, value in terms.items()} == {
        "content_style": 0,
        "style_anatomy_lesion": 0,
    }
    equidistant = torch.eye(4)  # 2 pairs of one label, 4 of two labels, each both ways
    assert distance_ratio(equidistant, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(4 / 8)


def test_contrast_against_its_definition():
    """Khosla et al. 2020, equation 2, term by term."""
    views = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    labels, temperature = [0, 0, 1, 0, 1], 0.3
    total = 0.0
    for i in range(5):
        others = [a for a in range(5) if a != i]
        score = {a: F.cosine_similarity(views[i], views[a], dim=0) / temperature for a in others}
        normaliser = sum(score[a].exp() for a in others)
        positives = [p for p in others if labels[p] == labels[i]]
        total -= sum((score[p].exp() / normaliser).log() for p in positives) / len(positives)
    value = supervised_contrast(views, torch.tensor(labels), temperature)
    torch.testing.assert_close(value, total / 5)


def test_views_that_stand_alone_do_not_count_in_the_contrast():
    views = torch.randn(3, 7)
    views[1] = views[0]
    views[2] = -views[0]
    value = supervised_contrast(views, torch.tensor([0, 0, 1]), temperature=1.0)
    one_against_its_opposite = np.log(np.exp(1) + np.exp(-1)) - 1
    assert value.item() == pytest.approx(one_against_its_opposite, rel=1e-5)


@EVERY_FORM
@settings(max_examples=15)
@given(batch=st.integers(2, 4), scale=st.floats(0.1, 10), order=st.randoms(use_true_random=False))
def test_scale_and_order_of_samples_and_streams_change_nothing(form, batch, scale, order):
    features = random_features(batch)
    samples = order.sample(range(batch), batch)
    changed = {
        kind: [scale * maps[i][samples] for i in order.sample(range(len(maps)), len(maps))]
        for kind, maps in features.items()
    }
    torch.testing.assert_close(
        form()(of_features(changed)), form()(of_features(features)), rtol=1e-4, atol=1e-5
    )


@EVERY_FORM
def test_descent_disentangles(form):
    features = {k: [m.requires_grad_() for m in maps] for k, maps in random_features().items()}
    leaves = [m for maps in features.values() for m in maps]
    optimizer = torch.optim.Adam(leaves, lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        sum(form()(of_features(features)).values()).backward()
        optimizer.step()

    def similarity(a, b):
        return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()

    with torch.no_grad():
        content, style = features["content"], features["style"]
        assert similarity(content[0][0], content[2][0]) > similarity(content[0][0], content[0][1])
        assert similarity(style[1][0], style[1][2]) > similarity(style[1][0], style[0][0])
        anatomy, lesion = features["anatomy"], features["lesion"]
        assert similarity(anatomy[0][1], anatomy[1][1]) > similarity(anatomy[0][1], lesion[0][1])


@EVERY_FORM
@pytest.mark.parametrize("features", [random_features(1), ideal_features()], ids=["one", "equal"])
def test_gradient_is_finite_for_one_sample_and_for_equal_views(form, features):
    features = {k: [m.clone().requires_grad_() for m in maps] for k, maps in features.items()}
    loss = sum(form()(of_features(features)).values())
    loss.backward()
    assert loss.isfinite()
    assert all(m.grad.isfinite().all() for maps in features.values() for m in maps)


@EVERY_FORM
def test_weights_scale_the_terms_and_zero_leaves_one_out(form):
    features = random_features()
    full = form()(of_features(features))
    assert form(content_style=0.5, style_anatomy_lesion=0)(of_features(features)) == {
        "content_style": 0.5 * full["content_style"]
    }
    without = {"content": features["content"], "style": features["style"]}
    assert form(style_anatomy_lesion=0)(of_features(without)) == {
        "content_style": full["content_style"]
    }


@EVERY_FORM
def test_autocast_does_not_round_the_comparison(form):
    features = {k: [m.bfloat16() for m in maps] for k, maps in random_features().items()}
    exact = form()(of_features({k: [m.float() for m in maps] for k, maps in features.items()}))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = form()(of_features(features))
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0)


# ---- common and distinct -------------------------------------------------------------------------


def test_common_distinct_against_its_definition():
    features = random_features(batch=2, kinds={"common": 4, "distinct": 4})
    expected = 0.0
    for sample in range(2):
        distance = {
            kind: sum((a[sample] - b[sample]).square().sum().sqrt() for a, b in combinations(m, 2))
            for kind, m in features.items()
        }
        expected += distance["common"] / distance["distinct"] / 2
    value = CommonDistinctLoss(weight=3.0)(of_features(features))["common_distinct"]
    torch.testing.assert_close(value, 3 * expected)


def test_common_distinct_is_zero_exactly_if_the_common_features_agree():
    features = random_features(kinds={"common": 4, "distinct": 4})
    agreeing = {**features, "common": [features["common"][0].clone().requires_grad_()] * 4}
    value = CommonDistinctLoss()(of_features(agreeing))["common_distinct"]
    assert value.item() == 0
    value.backward()
    assert agreeing["common"][0].grad.isfinite().all()
    assert CommonDistinctLoss()(of_features(features))["common_distinct"] > 0.5


# ---- with their networks -------------------------------------------------------------------------

SMALL = {
    "out_channels": 1,
    "model_channels": 64,  # with fewer, all units of a squeeze-excitation may be off
    "num_res_blocks": 1,
    "attention_resolutions": [],
    "channel_mult": [1, 1],
}


@pytest.mark.parametrize(
    ("network", "loss", "shared"),
    [
        (DSUnetModel, DistanceDisentanglement, ("input_blocks_", "conv_")),
        (DSUnetModel, ContrastiveDisentanglement, ("input_blocks_", "conv_")),
        (UNet_disc_Model, CommonDistinctLoss, ("input_blocks", "conv_", "SE_Attention_dist")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_loss_alone_trains_the_encoders_and_heads(network, loss, shared):
    model = parity.fill(network(**SMALL)).eval()
    x, timesteps = parity.normal("x", (3, 4, 8, 8)), torch.tensor([10, 310, 610])
    _, features = model.forward_with_features(x, timesteps)
    sum(loss()(of_features(features)).values()).backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max()}
    expected = {n for n, _ in model.named_parameters() if n.startswith((*shared, "time_embed"))}
    assert expected <= reached
    assert not any(n.startswith(("output_blocks", "out.", "middle_block")) for n in reached)


@pytest.mark.parametrize(
    "loss", [DistanceDisentanglement, ContrastiveDisentanglement, CommonDistinctLoss]
)
def test_features_of_another_backbone_are_refused(loss):
    with pytest.raises(ConfigError, match="the backbone gives \\['bottleneck'\\]"):
        loss()(of_features({"bottleneck": [torch.zeros(2, 3)]}))
