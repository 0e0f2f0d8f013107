"""Does the tumour enhance? What a contrast agent added, in a real and in a synthetic image.

Enhancement of a voxel is ``z(target) - z(native)``, of the image with the agent and of the one
without, each standardised by its own median and inter-quartile range in the brain: an image copied
from the native one enhances nowhere, whatever its units. Pure functions of numpy arrays like those
of :mod:`ldm.evaluation.metrics.similarity`; their formulas stand in ``docs/metrics.md``.
"""

from __future__ import annotations

from math import nan

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm.evaluation.metrics.similarity import same_shape

DECIMALS = 4  # of a standard unit: what single precision leaves of equal images is no enhancement


def robust_z(brain: ArrayLike) -> NDArray[np.float64]:
    """Intensities (N,) of a brain, in any unit, less their median, over their inter-quartile range.

    NaN everywhere without a spread.
    """
    deviation = np.array(brain, np.float64)
    if not deviation.size:
        return deviation
    first, median, third = np.percentile(deviation, (25, 50, 75))
    deviation -= median
    deviation /= third - first if third > first else nan
    return deviation


def enhancement(target: ArrayLike, native: ArrayLike) -> NDArray[np.float64]:
    """What the agent added at each voxel (N,) of the brain, in inter-quartile ranges.

    Raises:
        DataError: DATA-SHAPE if the shapes differ.
    """
    same_shape(target=target, native=native)
    added = robust_z(target)
    added -= robust_z(native)
    return np.round(added, DECIMALS, out=added)


def mean_within(values: NDArray[np.float64], mask: NDArray[np.bool_]) -> float:
    """Mean over a mask; NaN without voxels."""
    return float(values[mask].mean()) if mask.any() else nan


def recovery(
    predicted: NDArray[np.float64], true: NDArray[np.float64], mask: NDArray[np.bool_]
) -> float:
    """Mean predicted enhancement over the mean true one.

    Returns:
        1 for the truth, 0 for a copy of the native image; NaN without voxels, or where the truth
        does not enhance.
    """
    wanted = mean_within(true, mask)
    return mean_within(predicted, mask) / wanted if wanted > 0 else nan


def auc(
    score: NDArray[np.float64], positive: NDArray[np.bool_], negative: NDArray[np.bool_]
) -> float:
    """Area under the ROC curve: how often a voxel of one mask scores above one of the other.

    The Mann-Whitney statistic over the number of pairs; a tie counts half (Hanley & McNeil 1982).

    Returns:
        0 to 1, 0.5 for a score that is the same everywhere; NaN where a mask is empty or a score
        is NaN.
    """
    ours, others = score[positive], np.sort(score[negative])
    if not ours.size or not others.size or np.isnan(ours).any() or np.isnan(others[-1]):
        return nan
    below = (np.searchsorted(others, ours, side).sum() for side in ("left", "right"))
    above = sum(below) / 2  # a tie is counted by one side only
    return float(above / (ours.size * others.size))


def rim_to_core(
    predicted: NDArray[np.float64],
    true: NDArray[np.float64],
    rim: NDArray[np.bool_],
    core: NDArray[np.bool_],
) -> float:
    """How much more the rim enhances than the core, over the same of the truth.

    Returns:
        1 for the truth, 0 for a copy of the native image; NaN where rim or core is empty, or the
        true rim enhances no more than its core.
    """
    wanted = mean_within(true, rim) - mean_within(true, core)
    found = mean_within(predicted, rim) - mean_within(predicted, core)
    return found / wanted if wanted > 0 else nan
