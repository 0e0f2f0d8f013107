"""A patient of an evaluation: the real volumes, and a synthetic one in the same units.

A synthetic volume is written in the units of an input contrast, which its sidecar states; the real
target has units of its own. Before comparison the prediction is brought to the units of the
reference by the two scales (of the input, from the sidecar; of the reference, measured in its brain
by the normaliser that the sidecar names).
A volume without a sidecar is taken to be in the units of the reference already, and named where it
cannot be. A spread beside it (``ID_TARGET_std.nii.gz``, of ``dsdiff sample --samples N``) goes
through the same map.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm.data.contrasts import load_contrasts
from ldm.data.layouts import Layout, Subject
from ldm.data.nifti import Geometry, read_volume
from ldm.data.normalise import IntensityScale, Normaliser, RobustNormaliser, spread_through
from ldm.data.prepare import load_subject
from ldm.errors import ConfigError, DataError, calling
from ldm.evaluation.images import Sliced, stacked
from ldm.evaluation.metrics.enhancement import enhancement
from ldm.evaluation.regions import REGIONS, Labelled
from ldm.inference.forms import spread_path
from ldm.storage import ERROR_MODEL, read_json
from ldm.study import BRATS, Study
from ldm.util import instantiate_from_config, refuse_untrusted_targets

log = logging.getLogger(__name__)

Found = Mapping[str, Sequence[tuple[Layout, Mapping[str, Subject]]]]  # of each row

Made = TypeVar("Made")


class Bounded(Protocol):
    """What of a protocol decides the intensities that become 0 and 1."""

    def bounds(self, volume: ArrayLike, brain: ArrayLike) -> tuple[float, float]:
        """Return these two for a volume."""


@dataclass(eq=False)
class Case:
    """A patient to compare with: canonical volumes (X, Y, Z), and what is made of them once."""

    id: str  # subject
    inputs: Mapping[str, np.ndarray]  # the input contrasts that exist
    reference: np.ndarray  # the real target
    # as in sampling (ldm.data.brain.subject_brain), of the input contrasts or, without inputs, of
    # the reference
    brain: np.ndarray
    seg: np.ndarray | None = None  # tumour labels, or None
    geometry: Geometry | None = None  # of the volumes; None: voxels of 1 mm
    mask: str = "nonzero"  # what said which voxels are brain
    study: Study = Study()  # which contrast the reference is, and which may be among the inputs
    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.brain = np.asarray(self.brain) != 0

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what ``make`` returned when it was first called for this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Size of a voxel along each axis, in mm."""
        return tuple(self.geometry.spacing) if self.geometry else (1.0, 1.0, 1.0)

    @cached_property
    def anatomy(self) -> Labelled:
        """Brain and labels, of which the regions are made."""
        labels = None if self.seg is None else np.asarray(self.seg)
        return Labelled(self.brain, labels, self.spacing)

    def region(self, name: str) -> NDArray[np.bool_]:
        """Return the mask of a region."""
        return self.once(("region", name), lambda: REGIONS[name].mask(self.anatomy))

    def in_brain(self, name: str) -> NDArray[np.bool_]:
        """Return which voxels (N,) of the brain lie in a region."""
        return self.once(("in brain", name), lambda: self.region(name)[self.brain])

    def area(self, name: str, axis: int = -1) -> Sliced:
        """Return that mask as slices along an axis."""
        return self.once(("area", name, axis), lambda: Sliced(stacked(self.region(name), axis)))

    def bounds(self, protocol: Bounded) -> tuple[float, float]:
        """Intensities of the reference that become 0 and 1; NaN if there are no voxels."""
        return self.once(("bounds", protocol), lambda: protocol.bounds(self.reference, self.brain))

    def image(self, protocol: Bounded, axis: int = -1, inside: bool = False) -> Sliced:
        """The reference mapped onto [0, 1]; ``inside``: with 0 outside the brain."""
        bounds = self.bounds(protocol)

        def make() -> Sliced:
            if inside:
                return self.image(protocol, axis).inside(self.area("brain", axis).stack)
            return Sliced(to_unit(stacked(self.reference, axis), *bounds))

        return self.once(("image", bounds, axis, inside), make)

    def scale(self, normaliser: Normaliser) -> IntensityScale:
        """The scale of the reference in its brain.

        Raises:
            DataError: DATA-CONSTANT.
        """
        told = (self.reference, self.brain, self.study.target, self.id)
        key = ("scale", repr(normaliser.to_dict()))
        with calling(normaliser):
            return self.once(key, lambda: normaliser.fit(*told))

    @property
    def can_enhance(self) -> bool:
        """Whether there is what enhancement is measured with: the native contrast, and labels."""
        return self.study.native in self.inputs and self.seg is not None

    def enhancement(self, volume: np.ndarray) -> NDArray[np.float64]:
        """Return what the agent added, at each voxel (N,) of the brain, if this is the target."""
        return enhancement(volume[self.brain], self.inputs[self.study.native][self.brain])

    @cached_property
    def true_enhancement(self) -> NDArray[np.float64]:
        """What the agent added at each voxel (N,) of the brain, of the real target."""
        return self.enhancement(self.reference)

    def shown_slice(self) -> tuple[int, str]:
        """Return an axial slice, and what it has most of.

        Enhancing tumour, weighted by how much it truly enhances; else tumour, else brain.
        """
        for name in ("enhancing", "tumour") if self.seg is not None else ():
            area = self.region(name).astype(np.float64)
            if area.any():
                if name == "enhancing" and self.can_enhance:
                    area[self.brain] *= 0.01 + np.nan_to_num(self.true_enhancement).clip(0)
                shown = "tumour" if name == "tumour" else "enhancement"
                return int(area.sum(axis=(0, 1)).argmax()), shown
        return int(self.brain.sum(axis=(0, 1)).argmax()), "brain"


