"""Volumes as slices in one piece of memory, which is how filters run fast over them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ldm.evaluation.metrics.detail import edges, squares
from ldm.evaluation.metrics.similarity import around, content_box


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
    _changes: dict[Sliced, list[float]] = field(default_factory=dict, repr=False)
    _edges: dict[str, NDArray] = field(default_factory=dict, repr=False)

    def inside(self, brain: NDArray[np.bool_]) -> Sliced:
        """Return it with 0 outside the brain: itself where there is nothing else."""
        if not (~brain & (self.stack != 0)).any():
            return self
        return Sliced(np.where(brain, self.stack, 0))

    @cached_property
    def box(self) -> tuple[slice, ...]:
        """The smallest one around what is not 0."""
        return content_box(self.stack != 0)

    def changes(self, area: Sliced) -> list[float]:
        """Sums of squared differences of neighbours in a region along each axis."""
        if area not in self._changes:
            boxes = zip(area.box, around(self.box, 1, self.stack.shape), strict=True)
            box = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in boxes)
            self._changes[area] = squares(self.stack, area.stack, box)
        return self._changes[area]

    def edges(self, box: tuple[slice, ...]) -> NDArray[np.float64]:
        """Laplacian of a Gaussian within the slices, in a box of it."""
        key = str(box)
        if key not in self._edges:
            self._edges[key] = edges(self.stack[box])
        return self._edges[key]
