"""From the files of a subject to slices that a network takes, and back to a volume.

The steps are reorient, mask, crop to the brain, normalise, cut along an axis; each is recorded, so
that :meth:`PreparedSubject.to_volume` undoes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ldm.data.contrasts import load_contrasts, load_labels
from ldm.data.layouts import Layout, Subject
from ldm.data.nifti import Geometry
from ldm.data.normalise import BACKGROUND, IntensityScale, Normaliser
from ldm.errors import DataError

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # index of the slice axis in RAS+


@dataclass(frozen=True)
class PreparedSubject:
    """A subject as slices.

    Args:
        id: subject.
        slices: (S, M, H, W) float32 in [-1, 1], cropped to the brain; M follows ``contrasts``.
        brain: (S, H, W) bool: any input contrast is not 0.
        seg: (S, H, W) uint8 labels, or None.
        present: (M,) bool: which contrasts were acquired.
        contrasts: names of the channels.
        scales: the normalisation of each acquired contrast.
        box: the crop in the canonical volume, one slice object an axis.
        axis: index of the slice axis in the canonical volume.
        geometry: geometry of the input.
    """

    id: str
    slices: np.ndarray
    brain: np.ndarray
    seg: np.ndarray | None
    present: np.ndarray
    contrasts: tuple[str, ...]
    scales: dict[str, IntensityScale]
    box: tuple[slice, slice, slice]
    axis: int
    geometry: Geometry

    def to_volume(self, slices: np.ndarray) -> np.ndarray:
        """Put (S, H, W) values back where they were cut out: (X, Y, Z) float32, 0 elsewhere."""
        volume = np.zeros(self.geometry.canonical_shape, np.float32)
        volume[self.box] = np.moveaxis(np.where(self.brain, slices, 0), 0, self.axis)
        return volume


def brain_mask(inputs: Sequence[np.ndarray], case: str | None = None) -> np.ndarray:
    """Return where any input contrast is not 0.

    Raises:
        DataError: DATA-MISSING without inputs; DATA-CONSTANT when the brain is nowhere.
    """
    if not inputs:
        raise DataError("DATA-MISSING", "no input contrast exists: one is needed at least", case)
    brain = reduce(np.logical_or, (array != 0 for array in inputs))
    if not brain.any():
        raise DataError(
            "DATA-CONSTANT", "every input contrast is 0 everywhere: check the files", case
        )
    return brain


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box that holds every true voxel."""
    box = []
    for axis in range(mask.ndim):
        line = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(line[0]), int(line[-1]) + 1))
    return tuple(box)


def prepare_subject(
    subject: Subject,
    layout: Layout,
    conditions: Sequence[str],
    target: str | None,
    normaliser: Normaliser,
    axis: str = "axial",
    allow_missing: Sequence[str] = (),
    nonfinite: str = "refuse",
    with_labels: bool = False,
) -> PreparedSubject:
    """Read one subject and cut it into normalised slices.

    Args:
        conditions: input contrasts; they define the brain.
        target: contrast to learn (appended as the last channel), or None to sample without it.
        allow_missing: conditions that may be absent; their channel is then -1 and not ``present``.
        with_labels: read ``seg``, where there is one, also without a target.

    Raises:
        DataError: the subject cannot be used; the message says why.
    """
    names = (*conditions, *([target] if target else []))
    arrays, geometry = load_contrasts(subject, layout, names, allow_missing, nonfinite)
    brain = brain_mask([arrays[c] for c in conditions if c in arrays], subject.id)
    box, index = bounding_box(brain), AXES[axis]

    def cut(volume: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(volume[box], index, 0))

    scales = {c: normaliser.fit(arrays[c], brain, c, subject.id) for c in names if c in arrays}
    inside = cut(brain)
    blank = np.full(inside.shape, BACKGROUND, np.float32)
    channels = [
        scales[c].normalise(cut(arrays[c]), inside) if c in scales else blank for c in names
    ]
    has_seg = (target or with_labels) and "seg" in subject.files
    return PreparedSubject(
        id=subject.id,
        slices=np.stack(channels, axis=1),
        brain=inside,
        seg=cut(load_labels(subject, layout, geometry)) if has_seg else None,
        present=np.array([c in scales for c in names]),
        contrasts=names,
        scales=scales,
        box=box,
        axis=index,
        geometry=geometry,
    )


def fit_size(array: np.ndarray, size: Sequence[int], fill: float) -> np.ndarray:
    """Crop or pad the last axes of ``array`` symmetrically to ``size`` (padding is ``fill``)."""
    lead = array.ndim - len(size)
    crop = [slice(None)] * lead
    pad = [(0, 0)] * lead
    for have, want in zip(array.shape[lead:], size, strict=True):
        start = max(0, (have - want) // 2)
        crop.append(slice(start, start + min(have, want)))
        before = max(0, (want - have) // 2)
        pad.append((before, max(0, want - have - before)))
    return np.pad(array[tuple(crop)], pad, constant_values=fill)