@dataclass(frozen=True)
class Prediction:
    """A synthetic volume in the units of the reference."""

    volume: np.ndarray  # (X, Y, Z)
    spread: np.ndarray | None = None  # standard deviation over samples (X, Y, Z), or None
    samples: int | None = None  # how many samples the spread is of alone; None: taken for exact
    mirrored: bool = False  # whether they come in pairs of opposite noise
    # it is of this program, and the sidecar that states its units is not there, as of what `dsdiff
    # brasyn` writes
    is_stray: bool = False


def to_unit(volume: ArrayLike, low: float, high: float) -> NDArray[np.float64]:
    """Map intensities to [0, 1] between two bounds, and clip them."""
    unit = np.subtract(volume, low, dtype=np.float64)
    unit /= high - low
    return np.clip(unit, 0, 1, out=unit)


def judged_study(folders: Iterable[Path], target: str | None = None) -> Study:
    """Return what was synthesised, of what: as the sidecars in folders state, else the default.

    The inputs are those that any folder's sidecar names, else every usual contrast but the target:
    what is brain depends on them, and so must be the same for all folders, in any order.

    Args:
        target: None: as the first sidecar states.
    """
    stated: list[Study] = []
    for folder in folders:
        if study := _study_in(folder, target):
            stated.append(study)
            target = study.target
    target = target or Study().target
    if not stated:
        return Study(tuple(c for c in BRATS if c != target), target)
    inputs = [set(study.conditions) for study in stated]
    if all(own == inputs[0] for own in inputs):
        return stated[0]
    usual = {name: place for place, name in enumerate(BRATS)}
    joined = sorted(set().union(*inputs), key=lambda c: (usual.get(c, len(usual)), c))
    log.warning(
        "the predictions were made of different contrasts: all are judged where %s show brain",
        ", ".join(joined),
    )
    return replace(stated[0], conditions=tuple(joined))


def _study_in(folder: Path, target: str | None) -> Study | None:
    """Return what the first sidecar of a folder states, of a target if that is known."""
    for path in sorted(folder.rglob("*.json")):
        odd = (DataError, ConfigError, OSError, TypeError, AttributeError)
        with suppress(*odd):  # a damaged one is a failure of its patient
            study = _stated_study(read_json(path))
            if study and target in (None, study.target):
                return study
    return None


def _stated_study(described: Mapping[str, Any]) -> Study | None:
    target = described.get("target")
    if not (described.get("Synthetic") and isinstance(target, str)):
        return None
    inputs = described.get("conditions") or described.get("inputs") or ()
    if not all(isinstance(name, str) for name in inputs):
        raise TypeError("a contrast is no text")
    if inputs := tuple(c for c in inputs if c != target):
        return Study.of(inputs, target, contrasts=described.get("contrasts"))
    return Study(tuple(c for c in BRATS if c != target), target)


def nonfinite_of(folders: Found, subject: str, target: str) -> str:
    """Return what is done with NaN in real volumes: what it was when they were sampled from.

    Args:
        folders: row -> its folders, see :func:`ldm.evaluation.folder.predictions_of`.
    """
    known = (own[subject].files for found in folders.values() for _, own in found if subject in own)
    told = (files[target].described().get("request") for files in known if target in files)
    asked = (request.get("nonfinite") for request in told if isinstance(request, Mapping))
    return "zero" if "zero" in asked else "refuse"


