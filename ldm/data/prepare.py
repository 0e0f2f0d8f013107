"""From the files of a subject to slices that a network takes, and back to a volume.

The steps are reorient, mask, crop to the brain, resample, normalise, cut along an axis; each is
recorded, so that :meth:`PreparedSubject.to_volume` undoes them (``docs/preprocessing.md``).
"""

from __future__ import annotations

import logging
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import aff2axcodes

from ldm.data.brain import MASKS, bounding_box, inverted, subject_brain, uneven
from ldm.data.contrasts import labels_inside, load_contrasts
from ldm.data.layouts import Layout, Subject
from ldm.data.nifti import Geometry
from ldm.data.normalise import (
    BACKGROUND,
    IntensityScale,
    Normaliser,
    PerContrast,
    RobustNormaliser,
    build_normaliser,
)
from ldm.data.resample import ORDERS, Resampling
from ldm.errors import ConfigError, DataError, bad_value, calling, of_case, one_of
from ldm.study import LABELS, MASK_FILE, Study
from ldm.util import taken

log = logging.getLogger(__name__)

MAX_VOXELS = 1 << 28  # of a resampled brain: 512 x 512 x 1024
STEP = 32  # voxels; an image size that is a multiple of it suits every network
WASTE = 1.5  # times as many pixels as hold every brain, from which on it is said
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # index of the slice axis in RAS+


@dataclass(frozen=True)
class Preparation:
    """The choices that turn volumes into slices: one object for training, sampling and the cache.

    Args:
        normaliser: measures the intensities.
        axis: ``axial``, ``coronal`` or ``sagittal``.
        spacing: mm of a voxel to the right, to the front and up; None: as it is stored.
        interpolation: ``linear`` or ``cubic``; labels and masks take the nearest voxel.
        mask: what is brain: ``auto``, ``nonzero`` or ``head``, see
            :func:`ldm.data.brain.subject_brain`.

    Raises:
        ConfigError: CONFIG-VALUE.
    """

    normaliser: Normaliser = field(default_factory=RobustNormaliser)
    axis: str = "axial"
    spacing: tuple[float, ...] | None = None
    interpolation: str = "linear"
    mask: str = "auto"

    def __post_init__(self) -> None:
        for name, known in (("axis", AXES), ("interpolation", ORDERS), ("mask", MASKS)):
            one_of(f"data.params.{name}", getattr(self, name), known)
        if self.spacing is not None and (len(self.spacing) != 3 or not min(self.spacing) > 0):
            raise bad_value(
                f"data.params.spacing is {list(self.spacing)}: give mm to the right, to the front "
                "and up, as [1, 1, 1], or null"
            )

    @classmethod
    def of(
        cls,
        normaliser_config: Mapping[str, Any] | None = None,
        axis: str = "axial",
        spacing: Sequence[float] | None = None,
        interpolation: str = "linear",
        mask: str = "auto",
    ) -> Preparation:
        """Return the preparation of these parameters of ``data.params``.

        Args:
            normaliser_config: ``target`` / ``params`` of a
                :class:`ldm.data.normalise.Normaliser`; None: the robust one.
            axis, spacing, interpolation, mask: see the class.

        Raises:
            ConfigError: CONFIG-VALUE, or the normaliser cannot be built.
        """
        millimetres = spacing and tuple(map(float, spacing))
        return cls(build_normaliser(normaliser_config), axis, millimetres, interpolation, mask)

    @classmethod
    def read(cls, study: Study) -> Preparation:
        """Return the preparation that the configuration of a study tells.

        Raises:
            ConfigError: see :meth:`of` and :meth:`require_known`.
        """
        preparation = cls.of(**taken(dict(study.data), cls.of))
        preparation.require_known(study)
        return preparation

    def require_known(self, study: Study) -> None:
        """Refuse a normaliser of a contrast that is none of the study.

        Raises:
            ConfigError: CONFIG-UNKNOWN.
        """
        if isinstance(self.normaliser, PerContrast):
            self.normaliser.require_known([*study.conditions, *study.targets])

    def to_dict(self) -> dict[str, Any]:
        """Return the choices, for a cache key."""
        return {**vars(self), "normaliser": self.normaliser.to_dict()}


