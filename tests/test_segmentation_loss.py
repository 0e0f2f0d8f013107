"""Losses of segmentation against their definitions, and where each of them is least."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import ConfigError
from ldm.losses.segmentation import (
    BCEDiceLoss,
    CEDiceFocalLoss,
    RegionDiceLoss,
    SegmentationLoss,
    positive_weight,
)

LOSSES = [RegionDiceLoss(), BCEDiceLoss(), CEDiceFocalLoss()]
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)


@pytest.fixture
def case():
    """Logits and regions of two slices, of which one holds none of region 1."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 6, 8, generator=generator)
    target = torch.rand(2, 2, 6, 8, generator=generator) < 0.2
    target[1, 1] = False
    return logits, target


@EVERY_LOSS
def test_the_terms_add_up_to_the_loss(loss, case):
    losses = loss(*case)
    terms = [value for name, value in losses.items() if name != "loss"]
    assert terms and all(name.startswith("loss") for name in losses)
    torch.testing.assert_close(losses["loss"], sum(terms))


@EVERY_LOSS
@pytest.mark.parametrize("size", [(6, 8), (2, 4, 4)], ids=["2-D", "3-D"])
def test_the_truth_costs_nothing_and_its_opposite_much(loss, size):
    target = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) < 0.3
    right = torch.where(target, 30.0, -30.0)
    assert loss(right, target)["loss"].item() == pytest.approx(0, abs=1e-4)
    assert loss(-right, target)["loss"].item() > 0.9


def test_dice_is_that_of_all_voxels_of_a_region_in_the_batch(case):
    logits, target = case
    probability, true = logits.sigmoid().double(), target.double()
    both = (probability * true).sum((0, 2, 3))
    dice = 2 * both / (probability.sum((0, 2, 3)) + true.sum((0, 2, 3)))
    expected = 1 - dice.mean()
    assert RegionDiceLoss()(logits, target)["loss"].item() == pytest.approx(expected.item(), 1e-4)


def test_region_that_a_batch_does_not_hold_has_no_dice(case):
    logits, target = case
    target[:, 1] = False
    alone = RegionDiceLoss()(logits[:, :1], target[:, :1])["loss"]
    torch.testing.assert_close(RegionDiceLoss()(logits, target)["loss"], alone)
    assert RegionDiceLoss()(logits, torch.zeros_like(target))["loss"] == 0


def test_cross_entropy_weighs_the_voxels_of_each_region(case):
    logits, target = case
    weights = [4.0, 9.0]
    probability = logits.sigmoid().double()
    positive = torch.tensor(weights, dtype=torch.float64).view(1, 2, 1, 1)
    terms = torch.where(target, -positive * probability.log(), -(1 - probability).log())
    loss = SegmentationLoss(dice=0, cross_entropy=1, pos_weight=weights)
    found = loss(logits, target)
    assert set(found) == {"loss", "loss_cross_entropy"}
    assert found["loss"].item() == pytest.approx(terms.mean().item(), rel=1e-5)


def test_focal_loss_forgets_what_is_easy(case):
    """(1 - p_t)^gamma times the cross-entropy, Lin et al. 2017, equation 4."""
    logits, target = case
    probability = logits.sigmoid().double()
    of_truth = torch.where(target, probability, 1 - probability)
    expected = -((1 - of_truth) ** 3 * of_truth.log()).mean()
    loss = SegmentationLoss(dice=0, focal=1, gamma=3)
    assert loss(logits, target)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_region_weights_choose_the_region(case):
    logits, target = case
    loss = SegmentationLoss(cross_entropy=1, focal=1, region_weights=[1.0, 0.0])
    changed = logits.clone()
    changed[:, 1] += 3
    torch.testing.assert_close(loss(logits, target)["loss"], loss(changed, target)["loss"])
    changed[:, 0] += 3
    assert not torch.isclose(loss(logits, target)["loss"], loss(changed, target)["loss"])


@given(st.floats(1e-6, 0.999))
def test_rare_regions_weigh_more_up_to_a_limit(share):
    weight = positive_weight(share)
    assert weight <= 100
    if weight < 100:
        assert weight**2 * share == pytest.approx(1 - share)


def test_weight_comes_from_the_data_only_where_none_is_given():
    measured, given_ = BCEDiceLoss(), BCEDiceLoss(pos_weight=3.0)
    for loss in (measured, given_):
        loss.measure([0.2, 0.5])
    assert measured.pos_weight == [2.0, 1.0] and given_.pos_weight == 3.0


def test_half_precision_logits_lose_nothing(case):
    """The loss is computed in float32: a probability of 1e-5 is no 0."""
    logits, target = case
    loss = CEDiceFocalLoss()(logits.bfloat16(), target)["loss"]
    expected = CEDiceFocalLoss()(logits.bfloat16().float(), target)["loss"]
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)


@pytest.mark.parametrize("weights", [{"dice": 0}, {"dice": -1.0}, {"focal": -0.1}], ids=str)
def test_a_loss_without_terms_is_refused(weights):
    with pytest.raises(ConfigError, match="at least one above 0"):
        SegmentationLoss(**weights)


def test_gradient_reaches_the_rare_voxel():
    """One voxel in ten thousand: with its weight, its gradient is not lost among the others'."""
    target = torch.zeros(1, 1, 100, 100, dtype=torch.bool)
    target[0, 0, 50, 50] = True
    pulls = {}
    for weight in (1.0, [positive_weight(1e-4)]):
        logits = torch.zeros(1, 1, 100, 100, requires_grad=True)
        SegmentationLoss(0, 1, pos_weight=weight)(logits, target)["loss"].backward()
        pulls[str(weight)] = -logits.grad[0, 0, 50, 50].item()
    plain, weighted = pulls.values()
    assert weighted / plain == pytest.approx(min(math.sqrt(9999), 100), rel=1e-3)
