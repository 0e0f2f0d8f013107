"""Image metrics as pure functions of two numpy arrays; the inputs are never modified.

Every function takes ``prediction`` and ``reference`` of one shape, computes in float64 (MS-SSIM in
float32, as monai does) and returns a float. A value that is not defined (an empty mask, a reference
without contrast) is NaN, never an invented number. The formulas stand in ``docs/metrics.md``.

SSIM and MS-SSIM are those of 2-D slices along ``axis``, with windows inside the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, log10, nan, sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm.errors import ConfigError, DataError

SSIM_SIGMA = 1.5
SSIM_WINDOW = 11  # a Gaussian of 1.5 cut at 3.5 sigma reaches five pixels to each side
MS_SSIM_SIDE = 176  # smallest side whose fifth scale (1/16) still holds one whole window
MS_SSIM_BATCH = 16  # slices of one call, which bounds its memory

NrmseKind = Literal["min-max", "euclidean"]


def psnr(
    prediction: ArrayLike, reference: ArrayLike, data_range: float, mask: ArrayLike | None = None
) -> float:
    """Peak signal-to-noise ratio, ``10 log10(data_range^2 / MSE)``.

    Args:
        prediction: array of any shape.
        reference: array of the same shape.
        data_range: distance of the largest from the smallest possible intensity.
        mask: voxels to compare, of the same shape; all if None.

    Returns:
        decibel; infinity where the arrays are equal, NaN for an empty mask or without data range.

    Raises:
        DataError: DATA-SHAPE if the shapes differ.
    """
    mse = _mean_square(*_voxels(prediction, reference, mask))
    if not data_range > 0 or np.isnan(mse):
        return nan
    return inf if mse == 0 else 10 * log10(data_range**2 / mse)


def nrmse(
    prediction: ArrayLike,
    reference: ArrayLike,
    mask: ArrayLike | None = None,
    normalisation: NrmseKind = "min-max",
) -> float:
    """Root mean square error, divided by a size of the reference taken from the same voxels.

    Args:
        prediction: array of any shape.
        reference: array of the same shape.
        mask: voxels to compare; all if None.
        normalisation: ``min-max`` divides by the range of the reference, ``euclidean`` by its root
            mean square.

    Returns:
        the ratio, without unit; NaN for an empty mask or where the divisor is zero.

    Raises:
        DataError: DATA-SHAPE if the shapes differ.
        ConfigError: CONFIG-VALUE for an unknown normalisation.
    """
    predicted, true = _voxels(prediction, reference, mask)
    if normalisation not in ("min-max", "euclidean"):
        raise ConfigError(
            "CONFIG-VALUE",
            f"NRMSE normalisation {normalisation!r}; expected min-max or euclidean",
        )
    if true.size == 0:
        return nan
    size = float(np.ptp(true)) if normalisation == "min-max" else sqrt(np.mean(true**2))
    return sqrt(_mean_square(predicted, true)) / size if size > 0 else nan


def mae(prediction: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Mean absolute error over the voxels of ``mask``, in the unit of the inputs.

    Raises:
        DataError: DATA-SHAPE if the shapes differ.
    """
    predicted, true = _voxels(prediction, reference, mask)
    return float(np.mean(np.abs(predicted - true))) if true.size else nan


def ssim(
    prediction: ArrayLike,
    reference: ArrayLike,
    data_range: float,
    mask: ArrayLike | None = None,
    axis: int = -1,
) -> float:
    """Structural similarity of 2-D slices (Wang et al. 2004), the values of scikit-image.

    Gaussian window of sigma 1.5 (11 x 11), population covariance, K1 = 0.01 and K2 = 0.03. The
    result is the mean of the similarity map over all pixels, or those of ``mask``, whose window
    lies inside the slice.

    Args:
        prediction: non-negative volume, or one 2-D slice.
        reference: of the same shape.
        data_range: distance of the largest from the smallest possible intensity.
        mask: pixels that enter the mean; all if None.
        axis: the axis of a volume that counts its slices.

    Returns:
        1 for equal arrays; NaN for an empty mask or without data range.

    Raises:
        DataError: DATA-SHAPE if the shapes differ or a slice is smaller than the window,
            DATA-RANGE for negative intensities.
    """
    predicted, true, inside = _slices(prediction, reference, mask, axis)
    border = SSIM_WINDOW // 2
    if min(true.shape[1:]) < SSIM_WINDOW:
        raise DataError(
            "DATA-SHAPE",
            f"slices of {_size(true.shape[1:])}; SSIM needs at least {SSIM_WINDOW}x{SSIM_WINDOW}; "
            "check the slice axis",
        )
    inside = inside[:, border:-border, border:-border]
    if not data_range > 0 or not inside.any():
        return nan
    total = 0.0
    for index in np.flatnonzero(inside.any(axis=(1, 2))):
        similarity = _similarity_map(predicted[index], true[index], data_range)
        total += similarity[border:-border, border:-border][inside[index]].sum()
    return float(total / inside.sum())


def _similarity_map(
    predicted: NDArray[np.float64], true: NDArray[np.float64], data_range: float
) -> NDArray[np.float64]:
    """SSIM at every pixel of one slice (H, W)."""
    from skimage.metrics import structural_similarity

    return structural_similarity(
        predicted,
        true,
        data_range=data_range,
        gaussian_weights=True,
        sigma=SSIM_SIGMA,
        use_sample_covariance=False,
        full=True,
    )[1]


