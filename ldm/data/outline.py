"""Where a stripped contrast lay when it was stripped: its outline, laid on that of another.

A data set that is distributed without skulls was registered, and then stripped by one mask. A
contrast that was moved since took its outline along, which shows the place to a tenth of a voxel;
intensities alone lead up to a millimetre away from it, to where two contrasts agree best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from ldm.data.brain import background, bounding_box, largest
from ldm.data.nifti import Geometry

FAINT = 0.02  # of the 99th percentile: what a spline leaves around a brain is weaker
MOST_POINTS = 8000
MARGIN = 12  # voxels around the brain in which distances are known
ONE_MASK = 1.25  # voxels within which nine tenths of two outlines of one mask lie


@dataclass(frozen=True)
class Outline:
    """The surface of a stripped brain.

    Args:
        mask: (X, Y, Z) bool, the brain, without holes.
        geometry: its grid.
    """

    mask: np.ndarray
    geometry: Geometry

    @classmethod
    def of(cls, array: np.ndarray, geometry: Geometry) -> Outline | None:
        """Return the outline of a contrast (X, Y, Z); None where air is noise, of a whole head."""
        air = background(array)
        if air is None:
            return None
        size = np.abs(array - np.float32(air))
        if not size.any():
            return None
        bright = size > FAINT * np.percentile(size[size > 0], 99)
        return cls(ndimage.binary_fill_holes(largest(bright)), geometry)

    def points(self) -> np.ndarray:
        """Return places (N, 3) in mm: the middles of faces between brain and air."""
        found = []
        for axis in range(3):
            turned = self.mask.swapaxes(0, axis)
            faces = np.argwhere(turned[:-1] != turned[1:]) + [0.5, 0, 0]
            faces[:, [0, axis]] = faces[:, [axis, 0]]
            found.append(faces)
        faces = np.concatenate(found)
        affine = self.geometry.canonical_affine
        return faces[:: max(1, len(faces) // MOST_POINTS)] @ affine[:3, :3].T + affine[:3, 3]

    def laid(self, points: np.ndarray, start: np.ndarray) -> np.ndarray | None:
        """Return where the outline of another contrast lies on this one; None if none fits.

        Least squares of the distances, robust where a volume ends or a brain was cut; one mask may
        be wider than the other all round, as interpolation leaves it.

        Args:
            points: (N, 3) mm, of the other outline.
            start: (4, 4) from mm of the other to mm of this one, within some 10 mm of the answer.
        """
        distances, offset = self._distances()
        to_voxels = np.linalg.inv(self.geometry.canonical_affine)
        centre, last = points.mean(0), np.array(self.mask.shape) - 1
        radius = np.linalg.norm(points - centre, axis=1).mean()
        voxel = float(np.prod(self.geometry.spacing) ** (1 / 3))

        def matrix(six: np.ndarray) -> np.ndarray:
            turn = np.eye(4)
            turn[:3, :3] = Rotation.from_rotvec(six[:3] / radius).as_matrix()
            turn[:3, 3] = centre - turn[:3, :3] @ centre + six[3:6]
            return start @ turn

        def away(seven: np.ndarray) -> np.ndarray:
            way = to_voxels @ matrix(seven)
            voxels = points @ way[:3, :3].T + way[:3, 3]
            found = ndimage.map_coordinates(distances, (voxels - offset).T, order=1, mode="nearest")
            known = ((voxels > 0) & (voxels < last)).all(1)
            return np.where(known, found - seven[6], 0.0)

        best = least_squares(away, np.zeros(7), loss="soft_l1", f_scale=voxel / 2).x
        left = np.percentile(np.abs(away(best)), 90)
        return matrix(best) if left <= ONE_MASK * voxel else None

    def _distances(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mm to the surface, negative inside, in a box, and the voxel where that begins."""
        where = bounding_box(self.mask)
        low = np.array([max(0, part.start - MARGIN) for part in where])
        box = tuple(slice(a, part.stop + MARGIN) for a, part in zip(low, where, strict=True))
        mask, spacing = self.mask[box], self.geometry.spacing
        outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
        return outside - ndimage.distance_transform_edt(mask, sampling=spacing), low
