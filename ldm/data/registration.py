"""Rigid registration of the contrasts of a subject, by SimpleITK: Mattes mutual information.

A contrast is compared with a reference on a grid that is turned against both, so that no position
falls on the voxels of either: mutual information on a common grid is drawn to half voxels, where
interpolation smooths. The mask reaches beyond the head, whose edge is the strongest landmark.

Where one mask stripped both, a contrast belongs where its outline lies on that of the reference,
unless intensities clearly say otherwise: contrasts that were registered agree best up to a
millimetre away from where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ldm.data.nifti import Geometry, Volume
from ldm.data.outline import Outline
from ldm.extras import optional_module

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # the world of ITK, from that of NIfTI
TURN = Rotation.from_euler("xyz", (17, 23, 31), degrees=True).as_matrix()
BINS = 32
FEWEST = 500  # points of the reference below which nothing is said
# Beyond what 46 registered patients show, see docs/diagnose.md:
CLEAR_GAIN = 1.1  # of the mutual information
CLEAR_MILLIMETRES, CLEAR_VOXELS = 1.5, 0.5  # mean over the head; the larger counts
SEEN_MILLIMETRES, SEEN_VOXELS = 0.5, 0.25  # the same, where outlines of one mask tell


@dataclass(frozen=True)
class Resolution:
    """One resolution, all in mm: of the points (or the voxels of the reference, if coarser), of the
    voxels, how far beyond the head, and the first step of the optimizer."""

    points: float
    voxels: float
    beyond: float
    step: float


COARSE = Resolution(points=8, voxels=4, beyond=12, step=4)
JUDGED = Resolution(points=4, voxels=2, beyond=6, step=0.5)
FINE = Resolution(points=3, voxels=1, beyond=6, step=0.25)


@dataclass(frozen=True)
class Alignment:
    """Where a contrast lies.

    Args:
        matrix: (4, 4) from mm (RAS+ world) of the reference to mm of the contrast.
        before, after: mutual information in nats where the headers put it, and there.
        millimetres: mean distance over the head between the two.
        voxel: mm of a voxel, of the coarser of the two.
        by_outline: whether outlines of one mask tell, or intensities alone.
    """

    matrix: np.ndarray
    before: float
    after: float
    millimetres: float
    voxel: float = 1.0
    by_outline: bool = False

    @property
    def gain(self) -> float:
        """Mutual information there over that where the headers put it."""
        return self.after / self.before if self.before > 0 else float("inf")

    @property
    def is_clear(self) -> bool:
        """Whether the contrast lies elsewhere than its header says, beyond doubt."""
        if self.by_outline:
            return self.millimetres > max(SEEN_MILLIMETRES, SEEN_VOXELS * self.voxel)
        least = max(CLEAR_MILLIMETRES, CLEAR_VOXELS * self.voxel)
        return self.gain > CLEAR_GAIN and self.millimetres > least


class Reference:
    """A contrast that others are laid on.

    Args:
        volume: the contrast.
        head: (X, Y, Z) bool, where it shows the head or brain.

    Raises:
        ConfigError: CONFIG-EXTRA without SimpleITK.
    """

    def __init__(self, volume: Volume, head: np.ndarray) -> None:
        self.volume, self.head = volume, head
        self.itk = _simple_itk()
        self.points = world(np.argwhere(head), volume.geometry.canonical_affine)
        self.centre = self.points.mean(0)
        self._grids: dict[Resolution, tuple[Any, Any]] = {}

    def compare(self, moving: Volume) -> Alignment | None:
        """Return where a contrast agrees best near the place that its header states (seconds).

        None where the head is too small to tell, or an image is constant.
        """
        return self._align(moving, [np.eye(4)], [JUDGED])

    def register(self, moving: Volume) -> Alignment | None:
        """Return where a contrast agrees best, wherever its header puts it.

        The better of two starts, the header's and that of laying centre on centre, is refined.
        """
        box = np.array([[0, 0, 0], np.array(moving.array.shape) - 1])
        centred = np.eye(4)
        middle = world(box, moving.geometry.canonical_affine).mean(0)
        own = world(np.array([[0, 0, 0], np.array(self.head.shape) - 1]), self._affine).mean(0)
        centred[:3, 3] = middle - own
        return self._align(moving, [np.eye(4), centred], [COARSE, JUDGED, FINE])

    @property
    def _affine(self) -> np.ndarray:
        return self.volume.geometry.canonical_affine

    @cached_property
    def _distance(self) -> np.ndarray:
        """Millimetres (X, Y, Z) from the head: every level reaches beyond it by its own."""
        return ndimage.distance_transform_edt(~self.head, sampling=self.volume.geometry.spacing)

    def _align(
        self, moving: Volume, starts: Sequence[np.ndarray], levels: Sequence[Resolution]
    ) -> Alignment | None:
        matrices, own = list(starts), float(np.prod(self.volume.geometry.spacing) ** (1 / 3))
        for level in (replace(level, points=max(level.points, own)) for level in levels):
            fixed, mask = self._sampled(level)
            if self.itk.GetArrayViewFromImage(mask).sum() < FEWEST * (4 / level.points) ** 3:
                return None
            image = self._image(moving, level)
            tried = [*matrices, *(self._climb(fixed, mask, image, m, level) for m in matrices)]
            values = [self._agreement(fixed, mask, image, m) for m in tried]
            matrices = [tried[int(np.argmax(values))]]
        before = self._agreement(fixed, mask, image, np.eye(4))
        if not np.isfinite(max(values)) or max(values) <= 0:
            return None
        voxel = max(own, float(np.prod(moving.geometry.spacing) ** (1 / 3)))

        def alignment(place: np.ndarray, value: float, to: np.ndarray, known: float) -> Alignment:
            distance = np.linalg.norm(moved(self.points, place) - moved(self.points, to), axis=1)
            return Alignment(place, max(known, 0.0), value, float(distance.mean()), voxel)

        found = alignment(matrices[0], max(values), np.eye(4), before)
        stripped = self._as_stripped(moving, found.matrix)
        if stripped is None:
            return found
        there = self._agreement(fixed, mask, image, stripped)
        if alignment(found.matrix, found.after, stripped, there).is_clear:
            return found
        return replace(alignment(stripped, there, np.eye(4), before), by_outline=True)

    @cached_property
    def _surface(self) -> np.ndarray | None:
        outline = Outline.of(self.volume.array, self.volume.geometry)
        return outline and outline.points()

    def _as_stripped(self, moving: Volume, near: np.ndarray) -> np.ndarray | None:
        """Return where a contrast lay when one mask stripped it and the reference, if one did."""
        if self._surface is None:
            return None
        outline = Outline.of(moving.array, moving.geometry)
        return outline and outline.laid(self._surface, near)

    def _sampled(self, level: Resolution) -> tuple[Any, Any]:
        """Return the reference, and the mask of its points, on the turned grid of a level."""
        if level not in self._grids:
            self._grids[level] = self._sample(level)
        return self._grids[level]

    def _sample(self, level: Resolution) -> tuple[Any, Any]:
        local = (self.points - self.centre) @ TURN
        low, high = local.min(0) - level.beyond, local.max(0) + level.beyond
        grid = np.eye(4)
        grid[:3, :3], grid[:3, 3] = TURN * level.points, self.centre + TURN @ low
        shape = np.ceil((high - low) / level.points).astype(int) + 1
        near = (self._distance <= level.beyond).astype(np.uint8)
        reached = _itk_image(self.itk, near, self._affine)
        empty = _itk_image(self.itk, np.zeros(shape, np.uint8), grid)
        stay, itk = self.itk.Transform(3, self.itk.sitkIdentity), self.itk
        mask = itk.Resample(reached, empty, stay, itk.sitkNearestNeighbor, 0)
        image = itk.Resample(self._image(self.volume, level), empty, stay, itk.sitkLinear, 0.0)
        return image, mask

    def _image(self, volume: Volume, level: Resolution) -> Any:
        """Return a contrast in voxels of about those of a level, smooth, without its outliers."""
        array = volume.array
        bright = array[array > array.mean()]
        high = np.percentile(bright, 99) if bright.size else 1
        low = np.percentile(array[::4, ::4, ::4], 0.1)
        image = _itk_image(self.itk, np.clip(array, low, high), volume.geometry.canonical_affine)
        sides = zip(array.shape, volume.geometry.spacing, strict=True)
        shrink = [min(count, max(1, round(level.voxels / size))) for count, size in sides]
        if max(shrink) > 1:
            image = self.itk.BinShrink(image, shrink)
        return self.itk.DiscreteGaussian(image, (level.voxels / 2) ** 2)

    def _method(self, mask: Any, matrix: np.ndarray) -> tuple[Any, Any]:
        method = self.itk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetMetricSamplingStrategy(method.NONE)  # every point of the mask
        method.SetMetricFixedMask(mask)
        method.MetricUseFixedImageGradientFilterOff()
        method.MetricUseMovingImageGradientFilterOff()
        method.SetInterpolator(self.itk.sitkLinear)
        method.SetNumberOfThreads(1)  # the sums, and so the results, are always the same
        transform = itk_rigid(self.itk, matrix, self.centre)
        method.SetInitialTransform(transform, inPlace=True)
        return method, transform

    def _agreement(self, fixed: Any, mask: Any, image: Any, matrix: np.ndarray) -> float:
        method, _ = self._method(mask, matrix)
        try:
            return -float(method.MetricEvaluate(fixed, image))
        except RuntimeError:  # nothing of one lies on the other, or one is constant
            return -np.inf

    def _climb(
        self, fixed: Any, mask: Any, image: Any, matrix: np.ndarray, level: Resolution
    ) -> np.ndarray:
        method, transform = self._method(mask, matrix)
        method.SetOptimizerAsRegularStepGradientDescent(level.step, level.step / 64, 80, 0.5, 1e-7)
        method.SetOptimizerScalesFromPhysicalShift()
        try:
            method.Execute(fixed, image)
        except RuntimeError:
            return matrix
        return from_itk(transform)


def world(indices: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the places (N, 3) in mm of voxel indices (N, 3)."""
    return indices @ affine[:3, :3].T + affine[:3, 3]


