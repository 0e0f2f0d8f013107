"""Anatomy of the phantom: which tissue fills how much of every brain voxel.

The head is built from a few implicit shapes and smooth random fields (``head.py``).
Cortex is what lies within a cortical thickness of the fluid on the brain or in a sulcus.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldm.phantom.geometry import (
    SmoothField,
    blend_max,
    column,
    ellipsoid_depth,
    inside,
    near_curve,
    near_sheet,
    sheet_distance,
    tube_depth,
)
from ldm.phantom.head import Head, above_callosum, brain_depths, head_frame, sulci
from ldm.phantom.lesions import Lesion, add_lesions, displace, draw_lesions
from ldm.phantom.tissues import INDEX, TissueMap

FIELD_OF_VIEW = (240.0, 240.0, 155.0)  # mm, as in BraTS
CORTEX = 2.8  # mm thick


@dataclass(frozen=True)
class Anatomy:
    """Tissue composition of the N voxels of a brain.

    Attributes:
        brain: mask (X, Y, Z) of the voxels, in the order of ``np.nonzero``.
        points: positions (3, N) in mm from the middle of the field of view.
        fractions: volume fraction of every tissue (len(TISSUES), N); columns sum to 1.
        gadolinium: concentration (N,) in mM inside each tissue that takes it up.
        lesions: the tumours.
    """

    brain: np.ndarray
    points: np.ndarray
    fractions: np.ndarray
    gadolinium: dict[str, np.ndarray]
    lesions: list[Lesion]

    def volume(self, values: np.ndarray) -> np.ndarray:
        """Return brain values (N,) as a volume (X, Y, Z) with zeros outside the brain."""
        volume = np.zeros(self.brain.shape, dtype=values.dtype)
        volume[self.brain] = values
        return volume

    def tissue(self, name: str) -> np.ndarray:
        """Return the volume fraction of one tissue as a volume (X, Y, Z)."""
        return self.volume(self.fractions[INDEX[name]])


def voxel_size(size: int) -> float:
    """Return the edge in mm of the isotropic voxels of a volume ``size`` voxels wide."""
    return FIELD_OF_VIEW[0] / size


def build_anatomy(rng: np.random.Generator, size: int) -> Anatomy:
    """Draw a head with its tumours and sample it on ``size`` x ``size`` x ``0.65 size`` voxels."""
    voxel = voxel_size(size)
    shape = tuple(round(extent / voxel) for extent in FIELD_OF_VIEW)
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * voxel for n in shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)

    lesions = draw_lesions(rng)
    nearby = np.flatnonzero(np.linalg.norm(points / column((90, 106, 92)), axis=0) < 1)
    positions = head_frame(rng, points[:, nearby])
    depths = brain_depths(positions)
    keep = depths.brain > 0
    positions, depths = positions[:, keep], depths[keep]
    brain = np.zeros(points.shape[1], dtype=bool)
    brain[nearby[keep]] = True

    head = Head(displace(positions, lesions), depths, voxel, age=rng.uniform())
    tissues = TissueMap("white_matter", positions.shape[1])
    to_pia = add_cerebrum(rng, tissues, head)
    add_hindbrain(rng, tissues, head)
    add_deep_structures(rng, tissues, head)
    add_meninges(rng, tissues, head)
    add_vessels(rng, tissues, head, to_pia)
    gadolinium = add_lesions(rng, tissues, positions, depths, lesions, voxel)
    return Anatomy(brain.reshape(shape), points[:, brain], tissues.fractions, gadolinium, lesions)


def add_cerebrum(rng: np.random.Generator, tissues: TissueMap, head: Head) -> np.ndarray:
    """Paint the cortex and the fluid on it; return the distance (N,) to the middle of the fluid."""
    depths, points = head.depths, head.points
    uneven = SmoothField(rng, 22.0)(points)
    gap = np.maximum(0.7 + 0.5 * head.age + 0.35 * uneven, 0.3)  # of the fluid on the brain
    surface = depths.brain - gap
    to_tentorium = np.abs(depths.cerebrum - depths.cerebellum) / 2 - 0.4
    to_tentorium[depths.cerebellum < -12] = np.inf
    folds = np.minimum(sulci(rng, head), to_tentorium)
    opening = 0.3 * np.exp(-np.maximum(surface, 0) / 4)  # sulci gape at the surface
    width = np.maximum(0.2 + 0.5 * head.age + 0.25 * uneven + opening, 0.1)  # half, of a sulcus
    for tissue, reach, below in (("grey_matter", width + CORTEX, CORTEX), ("csf", width, 0)):
        tissues.paint(tissue, near_sheet(folds, reach, head.voxel))
        tissues.paint(tissue, inside(below - surface, head.voxel))
    return np.minimum(folds, np.abs(surface))


def add_hindbrain(rng: np.random.Generator, tissues: TissueMap, head: Head) -> None:
    """Paint the cerebellum with its thin, flat folia, the brainstem, and the cisterns between."""
    depths, voxel = head.depths, head.voxel
    leaf = SmoothField(rng, 2.4)
    folium = sheet_distance(lambda q: leaf(q * column((0.35, 0.8, 1.2))), head.points)
    beyond_folium = np.maximum(depths.cerebellum - 9, 0)
    to_surface = np.minimum(depths.cerebellum, np.hypot(folium, beyond_folium))
    below_tentorium = (depths.cerebellum - depths.cerebrum) / 2 - 0.4
    cerebellum = inside(np.minimum(below_tentorium, depths.cerebellum), voxel)
    tissues.paint("white_matter", cerebellum)
    tissues.paint("grey_matter", cerebellum * near_sheet(to_surface, 2.2, voxel))
    tissues.paint("csf", cerebellum * near_sheet(to_surface, 0.2, voxel))
    tissues.paint("white_matter", inside(depths.brainstem, 3 * voxel))
    parts = np.maximum.reduce([depths.cerebrum + 2, depths.cerebellum, depths.brainstem])
    tissues.paint("csf", inside(2 - parts, voxel))


def add_deep_structures(rng: np.random.Generator, tissues: TissueMap, head: Head) -> None:
    """Paint the deep grey nuclei, the ventricles with their plexus, and age-related gliosis."""
    voxel = head.voxel
    points, mirrored = head.points + column((0, 0, 10)), head.mirrored + column((0, 0, 10))
    caudate_tail = [(15, -14, 16), (19, 8, 19), (24, 24, 12)]
    nuclei = [
        ("deep_grey", ellipsoid_depth(mirrored, (13.5, -24, 6), (5.5, 11, 10))),  # caudate head
        ("deep_grey", tube_depth(mirrored, caudate_tail, (3, 2.5, 2))),
        ("deep_grey", ellipsoid_depth(tilted(mirrored, 0.2), (27, 0, 1), (5.5, 16, 11))),  # putamen
        ("pallidum", ellipsoid_depth(tilted(mirrored, 0.3), (20, -4, -1), (4.5, 9, 7))),
        (
            "deep_grey",
            ellipsoid_depth(tilted(mirrored, 0.25), (10, 10, 5), (7.5, 13, 9)),
        ),  # thalamus
        (
            "grey_matter",
            tube_depth(mirrored, [(24, 14, -16), (26, -10, -22)], (3.5, 5)),
        ),  # hippocampus
    ]
    for name, depth in nuclei:
        tissues.paint(name, inside(depth, voxel + 2))

    swelling = rng.uniform(-1.6, 0.6) + 2.5 * head.age + 0.6 * np.sign(points[0]) * rng.normal()
    path = [(20, -40, 6), (9, -22, 14), (9, -4, 20), (16, 14, 20), (33, 34, 12), (34, 16, -11)]
    temporal_horn = (42, -6, -20)
    narrow = mirrored * column((1.4, 1, 1))  # ventricles are narrower than high
    lateral = tube_depth(narrow, [*path, temporal_horn], (3.5, 5.5, 5, 5.5, 8, 2.5, 1.5))
    horn = tube_depth(narrow, [(31, 36, 9), (22, 56, 6)], (5, 1))
    ventricle = blend_max(lateral, horn, 3) + swelling
    third = ellipsoid_depth(points, (0, 6, -1), (2.6, 13, 10)) + 0.35 * swelling
    fourth = ellipsoid_depth(points, (0, 25, -32), (8, 4.5, 9))
    cap = 3 * head.age + 2.5 * SmoothField(rng, 9.0)(points) - 2
    tissues.convert("white_matter", "gliosis", inside(ventricle + np.maximum(cap, 0), voxel))
    for depth in (ventricle, third, fourth):
        tissues.paint("csf", inside(depth, voxel))
    plexus = tube_depth(mirrored, [(20, 31, 6), (11, 11, 18), (7, -8, 15)], (3.2, 1.4, 0.8))
    tissues.paint("choroid", inside(np.minimum(plexus, ventricle), voxel))


def tilted(points: np.ndarray, slope: float) -> np.ndarray:
    """Shear points (3, N) so that a shape's back end lies further from the midline."""
    x, y, z = points
    return np.stack([x - slope * y, y, z])


