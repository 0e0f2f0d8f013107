"""What is wrong with the files of one subject, for the training that a configuration describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.orientations import aff2axcodes

from ldm.data.brain import inverted, uneven
from ldm.data.contrasts import load_contrasts, scheme_of
from ldm.data.fingerprint import fingerprint
from ldm.data.layouts import Subject
from ldm.data.likeness import likeness
from ldm.data.nifti import REGISTER, Volume
from ldm.data.prepare import PreparedSubject, fit_size, prepare_subject
from ldm.data.registration import Alignment, Reference
from ldm.data.volume_file import VolumeFile
from ldm.diagnosis.findings import ERROR, NOTE, WARNING, Finding
from ldm.diagnosis.masks import (
    SMALL_SHARE,
    MaskCase,
    label_problem,
    label_values,
    mask_case,
    scheme_problem,
)
from ldm.errors import DataError
from ldm.evaluation.metrics.similarity import nmi
from ldm.label_scheme import LabelScheme
from ldm.losses.segmentation import positive_weight
from ldm.study import BRATS, LABELS, MASK_FILE, MASKS

if TYPE_CHECKING:
    from ldm.data.datamodule import ContrastDataModule

LARGEST_SHARE = 0.6  # of the brain that a tumour takes
MIRRORED = 1.15  # times as much as is shared with another contrast
# Share of the voxels: a brain that large has its skull, or a background that is not 0.
WHOLE_VOLUME = 0.95
MOST_FLAT = 0.05  # of the slices; the outermost differ between contrasts of real patients


@dataclass(frozen=True)
class ReadVolume(VolumeFile):
    """A volume that was read already."""

    volume: Volume | None = field(default=None, repr=False, compare=False)

    def read(self, case: str | None = None, nonfinite: str = "refuse") -> Volume:  # noqa: D102
        return self.volume


@dataclass
class SubjectReport:
    """What was seen in one subject.

    Attributes:
        contrasts: {name: shape, voxel sizes in mm, orientation, intensity range and empty slices}.
        alignments: {contrast: where it agrees best with T1}.
        labels: values of the mask, ascending; None without one.
        scheme: what they mean.
        share: of the box around the brain, which training sees, that is foreground; None without
            a mask.
        brain: what says where it is, see :func:`ldm.data.brain.subject_brain`.
        plane: voxels of the brain along the rows and columns of its slices.
        cut: share of the brain that ``image_size`` leaves out.
        examples: slices with enough brain to train on; None for patches.
        likeness: correlation of the target with the contrast that it is the enhanced form of, in
            the brain; None where there is no such pair.
        case, anatomy: what is compared with other subjects; ``anatomy`` is a contrast and its
            fingerprint.
    """

    id: str
    findings: list[Finding] = field(default_factory=list)
    contrasts: dict[str, dict[str, Any]] = field(default_factory=dict)
    alignments: dict[str, Alignment] = field(default_factory=dict)
    labels: list[float] | None = None
    scheme: LabelScheme | None = None
    share: float | None = None
    brain: str | None = None
    plane: tuple[int, ...] = ()
    cut: float = 0.0
    examples: int | None = None
    likeness: float | None = None
    case: MaskCase | None = field(default=None, repr=False)
    anatomy: tuple[str, str] = field(default=("", ""), repr=False)

    def add(self, severity: str, kind: str, message: str, contrast: str | None = None) -> None:
        """Note a finding."""
        self.findings.append(Finding(severity, kind, message, self.id, contrast))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        registration = {
            name: {"mm": round(a.millimetres, 2), "gain": round(a.gain, 3)}
            for name, a in self.alignments.items()
        }
        return {
            "id": self.id,
            "contrasts": self.contrasts,
            "registration": registration,
            "labels": self.labels,
            "scheme": self.scheme and str(self.scheme),
            "foreground_share": self.share,
            "brain": self.brain,
            "brain_cut": self.cut,
            "likeness": self.likeness and round(self.likeness, 3),
        }


def examine_subject(
    subject: Subject, data: ContrastDataModule, keep_case: bool = True
) -> SubjectReport:
    """Return what is right and wrong with a subject; a file that cannot be read is a finding.

    It is prepared as ``dsdiff prepare`` and ``dsdiff train`` do it, so that what is fit trains.

    Args:
        data: what the training needs; its subjects are found.
        keep_case: whether its mask is to be compared with those of others (2 MB).
    """
    report, study = SubjectReport(subject.id), data.study
    for name in study.needed:
        if name not in subject.files:
            expected = data.layout.file_name(subject.id, name)
            there = ", ".join(subject.files)
            message = f"{name} is missing: expected {expected}; there are {there}"
            report.add(ERROR, "missing", message, name)
    volumes = _readable(subject, data, report)
    images = {name: v.array for name, v in volumes.items() if name not in MASKS}
    if not images or not _on_one_grid(volumes, study.needed, report):
        return report
    prepared = _prepared(subject, volumes, data, report)
    if prepared is None:
        return report
    geometry = prepared.geometry
    images = {n: a for n, a in images.items() if a.shape == geometry.canonical_shape}
    brain = np.zeros(geometry.canonical_shape, bool)
    brain[prepared.box] = prepared.inside
    report.brain = prepared.mask
    _examine_images(images, brain, report)
    _examine_size(prepared, data, report)
    report.likeness = likeness(prepared.slices, prepared.brain, data.study)
    if LABELS in volumes:
        _examine_mask(volumes[LABELS].array, brain, prepared.box, LABELS in study.needed, report)
        _examine_scheme(subject, volumes, LABELS in study.needed, report)
        if keep_case and report.share and LABELS in study.needed:
            told = (volumes[LABELS].array, brain, prepared.box)
            report.case = mask_case(list(images.values()), *told)
    _examine_sides(images, brain, prepared.box, report)
    shown = {name: images[name] for name in data.conditions if name in images}
    if prepared.mask == "nonzero" and (said := uneven(shown)):
        report.add(WARNING, "stripping", said)
    _examine_registration(volumes, list(images), brain, report)
    first = next(iter(images))
    report.anatomy = first, fingerprint(images[first])
    return report


def _readable(
    subject: Subject, data: ContrastDataModule, report: SubjectReport
) -> dict[str, Volume]:
    """Return each volume that can be read.

    Those beyond BraTS that are not required are left out: their grid may be their own.
    """
    volumes: dict[str, Volume] = {}
    usual = (*BRATS, *MASKS, *data.study.needed)
    for name in (n for n in subject.files if n in usual):
        try:
            arrays, geometry = load_contrasts(subject, data.layout, [name])
        except DataError as error:
            is_read = name in (*data.study.needed, *MASKS)
            message = f"{name}: {error.reason}"
            report.add(ERROR if is_read else WARNING, "unreadable", message, name)
            continue
        volumes[name] = Volume(arrays[name], geometry)
        if name == MASK_FILE:
            continue
        report.contrasts[name] = {
            "shape": list(geometry.canonical_shape),
            "voxel_mm": [round(size, 3) for size in geometry.spacing],
            "orientation": "".join(aff2axcodes(geometry.affine)),
        }
        if geometry.is_synthetic:
            message = f"{name} was synthesised, as its header says: no truth"
            report.add(ERROR, "synthetic", message, name)
        if geometry.unusual_spacing:
            report.add(WARNING, "spacing", f"{name} has {geometry.unusual_spacing}", name)
    return volumes


def _on_one_grid(
    volumes: Mapping[str, Volume], needed: Sequence[str], report: SubjectReport
) -> bool:
    """Whether all that a training reads lies on the grid of the first contrast that it needs."""
    reference = next((name for name in needed if name in volumes), next(iter(volumes)))
    own, agree = volumes[reference].geometry, True
    for name, volume in volumes.items():
        try:
            own.require_same_grid(volume.geometry, (reference, name), report.id)
        except DataError as error:
            is_read = name in (*needed, *MASKS)
            agree = agree and not is_read
            codes = ["".join(aff2axcodes(g.affine)) for g in (own, volume.geometry)]
            stored = f" ({reference} is stored {codes[0]}, {name} {codes[1]})"
            message = error.message + (stored if codes[0] != codes[1] else "")
            report.add(ERROR if is_read else WARNING, "geometry", message, name)
    return agree


def _prepared(
    subject: Subject,
    volumes: Mapping[str, Volume],
    data: ContrastDataModule,
    report: SubjectReport,
) -> PreparedSubject | None:
    """Return the subject as a training takes it, from what was read of it; None if it cannot be."""
    files = {
        name: ReadVolume(file.path, file.channel, volumes[name])
        for name, file in subject.files.items()
        if name in volumes
    }
    told = (data.layout, data.conditions, data.target, data.preparation)
    try:
        prepared = prepare_subject(replace(subject, files=files), *told, truth=data.study.targets)
        subject.numbers(data.study.covariates)
    except DataError as error:
        if not any(f.severity == ERROR for f in report.findings):
            kind = "empty" if error.code == "DATA-CONSTANT" else "unfit"
            report.add(ERROR, kind, error.reason)
        return None
    return prepared


def _examine_size(
    prepared: PreparedSubject, data: ContrastDataModule, report: SubjectReport
) -> None:
    """Note how much of the brain ``image_size`` cuts off, and how many slices remain."""
    brain, size = prepared.brain, data.image_size
    report.plane = brain.shape[1:]
    if len(size) == 2:
        report.cut = 1 - float(fit_size(brain, size, 0).sum() / brain.sum())
        report.examples = int((brain.mean(axis=(1, 2)) >= max(data.drawing.min_brain, 1e-9)).sum())


def _examine_images(
    images: Mapping[str, np.ndarray], brain: np.ndarray, report: SubjectReport
) -> None:
    """Note intensity ranges, and slices of the brain in which a contrast is constant."""
    known = brain.sum(axis=(0, 1)) > 0.02 * brain.sum(axis=(0, 1)).max()
    for name, image in images.items():
        inside = image[brain]
        flat = (image.max(axis=(0, 1)) == image.min(axis=(0, 1))) & known
        low, median, high = (float(p) for p in np.percentile(inside, (1, 50, 99)))
        report.contrasts[name] |= {
            "minimum": float(inside.min()),
            "percentile_1": low,
            "median": median,
            "percentile_99": high,
            "maximum": float(inside.max()),
            "constant_slices": np.flatnonzero(flat).tolist(),
        }
        if np.ptp(inside) == 0:
            message = f"{name} is {inside[0]:g} everywhere: replace the file"
            report.add(ERROR, "empty", message, name)
        elif flat.sum() > MOST_FLAT * known.sum():
            report.add(
                WARNING,
                "slices",
                f"{name} is empty or constant in {flat.sum()} of {known.sum()} axial slices of the "
                "brain: cut there, or a scan that ends early",
                name,
            )
    if said := inverted(images, brain):
        report.add(WARNING, "background", said)
    if brain.mean() > WHOLE_VOLUME:
        report.add(
            WARNING,
            "background",
            f"{brain.mean():.0%} of the voxels are brain: set the background to 0, or give "
            "data.params.mask=head for a whole head",
        )


def _examine_mask(
    mask: np.ndarray,
    brain: np.ndarray,
    box: tuple[slice, ...],
    is_learned: bool,
    report: SubjectReport,
) -> None:
    report.labels = label_values(mask)
    report.share = float((mask[box] > 0).mean())
    if problem := label_problem(mask):
        report.add(ERROR if is_learned else WARNING, "labels", problem)
    elif is_learned and not report.share:
        report.add(NOTE, "foreground", "the mask is empty")
    elif is_learned and report.share < SMALL_SHARE:
        report.add(
            WARNING,
            "foreground",
            f"{report.share:.2%} of the voxels are foreground: pos_weight "
            f"{positive_weight(report.share):.1f} follows",
        )
    if (covered := float((mask[brain] > 0).mean())) > LARGEST_SHARE:
        message = f"the labels cover {covered:.0%} of the brain: is that a mask of the brain?"
        report.add(WARNING, "labels", message + " Name the file of the labels in a CSV")
    outside = float((mask[~brain] > 0).sum() / max((mask > 0).sum(), 1))
    if is_learned and not problem and outside > 0.01:
        report.add(WARNING, "outside", f"{outside:.0%} of the mask lies outside the brain")


def _examine_scheme(
    subject: Subject, volumes: Mapping[str, Volume], is_learned: bool, report: SubjectReport
) -> None:
    """Note labels that do not mean what their scheme says."""
    mask, enhanced = volumes[LABELS].array, volumes.get("t1ce")
    report.scheme = scheme_of(subject)
    if label_problem(mask):
        return
    problem = scheme_problem(mask, report.scheme, enhanced.array if enhanced else None)
    if problem:
        report.add(ERROR if is_learned else WARNING, "labels", problem)


def _examine_sides(
    images: Mapping[str, np.ndarray],
    brain: np.ndarray,
    box: tuple[slice, ...],
    report: SubjectReport,
) -> None:
    """Note a contrast that shows what T1 shows better where left and right are changed.

    No header tells of it. In 120 pairs of contrasts of gliomas and MS, what they share is 1.3 to 9
    times more as they are than mirrored.
    """
    first, inside = "t1" if "t1" in images else next(iter(images)), brain[box] & brain[box][::-1]
    reference = images[first][box]
    for name in [name for name in images if name != first]:
        own = images[name][box]
        shared, mirrored = (nmi(v, reference, inside) - 1 for v in (own, own[::-1]))
        if mirrored > MIRRORED * shared:
            message = f"{name} fits {first} better when mirrored left to right: is one of them?"
            report.add(WARNING, "mirrored", message, name)


def _examine_registration(
    volumes: Mapping[str, Volume], images: Sequence[str], brain: np.ndarray, report: SubjectReport
) -> None:
    """Note contrasts that lie elsewhere than T1."""
    if not find_spec("SimpleITK"):
        return
    first = "t1" if "t1" in images else images[0]
    reference = Reference(volumes[first], brain)
    for name in images:
        found = reference.compare(volumes[name]) if name != first else None
        if found is None:
            continue
        report.alignments[name] = found
        if found.is_clear:
            report.add(
                WARNING,
                "registration",
                f"{name} lies {found.millimetres:.1f} mm away from {first} (mutual information "
                f"{found.gain:.2f} times that of now if it is moved): {REGISTER}",
                name,
            )
