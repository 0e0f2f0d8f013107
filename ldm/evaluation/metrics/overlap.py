"""Overlap and surface distance of two masks: thin wrappers around monai, with stated conventions.

Every function takes ``prediction`` and ``reference`` of one shape, 2-D or 3-D, in which what is not
0 belongs to the structure, and returns a float. The empty cases follow BraTS: nothing predicted
where there is nothing scores best (1, distance 0), and one mask alone scores worst (0, distance the
diagonal of the image: 373.13 mm for 240 x 240 x 155 voxels of 1 mm). The two conditional rates are
NaN where they have no voxel to count and the masks are not both empty.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import hypot, nan

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm.errors import DataError
from ldm.evaluation.metrics.similarity import same_shape

Counts = tuple[int, int, int, int]


def dice(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Dice coefficient ``2 TP / (2 TP + FP + FN)``, 0 to 1; 1 for two empty masks.

    Raises:
        DataError: DATA-SHAPE if the shapes differ or are not 2-D or 3-D.
    """
    from monai.metrics import compute_dice

    return float(compute_dice(*_batches(prediction, reference), ignore_empty=False))


def iou(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Intersection over union ``TP / (TP + FP + FN)``, 0 to 1; 1 for two empty masks.

    Raises:
        DataError: DATA-SHAPE if the shapes differ or are not 2-D or 3-D.
    """
    from monai.metrics import compute_iou

    return float(compute_iou(*_batches(prediction, reference), ignore_empty=False))


def sensitivity(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Share of the structure that was found, ``TP / (TP + FN)``.

    Returns:
        0 to 1; 1 for two empty masks, NaN if only the reference is empty.

    Raises:
        DataError: DATA-SHAPE if the shapes differ or are not 2-D or 3-D.
    """
    true_positive, false_positive, _, false_negative = _counts(prediction, reference)
    if not true_positive + false_negative:
        return nan if false_positive else 1.0
    return true_positive / (true_positive + false_negative)


def specificity(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Share of what lies outside the structure that was left out, ``TN / (TN + FP)``.

    It depends on how much background the image has: do not compare it between images of other size.

    Returns:
        0 to 1; NaN if the reference fills the image.

    Raises:
        DataError: DATA-SHAPE if the shapes differ or are not 2-D or 3-D.
    """
    _, false_positive, true_negative, _ = _counts(prediction, reference)
    outside = true_negative + false_positive
    return true_negative / outside if outside else nan


def hd95(
    prediction: ArrayLike, reference: ArrayLike, spacing: Sequence[float] | None = None
) -> float:
    """95th percentile of the distance between the surfaces, the larger of the two directions.

    Args:
        prediction, reference: masks of one shape, 2-D or 3-D.
        spacing: size of a voxel along each axis, in mm; 1 if None.

    Returns:
        mm, from 0; 0 for two empty masks, the diagonal of the image if only one is empty.

    Raises:
        DataError: DATA-SHAPE if the shapes differ or are not 2-D or 3-D.
    """
    from monai.metrics import compute_hausdorff_distance

    pair = _batches(prediction, reference)
    sizes = _spacing(spacing, pair)
    found = [bool(mask.any()) for mask in pair]
    if not all(found):
        extent = (n * size for n, size in zip(pair[0].shape[2:], sizes, strict=True))
        return hypot(*extent) if any(found) else 0.0
    with _quiet():
        return float(compute_hausdorff_distance(*pair, True, percentile=95, spacing=sizes))


def surface_dice(
    prediction: ArrayLike,
    reference: ArrayLike,
    spacing: Sequence[float] | None = None,
    tolerance: float = 1.0,
) -> float:
    """Normalised surface Dice (Nikolov et al. 2021, arXiv:1809.04430): agreement of the surfaces.

    Share of both surfaces, by area, that lies within ``tolerance`` of the other one.

    Args:
        prediction, reference: masks of one shape, 2-D or 3-D.
        spacing: size of a voxel along each axis, in mm; 1 if None.
        tolerance: accepted distance, in mm.

    Returns:
        0 to 1; 1 for two empty masks, 0 if only one is empty.

    Raises:
        DataError: DATA-SHAPE if the shapes differ or are not 2-D or 3-D.
    """
    from monai.metrics import compute_surface_dice

    pair = _batches(prediction, reference)
    sizes = _spacing(spacing, pair)
    found = [bool(mask.any()) for mask in pair]
    if not all(found):
        return 0.0 if any(found) else 1.0
    with _quiet():
        return float(
            compute_surface_dice(*pair, [tolerance], True, spacing=sizes, use_subvoxels=True)
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence monai 1.6, which warns of an argument that it passes itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _batches(prediction: ArrayLike, reference: ArrayLike):  # noqa: ANN202 - torch comes late
    """Both masks as float tensors (1, 1, *S), which is how monai takes them."""
    import torch

    masks = _masks(prediction, reference)
    return [torch.from_numpy(mask)[None, None].float() for mask in masks]


def _counts(prediction: ArrayLike, reference: ArrayLike) -> Counts:
    """True positives, false positives, true negatives, false negatives."""
    predicted, true = _masks(prediction, reference)
    both = int(np.count_nonzero(predicted & true))
    either = int(np.count_nonzero(predicted | true))
    false_positive = int(np.count_nonzero(predicted)) - both
    return both, false_positive, true.size - either, either - both - false_positive


def _masks(prediction: ArrayLike, reference: ArrayLike) -> list[NDArray[np.bool_]]:
    masks = [np.ascontiguousarray(np.asarray(mask) != 0) for mask in (prediction, reference)]
    same_shape(prediction=masks[0], reference=masks[1])
    if masks[0].ndim not in (2, 3):
        raise DataError("DATA-SHAPE", f"mask of {masks[0].ndim} axes; expected a slice or a volume")
    return masks


def _spacing(spacing: Sequence[float] | None, pair: list) -> list[float]:
    axes = pair[0].ndim - 2
    sizes = [1.0] * axes if spacing is None else [float(size) for size in spacing]
    if len(sizes) != axes:
        raise DataError("DATA-SHAPE", f"spacing of {len(sizes)} axes for a mask of {axes}")
    return sizes
