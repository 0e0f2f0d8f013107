"""Metrics as published code computes them, to compare with published numbers and for nothing else.

Written from the behaviour of that code, not copied. What is odd in it is kept, and named in
``docs/metrics.md``: in both cases the prediction takes part in setting its own intensity scale.
"""

from __future__ import annotations

from math import nan

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm.evaluation.metrics.similarity import (
    MS_SSIM_SIDE,
    SSIM_WINDOW,
    content_box,
    padded,
    similarity_map,
    stacks,
)

TWELVE_BITS = {"mean": 2048.0, "sd": 400.0, "low": 1e-10, "high": 4095.0}


def legacy_ms_ssim(prediction: ArrayLike, reference: ArrayLike, axis: int = -1) -> float:
    """MS-SSIM of the DS-Diff tables: torchmetrics, slice by slice, each volume on its own scale.

    Source: ``scale12bit`` and ``ssim_torch`` in ``inference/test_metrics.py`` of
    github.com/larrybb626/diffusion_models_dsdiff, whose value is the column MS-SSIM of the tables.
    Each volume is standardised by its own mean and standard deviation to 2048 ± 400 and clipped to
    12 bits, so that a gain or an offset of the prediction changes nothing. Then torchmetrics with
    its defaults: mirrored borders, and the data range of each pair of slices from the pair itself.

    Three things differ, because the original is not defined there: slices in which both volumes are
    constant (0 / 0) are left out, slices below 176 are padded with the smallest value, and it is
    computed in double precision (half a minute a volume), for in single precision the variances
    around 2048 are rounding errors: equal slices at the end of the brain would score 0.

    Args:
        prediction, reference: volumes of one shape, or 2-D slices.
        axis: the axis of a volume that counts its slices.

    Returns:
        0 to 1, the mean over slices; NaN if a volume is constant.

    Raises:
        DataError: DATA-SHAPE if the shapes differ.
    """
    import torch
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    pair = stacks(prediction, reference, None, axis)[:2]
    if not all(np.ptp(volume) > 0 for volume in pair):
        return nan
    scaled = [_twelve_bits(volume) for volume in pair]
    kept = np.any([np.ptp(volume, axis=(1, 2)) > 0 for volume in scaled], axis=0)
    values = []
    kept_slices = (padded(v[kept], MS_SSIM_SIDE, v[kept].min()) for v in scaled)
    for slices in zip(*kept_slices, strict=True):
        images = (torch.from_numpy(image)[None, None] for image in slices)
        value = multiscale_structural_similarity_index_measure(*images)
        values.append(float(value))
    return float(np.mean(values))


def brasyn_ssim(prediction: ArrayLike, reference: ArrayLike, mask: ArrayLike) -> float:
    """SSIM of a region in the BraSyn challenge: 3-D, both volumes 0 outside of the region.

    Source: ``ssim.py`` in github.com/hongweilibran/BraSyn, which calls torchmetrics with its
    defaults (11 x 11 x 11 Gaussian window, mirrored borders, data range from the two masked
    volumes) and means to average the map over the region. As stored, its last step indexes with
    integers and fails; here it does what its comment says.

    Args:
        prediction, reference: volumes (X, Y, Z) in [0, 1].
        mask: the region.

    Returns:
        -1 to 1; NaN for an empty region or one without contrast.

    Raises:
        DataError: DATA-SHAPE if the shapes differ or a side is smaller than the window.
    """
    *pair, inside = stacks(prediction, reference, mask, 0)
    x, y = (np.where(inside, volume, 0.0) for volume in pair)
    if not inside.any():
        return nan
    data_range = max(np.ptp(x), np.ptp(y))
    if not data_range > 0:
        return nan
    margin = SSIM_WINDOW // 2
    box = tuple(slice(b.start, b.stop + 2 * margin) for b in content_box(inside))
    mirrored = [np.pad(volume, margin, mode="reflect")[box] for volume in (x, y)]
    similarity = similarity_map(*mirrored, data_range, dims=3)
    values = similarity[(slice(margin, -margin),) * 3][inside[content_box(inside)]]
    return float(values.mean())


def _twelve_bits(volume: NDArray[np.float64]) -> NDArray[np.float64]:
    standardised = (volume - volume.mean()) / volume.std()
    scaled = standardised * TWELVE_BITS["sd"] + TWELVE_BITS["mean"]
    return np.clip(scaled, TWELVE_BITS["low"], TWELVE_BITS["high"])