def add_meninges(rng: np.random.Generator, tissues: TissueMap, head: Head) -> None:
    """Paint the dura as far as a skull-stripping mask leaves it, the falx and the tentorium."""
    x, y, z = head.points
    depths = head.depths
    falx = np.hypot(x, np.maximum(14 - 0.25 * y - above_callosum(head.points), 0))
    tentorium = np.where(depths.brain < 30, np.abs(depths.cerebrum - depths.cerebellum) / 2, np.inf)
    rest = np.maximum(0.6 + 0.8 * SmoothField(rng, 22.0)(head.points), 0)
    tissues.paint("dura", near_sheet(depths.brain, rest, head.voxel))
    tissues.paint("dura", near_sheet(np.minimum(falx, tentorium), 0.5, head.voxel))


def add_vessels(
    rng: np.random.Generator, tissues: TissueMap, head: Head, to_pia: np.ndarray
) -> None:
    """Paint the venous sinuses, the deep veins, the large arteries and the vessels on the pia."""
    x, y, z = head.points
    brain, to_tentorium = head.depths.brain, (head.depths.cerebrum - head.depths.cerebellum) / 2
    curves = [  # distance to the middle of a vessel, its radius
        (np.where((z > 0) | (y > 60), np.hypot(x, brain - 2.5), np.inf), 3.2),  # sagittal
        (np.where(y > 30, np.hypot(to_tentorium, brain - 3), np.inf), 2.2),  # transverse
    ]
    for scale, radius in ((11.0, 0.6), (6.0, 0.25)):  # veins and arteries of the pia
        branches = sheet_distance(SmoothField(rng, scale), head.points)
        curves.append((np.hypot(to_pia, branches), radius))
    paths = [
        ([(0, 6, 2), (0, 36, 3), (0, 72, -14)], 1.6),  # internal cerebral veins, straight sinus
        ([(0, -3, -34), (0, -4, -58)], 1.8),  # basilar
        ([(7, -14, -24), (28, -16, -20), (40, -4, -16)], 1.4),  # middle cerebral
        ([(2, -20, -22), (1.5, -48, -2), (1.5, -30, 22)], 1.3),  # anterior cerebral
    ]
    for path, radius in paths:
        curves.append((-tube_depth(head.mirrored, path, (0,) * len(path)), radius))
    vessels = [near_curve(distance, radius, head.voxel) for distance, radius in curves]
    tissues.paint("blood", np.maximum.reduce(vessels))
