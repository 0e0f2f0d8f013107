"""Segmentation masks: their labels, their share of the brain, and whether they lie on anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.special import ndtr

from ldm.data.brain import bounding_box
from ldm.label_scheme import TELL, LabelScheme
from ldm.regions import CAVITY, ENHANCING

BRATS_LABELS = frozenset({0, 1, 2, 3, 4})
MANY_LABELS = 16
SMALL_SHARE = 0.02  # of the brain; below it a network that predicts nothing has a small loss
GRID_SIDE = 64  # voxels of the grid on which masks of different patients are exchanged
RING = 3  # voxels around a mask that it is compared with
FEWEST_VOXELS = 8
FEWEST_COMPARED = 20  # voxels of a part whose intensity is compared
FEWEST_CASES = 3  # subjects with a mask
MOST_CONTENDERS = 40  # masks of others that are laid on each subject
CHANCE_RANK = 0.25  # own masks rank 0 if they fit, 0.5 on average if they are another's


def label_values(mask: np.ndarray) -> list[float]:
    """Return the values of a mask in ascending order, at most MANY_LABELS of them."""
    return [float(value) for value in np.unique(mask)[:MANY_LABELS]]


def label_problem(mask: np.ndarray) -> str | None:
    """Return what is wrong with the labels of a mask; None for 0 and 1, or labels of BraTS."""
    values = np.unique(mask)
    broken = values[values != np.rint(values)]
    if len(broken):
        return (
            f"the mask is not binary: {len(values)} values, {len(broken)} of them no whole number "
            f"(such as {broken[0]:.3g}): expected 0 and 1, or labels 0 to 4; threshold it, and "
            "resample masks with nearest neighbour"
        )
    if len(values) > MANY_LABELS or values.min() < 0 or values.max() > 255:
        return (
            f"the mask is not binary: {len(values)} values from {values.min():g} to "
            f"{values.max():g}: expected 0 and 1, or labels 0 to 4; is it an image?"
        )
    if unknown := sorted(set(values.tolist()) - BRATS_LABELS):
        shown = ", ".join(f"{value:g}" for value in unknown[:5])
        return f"labels {shown} are unknown: expected 0 and 1, or labels 0 to 4; write them so"
    return None


def scheme_problem(
    mask: np.ndarray, scheme: LabelScheme, enhanced: np.ndarray | None
) -> str | None:
    """Return why labels do not mean what their scheme says; None where they may.

    In every patient of docs/diagnose.md with enhancing tumour, it is the brightest part in T1ce.

    Args:
        mask: (X, Y, Z), as stored.
        enhanced: T1ce (X, Y, Z), if there is one.
    """
    labels = mask.astype(np.uint8)
    if unknown := scheme.unknown(labels):
        told = f"{scheme} ({scheme.source or 'the usual ones; nothing says so'})"
        known = f"are unknown where labels are {told}" if scheme.parts else "are unknown here"
        return f"labels {' '.join(map(str, unknown))} {known}: {TELL}"
    inside = scheme.inside(labels)
    parts = [p for p in np.unique(inside) if p and (inside == p).sum() >= FEWEST_COMPARED]
    if enhanced is None or not {ENHANCING, CAVITY} & {*parts}:
        return None
    medians = {part: float(np.median(enhanced[inside == part])) for part in parts}
    brightest = max(medians, key=medians.get)
    if brightest == ENHANCING or (ENHANCING not in parts and brightest != CAVITY):
        return None
    stored = {part: np.unique(labels[inside == part]).tolist() for part in parts}
    return (
        f"label {stored[brightest][0]} is the brightest part of the tumour in T1ce, but labels are "
        f"read as {scheme}: if they mean something else, {TELL}"
    )


@dataclass(frozen=True)
class MaskCase:
    """Images and mask of one subject on a grid that all subjects share, the box of its brain."""

    images: np.ndarray  # (C, G, G, G) float16
    mask: np.ndarray  # (G, G, G) bool
    brain: np.ndarray  # (G, G, G) bool


def mask_case(
    images: Sequence[np.ndarray], mask: np.ndarray, brain: np.ndarray, box: tuple[slice, ...]
) -> MaskCase:
    """Return volumes (X, Y, Z) cropped to ``box`` on the shared grid, by nearest neighbour."""
    grid = np.ix_(*[np.linspace(s.start, s.stop - 1, GRID_SIDE).round().astype(int) for s in box])
    stacked = []
    for image in images:
        inside = image[brain]
        low, high = np.percentile(inside, (1, 99))
        stacked.append((image[grid] - low) / max(high - low, 1e-6))
    return MaskCase(np.stack(stacked).astype(np.float16), mask[grid] > 0, brain[grid])


def mask_contrast(case: MaskCase, mask: np.ndarray) -> float | None:
    """Return how much a mask (G, G, G) stands out in the images of a case; None if it is too small.

    Root mean square over the contrasts of the difference in mean between the mask and a ring
    around it, in standard deviations of the ring.
    """
    mask = mask & case.brain
    if mask.sum() < FEWEST_VOXELS:
        return None
    box = tuple(slice(max(0, s.start - RING), s.stop + RING) for s in bounding_box(mask))
    inside = mask[box]
    ring = ndimage.binary_dilation(inside, iterations=RING) & ~inside & case.brain[box]
    if ring.sum() < FEWEST_VOXELS:
        return None
    effects = []
    for image in case.images[(slice(None), *box)].astype(np.float32):
        spread = max(float(image[ring].std()), 1e-3)
        effects.append((image[inside].mean() - image[ring].mean()) / spread)
    return float(np.sqrt(np.mean(np.square(effects))))


@dataclass(frozen=True)
class MaskFit:
    """A permutation test of whether masks lie on something in their own images.

    Attributes:
        ranks: by subject, the share of other masks that stand out at least as much in its images.
        p_value: probability of a mean rank this low if masks did not belong to their images.
    """

    ranks: Mapping[str, float]
    p_value: float

    @property
    def mean_rank(self) -> float:
        """Near 0 where masks fit, about 0.5 where they are shuffled."""
        return float(np.mean(list(self.ranks.values())))

    @property
    def is_by_chance(self) -> bool:
        """Whether the masks fit no better than others' do."""
        return self.mean_rank > CHANCE_RANK