def ms_ssim(
    prediction: ArrayLike, reference: ArrayLike, data_range: float, axis: int = -1
) -> float:
    """Multi-scale structural similarity (Wang et al. 2003), the mean over the slices, as monai.

    Five scales with the weights of the paper, Gaussian window of sigma 1.5 (11 x 11) inside the
    image. MS-SSIM needs sides >= 176: smaller slices are padded with zeros to that size, as if the
    field of view had been larger. The empty margin counts as agreement, so that values of different
    slice sizes below 176 should not be compared with each other.

    Args:
        prediction: non-negative volume with background 0, or one 2-D slice.
        reference: of the same shape.
        data_range: distance of the largest from the smallest possible intensity.
        axis: the axis of a volume that counts its slices.

    Returns:
        1 for equal arrays; NaN without slices or data range.

    Raises:
        DataError: DATA-SHAPE if the shapes differ, DATA-RANGE for negative intensities.
    """
    import torch
    from monai.metrics import compute_ms_ssim

    predicted, true, _ = _slices(prediction, reference, None, axis)
    if not data_range > 0 or true.size == 0:
        return nan
    values = [
        compute_ms_ssim(*map(_ms_ssim_batch, batch), spatial_dims=2, data_range=data_range)
        for batch in _batches(predicted, true)
    ]
    return float(torch.cat(values).double().mean())


def flicker(
    prediction: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None, axis: int = -1
) -> float:
    """Change from slice to slice for the sharpness within them, relative to the reference.

    ``sqrt((Z(x) / Z(y)) / (P(x) / P(y)))`` for prediction x and reference y, where Z sums the
    squared differences of voxels next to each other along ``axis`` and P those along the other two
    axes, over pairs that both lie inside ``mask``. An offset or a gain of the prediction, and a
    blur alike in all directions of a reference alike in all directions, do not change it.

    Args:
        prediction: volume (X, Y, Z).
        reference: of the same shape.
        mask: voxels to compare; all if None.
        axis: the axis that counts the slices.

    Returns:
        from 0. 1: slices follow each other as in the reference; above: they jump (sampled one by
        one); below: they are more alike than they should be. NaN for an array without three axes,
        or where prediction or reference do not change along or within slices.

    Raises:
        DataError: DATA-SHAPE if the shapes differ.
    """
    predicted, true = np.asarray(prediction, np.float64), np.asarray(reference, np.float64)
    inside = np.ones(true.shape, bool) if mask is None else np.asarray(mask) != 0
    same_shape(prediction=predicted, reference=true, mask=inside)
    if true.ndim != 3:
        return nan
    changes = [_changes(volume, inside, axis) for volume in (predicted, true)]
    if not all(change > 0 for pair in changes for change in pair):  # also refuses NaN
        return nan
    (across, within), (true_across, true_within) = changes
    return sqrt(across / true_across / (within / true_within))


def _changes(
    volume: NDArray[np.float64], inside: NDArray[np.bool_], axis: int
) -> tuple[float, float]:
    """Sum of squared differences of neighbours across slices, and within them."""
    sums = []
    for direction in range(3):
        values, kept = (np.moveaxis(array, direction, 0) for array in (volume, inside))
        pairs = kept[1:] & kept[:-1]
        sums.append(float(np.sum(np.diff(values, axis=0)[pairs] ** 2)))
    across = sums.pop(axis % 3)
    return across, sum(sums)


def same_shape(**arrays: ArrayLike) -> None:
    """Refuse arrays of different shape.

    Raises:
        DataError: DATA-SHAPE, with the name and the shape of each array.
    """
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        seen = ", ".join(f"{name} {_size(shape)}" for name, shape in shapes.items())
        raise DataError("DATA-SHAPE", f"{seen}; expected one shape; resample to the same grid")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _voxels(
    prediction: ArrayLike, reference: ArrayLike, mask: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The compared voxels of both arrays, each of shape (N,)."""
    predicted, true = np.asarray(prediction, np.float64), np.asarray(reference, np.float64)
    if mask is None:
        same_shape(prediction=predicted, reference=true)
        return predicted.ravel(), true.ravel()
    inside = np.asarray(mask) != 0
    same_shape(prediction=predicted, reference=true, mask=inside)
    return predicted[inside], true[inside]


def _mean_square(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    return float(np.mean((predicted - true) ** 2)) if true.size else nan


def _slices(
    prediction: ArrayLike, reference: ArrayLike, mask: ArrayLike | None, axis: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Prediction, reference and mask as stacks of slices, each of shape (slices, H, W)."""
    predicted, true = np.asarray(prediction, np.float64), np.asarray(reference, np.float64)
    inside = np.ones(true.shape, bool) if mask is None else np.asarray(mask) != 0
    same_shape(prediction=predicted, reference=true, mask=inside)
    if true.ndim not in (2, 3):
        raise DataError("DATA-SHAPE", f"array of {_size(true.shape)}; expected a slice or a volume")
    if min(predicted.min(initial=0), true.min(initial=0)) < 0:
        # the luminance term loses its meaning: x against -x would score close to 1
        raise DataError(
            "DATA-RANGE", "negative intensities; SSIM expects them shifted to start at 0"
        )
    if true.ndim == 2:
        return predicted[None], true[None], inside[None]
    return tuple(np.moveaxis(array, axis, 0) for array in (predicted, true, inside))


def _batches(
    predicted: NDArray[np.float64], true: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    for start in range(0, len(true), MS_SSIM_BATCH):
        yield predicted[start : start + MS_SSIM_BATCH], true[start : start + MS_SSIM_BATCH]


def _ms_ssim_batch(slices: NDArray[np.float64]):  # noqa: ANN202 - torch is imported where it is used
    """Slices (B, H, W) as a float32 tensor (B, 1, max(H, 176), max(W, 176)), zeros around."""
    import torch

    missing = [max(0, MS_SSIM_SIDE - side) for side in slices.shape[1:]]
    margins = [(0, 0), *((size // 2, size - size // 2) for size in missing)]
    return torch.from_numpy(np.pad(slices, margins).astype(np.float32))[:, None]
