"""What is wrong with a folder of subjects, before anything is trained on it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.datamodule import ContrastDataModule
from ldm.data.fingerprint import alike
from ldm.data.layouts import Choice, Layout, Subject
from ldm.data.prepare import holding_size, size_override
from ldm.diagnosis.duplicates import equal_files
from ldm.diagnosis.findings import ERROR, NOTE, WARNING, Finding, by_severity
from ldm.diagnosis.masks import FEWEST_CASES, SMALL_SHARE, MaskFit, fit_of_masks
from ldm.diagnosis.subject import SubjectReport, examine_subject
from ldm.errors import ConfigError, DataError, bad_value
from ldm.extras import how_to_install
from ldm.label_scheme import TELL
from ldm.losses.segmentation import positive_weight
from ldm.progress import Progress, in_threads, silent
from ldm.study import LABELS, Study
from ldm.typed import typed
from ldm.util import check_parameter_names, evenly_spread

MOST_CASES = 24  # subjects whose masks are compared with each other
ALIKE, OTHERWISE = 0.7, 0.5  # correlation of T1 and T1ce: a model gains least above, most below
LEAST_MIXED = 0.1  # share of the subjects of one kind that makes a data set mixed
COUNTED = re.compile(r"(.+)[_.-]\d{1,2}")  # an id with a number behind that of a patient


@dataclass
class DataDiagnosis:
    """What was seen in a folder.

    Attributes:
        files: id -> where the files of each subject are.
        subjects: those that were examined.
        findings: of subjects and of the whole, worst first.
        split: {part: ids}.
        mask_fit: whether masks lie on something; None with fewer than 3.
    """

    root: Path
    layout: Layout
    files: Mapping[str, Subject] = field(repr=False)
    subjects: list[SubjectReport] = field(repr=False)
    findings: list[Finding] = field(default_factory=list)
    split: Mapping[str, list[str]] = field(default_factory=dict, repr=False)
    mask_fit: MaskFit | None = None

    @property
    def breaks_training(self) -> bool:
        """Whether anything stops a training or makes its result worthless."""
        return any(f.severity == ERROR for f in self.findings)

    @property
    def foreground_share(self) -> float | None:
        """Mean over the subjects with a mask."""
        shares = [s.share for s in self.subjects if s.share is not None]
        return float(np.mean(shares)) if shares else None

    def of_kind(self, kind: str) -> list[Finding]:
        """Return the findings of a kind."""
        return [f for f in self.findings if f.kind == kind]

    def of_subject(self, subject: str) -> list[Finding]:
        """Return the findings of a subject."""
        return [f for f in self.findings if f.subject == subject]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        share, fit = self.foreground_share, self.mask_fit
        return {
            "root": self.root.name,
            "layout": self.layout.name,
            "breaks_training": self.breaks_training,
            "findings": [asdict(f) for f in self.findings],
            "foreground_share": share,
            "pos_weight": positive_weight(share) if share else None,
            "mask_fit": fit and {"mean_rank": fit.mean_rank, **asdict(fit)},
            "split": dict(self.split),
            "subjects": [s.to_dict() for s in self.subjects],
        }


@typed
def diagnose_data(
    root: str | Path,
    data_params: Mapping[str, Any] | None = None,
    limit: int | None = None,
    progress: Progress = silent,
    layout: Choice = None,
) -> DataDiagnosis:
    """Examine the subjects below a folder: see :func:`diagnose`.

    Args:
        data_params: ``data.params`` of a configuration; None: the defaults, a synthesis of T1ce.
        layout: see :func:`ldm.data.layouts.detect_layout`; None: as told, or recognised.

    Raises:
        ConfigError: CONFIG-UNKNOWN, CONFIG-VALUE. DataError: see :func:`diagnose`.
    """
    told = {**(data_params or {}), "root": str(root)} | ({"layout": layout} if layout else {})
    check_parameter_names(ContrastDataModule, told, "data.params")
    data = ContrastDataModule(**told)
    data.progress = progress
    return diagnose(data, limit)


def diagnose(data: ContrastDataModule, limit: int | None = None) -> DataDiagnosis:
    """Examine subjects for the training that a data module serves, and compare them.

    They are found, split, and prepared by the module's own code, as a training does it.

    Args:
        limit: examine at most so many, spread evenly; files are compared for all.

    Raises:
        DataError: there is no subject at all, or the split cannot be made.
        ConfigError: CONFIG-VALUE for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise bad_value(f"limit is {limit}: give a number of patients, or None for all")
    found = data.find_subjects()
    learning = _learn(data, found)
    chosen = _spread(list(found.values()), limit)
    masked = [s for s in chosen if LABELS in s.files and data.study.target is None]
    compared = {s.id for s in _spread(masked, MOST_CASES)}

    def examine(subject: Subject) -> SubjectReport:
        return examine_subject(subject, data, subject.id in compared)

    reports = in_threads(examine, chosen, data.progress, "Examining patients")
    diagnosis = DataDiagnosis(data.root, data.layout, found, reports, split=data.split)
    diagnosis.mask_fit = fit_of_masks({r.id: r.case for r in reports if r.case})
    own = [finding for report in reports for finding in report.findings]
    shared = [
        *_duplicates(found, reports, data.split),
        *_masks(diagnosis, data.study.target is None),
    ]
    shared += [*_stripping(reports), *_acquired(reports, data.study), *_sizes(reports, data)]
    shared += [*_can_register(), *_numbered(found)]
    known = any(f.severity == ERROR for f in own)
    diagnosis.findings = by_severity([*own, *shared, *([] if known else learning)])
    return diagnosis


