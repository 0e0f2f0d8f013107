"""Image metrics as pure functions of two numpy arrays; the inputs are never modified.

Every function takes ``prediction`` and ``reference`` of one shape, computes in float64 and returns
a float. A value that is not defined (an empty mask, a reference without contrast) is NaN, never an
invented number. The formulas stand in ``docs/metrics.md``.

SSIM and MS-SSIM are those of 2-D slices along ``axis``, with windows inside the image; SSIM has a
3-D variant. :func:`mean_over_slices` gives the mean of the 2-D values of a voxel metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf, isnan, log10, nan, sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm.errors import DataError, bad_value

SSIM_SIGMA = 1.5
SSIM_RADIUS = 5  # pixels that a Gaussian of 1.5, cut at 3.5 sigma, reaches to each side
SSIM_WINDOW = 2 * SSIM_RADIUS + 1
MS_SSIM_SIDE = 176  # smallest side whose fifth scale (1/16) still holds one whole window
SSIM_BATCH = 4  # slices
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, the finest first
PIECE = 2**17  # values of an array at once: 1 MiB
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
    predicted, true = _voxels(prediction, reference, mask)
    mse = sum_of_squares(predicted, true) / true.size if true.size else nan
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
        raise bad_value(f"NRMSE normalisation {normalisation!r}; expected min-max or euclidean")
    if true.size == 0:
        return nan
    error, squares = (sqrt(sum_of_squares(*v) / true.size) for v in ((predicted, true), (true,)))
    size = float(np.ptp(true)) if normalisation == "min-max" else squares
    return error / size if size > 0 else nan


def mae(prediction: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Mean absolute error over the voxels of ``mask``, in the unit of the inputs.

    Raises:
        DataError: DATA-SHAPE if the shapes differ.
    """
    predicted, true = _voxels(prediction, reference, mask)
    total = sum(np.abs(x - y).sum() for x, y in pieces(predicted, true))
    return float(total / true.size) if true.size else nan


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
    from scipy.special import entr

    pair = _voxels(prediction, reference, mask)
    if not all(values.size and np.isfinite(values).all() for values in pair):
        return nan
    if not any(np.ptp(values) > 0 for values in pair):
        return nan
    background = [values[:1] for values in pair]  # most of a whole volume: counted, not sorted in
    edges = [_edges(values) for values in pair]
    counts, sorted_in = np.zeros(NMI_BINS**2, np.intp), 0
    for piece in pieces(*pair):
        others = np.logical_or(*(v != b for v, b in zip(piece, background, strict=True)))
        counts += _counts([values[others] for values in piece], edges)
        sorted_in += np.count_nonzero(others)
    counts += _counts(background, edges) * (pair[0].size - sorted_in)
    joint = counts.reshape(NMI_BINS, NMI_BINS) / counts.sum()
    apart = sum(entr(joint.sum(axis=axis)).sum() for axis in (0, 1))
    return float(apart / entr(joint).sum())


