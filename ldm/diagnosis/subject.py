"""What is wrong with the files of one subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from nibabel.orientations import aff2axcodes

from ldm.data.brain import subject_brain
from ldm.data.contrasts import load_contrasts, scheme_of
from ldm.data.fingerprint import fingerprint
from ldm.data.layouts import Layout, Subject
from ldm.data.nifti import Geometry
from ldm.data.prepare import bounding_box
from ldm.diagnosis.findings import ERROR, NOTE, WARNING, Finding
from ldm.diagnosis.masks import (
    SMALL_SHARE,
    MaskCase,
    label_problem,
    label_values,
    mask_case,
    scheme_problem,
)
from ldm.diagnosis.registration import Shift, best_shift
from ldm.errors import DataError
from ldm.label_scheme import LabelScheme
from ldm.losses.segmentation import positive_weight
from ldm.study import BRATS, LABELS, MASK_FILE

# Share of the voxels: a brain that large has its skull, or a background that is not 0.
WHOLE_VOLUME = 0.95
Volumes = dict[str, tuple[np.ndarray, Geometry]]


@dataclass
class SubjectReport:
    """What was seen in one subject.

    Attributes:
        contrasts: {name: shape, voxel sizes in mm, orientation, intensity range and empty slices}.
        shifts: {contrast: the shift that agrees best with T1}.
        labels: values of the mask, ascending; None without one.
        scheme: what they mean.
        share: of the box around the brain, which training sees, that is foreground; None without
            a mask.
        brain: what says where it is, see :func:`ldm.data.brain.subject_brain`.
        case, anatomy: what is compared with other subjects; ``anatomy`` is a contrast and its
            fingerprint.
    """

    id: str
    findings: list[Finding] = field(default_factory=list)
    contrasts: dict[str, dict[str, Any]] = field(default_factory=dict)
    shifts: dict[str, Shift] = field(default_factory=dict)
    labels: list[float] | None = None
    scheme: LabelScheme | None = None
    share: float | None = None
    brain: str | None = None
    case: MaskCase | None = field(default=None, repr=False)
    anatomy: tuple[str, str] = field(default=("", ""), repr=False)

    def add(self, severity: str, kind: str, message: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(severity, kind, message, self.id))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        shifts = {
            name: {
                "voxels": list(s.voxels),
                "mm": round(s.millimetres, 2),
                "gain": round(s.gain, 3),
            }
            for name, s in self.shifts.items()
        }
        return {
            "id": self.id,
            "contrasts": self.contrasts,
            "shift_from_t1": shifts,
            "labels": self.labels,
            "scheme": self.scheme and str(self.scheme),
            "foreground_share": self.share,
        }


def examine_subject(
    subject: Subject, layout: Layout, required: Sequence[str] = (), keep_case: bool = True
) -> SubjectReport:
    """Return what is right and wrong with a subject; a file that cannot be read is a finding.

    Args:
        required: contrasts (and ``seg``) without which it cannot be used.
        keep_case: whether its mask is to be compared with those of others (2 MB).
    """
    report = SubjectReport(subject.id)
    for name in required:
        if name not in subject.files:
            expected = layout.file_name(subject.id, name)
            report.add(ERROR, "missing", f"{name} is missing: expected {expected}")
    volumes = _readable(subject, layout, required, report)
    images = {name: array for name, (array, _) in volumes.items() if name != "seg"}
    if not images:
        return report
    if not _on_one_grid(volumes, report):
        return report
    geometry = next(iter(volumes.values()))[1]
    try:
        mask_file = _mask_file(subject, layout, geometry)
        brain, report.brain = subject_brain(list(images.values()), mask_file, case=subject.id)
    except DataError as error:
        report.add(ERROR, "empty", error.message)
        return report
    _examine_images(images, brain, report)
    box = bounding_box(brain)
    if "seg" in volumes:
        mask = volumes["seg"][0]
        report.scheme = scheme_of(subject)
        _examine_mask(mask, brain, box, report)
        problem = (
            None if label_problem(mask) else scheme_problem(mask, report.scheme, images.get("t1ce"))
        )
        if problem:
            report.add(ERROR if LABELS in required else WARNING, "labels", problem)
        if keep_case and report.share:
            report.case = mask_case(list(images.values()), mask, brain, box)
    _examine_registration(images, brain, geometry.canonical_affine, report)
    first = next(iter(images))
    report.anatomy = first, fingerprint(images[first])
    return report


def _mask_file(subject: Subject, layout: Layout, geometry: Geometry) -> np.ndarray | None:
    if MASK_FILE not in subject.files:
        return None
    arrays, own = load_contrasts(subject, layout, [MASK_FILE])
    geometry.require_same_grid(own, ("the image", MASK_FILE), subject.id)
    return arrays[MASK_FILE]


def _readable(
    subject: Subject, layout: Layout, required: Sequence[str], report: SubjectReport
) -> Volumes:
    """Return (array, geometry) of each contrast that can be read.

    Those beyond BraTS that are not required are left out: their grid may be their own.
    """
    volumes: Volumes = {}
    for name in (n for n in subject.files if n in (*BRATS, LABELS, *required) and n != MASK_FILE):
        try:
            arrays, geometry = load_contrasts(subject, layout, [name])
        except DataError as error:
            report.add(ERROR, "unreadable", f"{name}: {error.code}: {error.message}")
            continue
        volumes[name] = arrays[name], geometry
        report.contrasts[name] = {
            "shape": list(geometry.canonical_shape),
            "voxel_mm": [round(size, 3) for size in geometry.spacing],
            "orientation": "".join(aff2axcodes(geometry.affine)),
        }
        if geometry.unusual_spacing:
            report.add(WARNING, "spacing", f"{name} has {geometry.unusual_spacing}")
    return volumes


def _on_one_grid(volumes: Volumes, report: SubjectReport) -> bool:
    """Whether all contrasts lie on the grid of the first."""
    reference = next(name for name in volumes if name != "seg")
    codes = {name: report.contrasts[name]["orientation"] for name in volumes}
    agree = True
    for name, (_, geometry) in volumes.items():
        try:
            volumes[reference][1].require_same_grid(geometry, (reference, name), report.id)
        except DataError as error:
            agree = False
            turned = (
                f" ({reference} is stored {codes[reference]}, {name} {codes[name]})"
                if codes[name] != codes[reference]
                else ""
            )
            report.add(ERROR, "geometry", error.message + turned)
    return agree


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
            report.add(ERROR, "empty", f"{name} is {inside[0]:g} everywhere: replace the file")
        elif flat.any():
            report.add(
                WARNING,
                "slices",
                f"{name} is empty or constant in {flat.sum()} of {known.sum()} axial slices of the "
                "brain: cut there, or a scan that ends early",
            )
    if brain.mean() > WHOLE_VOLUME:
        report.add(
            WARNING,
            "background",
            f"{brain.mean():.0%} of the voxels are brain: set the background to 0, or give "
            "data.params.mask=head for a whole head",
        )


def _examine_mask(
    mask: np.ndarray, brain: np.ndarray, box: tuple[slice, ...], report: SubjectReport
) -> None:
    report.labels = label_values(mask)
    report.share = float((mask[box] > 0).mean())
    if problem := label_problem(mask):
        report.add(ERROR, "labels", problem)
    elif not report.share:
        report.add(NOTE, "foreground", "the mask is empty")
    elif report.share < SMALL_SHARE:
        report.add(
            WARNING,
            "foreground",
            f"{report.share:.2%} of the voxels are foreground: pos_weight "
            f"{positive_weight(report.share):.1f} follows",
        )
    if report.share and (outside := float((mask[~brain] > 0).sum() / (mask > 0).sum())) > 0.01:
        report.add(WARNING, "outside", f"{outside:.0%} of the mask lies outside the brain")


def _examine_registration(
    images: Mapping[str, np.ndarray], brain: np.ndarray, affine: np.ndarray, report: SubjectReport
) -> None:
    """Note contrasts that agree better with T1 when shifted."""
    reference = "t1" if "t1" in images else next(iter(images))
    for name in images:
        shift = best_shift(images[reference], images[name], brain, affine)
        if name == reference or shift is None:
            continue
        report.shifts[name] = shift
        if shift.is_doubtful:
            steps = ", ".join(f"{v:+d}" for v in shift.voxels)
            report.add(
                WARNING,
                "registration",
                f"{name} agrees {shift.gain:.2f} times better with {reference} when shifted by "
                f"{shift.millimetres:.1f} mm ({steps} voxels along RAS): register it",
            )
