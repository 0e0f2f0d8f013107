"""Tumours of the phantom: where they sit, what they do to the tissue, where gadolinium leaks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldm.phantom.geometry import SmoothField, column, inside
from ldm.phantom.head import Depths, brain_depths
from ldm.phantom.tissues import TissueMap


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
        leak = rng.uniform(0.14, 0.34)
        oedema = rng.uniform(5, 18) if enhances else rng.uniform(2, 12)
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
    return {
        "blood": blood,
        "choroid": 0.35 * blood,
        "dura": 0.3 * blood,
        "tumour": tumour,
        "necrosis": necrosis,
    }


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
    scales = (max(6, 0.7 * lesion.radius), 5.0, 14.0, 10.0, 9.0)
    lobes, fringe, spread, rim, barrier = (SmoothField(rng, scale)(head) for scale in scales)
    offset = (head - column(lesion.centre)) / column(lesion.axes)
    depth = lesion.radius * (1 + 0.16 * lobes) + 0.8 * fringe - np.linalg.norm(offset, axis=0)

    swollen = inside(depth + lesion.oedema * (1 + 0.5 * spread) + 2 * fringe, voxel + 5)
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


def displace(head: np.ndarray, lesions: list[Lesion]) -> np.ndarray:
    """Return where the tissue at ``head`` (3, N) was before the tumours pushed it aside."""
    origin = head.copy()
    for lesion in lesions:
        offset = head - column(lesion.centre)
        reach = 1.4 * lesion.radius
        origin -= 0.35 * offset * np.exp(-((offset / reach) ** 2).sum(0) / 2)
    return origin
