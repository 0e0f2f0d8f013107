"""How alike a target and its native contrast, as T1ce and T1, were acquired."""

from __future__ import annotations

import numpy as np

from ldm.study import Study


def likeness(slices: np.ndarray, brain: np.ndarray, study: Study) -> float | None:
    """Return the correlation of the target with its native contrast in the brain.

    It tells how alike the two were acquired. None where there is no such pair, or one is constant.

    Args:
        slices: (S, M, H, W), as training sees them; the last channel is the target.
        brain: (S, H, W) bool.
    """
    if study.native is None:
        return None
    inside = np.asarray(brain, bool)
    channels = (study.conditions.index(study.native), -1)
    return correlation(*(slices[:, channel][inside] for channel in channels))


def correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return Pearson's correlation of values (N,); None where one of the two is constant."""
    pair = [values.astype(np.float64) for values in (first, second)]
    return float(np.corrcoef(pair)[0, 1]) if all(v.size and np.ptp(v) for v in pair) else None
