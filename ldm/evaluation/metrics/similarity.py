"""Image metrics as pure functions of two numpy arrays; the inputs are never modified.

Every function takes ``prediction`` and ``reference`` of one shape, computes in float64 (MS-SSIM in
float32, as monai does) and returns a float. A value that is not defined (an empty mask, a reference
without contrast) is NaN, never an invented number. The formulas stand in ``docs/metrics.md``.

SSIM and MS-SSIM are those of 2-D slices along ``axis``, with windows inside the image; SSIM has a
3-D variant. :func:`mean_over_slices` gives the mean of the 2-D values of a voxel metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf, isnan, log10, nan, sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm.errors import ConfigError, DataError

SSIM_SIGMA = 1.5
SSIM_WINDOW = 11  # a Gaussian of 1.5 cut at 3.5 sigma reaches five pixels to each side
MS_SSIM_SIDE = 176  # smallest side whose fifth scale (1/16) still holds one whole window
MS_SSIM_BATCH = 16  # slices of one call, which bounds its memory
NMI_BINS = 100  # along each axis of the joint histogram

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


def nmi(prediction: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Normalised mutual information, ``(H(x) + H(y)) / H(x, y)`` (Studholme et al. 1999).

    Entropies of a joint histogram of 100 x 100 bins, each axis from the smallest to the largest
    value compared, as scikit-image. It asks for the same structure in the same place, whatever the
    grey values: a gain, an offset or an inversion of the prediction does not change it.

    Returns:
        1 (independent) to 2 (each determines the other); NaN without voxels, with values that are
        not finite, or where both arrays are constant.

    Raises:
        DataError: DATA-SHAPE if the shapes differ.
    """
    from skimage.metrics import normalized_mutual_information

    pair = _voxels(prediction, reference, mask)
    if not all(values.size and np.isfinite(values).all() for values in pair):
        return nan
    if not any(np.ptp(values) > 0 for values in pair):
        return nan
    return float(normalized_mutual_information(*pair, bins=NMI_BINS))


def mean_over_slices(
    metric: Callable[[NDArray, NDArray], float],
    prediction: ArrayLike,
    reference: ArrayLike,
    mask: ArrayLike | None = None,
    axis: int = -1,
) -> float:
    """Mean of ``metric(prediction, reference)`` over the slices along ``axis``, as 2-D papers do.

    Each value is that of the voxels of ``mask`` in one slice. Slices in which it is not defined do
    not count; one slice that is predicted exactly makes the mean of a PSNR infinite.

    Raises:
        DataError: DATA-SHAPE if the shapes differ.
    """
    slices = zip(*stacks(prediction, reference, mask, axis), strict=True)
    values = [metric(x[inside], y[inside]) for x, y, inside in slices]
    defined = [value for value in values if not isnan(value)]
    return float(np.mean(defined)) if defined else nan


def ssim(
    prediction: ArrayLike,
    reference: ArrayLike,
    data_range: float,
    mask: ArrayLike | None = None,
    axis: int = -1,
    dims: Literal[2, 3] = 2,
) -> float:
    """Structural similarity (Wang et al. 2004), the values of scikit-image.

    Gaussian window of sigma 1.5 and 11 pixels a side, population covariance, K1 = 0.01 and
    K2 = 0.03. The result is the mean of the similarity map over all pixels, or those of ``mask``,
    whose window lies inside the slice (with ``dims=3`` the volume).

    Args:
        prediction: non-negative volume, or one 2-D slice.
        reference: of the same shape.
        data_range: distance of the largest from the smallest possible intensity.
        mask: pixels that enter the mean; all if None.
        axis: the axis of a volume that counts its slices.
        dims: 2 for windows within slices, 3 for windows that reach over slices.

    Returns:
        1 for equal arrays; NaN for an empty mask or without data range.

    Raises:
        DataError: DATA-SHAPE if the shapes differ or a slice is smaller than the window,
            DATA-RANGE for negative intensities.
    """
    *pair, inside = _slices(prediction, reference, mask, axis)
    if not data_range > 0 or not inside.any():
        return nan
    return mean_similarity(similarity_map(*pair, inside, data_range, dims), inside, dims)


