"""Labels that are no labels, the weight of a rare foreground, and masks that belong elsewhere."""

from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from ldm.diagnosis.masks import (
    GRID_SIDE,
    MaskCase,
    fit_of_masks,
    label_problem,
    mask_case,
    mask_contrast,
)


def labels(*values):
    return np.array(values, np.float32).reshape(1, 1, -1)


@pytest.mark.parametrize(
    "mask", [labels(0, 1), labels(0, 1, 2, 4), labels(0, 3), labels(0), labels(1)]
)
def test_binary_masks_and_labels_of_brats_are_right(mask):
    assert label_problem(mask) is None


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (labels(0, 0.5, 1), "no whole number (such as 0.5)"),
        (np.arange(200.0).reshape(10, 20, 1), "200 values from 0 to 199"),
        (labels(-1, 0, 1), "from -1 to 1"),
        (labels(0, 255), "labels 255 are unknown"),
        (labels(0, 1, 7, 9), "labels 7, 9 are unknown"),
    ],
)
def test_what_is_wrong_with_labels_is_said(mask, said):
    assert said in label_problem(mask)


@cache
def case(seed: int) -> MaskCase:
    """Two contrasts of correlated noise with a bright lesion at a place of the seed's own."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((GRID_SIDE,) * 3, bool)
    centre = rng.integers(16, GRID_SIDE - 16, 3)
    mask[tuple(slice(c - 5, c + 6) for c in centre)] = True
    images = [ndimage.gaussian_filter(rng.normal(size=mask.shape), 3) for _ in range(2)]
    images = np.stack([image / image.std() + 1.5 * mask for image in images])
    return MaskCase(images.astype(np.float16), mask, np.ones_like(mask))


def test_masks_in_their_place_outrank_all_others():
    fit = fit_of_masks({f"p{seed}": case(seed) for seed in range(5)})
    assert fit.mean_rank < 0.05 and fit.p_value < 1e-3
    assert not fit.is_by_chance


def test_shuffled_masks_rank_as_chance():
    cases = [case(seed) for seed in range(5)]
    shuffled = {
        f"p{place}": MaskCase(c.images, cases[place - 1].mask, c.brain)
        for place, c in enumerate(cases)
    }
    fit = fit_of_masks(shuffled)
    assert fit.is_by_chance
    assert 0.25 < fit.mean_rank < 0.75 and fit.p_value > 0.01


def test_two_patients_are_too_few_to_tell():
    assert fit_of_masks({f"p{seed}": case(seed) for seed in range(2)}) is None


def test_a_mask_stands_out_by_its_difference_in_standard_deviations():
    rng = np.random.default_rng(0)
    mask = np.zeros((GRID_SIDE,) * 3, bool)
    mask[30:50, 30:50, 30:50] = True
    image = rng.normal(size=mask.shape)
    found = mask_contrast(MaskCase((image + 3 * mask)[None], mask, np.ones_like(mask)), mask)
    assert found == pytest.approx(3, abs=0.1)


def test_an_empty_mask_has_no_contrast():
    one = case(0)
    assert mask_contrast(one, np.zeros_like(one.mask)) is None


def test_the_shared_grid_holds_the_box_of_the_brain():
    """A mask that fills one half of the box fills one half of the grid, whatever the size."""
    brain = np.zeros((50, 30, 20), bool)
    brain[10:40, 5:25, 2:18] = True
    mask = brain.copy()
    mask[25:] = False
    box = (slice(10, 40), slice(5, 25), slice(2, 18))
    image = np.random.default_rng(0).normal(size=brain.shape)
    found = mask_case([image], mask, brain, box)
    assert found.mask.shape == (GRID_SIDE,) * 3 and found.brain.all()
    assert found.mask.mean() == pytest.approx(0.5, abs=0.02)