def _learn(data: ContrastDataModule, found: Mapping[str, Subject]) -> list[Finding]:
    """Let the normaliser learn as in a training; return why it cannot."""
    try:
        data.learn_normaliser(found)
    except DataError as error:
        return [Finding(ERROR, "unfit", error.reason, error.case)]
    return []


def _can_register() -> list[Finding]:
    """Return that registration is not judged, where its library is missing."""
    if find_spec("SimpleITK"):
        return []
    return [Finding(NOTE, "extra", f"registration is not judged: {how_to_install('SimpleITK')}")]


def _numbered(subjects: Mapping[str, Subject]) -> list[Finding]:
    """Return that ids count something which may be examinations, and which no convention says."""
    counted: dict[str, list[str]] = {}
    for subject in subjects.values():
        if subject.examined is None and (match := COUNTED.fullmatch(subject.id)):
            counted.setdefault(match[1], []).append(subject.id)
    are_visits = 2 * len(counted) > sum(map(len, counted.values()))  # few of each: no groups
    for stem, ids in counted.items():
        if not (are_visits or re.search(r"\d", stem)):
            continue
        if len({subjects[i].patient for i in ids}) > 1:
            message = (
                f"{ids[0]} and {ids[1]} count as two patients: if they are examinations of one, "
                r"give data.params.patient='(.+)[_.-]\d+'"
            )
            return [Finding(NOTE, "patients", message)]
    return []


def _sizes(reports: list[SubjectReport], data: ContrastDataModule) -> list[Finding]:
    """Return whether ``image_size`` cuts brains off, or nothing is left to train on."""
    findings, size = [], data.image_size
    if cut := [r for r in reports if r.cut > 0]:
        worst = max(cut, key=lambda r: r.cut)
        held = holding_size(r.plane for r in cut)
        enough = [max(own, needed) for own, needed in zip(size, held, strict=True)]
        findings.append(
            Finding(
                WARNING,
                "crop",
                f"image_size {list(size)} cuts off a part of the brain of {len(cut)} of "
                f"{len(reports)} subjects ({worst.cut:.1%} here, of {worst.plane[0]} x "
                f"{worst.plane[1]} voxels): give {size_override(enough)}, or "
                "larger voxels by data.params.spacing",
                worst.id,
            )
        )
    train = [r for r in reports if r.examples is not None and r.id in data.split["train"]]
    if train and not any(r.examples for r in train):
        least = f"no slice has {data.drawing.min_brain:.0%} brain: lower data.params.min_brain"
        findings.append(Finding(ERROR, "unfit", f"DATA-EMPTY: {least}"))
    return findings


def _spread(subjects: list[Subject], most: int | None) -> list[Subject]:
    return [subjects[i] for i in evenly_spread(most or len(subjects), len(subjects))]


def _duplicates(
    subjects: Mapping[str, Subject],
    reports: list[SubjectReport],
    split: Mapping[str, list[str]],
) -> list[Finding]:
    """Return what occurs twice; across the parts of a split it is a leak, an error."""
    part = {subject: name for name, members in split.items() for subject in members}

    def finding(first: str, second: str, message: str) -> Finding:
        parts = {part.get(first), part.get(second)} - {None}
        if len(parts) > 1:
            where = f": in {part[first]} and {part[second]}, so results are of no worth"
            return Finding(ERROR, "leak", message + where + "; remove one", second)
        return Finding(WARNING, "duplicate", f"{message}; remove one", second)

    findings: list[Finding] = []
    equal: dict[tuple[str, str], list[str]] = {}
    empty = {r.id for r in reports if not r.share}  # empty masks are equal files, and no duplicates
    files = {
        i: [file for name, file in s.files.items() if name != "seg" or i not in empty]
        for i, s in subjects.items()
    }
    for (first, path), *others in equal_files(files):
        if own := [copy.name for other, copy in others if other == first]:
            message = f"{', '.join(own)} and {path.name} are the same file: each contrast needs its"
            findings.append(Finding(ERROR, "duplicate", f"{message} own", first))
        for other, copy in others:
            if other != first:
                equal.setdefault((first, other), []).append(copy.name)
    origin: dict[str, str] = {}
    for (first, other), copies in equal.items():
        origin.setdefault(other, origin.get(first, first))
        more = f" and {len(copies) - 1} more" if len(copies) > 1 else ""
        findings.append(finding(first, other, f"same as files of {first}: {copies[0]}{more}"))
    for contrast in sorted({r.anatomy[0] for r in reports}):
        known = {r.id: r.anatomy[1] for r in reports if r.anatomy[0] == contrast}
        for first, second, share in alike(known):
            if origin.get(first, first) != origin.get(second, second):  # else said already
                message = f"{contrast} looks like that of {first} ({share:.1%} of its bits differ)"
                findings.append(finding(first, second, message))
    return findings


