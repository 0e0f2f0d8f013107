"""Whether two contrasts of a subject lie on each other, by mutual information."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.special import entr

REACH = 6  # voxels; the largest shift that is tried along an axis
FEWEST = 500  # voxels of the inside of the brain below which nothing is said
MOST = 50_000  # voxels that are compared
BINS = 32
CLEAR_GAIN = 1.05  # of NMI - 1; see docs/diagnose.md for the gains of registered patients
NEIGHBOURS = np.array([s for s in np.ndindex(3, 3, 3) if s != (1, 1, 1)]) - 1  # (26, 3) voxels


@dataclass(frozen=True)
class Shift:
    """The shift of a contrast that agrees best with T1.

    Attributes:
        voxels: along the RAS+ axes; zero where no shift is better than none.
        gain: (NMI - 1) there over (NMI - 1) without a shift; 1 for no shift.
        millimetres: length of the shift.
    """

    voxels: tuple[int, int, int]
    gain: float
    millimetres: float

    @property
    def is_doubtful(self) -> bool:
        """Whether the shift is clearly better than none."""
        return self.gain > CLEAR_GAIN


def best_shift(
    reference: np.ndarray, moving: np.ndarray, brain: np.ndarray, affine: np.ndarray
) -> Shift | None:
    """Climb from no shift to the one of greatest normalised mutual information (Studholme 1999).

    Only the inside of the brain is compared, always the same voxels of the reference: the edge of
    a brain mask that all contrasts share would hold every one in its place.

    Args:
        reference, moving: (X, Y, Z).
        brain: (X, Y, Z) bool, where both are known.
        affine: (4, 4) voxel index to millimetres.

    Returns:
        None where the brain is too small, or an image is constant.
    """
    places = _inside(brain)
    if len(places) < FEWEST:
        return None
    fixed, other = _binned(reference, brain), _binned(moving, brain)
    fixed = _at(fixed, places, np.zeros(3, int))
    start = information(fixed, _at(other, places, np.zeros(3, int)))
    if not start > 0:
        return None
    shift, best, tried = np.zeros(3, int), start, {}
    while True:
        for step in NEIGHBOURS:
            candidate = tuple(shift + step)
            if candidate not in tried and max(map(abs, candidate)) <= REACH:
                tried[candidate] = information(fixed, _at(other, places, np.array(candidate)))
        leader = max(tried, key=tried.get)
        if tried[leader] <= best:
            break
        shift, best = np.array(leader), tried[leader]
    length = float(np.linalg.norm(affine[:3, :3] @ shift))
    return Shift(tuple(int(s) for s in shift), float(best / start), length)


def _inside(brain: np.ndarray) -> np.ndarray:
    """Return at most MOST voxels (N, 3) that stay in the brain when shifted."""
    padded = np.pad(brain, 1)  # beyond the volume there is no brain
    deep = ndimage.distance_transform_cdt(padded)[1:-1, 1:-1, 1:-1] > REACH
    if deep.sum() < FEWEST:  # few or large voxels: at least stay within the volume
        deep = np.zeros_like(brain)
        deep[(slice(REACH, -REACH),) * 3] = brain[(slice(REACH, -REACH),) * 3]
    places = np.argwhere(deep)
    return np.random.default_rng(0).permutation(places)[:MOST]


def _at(image: np.ndarray, places: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return image[tuple((places + shift).T)]


def _binned(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return the bin, 0 to BINS - 1, of each voxel; the bins are even over the brain."""
    low, high = image[brain].min(), image[brain].max()
    bins = (image - low) * (BINS / max(high - low, 1e-30))
    return np.clip(bins, 0, BINS - 1).astype(np.uint16)


def information(first: np.ndarray, second: np.ndarray) -> float:
    """Return NMI - 1 of two samples of bins (N,): 0 for independent ones, 1 for equal ones.

    NMI is (H(first) + H(second)) / H(first, second). Binning the images once instead of at every
    shift makes this ten times faster than scikit-image's function of the same value.
    """
    joint = np.bincount(first * BINS + second, minlength=BINS**2).reshape(BINS, BINS) / len(first)
    together = entr(joint).sum()
    apart = entr(joint.sum(0)).sum() + entr(joint.sum(1)).sum()
    return float(apart / together - 1) if together else 0.0
