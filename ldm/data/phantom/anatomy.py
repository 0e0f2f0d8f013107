"""Anatomy of the phantom: which tissue fills how much of every brain voxel.

The head is built from a few implicit shapes. The folded cortex is the part that needs an idea: the
sulci are the zero-level surfaces of a smooth random field, sampled at points moved outward to the
surface of the brain so that the sulci stand upright on it. Cortex is what lies within a cortical
thickness of the brain surface or of a sulcus.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldm.data.phantom.geometry import (
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
from ldm.data.phantom.signal import INDEX, TISSUES

FIELD_OF_VIEW = (240.0, 240.0, 155.0)  # mm, as in BraTS
CEREBRUM_RADII = (66.0, 84.0, 60.0)
CEREBRUM_CENTRE = (0.0, 0.0, 8.0)
CORTEX = 2.9  # mm thick


@dataclass(frozen=True)
class Lesion:
    """A tumour: lengths in mm, gadolinium in mM.

    Attributes:
        centre: position in the head frame.
        radius: mean radius of the solid tumour with its core.
        axes: elongation along the three axes.
        necrotic: whether the core is dead.
        rim: mean thickness of the solid part around a necrotic core.
        oedema: mean reach of the oedema beyond the tumour.
        leak: gadolinium in the tumour where the blood-brain barrier is open, 0 if it is intact.
        openness: mean part of ``leak`` that is reached; the lower, the patchier the enhancement.
    """

    centre: tuple[float, float, float]
    radius: float
    axes: tuple[float, float, float]
    necrotic: bool
    rim: float
    oedema: float
    leak: float
    openness: float


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


@dataclass(frozen=True)
class Depths:
    """Depth in mm below the surface of the parts of the brain, (N,) each, positive inside."""

    cerebrum: np.ndarray
    cerebellum: np.ndarray
    brainstem: np.ndarray
    brain: np.ndarray

    def __getitem__(self, keep: np.ndarray) -> Depths:
        return Depths(**{name: depth[keep] for name, depth in vars(self).items()})


class TissueMap:
    """Volume fractions that stay a partition of unity while tissues are painted over each other."""

    def __init__(self, background: str, size: int) -> None:
        self.fractions = np.zeros((len(TISSUES), size), dtype=np.float32)
        self.fractions[INDEX[background]] = 1

    def paint(self, tissue: str, coverage: np.ndarray) -> None:
        """Let ``tissue`` take the part ``coverage`` (N,) of every voxel."""
        self.fractions *= 1 - coverage
        self.fractions[INDEX[tissue]] += coverage

    def convert(self, source: str, tissue: str, coverage: np.ndarray) -> None:
        """Turn the part ``coverage`` (N,) of the ``source`` tissue into ``tissue``."""
        converted = coverage * self.fractions[INDEX[source]]
        self.fractions[INDEX[source]] -= converted
        self.fractions[INDEX[tissue]] += converted


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
    head = head_frame(rng, points[:, nearby])
    depths = brain_depths(head)
    keep = depths.brain > 0
    head, depths = head[:, keep], depths[keep]
    brain = np.zeros(points.shape[1], dtype=bool)
    brain[nearby[keep]] = True

    age = rng.uniform()
    displaced = displace(head, lesions)
    tissues = TissueMap("white_matter", head.shape[1])
    add_cerebrum(rng, tissues, displaced, depths, voxel, age)
    add_hindbrain(rng, tissues, displaced, depths, voxel)
    add_deep_structures(rng, tissues, displaced, voxel, age)
    add_vessels(rng, tissues, displaced, depths, voxel)
    gadolinium = add_lesions(rng, tissues, head, depths, lesions, voxel)
    return Anatomy(brain.reshape(shape), points[:, brain], tissues.fractions, gadolinium, lesions)


def head_frame(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """Map scanner positions (3, N) to the average head: size, pose and individual shape undone."""
    yaw, pitch, roll = np.radians(rng.normal(0, 2.5, 3))
    rotation = np.array(
        [[1, -yaw, roll], [yaw, 1, -pitch], [-roll, pitch, 1]], dtype=np.float32
    )  # of small angles
    stretch = rng.normal(1.0, 0.03, (3, 1)) * rng.normal(0.965, 0.025)
    head = rotation @ points / stretch.astype(np.float32)
    warps = [(2.5, 45.0), (1.0, 11.0)]  # amplitude and scale in mm: asymmetry, then irregularity
    offset = sum(
        a * np.stack([SmoothField(rng, scale)(head) for _ in range(3)]) for a, scale in warps
    )
    return head + offset


def brain_depths(points: np.ndarray) -> Depths:
    """Return the depths of head-frame points (3, N) in the parts of the brain."""
    x, y, z = points
    egg = np.stack(
        [np.abs(x) / (1 + 0.10 * np.tanh(y / 45)), y, np.where(z < 8, 8 + (z - 8) * 1.3, z)]
    )
    mirrored = np.stack([np.abs(x), y, z])
    cerebrum = ellipsoid_depth(egg, CEREBRUM_CENTRE, CEREBRUM_RADII, power=2.3)
    temporal_lobe = ellipsoid_depth(mirrored, (40, -8, -22), (23, 40, 24))
    cerebrum = blend_max(cerebrum, temporal_lobe, 8)
    hemisphere = ellipsoid_depth(mirrored, (23, 46, -39), (30, 34, 24))
    vermis = ellipsoid_depth(points, (0, 46, -38), (16, 26, 22))
    cerebellum = blend_max(hemisphere, vermis, 4)
    brainstem = tube_depth(points, [(0, 8, -10), (0, 12, -38), (0, 22, -64)], (15, 14, 8))
    brain = blend_max(blend_max(cerebrum, cerebellum, 10), brainstem, 12)
    return Depths(cerebrum, cerebellum, brainstem, brain)


def displace(head: np.ndarray, lesions: list[Lesion]) -> np.ndarray:
    """Return where the tissue at ``head`` (3, N) was before the tumours pushed it aside."""
    origin = head.copy()
    for lesion in lesions:
        offset = head - column(lesion.centre)
        reach = 1.4 * lesion.radius
        origin -= 0.35 * offset * np.exp(-((offset / reach) ** 2).sum(0) / 2)
    return origin


def add_cerebrum(
    rng: np.random.Generator,
    tissues: TissueMap,
    points: np.ndarray,
    depths: Depths,
    voxel: float,
    age: float,
) -> None:
    """Paint the folded cortex of the hemispheres and the fluid on it and in its sulci."""
    folds = SmoothField(rng, rng.uniform(4.4, 5.4))
    sulcus = sheet_distance(lambda q: folds(outward(q)), points)
    reach = 22 + 6 * SmoothField(rng, 18.0)(points)
    medial, lateral = fissures(points)
    beyond_sulcus = np.maximum(np.minimum(depths.brain - reach, medial - 0.4 * reach), 0)
    to_tentorium = np.abs(depths.cerebrum - depths.cerebellum) / 2 - 0.4
    to_surface = np.minimum.reduce(
        [
            depths.brain - 0.8,
            np.hypot(sulcus, beyond_sulcus),
            medial,
            lateral,
            np.where(depths.cerebellum > -12, to_tentorium, np.inf),
        ]
    )
    widening = 0.35 + 0.6 * age + 0.25 * np.clip(SmoothField(rng, 30.0)(points), -1, 2)
    width = np.maximum(widening, 0.15)  # half, of a sulcus
    tissues.paint("grey_matter", near_sheet(to_surface, width + CORTEX, voxel))
    tissues.paint("csf", near_sheet(to_surface, width, voxel))


def add_hindbrain(
    rng: np.random.Generator, tissues: TissueMap, points: np.ndarray, depths: Depths, voxel: float
) -> None:
    """Paint the cerebellum with its thin, flat folia, the brainstem, and the cisterns between."""
    leaf = SmoothField(rng, 2.4)
    folium = sheet_distance(lambda q: leaf(q * column((0.35, 0.8, 1.2))), points)
    beyond_folium = np.maximum(depths.cerebellum - 9, 0)
    to_surface = np.minimum(depths.cerebellum, np.hypot(folium, beyond_folium))
    below_tentorium = (depths.cerebellum - depths.cerebrum) / 2 - 0.4
    cerebellum = inside(np.minimum(below_tentorium, depths.cerebellum), voxel)
    tissues.paint("white_matter", cerebellum)
    tissues.paint("grey_matter", cerebellum * near_sheet(to_surface, 2.2, voxel))
    tissues.paint("csf", cerebellum * near_sheet(to_surface, 0.2, voxel))
    tissues.paint("white_matter", inside(depths.brainstem, 3 * voxel))
    parts = np.maximum.reduce([depths.cerebrum, depths.cerebellum, depths.brainstem])
    tissues.paint("csf", inside(-parts, voxel))


def outward(points: np.ndarray) -> np.ndarray:
    """Move points (3, N) most of the way along their radius to the surface of the cerebrum."""
    centred = points - column(CEREBRUM_CENTRE)
    radius = np.linalg.norm(centred / column(CEREBRUM_RADII), axis=0)
    return centred * np.clip(radius, 0.3, None) ** -0.55


def fissures(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances (N,) in mm to the midline fissure and to the Sylvian ones."""
    x, y, z = points
    above_callosum = (np.hypot(y / 44, z / 28) - 1) * 28
    midline = np.hypot(x, np.maximum(-above_callosum, 0)) - 0.5
    height = z + 8 - 0.35 * y  # above the Sylvian fissure, which rises toward the back
    lateral = np.abs(x) - 37
    along = np.maximum(np.abs(y) - 26, 0)
    sylvian = np.linalg.norm([height, np.maximum(-lateral, 0), along], axis=0) - 1.5
    insula = np.linalg.norm([lateral, np.maximum(np.abs(height - 3) - 13, 0), along], axis=0)
    return midline, np.minimum(sylvian, insula)


