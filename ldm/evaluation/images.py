"""Volumes as slices in one piece of memory, which is how filters run fast over them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ldm.evaluation.metrics.detail import edges
from ldm.evaluation.metrics.similarity import content_box


def stacked(volume: NDArray, axis: int = -1) -> NDArray:
    """Return a volume as its slices along ``axis`` (slices, H, W), each in one piece of memory."""
    view = np.moveaxis(volume, axis, 0)
    stack = np.empty(view.shape, view.dtype)
    for row in range(view.shape[1]):  # at once, each line of the cache would be read many times
        stack[:, row] = view[:, row]
    return stack


@dataclass(eq=False)
class Sliced:
    """A volume in [0, 1], or a mask, as slices (slices, H, W), and what is made of it alone."""

    stack: NDArray

    def inside(self, brain: NDArray[np.bool_]) -> Sliced:
        """Return it with 0 outside the brain: itself where there is nothing else."""
        if not (~brain & (self.stack != 0)).any():
            return self
        return Sliced(np.where(brain, self.stack, 0))

    @cached_property
    def box(self) -> tuple[slice, ...]:
        """The smallest one around what is not 0."""
        return content_box(self.stack != 0)

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """Laplacian of a Gaussian within the slices (slices, H, W)."""
        return edges(self.stack)
