"""Regions of a patient, from the brain mask and the labels of the segmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ldm.evaluation.metrics.similarity import content_box
from ldm.label_scheme import UNKNOWN
from ldm.regions import ENHANCING, NECROTIC_CORE, OEDEMA, region_masks

RING_MM = 10.0


@dataclass(eq=False)
class Labelled:
    """What regions are made of."""

    brain: NDArray[np.bool_]  # (X, Y, Z) bool
    labels: NDArray | None = None  # (X, Y, Z) segmentation, 0 where healthy, or None
    spacing: Sequence[float] = (1.0, 1.0, 1.0)  # size of a voxel along each axis, in mm

    @cached_property
    def tumour(self) -> NDArray[np.bool_]:
        """Any label, inside the brain."""
        return (self.labels > 0) & self.brain

    def enhancing(self) -> NDArray[np.bool_]:
        """Enhancing tumour; nowhere, so no result, where the meaning of labels is not known."""
        if (self.labels == UNKNOWN).any():
            return np.zeros_like(self.brain)
        return region_masks(self.labels, ["et"])["et"] & self.brain

    def core(self) -> NDArray[np.bool_]:
        """Necrotic core: label 1 beside other labels; alone it is a lesion of an unknown kind."""
        return (self.labels == NECROTIC_CORE) & self.brain & self.is_graded

    @property
    def is_graded(self) -> bool:
        """Whether the labels tell parts of a tumour apart, and so say that nothing enhances."""
        parts = (self.labels == OEDEMA) | (self.labels == ENHANCING)
        return bool(parts.any()) and not (self.labels == UNKNOWN).any()

    def ring(self) -> NDArray[np.bool_]:
        """Brain outside of the tumour, at most 10 mm away from it."""
        from scipy.ndimage import distance_transform_edt

        near = np.zeros(self.brain.shape, bool)
        if self.tumour.any():
            voxels = int(np.ceil(RING_MM / min(self.spacing)))
            box = content_box(self.tumour, voxels)
            near[box] = distance_transform_edt(~self.tumour[box], self.spacing) <= RING_MM
        return near & self.brain & ~self.tumour


class Region(NamedTuple):
    """A part of a volume, and how it is found."""

    definition: str
    mask: Callable[[Labelled], NDArray[np.bool_]]
    labelled: bool = True  # needs a segmentation


REGIONS = {
    "full": Region(
        "all voxels as given; SSIM and MS-SSIM over the slices that contain brain",
        lambda a: np.ones(a.brain.shape, bool),
        labelled=False,
    ),
    "brain": Region("brain mask", lambda a: a.brain, labelled=False),
    "tumour": Region("segmentation > 0 inside the brain", lambda a: a.tumour),
    "enhancing": Region(
        "enhancing tumour, by the label scheme of the data set",
        Labelled.enhancing,
    ),
    "core": Region("necrotic core: label 1 beside other labels", Labelled.core),
    "ring": Region("brain outside of the tumour, at most 10 mm from it", Labelled.ring),
    "healthy": Region("brain without tumour", lambda a: a.brain & ~a.tumour),
    "rest": Region("all voxels without tumour, background included", lambda a: ~a.tumour),
}