def load_case(
    subject: Subject,
    layout: Layout,
    study: Study,
    mask: str = "auto",
    nonfinite: str = "refuse",
) -> Case:
    """Read the real volumes of a patient.

    Args:
        nonfinite: ``refuse`` NaN and infinity, or set them to ``zero``.

    Raises:
        DataError: there is no target, or a volume cannot be used.
    """
    target = study.target
    inputs = [c for c in study.conditions if c in subject.files] or [target]
    subject.require([target], layout)
    arrays, brain, rule, seg, geometry = load_subject(
        subject, layout, inputs, target, mask, nonfinite=nonfinite, with_labels=True
    )
    reference = arrays.pop(target)
    return Case(subject.id, arrays, reference, brain, seg, geometry, rule, study)


def copied(case: Case) -> Prediction | None:
    """Return the source contrast taken for the target, as it is; None where it does not exist."""
    source = case.study.source
    if source not in case.inputs:
        return None
    scale = RobustNormaliser().fit(case.inputs[source], case.brain, source, case.id)
    return Prediction(in_reference_units(case.inputs[source], scale, case))


def read_prediction(
    subject: Subject, layout: Layout, case: Case, trust: Collection[str] = ()
) -> Prediction:
    """Return the synthetic volume of a patient, and its spread, in the units of the reference.

    Args:
        trust: normalisers of the user's own that a sidecar may name.

    Raises:
        DataError: it cannot be read, lies on another grid, or its sidecar is damaged.
        UnsafeError: UNSAFE-TARGET, UNSAFE-IMPORT.
    """
    target = case.study.target
    arrays, geometry = load_contrasts(subject, layout, [target])
    case.geometry.require_same_grid(geometry, ("reference", "prediction"), case.id)
    sidecar = subject.files[target].sidecar
    spread = _read_spread(spread_path(subject.files[target].path), case)
    if not sidecar.is_file():
        return Prediction(arrays[target], spread, is_stray=geometry.is_synthetic)
    scale, normaliser, request, mask = _stated(sidecar, case, trust)
    samples = request.get("samples")
    if mask != case.mask:
        log.warning(
            "%s: sampled where '%s' says brain, compared where '%s' does", case.id, mask, case.mask
        )
    volume = in_reference_units(arrays[target], scale, case, normaliser)
    if spread is None or samples == 1:  # one left by an earlier run, with samples
        return Prediction(volume)
    spread = in_reference_units(arrays[target], scale, case, normaliser, spread)
    samples = None if request.get(ERROR_MODEL) else samples  # exact: not of samples alone
    return Prediction(volume, spread, samples, request.get("mirrored") is True)


def _stated(
    sidecar: Path, case: Case, trust: Collection[str]
) -> tuple[IntensityScale, Normaliser | None, Mapping[str, Any], str]:
    """Return what a sidecar says: scale, normaliser, what was asked of the model, and mask.

    Raises:
        DataError: DATA-SIDECAR. UnsafeError: UNSAFE-TARGET.
    """
    try:
        described = read_json(sidecar)
        scale = IntensityScale.from_dict(described["intensity"])
        request, preparation = (described.get(n) or {} for n in ("request", "preparation"))
        samples, mask = request.get("samples"), preparation.get("mask", case.mask)
        if samples is not None and (not isinstance(samples, int) or samples < 1):
            raise ValueError(f"samples is {samples!r}")
        if not isinstance(mask, str):
            raise ValueError(f"mask is {mask!r}")
        config, normaliser = described.get("normaliser"), None
        if config:
            from ldm.config import trusted_targets  # reads YAML

            refuse_untrusted_targets(config, trusted_targets(), sidecar.name, named=trust)
            normaliser = instantiate_from_config(config, where=sidecar.name)
        if not isinstance(normaliser, Normaliser | None):
            raise ValueError(f"{type(normaliser).__name__} is no normaliser")
        return scale, normaliser, request, mask
    except (DataError, ConfigError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            "DATA-SIDECAR",
            f"{sidecar.name} does not state the units ({error}): sample again",
            case.id,
        ) from error


def _read_spread(path: Path, case: Case) -> np.ndarray | None:
    """Return a standard deviation over samples as stored, or None if there is none."""
    if not path.is_file():
        return None
    stored = read_volume(path, case.id)
    case.geometry.require_same_grid(stored.geometry, ("reference", "spread"), case.id)
    return stored.array


def in_reference_units(
    volume: np.ndarray,
    scale: IntensityScale,
    case: Case,
    normaliser: Normaliser | None = None,
    spread: np.ndarray | None = None,
) -> np.ndarray:
    """Map a volume, or a ``spread`` about it, to the units of the reference, inside the brain."""
    own = case.scale(normaliser or RobustNormaliser())

    def mapped(values: np.ndarray) -> np.ndarray:
        return own.unstandardise(scale.standardise(values))

    result = mapped(volume) if spread is None else spread_through(mapped, volume, spread)
    return np.where(case.brain, result, 0).astype(np.float32)
