"""Shapes and smooth random fields as functions of points in millimetres.

Points are arrays of shape (3, N): x toward the patient's left, y toward the back, z toward the
vertex. Because shapes are functions of points and not of voxels, one seed gives the same head at
every resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.ndimage import map_coordinates

Vector = Sequence[float]

LATTICE = 48
SPLINE_STD = (11 / 20) ** 1.5  # mean over space of the 3-D sum of squared B-splines, rooted


class SmoothField:
    """Random scalar field of zero mean and unit variance: white noise under quadratic B-splines.

    Neighbouring zero-level surfaces lie about ``2.6 * scale`` apart. The field repeats after
    ``48 * scale`` mm.

    Args:
        rng: source of the noise.
        scale: distance between the nodes of the lattice in mm.
    """

    def __init__(self, rng: np.random.Generator, scale: float) -> None:
        self.nodes = rng.standard_normal((LATTICE,) * 3, dtype=np.float32)
        self.scale = scale

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return the values (N,) at ``points`` (3, N)."""
        values = map_coordinates(
            self.nodes, points / self.scale, np.float32, order=2, mode="grid-wrap", prefilter=False
        )
        return values / SPLINE_STD


def warped(
    rng: np.random.Generator, points: np.ndarray, amplitude: float, scale: float
) -> np.ndarray:
    """Return ``points`` (3, N) moved by about ``amplitude`` mm, differently every ``scale`` mm."""
    return points + amplitude * np.stack([SmoothField(rng, scale)(points) for _ in range(3)])


def sheet_distance(field: Callable[[np.ndarray], np.ndarray], points: np.ndarray) -> np.ndarray:
    """Estimate the distance (N,) in mm to the zero-level surface of ``field``: |f| / |grad f|."""
    value, step = field(points), 0.5  # mm
    slope = np.zeros_like(value)
    for axis in np.eye(3, dtype=np.float32)[:, :, None] * step:
        slope += ((field(points + axis) - value) / step) ** 2
    return np.abs(value) / np.sqrt(slope + 1e-6)


def ellipsoid_depth(
    points: np.ndarray, centre: Vector, radii: Vector, power: float = 2.0
) -> np.ndarray:
    """Return the depth (N,) in mm below the surface of an ellipsoid, positive inside.

    First-order estimate, exact for a sphere and on the surface. ``power`` > 2 makes the shape
    boxier (superellipsoid).
    """
    unit = np.abs(points - column(centre)) / column(radii) + 1e-6
    length = (unit**power).sum(0) ** (1 / power)
    gradient = np.linalg.norm((unit / length) ** (power - 1) / column(radii), axis=0)
    return (1 - length) / gradient


def tube_depth(points: np.ndarray, path: Sequence[Vector], radii: Vector) -> np.ndarray:
    """Return the depth (N,) in mm inside a tube along ``path`` with one radius per corner."""
    depth = np.full(points.shape[1], -np.inf, dtype=np.float32)
    for start, end, r_start, r_end in zip(path, path[1:], radii, radii[1:], strict=False):
        offset, span = points - column(start), column(end) - column(start)
        along = np.clip((offset * span).sum(0) / (span**2).sum(), 0, 1)
        distance = np.linalg.norm(offset - along * span, axis=0)
        depth = np.maximum(depth, r_start + along * (r_end - r_start) - distance)
    return depth


def blend_max(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Return the maximum of two depths with the crease rounded over ``radius`` mm."""
    overlap = np.maximum(radius - np.abs(a - b), 0) / radius
    return np.maximum(a, b) + overlap**2 * radius / 4


def inside(depth: np.ndarray, voxel: float) -> np.ndarray:
    """Return the fraction of a voxel of width ``voxel`` mm that lies where ``depth`` > 0."""
    return np.clip(0.5 + depth / voxel, 0, 1)


def near_sheet(distance: np.ndarray, half_width: float | np.ndarray, voxel: float) -> np.ndarray:
    """Return the fraction of a voxel that lies within ``half_width`` mm of a thin sheet."""
    upper = np.clip(distance + voxel / 2, -half_width, half_width)
    lower = np.clip(distance - voxel / 2, -half_width, half_width)
    return (upper - lower) / voxel


def near_curve(distance: np.ndarray, radius: float, voxel: float) -> np.ndarray:
    """Return the fraction of a voxel that lies within ``radius`` mm of a curve.

    Conserves the cross-section of a vessel thinner than a voxel.
    """
    return near_sheet(distance, radius, voxel) * min(1, 2 * radius / voxel)


def column(vector: Vector) -> np.ndarray:
    """Return three numbers as a float32 array (3, 1) that broadcasts over points."""
    return np.asarray(vector, dtype=np.float32).reshape(3, 1)