moved = world  # a rigid matrix takes mm as an affine takes indices


def resampled(
    volume: Volume, grid: Geometry, matrix: np.ndarray, order: str = "linear", beyond: float = 0.0
) -> np.ndarray:
    """Return a volume on another grid, (X, Y, Z) float32: one interpolation.

    Args:
        matrix: (4, 4) from mm of the grid to mm of the volume.
        order: ``nearest``, ``linear`` or ``cubic``; the spline goes beyond no value of the volume.
        beyond: the value where the volume does not reach.
    """
    itk, array = _simple_itk(), volume.array.astype(np.float32, copy=False)
    orders = {"nearest": itk.sitkNearestNeighbor, "linear": itk.sitkLinear}
    image = _itk_image(itk, array, volume.geometry.canonical_affine)
    empty = _itk_image(itk, np.zeros(grid.canonical_shape, np.uint8), grid.canonical_affine)
    way, kind = itk_rigid(itk, matrix, np.zeros(3)), orders.get(order, itk.sitkBSpline)
    made = itk.Resample(image, empty, way, kind, beyond, itk.sitkFloat32)
    return np.clip(itk.GetArrayFromImage(made).T, array.min(), array.max())


def itk_rigid(itk: Any, matrix: np.ndarray, centre: np.ndarray) -> Any:
    """Return a matrix (4, 4) of RAS+ mm as the rigid transform of ITK that turns about a centre."""
    turned, middle = LPS @ matrix @ LPS, LPS[:3, :3] @ centre
    transform = itk.Euler3DTransform()
    transform.SetCenter(middle.tolist())
    transform.SetMatrix(turned[:3, :3].ravel().tolist(), 1e-6)
    shift = turned[:3, 3] - middle + turned[:3, :3] @ middle
    transform.SetTranslation(shift.tolist())
    return transform


def from_itk(transform: Any) -> np.ndarray:
    """Undo :func:`itk_rigid`."""
    matrix, centre = np.eye(4), np.array(transform.GetCenter())
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - matrix[:3, :3] @ centre
    return LPS @ matrix @ LPS


def _itk_image(itk: Any, array: np.ndarray, affine: np.ndarray) -> Any:
    """Return a canonical array (X, Y, Z) and its affine as an image of ITK."""
    image = itk.GetImageFromArray(np.ascontiguousarray(array.T))
    turned = LPS @ affine
    spacing = np.linalg.norm(turned[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(turned[:3, 3].tolist())
    image.SetDirection((turned[:3, :3] / spacing).ravel().tolist())
    return image


def _simple_itk() -> Any:
    return optional_module("SimpleITK", "registration")
