"""Resampling of the box of a brain to another spacing, and back to its own voxels.

Beyond the brain every value goes on as that of the nearest brain voxel, so that neither way mixes
tissue with the zeros around it. On the way in, axes that become coarser are smoothed first, by a
Gaussian of (step - 1) / 2 voxels (as ``skimage.transform.resize`` does); on the way back nothing is
smoothed, so that voxel centres which the two grids share keep their values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

ORDERS = {"linear": 1, "cubic": 3}
TOLERANCE = 1e-4  # of a voxel's side: header fields are float32


@dataclass(frozen=True)
class Resampling:
    """Between the voxels of a box and a coarser or finer grid with the same centre.

    Args:
        shape: voxels of the box.
        grid: voxels of the grid; it reaches all voxel centres of the box.
        steps: voxels of the box that one voxel of the grid measures, along each axis.
        order: of the spline, 1 or 3.
    """

    shape: tuple[int, ...]
    grid: tuple[int, ...]
    steps: tuple[float, ...]
    order: int

    @classmethod
    def plan(
        cls,
        shape: Sequence[int],
        spacing: Sequence[float],
        wanted: Sequence[float],
        interpolation: str = "linear",
    ) -> Resampling | None:
        """Return the way from ``spacing`` to ``wanted`` mm, or None if they are equal."""
        steps = tuple(
            1.0 if abs(new / old - 1) < TOLERANCE else new / old
            for old, new in zip(spacing, wanted, strict=True)
        )
        if all(step == 1 for step in steps):
            return None
        grid = tuple(
            math.ceil((n - 1) / step - TOLERANCE) + 1 for n, step in zip(shape, steps, strict=True)
        )
        return cls(tuple(shape), grid, steps, ORDERS[interpolation])

    def volumes(self, volumes: Mapping[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
        """Bring volumes of the box to the grid; only what lies in ``mask`` counts."""
        sigmas = [max(0.0, (step - 1) / 2) for step in self.steps]
        nearest = nearest_inside(mask)
        smooth = {
            name: ndimage.gaussian_filter(volume[nearest], sigmas, mode="nearest")
            for name, volume in volumes.items()
        }
        return {n: _interpolate(v, self.grid, self.steps, self.order) for n, v in smooth.items()}

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Bring labels, or a mask, of the box to the grid: the nearest voxel's."""
        return _interpolate(labels.astype(np.uint8), self.grid, self.steps, 0).astype(labels.dtype)

    def back(self, volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Bring a volume of the grid to the box; only what lies in ``mask`` (of the grid) counts.

        The spline adds nothing brighter or darker than the volume.
        """
        steps = tuple(1 / step for step in self.steps)
        volume = volume.astype(np.result_type(volume, np.float32), copy=False)  # shares of a mask
        values = _interpolate(volume[nearest_inside(mask)], self.shape, steps, self.order)
        return np.clip(values, volume[mask].min(), volume[mask].max())


def nearest_inside(mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return, for every voxel, the index of the nearest one in ``mask``."""
    return tuple(ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True))


def _interpolate(
    array: np.ndarray, shape: Sequence[int], steps: Sequence[float], order: int
) -> np.ndarray:
    """Sample ``array`` on ``shape`` voxels of ``steps`` of its own, centre on centre."""
    offsets = [
        (have - 1) / 2 - step * (want - 1) / 2
        for have, want, step in zip(array.shape, shape, steps, strict=True)
    ]
    return ndimage.affine_transform(
        array, np.array(steps), offsets, tuple(shape), order=order, mode="nearest"
    )