def add_deep_structures(
    rng: np.random.Generator, tissues: TissueMap, points: np.ndarray, voxel: float, age: float
) -> None:
    """Paint the deep grey nuclei, the ventricles with their plexus, and age-related gliosis."""
    mirrored = np.stack([np.abs(points[0]), points[1], points[2]])
    nuclei = [
        ("deep_grey", ellipsoid_depth(mirrored, (13.5, -24, 6), (5.5, 11, 10))),  # caudate head
        (
            "deep_grey",
            tube_depth(mirrored, [(15, -14, 16), (19, 8, 19), (24, 24, 12)], (3, 2.5, 2)),
        ),
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
        tissues.paint(name, inside(depth, voxel))

    swelling = rng.uniform(-1.5, 1.5) + 2.5 * age + 0.6 * np.sign(points[0]) * rng.normal()
    lateral = tube_depth(
        mirrored * column((1.35, 1, 1)),  # narrower than high
        [(10, -34, 5), (10, -12, 17), (15, 10, 19), (27, 31, 8), (29, 12, -15), (38, -6, -21)],
        (3.5, 4, 4, 6, 2, 1.5),
    )
    horn = tube_depth(mirrored, [(20, 31, 8), (15, 54, 5)], (4, 0.5))
    ventricle = blend_max(lateral, horn, 3) + swelling
    third = ellipsoid_depth(points, (0, 6, -1), (2.6, 13, 10)) + 0.35 * swelling
    fourth = ellipsoid_depth(points, (0, 31, -40), (7, 4.5, 9))
    cap = 3 * age + 2.5 * SmoothField(rng, 9.0)(points) - 2
    tissues.convert("white_matter", "gliosis", inside(ventricle + np.maximum(cap, 0), voxel))
    for depth in (ventricle, third, fourth):
        tissues.paint("csf", inside(depth, voxel))
    tissues.paint("choroid", inside(ellipsoid_depth(mirrored, (21, 30, 6), (3, 6, 3.5)), voxel))


def tilted(points: np.ndarray, slope: float) -> np.ndarray:
    """Shear points (3, N) so that a shape's back end lies further from the midline."""
    x, y, z = points
    return np.stack([x - slope * y, y, z])


def add_vessels(
    rng: np.random.Generator,
    tissues: TissueMap,
    points: np.ndarray,
    depths: Depths,
    voxel: float,
) -> None:
    """Paint the venous sinuses, the deep veins, the large arteries and veins in the sulci."""
    x, y, z = points
    mirrored = np.stack([np.abs(x), y, z])
    to_tentorium = (depths.cerebrum - depths.cerebellum) / 2
    branches = sheet_distance(SmoothField(rng, 9.0), points)
    curves = [  # distance to the middle of a vessel, its radius
        (np.where((z > 0) | (y > 60), np.hypot(x, depths.brain - 2.5), np.inf), 3.2),  # sagittal
        (np.where(y > 30, np.hypot(to_tentorium, depths.brain - 3), np.inf), 2.2),  # transverse
        (np.hypot(depths.brain - 2, branches), 1.0),  # on the surface
    ]
    paths = [
        ([(0, 6, 12), (0, 36, 13), (0, 72, -8)], 1.6),  # internal cerebral veins, straight sinus
        ([(0, -3, -26), (0, -4, -50)], 1.8),  # basilar
        ([(7, -14, -20), (28, -16, -15), (40, -4, -9)], 1.4),  # middle cerebral
        ([(2, -20, -16), (1.5, -48, 8), (1.5, -30, 31)], 1.3),  # anterior cerebral
    ]
    curves += [(-tube_depth(mirrored, path, (0,) * len(path)), radius) for path, radius in paths]
    vessels = [near_curve(distance, radius, voxel) for distance, radius in curves]
    tissues.paint("blood", np.maximum.reduce(vessels))


def draw_lesions(rng: np.random.Generator) -> list[Lesion]:
    """Draw one to three tumours; about 15 % of patients have an intact blood-brain barrier.

    Enhancing tumours tend to be necrotic and to have more oedema, but the ranges overlap: whether,
    where and how much a tumour enhances cannot be read off the other contrasts with certainty.
    """
    enhances = rng.random() < 0.85
    lesions: list[Lesion] = []
    for _ in range(rng.choice([1, 2, 3], p=[0.75, 0.15, 0.10])):
        radius = rng.uniform(5, 11) if lesions else rng.uniform(11, 24)
        necrotic = radius > 8 and rng.random() < (0.85 if enhances else 0.3)
        leak = rng.uniform(0.2, 0.45)
        oedema = rng.uniform(5, 20) if enhances else rng.uniform(1, 9)
        lesions.append(
            Lesion(
                centre=draw_site(rng, radius, lesions),
                radius=radius,
                axes=tuple(rng.uniform(0.8, 1.25, 3)),
                necrotic=necrotic,
                rim=min(rng.uniform(3.5, 7), 0.5 * radius),
                oedema=oedema * min(1, radius / 12),
                leak=leak if enhances else 0.0,
                openness=rng.uniform(0.75, 1.1),
            )
        )
    return lesions


def draw_site(
    rng: np.random.Generator, radius: float, others: list[Lesion]
) -> tuple[float, float, float]:
    """Draw a place in the white matter of the cerebrum, clear of the midline and of ``others``."""
    while True:
        site = rng.uniform((-60, -75, -20), (60, 75, 60))
        depth = brain_depths(site[:, None]).cerebrum[0]
        clear = all(
            np.linalg.norm(site - other.centre) > radius + other.radius + 4 for other in others
        )
        if clear and abs(site[0]) > 10 + 0.3 * radius and 4 + 0.6 * radius < depth < 45:
            return tuple(site)


def add_lesions(
    rng: np.random.Generator,
    tissues: TissueMap,
    head: np.ndarray,
    depths: Depths,
    lesions: list[Lesion],
    voxel: float,
) -> dict[str, np.ndarray]:
    """Paint the tumours and return the gadolinium (N,) in mM inside every tissue that takes it up.

    Blood holds 0.35 to 0.8 mM some minutes after a single dose (0.1 mmol/kg).
    """
    blood = np.full(head.shape[1], rng.uniform(0.35, 0.8), dtype=np.float32)
    tumour, necrosis = np.zeros_like(blood), np.zeros_like(blood)
    below_surface = inside(depths.brain - 2.5, voxel)
    for lesion in lesions:
        leaked, diffused = add_lesion(rng, tissues, head, below_surface, lesion, voxel)
        tumour, necrosis = np.maximum(tumour, leaked), np.maximum(necrosis, diffused)
    return {"blood": blood, "choroid": 0.35 * blood, "tumour": tumour, "necrosis": necrosis}


def add_lesion(
    rng: np.random.Generator,
    tissues: TissueMap,
    head: np.ndarray,
    below_surface: np.ndarray,
    lesion: Lesion,
    voxel: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Paint one tumour and return the gadolinium (N,) in mM in its solid part and in its core.

    Oedema follows the white matter. The solid part leaks where the barrier is open; from there a
    little gadolinium diffuses a millimetre or two into the necrosis.
    """
    scales = (max(6, 0.7 * lesion.radius), 14.0, 10.0, 9.0)
    lobes, spread, rim, barrier = (SmoothField(rng, scale)(head) for scale in scales)
    offset = (head - column(lesion.centre)) / column(lesion.axes)
    depth = lesion.radius * (1 + 0.16 * lobes) - np.linalg.norm(offset, axis=0)

    swollen = inside(depth + lesion.oedema * (1 + 0.5 * spread), voxel + 3)
    tissues.convert("white_matter", "oedema", swollen)
    tissues.convert("grey_matter", "oedema", 0.4 * swollen)
    tissues.paint("tumour", inside(depth, voxel) * below_surface)
    leaked = lesion.leak * np.clip(lesion.openness + 0.35 * barrier, 0, 1.2)
    leaked[depth < -2 * voxel] = 0
    if not lesion.necrotic:
        return leaked, np.zeros_like(leaked)
    into_core = depth - np.maximum(lesion.rim * (1 + 0.3 * rim), 2.5)
    tissues.paint("necrosis", inside(into_core, voxel) * below_surface)
    return leaked, 0.5 * leaked * np.exp(-np.maximum(into_core, 0) / 1.5)