@dataclass(frozen=True)
class PreparedSubject:
    """A subject as slices.

    Args:
        id: subject.
        slices: (S, M, H, W) float32 in [-1, 1], cropped to the brain; M follows ``contrasts``.
        brain: (S, H, W) bool.
        seg: (S, H, W) uint8 labels, or None.
        present: (M,) bool: which contrasts were acquired.
        contrasts: names of the channels.
        scales: the normalisation of each acquired contrast.
        box: the crop in the canonical volume, one slice object an axis.
        inside: brain in the voxels of the box, canonical.
        resampling: from the voxels of the box to those of the slices, or None if they are the same.
        geometry: geometry of the input.
        mask: what said which voxels are brain: ``nonzero``, ``head`` or ``file``.
        preparation: the choices behind all this.
        numbers: covariates of the subject, which preparation leaves alone; NaN where not known.
        target: contrast that is to be made of it, which preparation leaves alone too.
        maps: (S, K, H, W) what the prior of a model has found in it, which others add too.
    """

    id: str
    slices: np.ndarray
    brain: np.ndarray
    seg: np.ndarray | None
    present: np.ndarray
    contrasts: tuple[str, ...]
    scales: dict[str, IntensityScale]
    box: tuple[slice, ...]
    inside: np.ndarray
    resampling: Resampling | None
    geometry: Geometry
    mask: str
    preparation: Preparation
    numbers: tuple[float, ...] = ()
    target: str | None = None
    maps: np.ndarray | None = None

    @property
    def axis(self) -> int:
        """Index of the slice axis in the canonical volume."""
        return AXES[self.preparation.axis]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance of slices, of rows and of columns, in mm."""
        own = self.preparation.spacing if self.resampling else None
        across = list(own or self.geometry.spacing)
        return across.pop(self.axis), *across

    @property
    def aspect(self) -> float:
        """How wide a voxel is within a slice, as part of the distance of slices."""
        return aspect_of(self.spacing)

    def beginning(self, count: int) -> PreparedSubject:
        """Return its first slices, without labels."""
        return replace(self, slices=self.slices[:count], brain=self.brain[:count], seg=None)

    def to_volume(self, slices: np.ndarray) -> np.ndarray:
        """Put (S, H, W) values back where they were cut out: (X, Y, Z) float32, 0 elsewhere."""
        values = np.moveaxis(slices, 0, self.axis)
        if self.resampling:
            values = self.resampling.back(values, np.moveaxis(self.brain, 0, self.axis))
        volume = np.zeros(self.geometry.canonical_shape, np.float32)
        volume[self.box] = np.where(self.inside, values, 0)
        return volume

    def to_dict(self) -> dict[str, Any]:
        """Return every step but the intensities, for a sidecar; boxes and spacings are in RAS+."""
        described = {
            "orientation": "".join(aff2axcodes(self.geometry.affine)),
            "shape": list(self.geometry.canonical_shape),
            "mask": self.mask,
            "box": [[part.start, part.stop] for part in self.box],
        }
        if self.resampling:
            described["resampled"] = {
                "spacing": list(self.preparation.spacing),
                "shape": list(self.resampling.grid),
                "interpolation": self.preparation.interpolation,
            }
        return {**described, "axis": self.preparation.axis}


class LoadedSubject(NamedTuple):
    """A subject as it is stored, turned to RAS+: all volumes (X, Y, Z) lie on one grid.

    Args:
        arrays: contrast -> float32 in units of the scanner.
        brain: bool.
        rule: what says so: ``nonzero``, ``head`` or ``file``.
        seg: uint8 labels, or None.
        geometry: of the input.
    """

    arrays: dict[str, np.ndarray]
    brain: np.ndarray
    rule: str
    seg: np.ndarray | None
    geometry: Geometry


def load_subject(
    subject: Subject,
    layout: Layout,
    conditions: Sequence[str],
    target: str | None,
    mask: str = "auto",
    allow_missing: Sequence[str] = (),
    nonfinite: str = "refuse",
    with_labels: bool = False,
    truth: Sequence[str] = (),
) -> LoadedSubject:
    """Return the canonical contrasts of a subject and its brain.

    Args:
        conditions: input contrasts; they define the brain.
        target: further contrast, which must have been acquired, or None.
        mask: see :func:`ldm.data.brain.subject_brain`.
        allow_missing: conditions that may be absent.
        with_labels: read ``seg``, where there is one.
        truth: conditions that must have been acquired too, not synthesised.

    Raises:
        DataError: the subject cannot be used; the message says why.
    """
    names = (*conditions, *([target] if target else []))
    beside = [n for n, wanted in ((MASK_FILE, mask == "auto"), (LABELS, with_labels)) if wanted]
    arrays, geometry = load_contrasts(
        subject,
        layout,
        [*names, *beside],
        [*allow_missing, *beside],
        nonfinite,
        truth=[*truth, *([target] if target else [])],
    )
    mask_file, seg = (arrays.pop(name, None) for name in (MASK_FILE, LABELS))
    inputs = {c: arrays[c] for c in conditions if c in arrays}
    with of_case(subject.id):
        brain, rule = subject_brain(list(inputs.values()), mask_file, mask)
    odd = [uneven(inputs) if rule == "nonzero" else "", inverted(arrays, brain)]
    for said in filter(None, odd):
        log.warning("%s: %s", subject.id, said)
    labels = None if seg is None else labels_inside(seg, subject)
    return LoadedSubject(arrays, brain, rule, labels, geometry)


def prepare_subject(
    subject: Subject,
    layout: Layout,
    conditions: Sequence[str],
    target: str | None,
    preparation: Preparation,
    allow_missing: Sequence[str] = (),
    nonfinite: str = "refuse",
    with_labels: bool = False,
    truth: Sequence[str] = (),
) -> PreparedSubject:
    """Read one subject and cut it into normalised slices.

    The scale of a contrast is measured in its own voxels, before resampling.

    Args:
        conditions: input contrasts; they define the brain.
        target: contrast to learn (appended as the last channel), or None to sample without it.
        allow_missing: conditions that may be absent; their channel is then -1 and not ``present``.
        with_labels: read ``seg``, where there is one, also without a target.
        truth: see :func:`load_subject`.

    Raises:
        DataError: the subject cannot be used; the message says why.
    """
    told = (conditions, target, preparation.mask, allow_missing, nonfinite)
    arrays, brain, rule, seg, geometry = load_subject(
        subject, layout, *told, with_labels=bool(target) or with_labels, truth=truth
    )
    names = (*conditions, *([target] if target else []))
    scales = measured_scales(preparation.normaliser, arrays, brain, subject.id)
    box = bounding_box(brain)
    inside = brain[box]
    volumes = {c: arrays[c][box] for c in scales}
    seg = None if seg is None else seg[box]
    with of_case(subject.id):
        grid_brain, resampling = inside, _resampling(inside, geometry, preparation)
    if resampling:
        volumes, grid_brain = resampling.volumes(volumes, inside), resampling.labels(inside)
        seg = None if seg is None else resampling.labels(seg)

    def cut(volume: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(volume, AXES[preparation.axis], 0))

    brain_slices = cut(grid_brain)
    return PreparedSubject(
        id=subject.id,
        slices=_channels({c: cut(v) for c, v in volumes.items()}, scales, names, brain_slices),
        brain=brain_slices,
        seg=None if seg is None else cut(seg),
        present=np.array([c in scales for c in names]),
        contrasts=names,
        scales=scales,
        box=box,
        inside=inside,
        resampling=resampling,
        geometry=geometry,
        mask=rule,
        preparation=preparation,
    )


def measured_scales(
    normaliser: Normaliser, arrays: Mapping[str, np.ndarray], brain: np.ndarray, case: str
) -> dict[str, IntensityScale]:
    """Return the scale of each contrast (X, Y, Z) of a patient.

    Raises:
        ConfigError: CONFIG-TARGET for a normaliser that anyone has written and that raises, or
            returns no scale. DataError: DATA-CONSTANT.
    """
    with calling(normaliser):
        scales = {c: normaliser.fit(array, brain, c, case) for c, array in arrays.items()}
    for contrast, scale in scales.items():
        if not isinstance(scale, IntensityScale):
            raise ConfigError(
                "CONFIG-TARGET",
                f"{type(normaliser).__name__}.fit returned {reprlib.repr(scale)} for {contrast}: "
                "expected an ldm.data.normalise.IntensityScale; or write measure in its place",
            )
    return scales


def _resampling(
    inside: np.ndarray, geometry: Geometry, preparation: Preparation
) -> Resampling | None:
    """Return the way to the voxels that are asked for, of which some are brain."""
    if preparation.spacing is None:
        return None
    shape, own = inside.shape, geometry.spacing
    plan = Resampling.plan(shape, own, preparation.spacing, preparation.interpolation)
    if plan and math.prod(plan.grid) > MAX_VOXELS:
        raise DataError(
            "DATA-TOO-LARGE",
            f"a brain of {' x '.join(f'{n * s:.0f}' for n, s in zip(shape, own, strict=True))} mm "
            f"would have {math.prod(plan.grid):.1e} voxels, at most {MAX_VOXELS:.1e} are read: "
            "give a coarser data.params.spacing",
        )
    if plan and not plan.labels(inside).any():
        raise DataError(
            "DATA-CONSTANT",
            f"no brain is left at a spacing of {list(preparation.spacing)} mm: give a finer "
            "data.params.spacing",
        )
    return plan


def _channels(
    volumes: Mapping[str, np.ndarray],
    scales: Mapping[str, IntensityScale],
    names: Sequence[str],
    brain: np.ndarray,
) -> np.ndarray:
    """Return (S, M, H, W) in [-1, 1]; a contrast that was not acquired is background."""
    blank = np.full(brain.shape, BACKGROUND, np.float32)
    channels = [scales[c].normalise(volumes[c], brain) if c in scales else blank for c in names]
    return np.stack(channels, axis=1)


def aspect_of(spacing: Sequence[float]) -> float:
    """Return how wide a voxel is within a slice, as part of the distance of slices.

    Args:
        spacing: distance of slices, of rows and of columns.
    """
    across, *plane = spacing
    return math.sqrt(math.prod(plane)) / across


def holding_size(planes: Iterable[Sequence[int]]) -> list[int]:
    """Return the smallest image size that holds all brains and suits every network.

    Args:
        planes: voxels of each brain along the rows and columns of its slices.
    """
    return [STEP * -(-max(sides) // STEP) for sides in zip(*planes, strict=True)]


def size_override(size: Sequence[int]) -> str:
    """Return the override that gives an image size."""
    return f"data.params.image_size=[{','.join(map(str, size))}]"


def smaller_size(size: Sequence[int], planes: Iterable[Sequence[int]]) -> list[int]:
    """Return :func:`holding_size` where ``size`` wastes pixels beside the brain; else nothing."""
    holding = holding_size(planes)
    return holding if holding and math.prod(size) >= WASTE * math.prod(holding) else []


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