def _edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The edges of NMI_BINS bins alike, from the smallest value to the largest."""
    low, high = float(values.min()), float(values.max())
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    return np.linspace(low, high, NMI_BINS + 1)


def _counts(pair: Sequence[NDArray[np.float64]], edges: Sequence[NDArray]) -> NDArray[np.intp]:
    """How many of the pairs of values lie in each pair of bins."""
    first, second = (_bins(values, own) for values, own in zip(pair, edges, strict=True))
    return np.bincount(first * NMI_BINS + second, minlength=NMI_BINS**2)


def _bins(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.intp]:
    """The bin of each value.

    As ``numpy.histogram2d``, which searches the edges for each value: ten times as long.
    """
    low, high = edges[0], edges[-1]
    found = ((values - low) * (NMI_BINS / (high - low))).astype(np.intp)
    np.minimum(found, NMI_BINS - 1, out=found)  # the largest value belongs to the last
    found -= values < edges[found]  # where rounding went over an edge
    found += (values >= edges[found + 1]) & (found < NMI_BINS - 1)
    return found


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
    return mean_similarity(similarity_map(*pair, data_range, dims, inside), inside, dims)


def similarity_map(
    predicted: NDArray,
    true: NDArray,
    data_range: float,
    dims: Literal[2, 3] = 2,
    inside: NDArray | None = None,
) -> NDArray[np.float64]:
    """SSIM at every voxel of stacks of slices (slices, H, W), the expensive part of :func:`ssim`.

    With 2-D windows only slices with a voxel of ``inside`` are computed, the others are 1.
    """
    sides = true.shape if dims == 3 else true.shape[1:]
    if min(sides) < SSIM_WINDOW:
        raise DataError(
            "DATA-SHAPE",
            f"slices of {_size(sides)}; SSIM needs at least {_size((SSIM_WINDOW,) * dims)}; "
            "check the slice axis",
        )
    if dims == 3:
        return np.multiply(*_agreement(predicted, true, data_range, dims))
    similarity = np.ones(true.shape)
    wanted = np.arange(len(true)) if inside is None else np.flatnonzero(inside.any(axis=(1, 2)))
    for some in _batches(wanted):
        similarity[some] = np.multiply(*_agreement(predicted[some], true[some], data_range))
    return similarity


def mean_similarity(similarity: NDArray, inside: NDArray, dims: Literal[2, 3] = 2) -> float:
    """Mean of a map (slices, H, W) over the voxels of ``inside`` whose window fits; NaN if none."""
    windowed = slice(SSIM_RADIUS, -SSIM_RADIUS)
    place = (windowed if dims == 3 else slice(None), windowed, windowed)
    total, count = 0.0, 0
    for values, kept in pieces(similarity[place], inside[place]):
        total += float(values[kept].sum())
        count += np.count_nonzero(kept)
    return float(total / count) if count else nan


def within(values: NDArray, mask: NDArray, box: tuple[slice, ...] | None = None) -> NDArray:
    """Return the values (N,) inside a mask, of whose ``box`` alone anything is looked at."""
    box = content_box(mask) if box is None else box
    inside = mask[box]
    return values[box][... if inside.all() else inside].ravel()


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


def around(box: Sequence[slice], margin: int, shape: Sequence[int]) -> tuple[slice, ...]:
    """Slices of a box with a margin inside an array of a shape."""
    sides = zip(box, shape, strict=True)
    return tuple(slice(max(0, b.start - margin), min(side, b.stop + margin)) for b, side in sides)


def _batches(slices: NDArray) -> list[NDArray]:
    """A few at a time: they fit into the cache of a processor, and a call is not much for them."""
    return [slices[start : start + SSIM_BATCH] for start in range(0, len(slices), SSIM_BATCH)]


def _agreement(
    x: NDArray, y: NDArray, data_range: float, dims: Literal[2, 3] = 2
) -> tuple[NDArray, NDArray]:
    """Luminance and structure at each voxel of two stacks (slices, H, W): the factors of SSIM.

    Only what has content is computed: where a window is empty, both are 1.
    """
    from scipy.ndimage import gaussian_filter

    luminance, structure = np.ones(x.shape), np.ones(x.shape)
    box = content_box((x != 0) | (y != 0), SSIM_RADIUS)  # NaN counts as content
    x, y = x[box], y[box]
    if x.size:
        smoothed = (x, y, x * x + y * y, x * y)  # the variances enter by their sum alone
        window = {"sigma": SSIM_SIGMA, "radius": SSIM_RADIUS, "axes": (0, 1, 2)[-dims:]}
        smoothed = (gaussian_filter(v, **window) for v in smoothed)
        mean_x, mean_y, squares, product = smoothed
        means, both = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
        c1, c2 = ((k * data_range) ** 2 for k in (0.01, 0.03))
        luminance[box] = (2 * means + c1) / (both + c1)
        structure[box] = (2 * (product - means) + c2) / (squares - both + c2)
    return luminance, structure


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
    predicted, true, _ = _slices(prediction, reference, None, axis)
    if not data_range > 0 or true.size == 0:
        return nan
    pairs = zip(*(_batches(padded(v, MS_SSIM_SIDE)) for v in (predicted, true)), strict=True)
    return float(np.mean(np.concatenate([_ms_ssim_of_slices(*p, data_range) for p in pairs])))


def _ms_ssim_of_slices(x: NDArray, y: NDArray, data_range: float) -> NDArray[np.float64]:
    """Structure of every scale and luminance of the coarsest, means over the windows inside."""
    windowed = slice(SSIM_RADIUS, -SSIM_RADIUS)
    values, last = np.ones(len(x)), len(MS_SSIM_WEIGHTS) - 1
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            x, y = _halved(x), _halved(y)
        luminance, structure = _agreement(x, y, data_range)
        agreement = luminance * structure if scale == last else structure
        values *= np.maximum(agreement[:, windowed, windowed].mean(axis=(1, 2)), 0) ** weight
    return values


def _halved(stack: NDArray) -> NDArray:
    """Means of 2 x 2 pixels (slices, H // 2, W // 2); an odd last row or column is left out."""
    rows, columns = (side // 2 * 2 for side in stack.shape[1:])
    halved = stack[:, :rows:2] + stack[:, 1:rows:2]
    return (halved[..., :columns:2] + halved[..., 1:columns:2]) / 4


def padded(stack: NDArray, side: int, value: float = 0.0) -> NDArray:
    """Slices (slices, H, W) in the middle of ones whose sides are at least ``side``."""
    missing = [max(0, side - own) for own in stack.shape[1:]]
    margins = [(0, 0), *((size // 2, size - size // 2) for size in missing)]
    return np.pad(stack, margins, constant_values=value) if any(missing) else stack


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


def pieces(*arrays: NDArray) -> Iterator[tuple[NDArray, ...]]:
    """Yield arrays (N, ...) piece by piece: what is computed of one stays in the cache.

    A volume at a time, each step would clear and fill memory that was not used before.
    """
    rows = max(1, PIECE * len(arrays[0]) // max(1, arrays[0].size))
    for start in range(0, len(arrays[0]), rows):
        yield tuple(array[start : start + rows] for array in arrays)


def sum_of_squares(*pair: NDArray[np.float64]) -> float:
    """Of an array, or of the difference of two."""
    differences = (np.subtract(*each) if len(each) > 1 else each[0] for each in pieces(*pair))
    return float(sum(np.vdot(each, each) for each in differences))


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
