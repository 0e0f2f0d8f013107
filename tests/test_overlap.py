"""Overlap and surface distance equal monai; closed forms and the empty cases hold."""

from math import isnan, sqrt

import numpy as np
import pytest
import torch
from monai import metrics as monai

from ldm.errors import DataError
from ldm.evaluation.metrics.overlap import dice, hd95, iou, sensitivity, specificity, surface_dice

SPACING = {2: (1.0, 1.5), 3: (1.0, 1.0, 2.5)}


def blobs(shape, seed):
    """A random smooth mask of about a third of the image."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return noise > np.quantile(noise, 0.67)


@pytest.fixture(params=[(40, 32), (28, 24, 20)], ids=["2-D", "3-D"])
def pair(request):
    return blobs(request.param, 1), blobs(request.param, 2)


def cube(at, size=4, shape=(16, 16, 16)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(start, start + size) for start in at)] = True
    return mask


def test_all_equal_monai(pair):
    axes = pair[0].ndim
    prediction, reference = (torch.from_numpy(mask)[None, None].float() for mask in pair)
    told = {"include_background": True, "spacing": list(SPACING[axes])}
    expected = monai.DiceMetric()(prediction, reference)
    assert dice(*pair) == pytest.approx(float(expected), abs=1e-6)
    expected = monai.MeanIoU()(prediction, reference)
    assert iou(*pair) == pytest.approx(float(expected), abs=1e-6)
    expected = monai.compute_hausdorff_distance(prediction, reference, percentile=95, **told)
    assert hd95(*pair, SPACING[axes]) == pytest.approx(float(expected), abs=1e-6)
    expected = monai.SurfaceDiceMetric([1.2], include_background=True, use_subvoxels=True)
    found = surface_dice(*pair, SPACING[axes], tolerance=1.2)
    assert found == pytest.approx(
        float(expected(prediction, reference, spacing=told["spacing"])), abs=1e-6
    )
    counts = monai.get_confusion_matrix(prediction, reference, include_background=True)
    for name, function in (("sensitivity", sensitivity), ("specificity", specificity)):
        expected = monai.compute_confusion_matrix_metric(name, counts)
        assert function(*pair) == pytest.approx(float(expected), abs=1e-6)


def test_a_cube_moved_by_half_its_side():
    """Half of a 4 x 4 x 4 cube moved by 2 overlaps; its surfaces are 2 voxels of 3 mm apart."""
    reference, moved = cube((4, 4, 4)), cube((4, 4, 6))
    assert dice(moved, reference) == pytest.approx(0.5)
    assert iou(moved, reference) == pytest.approx(1 / 3)
    assert sensitivity(moved, reference) == 0.5
    assert specificity(moved, reference) == 1 - 32 / (16**3 - 64)
    assert hd95(moved, reference, (1, 1, 3)) == pytest.approx(6)
    assert surface_dice(moved, reference, (1, 1, 3), tolerance=6.01) == pytest.approx(1)
    assert surface_dice(moved, reference, (1, 1, 3), tolerance=0.5) < 1


def test_labels_count_as_masks():
    """Any label above 0 belongs to the structure, whatever its type."""
    reference = cube((4, 4, 4))
    assert dice(reference.astype(np.int16) * 3, reference) == 1


def test_empty_masks_follow_brats():
    empty, some = np.zeros((240, 240, 155), bool), cube((0, 0, 0), 4, (240, 240, 155))
    for function in (dice, iou, sensitivity, specificity, surface_dice):
        assert function(empty, empty) == 1
    assert hd95(empty, empty) == 0
    for masks in ((empty, some), (some, empty)):
        assert dice(*masks) == iou(*masks) == surface_dice(*masks) == 0
        assert hd95(*masks) == pytest.approx(sqrt(2 * 240**2 + 155**2))
    assert sensitivity(empty, some) == 0
    assert isnan(sensitivity(some, empty))
    assert isnan(specificity(np.zeros((4, 4)), np.ones((4, 4))))


@pytest.mark.parametrize("function", [dice, iou, hd95, surface_dice, sensitivity, specificity])
def test_other_shapes_are_refused(function):
    with pytest.raises(DataError, match="DATA-SHAPE"):
        function(np.ones((8, 8)), np.ones((8, 9)))
    with pytest.raises(DataError, match="DATA-SHAPE"):
        function(np.ones(8), np.ones(8))


@pytest.mark.parametrize("function", [hd95, surface_dice])
def test_spacing_has_the_axes_of_the_mask(function):
    with pytest.raises(DataError, match="spacing of 2 axes"):
        function(np.ones((8, 8, 8)), np.ones((8, 8, 8)), (1, 1))
