"""What the functions of the metrics are given: two volumes, a region of them, masks of a region."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ldm.evaluation.images import Sliced
from ldm.evaluation.metrics import detail, enhancement
from ldm.evaluation.metrics import similarity as metrics

if TYPE_CHECKING:
    from ldm.data.nifti import Geometry
    from ldm.evaluation.case import Case, Prediction
    from ldm.evaluation.metrics.perceptual import Perceptual


@dataclass(eq=False)
class Volumes:
    """Prediction and reference on one intensity scale, and what is computed from them only once."""

    # of one shape
    prediction: Sliced
    reference: Sliced
    brain: Sliced  # of them
    # what they are of, in the units of the reference
    case: Case
    predicted: Prediction
    perceptual: Perceptual | None = None  # the network of LPIPS, if there is one

    def __post_init__(self) -> None:
        self.images = (self.prediction, self.reference)
        self.stacks = (self.prediction.stack, self.reference.stack)

    @cached_property
    def content(self) -> NDArray[np.bool_]:
        """Which slices contain brain (slices, 1, 1)."""
        return self.brain.stack.any(axis=(1, 2), keepdims=True)

    @cached_property
    def similarity(self) -> NDArray[np.float64]:
        """SSIM at each voxel of the slices with brain, as a stack of slices."""
        return metrics.similarity_map(*self.stacks, 1.0, inside=self.content)

    @cached_property
    def similarity_3d(self) -> NDArray[np.float64] | None:
        """SSIM with 3-D windows as a stack of slices; None if a side is below 11."""
        if min(self.brain.stack.shape) < metrics.SSIM_WINDOW:
            return None
        return metrics.similarity_map(*self.stacks, 1.0, dims=3)

    @cached_property
    def edges(self) -> tuple[tuple[slice, ...], NDArray[np.float64], NDArray[np.float64]]:
        """A box outside of which neither has edges, and the edges of both in it."""
        boxes = zip(self.prediction.box, self.reference.box, strict=True)
        both = [slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in boxes]
        box = metrics.around(both, detail.HFEN_RADIUS + 1, self.reference.stack.shape)
        return box, self.prediction.edges(box), self.reference.edges(box)

    @property
    def slices(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Both as stacks of the slices that contain brain."""
        found = np.flatnonzero(self.content)
        between = slice(found[0], found[-1] + 1) if found.size else slice(0)
        kept = between if self.content[between].all() else found  # the first copies nothing
        return tuple(stack[kept] for stack in self.stacks)

    @cached_property
    def ms_ssim(self) -> float:
        """MS-SSIM of the slices with brain."""
        return metrics.ms_ssim(*self.slices, 1.0, axis=0)

    @cached_property
    def lpips(self) -> float:
        """LPIPS of the slices with brain; NaN without a network."""
        return self.perceptual.lpips(*self.slices, axis=0) if self.perceptual else nan

    @cached_property
    def enhancement(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What the agent added at each voxel (N,) of the brain, predicted and true."""
        return self.case.enhancement(self.predicted.volume), self.case.true_enhancement


@dataclass(eq=False)
class View:
    """One region of two volumes."""

    volumes: Volumes
    area: Sliced  # the region as a stack of slices
    mask: NDArray[np.bool_]  # the same (X, Y, Z)

    @cached_property
    def values(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The voxels of the region, in both volumes."""
        return tuple(self.of_region(stack) for stack in self.volumes.stacks)

    def of_region(self, stack: NDArray) -> NDArray:
        """Return the values (N,) of a stack of slices in the region."""
        return metrics.within(stack, self.area.stack, self.area.box)

    @cached_property
    def changes(self) -> detail.Changes:
        """What flicker and sharpness share."""
        sums = (image.changes(self.area) for image in self.volumes.images)
        return detail.changes_of(*sums, axis=0)

    def hfen(self) -> float:
        """How far the edges are apart."""
        box, *pair = self.volumes.edges
        inside = self.area.stack[box]
        kept = ... if inside.all() else inside
        return detail.relative_error(*(edges[kept] for edges in pair))

    @property
    def inside(self) -> NDArray[np.bool_]:
        """The region in slices with brain, as a stack of slices."""
        content = self.volumes.content
        whole = content[self.area.box[0]].all()  # slices, as a rule: nothing to leave out
        return self.area.stack if whole else self.area.stack & content

    def of_slices(self, metric: Callable[..., float]) -> float:
        """Mean of a voxel metric over the slices with brain."""
        return metrics.mean_over_slices(metric, *self.volumes.stacks, self.inside, axis=0)

    @cached_property
    def of_brain(self) -> NDArray[np.bool_]:
        """Which voxels (N,) of the brain lie in the region."""
        return self.mask[self.volumes.case.brain]

    @property
    def enhancing(self) -> NDArray[np.bool_]:
        """Which voxels (N,) of the brain are enhancing tumour."""
        return self.volumes.case.in_brain("enhancing")

    def auc(self) -> float:
        """How well the predicted enhancement tells the enhancing tumour from the rest of here."""
        negative = self.of_brain & ~self.enhancing
        return enhancement.auc(self.volumes.enhancement[0], self.enhancing, negative)

    def false_enhancement(self) -> float:
        """Mean predicted enhancement of a tumour of which no part enhances; else NaN."""
        is_known = self.volumes.case.anatomy.is_graded and not self.enhancing.any()
        return (
            enhancement.mean_within(self.volumes.enhancement[0], self.of_brain) if is_known else nan
        )

    def rim_to_core(self) -> float:
        """How much more the enhancing tumour enhances than its core, over the same of the truth."""
        core = self.volumes.case.in_brain("core")
        return enhancement.rim_to_core(*self.volumes.enhancement, self.enhancing, core)

    def of_spread(self, metric: Callable[..., float]) -> float:
        """A metric of the spread; it has no unit, so nothing is mapped and nothing clipped."""
        predicted = self.volumes.predicted
        given = (predicted.volume, self.volumes.case.reference, predicted.spread)
        told = {"samples": predicted.samples, "mirrored": predicted.mirrored}
        return metric(*given, mask=self.mask, **told)


@dataclass(frozen=True, eq=False)
class Masks:
    """One region (X, Y, Z) bool of a patient, as it was segmented."""

    found: NDArray[np.bool_]  # on the volume that is judged
    geometry: Geometry
    labels: NDArray[np.bool_] | None = None  # of the reference labels, or None
    # found on the real volume in place of the synthetic one, or None
    real: NDArray[np.bool_] | None = None

    def against_labels(self, metric: Callable[..., float], *further: Any) -> float:
        """A metric of what was found and the labels; NaN without labels."""
        return nan if self.labels is None else metric(self.found, self.labels, *further)

    def millilitres(self, mask: NDArray[np.bool_] | None) -> float:
        """The volume of a mask; NaN for None."""
        return nan if mask is None else float(mask.sum() * np.prod(self.geometry.spacing) / 1000)

    def false_millilitres(self) -> float:
        """The volume found where the labels hold nothing; NaN where they hold something."""
        is_empty = self.labels is not None and not self.labels.any()
        return self.millilitres(self.found) if is_empty else nan