def similarity_map(
    predicted: NDArray, true: NDArray, inside: NDArray, data_range: float, dims: Literal[2, 3] = 2
) -> NDArray[np.float64]:
    """SSIM at every voxel of stacks of slices (slices, H, W), the expensive part of :func:`ssim`.

    Only slices with a voxel of ``inside`` are computed, and only where there is content: windows
    without any have a similarity of 1, and so has all that is not computed.
    """
    sides = true.shape if dims == 3 else true.shape[1:]
    if min(sides) < SSIM_WINDOW:
        raise DataError(
            "DATA-SHAPE",
            f"slices of {_size(sides)}; SSIM needs at least {_size((SSIM_WINDOW,) * dims)}; "
            "check the slice axis",
        )
    similarity = np.ones(true.shape)
    box = content_box((predicted != 0) | (true != 0), SSIM_WINDOW)  # NaN counts as content
    if dims == 3:
        similarity[box] = _skimage_map(predicted[box], true[box], data_range)
        return similarity
    for index in np.flatnonzero(inside.any(axis=(1, 2))):
        place = (index, *box[1:])
        similarity[place] = _skimage_map(predicted[place], true[place], data_range)
    return similarity


def mean_similarity(similarity: NDArray, inside: NDArray, dims: Literal[2, 3] = 2) -> float:
    """Mean of a map (slices, H, W) over the voxels of ``inside`` whose window fits; NaN if none."""
    border = SSIM_WINDOW // 2
    windowed = slice(border, -border)
    place = (windowed if dims == 3 else slice(None), windowed, windowed)
    values = similarity[place][inside[place]]
    return float(values.mean()) if values.size else nan


def content_box(mask: NDArray, margin: int = 0) -> tuple[slice, ...]:
    """Slices of the smallest box around ``mask``, with a margin inside the array; empty if none."""
    box = []
    for axis, side in enumerate(mask.shape):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if not found.size:
            return (slice(0, 0),) * mask.ndim
        box.append(slice(max(0, found[0] - margin), min(side, found[-1] + 1 + margin)))
    return tuple(box)


def _skimage_map(predicted: NDArray, true: NDArray, data_range: float) -> NDArray[np.float64]:
    """SSIM at every voxel of one slice or volume of content."""
    from skimage.metrics import structural_similarity

    if not true.size:
        return np.ones(true.shape)
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


def triple(
    prediction: ArrayLike, reference: ArrayLike, mask: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Prediction, reference and mask of one shape."""
    predicted, true = np.asarray(prediction, np.float64), np.asarray(reference, np.float64)
    inside = np.ones(true.shape, bool) if mask is None else np.asarray(mask) != 0
    same_shape(prediction=predicted, reference=true, mask=inside)
    return predicted, true, inside


def stacks(
    prediction: ArrayLike, reference: ArrayLike, mask: ArrayLike | None, axis: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Prediction, reference and mask as stacks of slices, each of shape (slices, H, W)."""
    found = triple(prediction, reference, mask)
    if found[1].ndim not in (2, 3):
        shape = _size(found[1].shape)
        raise DataError("DATA-SHAPE", f"array of {shape}; expected a slice or a volume")
    if found[1].ndim == 2:
        return tuple(array[None] for array in found)
    return tuple(np.moveaxis(array, axis, 0) for array in found)


def _slices(
    prediction: ArrayLike, reference: ArrayLike, mask: ArrayLike | None, axis: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Stacks for the similarities, which are not defined for negative intensities."""
    predicted, true, inside = stacks(prediction, reference, mask, axis)
    if min(predicted.min(initial=0), true.min(initial=0)) < 0:
        # the luminance term loses its meaning: x against -x would score close to 1
        raise DataError(
            "DATA-RANGE", "negative intensities; SSIM expects them shifted to start at 0"
        )
    return predicted, true, inside


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