def fit_of_masks(cases: Mapping[str, MaskCase]) -> MaskFit | None:
    """Lay the masks of other subjects, and all mirrored ones, on the images of each subject.

    None of them belongs there, so under the hypothesis that the own mask does not either, its rank
    among them is uniform; the mean rank of n subjects then has mean 1/2 and variance about 1/12n.

    Returns:
        None with fewer than 3 subjects that have a mask.
    """
    contenders = {name: _mirrored(case.mask) for name, case in cases.items()}
    ranks = {}
    rng = np.random.default_rng(0)
    for name, case in cases.items():
        own = mask_contrast(case, case.mask)
        if own is None:
            continue
        others = [m for other in cases if other != name for m in contenders[other]]
        chosen = rng.permutation(len(others))[:MOST_CONTENDERS]
        rivals = [mask_contrast(case, others[i]) for i in chosen]
        rivals = [*rivals, *(mask_contrast(case, m) for m in contenders[name][1:])]
        values = np.array([value for value in rivals if value is not None])
        if len(values):
            ranks[name] = float(((values > own).sum() + 0.5 * (values == own).sum()) / len(values))
    if len(ranks) < FEWEST_CASES:
        return None
    mean = np.mean(list(ranks.values()))
    p_value = ndtr((mean - 0.5) * np.sqrt(12 * len(ranks)))
    return MaskFit(ranks, float(p_value))


def _mirrored(mask: np.ndarray) -> list[np.ndarray]:
    """Return a mask, and its mirror images left to right, back to front, and both."""
    return [mask, mask[::-1], mask[:, ::-1], mask[::-1, ::-1]]
