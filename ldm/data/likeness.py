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
    pair = [slices[:, channel][inside].astype(np.float64) for channel in channels]
    return float(np.corrcoef(pair)[0, 1]) if all(np.ptp(values) for values in pair) else None