def _stripping(reports: list[SubjectReport]) -> list[Finding]:
    """Return whether whole heads and stripped brains are mixed: the two have other intensities."""
    heads = [r.id for r in reports if r.brain == "head"]
    others = sum(r.brain not in ("head", None) for r in reports)
    if not heads or not others:
        return []
    message = (
        f"{len(heads)} of {len(heads) + others} subjects are whole heads: strip them all, or give "
        "data.params.mask=nonzero or head for all"
    )
    return [Finding(WARNING, "stripping", message, heads[0])]


def _acquired(reports: list[SubjectReport], study: Study) -> list[Finding]:
    """Return whether the target was acquired as its native contrast is in some subjects only.

    What a model gains over a copied T1 follows from that (docs/what-helps.md).
    """
    known = [r.likeness for r in reports if r.likeness is not None]
    as_native, otherwise = sum(c > ALIKE for c in known), sum(c < OTHERWISE for c in known)
    if not known or min(as_native, otherwise) < max(1, LEAST_MIXED * len(known)):
        return []
    message = (
        f"{study.target} correlates with {study.native} above {ALIKE} in {as_native} of "
        f"{len(known)} subjects and below {OTHERWISE} in {otherwise}: they were acquired in two "
        "ways, and a model that sees both paints what lies between: train on subjects of the kind "
        "it will be used for, or tell the network with configs/acquisition.yaml"
    )
    return [Finding(NOTE, "acquisition", message)]


def _masks(diagnosis: DataDiagnosis, are_learned: bool) -> list[Finding]:
    """Return what the masks are like on the whole; of a synthesis, what their labels mean."""
    findings, share, fit = [], diagnosis.foreground_share, diagnosis.mask_fit
    findings += _schemes(diagnosis.subjects)
    if share and are_learned:
        small = share < SMALL_SHARE
        findings.append(
            Finding(
                WARNING if small else NOTE,
                "foreground",
                f"{share:.2%} of the voxels are foreground on average"
                f"{', less than 2 %' if small else ''}: pos_weight {positive_weight(share):.3g}",
            )
        )
    if fit and fit.is_by_chance:
        findings.append(
            Finding(
                ERROR,
                "shuffled",
                f"the masks fit their images no better than those of other subjects do (mean rank "
                f"{fit.mean_rank:.0%} of {len(fit.ranks)} subjects, p {fit.p_value:.2f}; 0% if "
                "they fit, 50% by chance): check which mask belongs to whom",
            )
        )
    return findings


def _schemes(reports: list[SubjectReport]) -> list[Finding]:
    """Return what labels are read as, and whether two schemes are mixed."""
    told = [r for r in reports if r.scheme and r.labels and max(r.labels) > 1]
    findings = []
    for scheme in {str(r.scheme): r.scheme for r in told}.values():
        source = scheme.source or f"nothing says so; {TELL}"
        findings.append(Finding(NOTE, "scheme", f"labels are read as {scheme} ({source})"))
    enhancing = {n for r in told for n in r.scheme.parts.get("enhancing", ())}
    if len(told) >= FEWEST_CASES and enhancing and not any(enhancing & {*r.labels} for r in told):
        message = (
            f"no subject has label {'+'.join(map(str, sorted(enhancing)))}, which is read as "
            f"enhancing tumour: if some enhance, {TELL}"
        )
        findings.append(Finding(WARNING, "labels", message))
    wrong = [r for r in told if any(f.kind == "labels" for f in r.findings)]
    if wrong and len(wrong) < len(told):
        groups = Counter(" ".join(f"{v:g}" for v in r.labels if v) for r in told)
        shown = "; ".join(f"{labels} in {n}" for labels, n in groups.most_common(4))
        message = f"labels of two schemes seem to be mixed ({shown} subjects): split the folder"
        findings.append(Finding(WARNING, "labels", message, wrong[0].id))
    return findings


def data_params(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``data.params`` of a configuration.

    Raises:
        ConfigError: CONFIG-MISSING.
    """
    params = (config.get("data") or {}).get("params")
    if not params:
        raise ConfigError("CONFIG-MISSING", "the configuration has no data.params: give a run's")
    return params
