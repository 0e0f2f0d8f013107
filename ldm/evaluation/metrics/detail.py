"""Fine structure of a prediction: do slices follow each other, is it sharp, are its edges right?

Pure functions of numpy arrays like those of :mod:`ldm.evaluation.metrics.similarity`, with the
same errors; their formulas stand in ``docs/metrics.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm.evaluation.metrics.similarity import content_box, stacks, sum_of_squares, triple

HFEN_SIGMA = 1.5
HFEN_RADIUS = 7  # a kernel of 15 x 15, as in the paper
SLAB = 8  # slices at a time


class Changes(NamedTuple):
    """Sums of squared differences of neighbours, across slices and within them."""

    across: float
    within: float
    true_across: float
    true_within: float

    @property
    def flicker(self) -> float:
        """Change from slice to slice for the sharpness within them, relative to the reference.

        1: slices follow each other as in the reference; above: they jump (sampled one by one);
        below: they are more alike than they should be. An offset or a gain of the prediction, and a
        blur alike in all directions of a reference alike in all directions, do not change it. NaN
        where prediction or reference do not change along or within slices.
        """
        if not all(change > 0 for change in self):  # also refuses NaN
            return nan
        return sqrt(self.across / self.true_across / (self.within / self.true_within))

    @property
    def sharpness(self) -> float:
        """Strength of the edges within slices relative to the reference.

        Below 1: blurred; above 1: sharper or noisier. An offset does not change it, a gain scales
        it. It sees blur, not where the edges are: see :func:`hfen`. NaN for a reference that is
        constant within its slices.
        """
        return sqrt(self.within / self.true_within) if self.true_within > 0 else nan


def changes(
    prediction: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None, axis: int = -1
) -> Changes:
    """Sum changes along ``axis``, which counts the slices, and along the other two axes.

    Args:
        prediction, reference: volumes (X, Y, Z) of one shape; NaN without three axes.
        mask: a pair of neighbours counts where both lie inside; all if None.

    Raises:
        DataError: DATA-SHAPE if the shapes differ.
    """
    predicted, true, inside = triple(prediction, reference, mask)
    if true.ndim != 3:
        return Changes(nan, nan, nan, nan)
    sums = (squares(v, inside, content_box(inside & (v != 0), 1)) for v in (predicted, true))
    return changes_of(*sums, axis)


def changes_of(prediction: Sequence[float], reference: Sequence[float], axis: int) -> Changes:
    """Return the same of what :func:`squares` has found of both."""
    sums = np.array([prediction, reference])
    across = sums[:, axis % 3]
    within = np.delete(sums, axis % 3, axis=1).sum(axis=1)
    return Changes(*map(float, (across[0], within[0], across[1], within[1])))


def squares(volume: NDArray, inside: NDArray[np.bool_], box: tuple[slice, ...]) -> list[float]:
    """Sums of squared differences of neighbours along each axis of a volume (X, Y, Z).

    Args:
        inside: a pair counts where both lie in it.
        box: where there is anything to find; a few slices at a time, which stay in the cache.
    """
    volume, inside, sums = volume[box], inside[box], [0.0] * 3
    for start in range(0, len(volume), SLAB):
        for axis in range(3):
            some = slice(start, start + SLAB + (axis == 0))  # and the first of the next
            before = (slice(None),) * axis
            kept = inside[some]
            pairs = kept[(*before, slice(1, None))] & kept[(*before, slice(-1))]
            change = np.diff(volume[some], axis=axis)[pairs]
            sums[axis] += float(np.vdot(change, change))
    return sums


def hfen(
    prediction: ArrayLike, reference: ArrayLike, mask: ArrayLike | None = None, axis: int = -1
) -> float:
    """High-frequency error norm (Ravishankar & Bresler 2011), ``|LoG(x) - LoG(y)| / |LoG(y)|``.

    LoG is the Laplacian of a Gaussian of sigma 1.5 within slices (15 x 15), the norm the Euclidean
    one over the voxels of ``mask``. Unlike sharpness it asks for edges in the right place.

    Returns:
        from 0 (all fine structure is right); 1 as for a constant prediction; above 1 for structure
        in the wrong place. NaN for an empty mask or a reference without fine structure.

    Raises:
        DataError: DATA-SHAPE if the shapes differ or there are not two or three axes.
    """
    predicted, true, inside = stacks(prediction, reference, mask, axis)
    return relative_error(edges(predicted)[inside], edges(true)[inside])


def relative_error(x: NDArray, y: NDArray) -> float:
    """Euclidean norm of ``x - y`` over that of ``y``; NaN where that is 0."""
    size = sum_of_squares(y)
    return sqrt(sum_of_squares(x, y) / size) if size > 0 else nan


def edges(stack: NDArray) -> NDArray[np.float64]:
    """Laplacian of a Gaussian within the slices of a stack (slices, H, W)."""
    from scipy.ndimage import gaussian_laplace

    found = [gaussian_laplace(image, HFEN_SIGMA, radius=HFEN_RADIUS) for image in stack]
    return np.stack(found) if found else np.zeros(stack.shape)
