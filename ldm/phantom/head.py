"""Shape of the phantom's head: its parts, the fissures between them, and the folds of the cortex.

The folded cortex is the part that needs an idea: sulci are the zero-level surfaces of smooth random
fields, sampled at points moved outward to the surface of the brain so that the sulci stand upright
on it, and bent by a warp so that their walls undulate. Long folds are deep, short ones shallow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldm.phantom.geometry import (
    SmoothField,
    blend_max,
    column,
    ellipsoid_depth,
    sheet_distance,
    tube_depth,
    warped,
)

CEREBRUM_RADII = (66.0, 85.0, 58.0)
CEREBRUM_CENTRE = (0.0, 0.0, 8.0)
POSITION = (0.0, 6.0, 3.0)  # mm; of the head in the field of view of BraTS
FOLDS = ((5.4, 18.0, 6.0), (3.6, 4.0, 4.0))  # mm: scale of the field, mean depth, its variation


@dataclass(frozen=True)
class Depths:
    """Depth in mm below the surface of the parts of the brain, (N,) each, positive inside."""

    cerebrum: np.ndarray
    cerebellum: np.ndarray
    brainstem: np.ndarray
    brain: np.ndarray

    def __getitem__(self, keep: np.ndarray) -> Depths:
        return Depths(**{name: depth[keep] for name, depth in vars(self).items()})


@dataclass(frozen=True)
class Head:
    """N points inside the skull of one person.

    Attributes:
        points: positions (3, N) in mm in the average head, before any tumour pushed them aside.
        depths: depths of the points as they lie now.
        voxel: edge of a voxel in mm.
        age: 0 (young: narrow sulci, small ventricles) to 1 (old).
    """

    points: np.ndarray
    depths: Depths
    voxel: float
    age: float

    @property
    def mirrored(self) -> np.ndarray:
        """The points (3, N) with the right half laid over the left."""
        x, y, z = self.points
        return np.stack([np.abs(x), y, z])


def head_frame(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """Map scanner positions (3, N) to the average head: size, pose and individual shape undone."""
    yaw, pitch, roll = np.radians(rng.normal(0, 1.5, 3))
    rotation = np.array(
        [[1, -yaw, roll], [yaw, 1, -pitch], [-roll, pitch, 1]], dtype=np.float32
    )  # of small angles
    stretch = rng.normal(1.0, 0.03, (3, 1)) * rng.normal(0.965, 0.025)
    head = rotation @ (points - column(POSITION)) / stretch.astype(np.float32)
    return warped(rng, warped(rng, head, 2.0, 45.0), 0.8, 11.0)  # asymmetry, then irregularity


def brain_depths(points: np.ndarray) -> Depths:
    """Return the depths of head-frame points (3, N) in the parts of the brain."""
    x, y, z = points
    egg = np.stack(
        [np.abs(x) / (1 + 0.08 * np.tanh(y / 45)), y, np.where(z < 8, 8 + (z - 8) * 1.3, z)]
    )
    mirrored = np.stack([np.abs(x), y, z])
    cerebrum = ellipsoid_depth(egg, CEREBRUM_CENTRE, CEREBRUM_RADII, power=2.2)
    temporal_lobe = ellipsoid_depth(mirrored, (40, -8, -24), (22, 40, 24))
    cerebrum = blend_max(cerebrum, temporal_lobe, 8)
    hemisphere = ellipsoid_depth(mirrored, (23, 41, -43), (30, 31, 23))
    vermis = ellipsoid_depth(points, (0, 41, -42), (16, 26, 22))
    cerebellum = blend_max(hemisphere, vermis, 4)
    brainstem = tube_depth(points, [(0, 8, -18), (0, 10, -44), (0, 18, -60)], (15, 14, 8))
    brain = blend_max(blend_max(cerebrum, cerebellum, 16), brainstem, 16)
    return Depths(cerebrum, cerebellum, brainstem, brain)


def outward(points: np.ndarray) -> np.ndarray:
    """Move points (3, N) most of the way along their radius to the surface of the cerebrum."""
    centred = points - column(CEREBRUM_CENTRE)
    radius = np.linalg.norm(centred / column(CEREBRUM_RADII), axis=0)
    return centred * np.clip(radius, 0.3, None) ** -0.55


def sulci(rng: np.random.Generator, head: Head) -> np.ndarray:
    """Return the distance (N,) in mm to the nearest sulcus, measured to its middle."""
    bent = warped(rng, head.points, 2.0, 9.0)
    medial, lateral = fissures(head.points)[0], fissures(bent)[1]
    distances = [medial, lateral]
    for scale, mean, variation in FOLDS:
        field = SmoothField(rng, scale * rng.uniform(0.9, 1.1))
        sheet = sheet_distance(lambda q, field=field: field(outward(q)), bent)
        reach = mean + variation * SmoothField(rng, 14.0)(head.points)
        beyond = np.minimum(head.depths.brain - reach, medial - 0.4 * reach)
        distances.append(np.hypot(sheet, np.maximum(beyond, 0)))
    return np.minimum.reduce(distances)


def fissures(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances (N,) in mm to the midline fissure and to the Sylvian ones."""
    x, y, z = points
    midline = np.hypot(x, np.maximum(-above_callosum(points), 0))
    height = z + 14 - 0.35 * y  # above the Sylvian fissure, which rises toward the back
    lateral = np.abs(x) - 40 + 4 * (height / 13) ** 2 + 4 * (y / 26) ** 2  # from the convex insula
    along = np.maximum(np.abs(y) - 26, 0)
    sylvian = np.linalg.norm([height, np.maximum(-lateral, 0), along], axis=0) - 2.5
    insula = np.linalg.norm([lateral, np.maximum(np.abs(height - 2) - 14, 0), along], axis=0)
    return midline, np.minimum(sylvian, insula)


def above_callosum(points: np.ndarray) -> np.ndarray:
    """Return how far in mm the points (3, N) lie above the corpus callosum, roughly."""
    return (np.hypot(points[1] / 44, (points[2] + 10) / 28) - 1) * 28
