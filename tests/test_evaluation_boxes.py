"""Scores computed piece by piece, in the box of what there is, are those of whole volumes."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.special import entr

from ldm.evaluation.case import Case, Prediction, to_unit
from ldm.evaluation.metrics import detail, similarity
from ldm.evaluation.protocol import DEFAULT, evaluate_case

SHAPE = (22, 19, 13)
EVERYWHERE = np.ones(SHAPE, bool)


def box(*sides, shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def volumes(brain, content):
    """Reference and prediction: noise where there is content, else exactly 0."""
    rng = np.random.default_rng(4)
    return tuple(np.where(content, rng.uniform(50, 900, brain.shape), 0) for _ in range(2))


def expected(x, y, mask, content):
    """The measures of voxels and of fine structure by their definitions, on all of the volumes."""
    a, b = x[mask], y[mask]
    counts = np.histogram2d(a, b, 100)[0] / a.size
    kernel = {"sigma": 1.5, "radius": 7, "axes": (0, 1)}
    edges = [sum(gaussian_filter(v, order=o, **kernel) for o in ((2, 0), (0, 2))) for v in (x, y)]
    own, true = (e[mask] for e in edges)
    changes = np.zeros((2, 3))
    for axis in range(3):
        kept = np.swapaxes(mask, 0, axis)
        for row, volume in enumerate((x, y)):
            change = np.diff(np.swapaxes(volume, 0, axis), axis=0)[kept[1:] & kept[:-1]]
            changes[row, axis] = (change**2).sum()
    within, across = changes[:, :2].sum(axis=1), changes[:, 2]
    return {
        "psnr": -10 * np.log10(np.mean((a - b) ** 2)),
        "nrmse": np.sqrt(np.mean((a - b) ** 2)) / np.ptp(b),
        "nrmse_l2": np.sqrt(np.sum((a - b) ** 2) / np.sum(b**2)),
        "mae": np.mean(np.abs(a - b)),
        "nmi": (entr(counts.sum(0)).sum() + entr(counts.sum(1)).sum()) / entr(counts).sum(),
        "hfen": np.sqrt(np.sum((own - true) ** 2) / np.sum(true**2)),
        "sharpness": np.sqrt(within[0] / within[1]),
        "flicker": np.sqrt(across[0] / across[1] / (within[0] / within[1])),
        "ssim": similarity.ssim(x, y, 1.0, mask & content.any(axis=(0, 1))),
    }


@pytest.mark.parametrize(
    ("brain", "content"),
    {
        "in the middle": (box((6, 15), (5, 14), (4, 9)),) * 2,
        "with content around it": (box((6, 15), (5, 14), (4, 9)), box((2, 20), (1, 17), (1, 12))),
        "with content everywhere": (box((6, 15), (5, 14), (4, 9)), EVERYWHERE),
        "at the border": (box((0, 22), (7, 19), (0, 13)),) * 2,
        "with a gap": (box((6, 15), (5, 14), (1, 4)) | box((6, 15), (5, 14), (9, 12)),) * 2,
    }.values(),
)
@pytest.mark.parametrize("small", [False, True])
def test_scores_are_those_of_the_whole_volumes(brain, content, small, monkeypatch):
    if small:
        monkeypatch.setattr(similarity, "PIECE", 100)
        monkeypatch.setattr(detail, "SLAB", 2)
    reference, prediction = volumes(brain, content)
    scores = evaluate_case(Case("P", {}, reference, brain), Prediction(prediction))
    bounds = DEFAULT.bounds(reference, brain)
    x, y = (to_unit(volume, *bounds) for volume in (prediction, reference))
    inside = (np.where(brain, v, 0) for v in (x, y))
    for region, wanted in (
        ("full", expected(x, y, EVERYWHERE, brain)),
        ("brain", expected(*inside, brain, brain)),
    ):
        found = {name: scores[region][name] for name in wanted}
        assert found == pytest.approx(wanted, rel=1e-12, nan_ok=True)


def test_no_brain_has_no_score():
    reference, prediction = volumes(EVERYWHERE, EVERYWHERE)
    scores = evaluate_case(Case("P", {}, reference, ~EVERYWHERE), Prediction(prediction))
    assert np.isnan([v for region in scores.values() for v in region.values()]).all()


def test_of_one_slice_only_what_needs_neighbours_is_undefined():
    brain = box((0, 22), (3, 19), (0, 1), shape=(22, 19, 1))
    reference, prediction = volumes(brain, brain)
    scores = evaluate_case(Case("P", {}, reference, brain), Prediction(prediction))["brain"]
    assert np.isnan(scores["flicker"])
    assert np.isfinite([scores[n] for n in ("psnr", "mae", "nmi", "hfen", "sharpness")]).all()
