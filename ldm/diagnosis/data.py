"""What is wrong with a folder of subjects, before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.fingerprint import alike
from ldm.data.layouts import Choice, Layout, Subject, detect_layout
from ldm.data.split import split_subjects
from ldm.diagnosis.duplicates import equal_files
from ldm.diagnosis.findings import ERROR, NOTE, WARNING, Finding, by_severity
from ldm.diagnosis.masks import SMALL_SHARE, MaskFit, fit_of_masks
from ldm.diagnosis.subject import SubjectReport, examine_subject
from ldm.errors import ConfigError
from ldm.label_scheme import TELL
from ldm.losses.segmentation import positive_weight
from ldm.progress import Progress, silent
from ldm.study import BRATS, KNOWN, LABELS, MASK_FILE, Study

MOST_CASES = 24  # subjects whose masks are compared with each other
UNLIKE_SCALE = 20  # times larger or smaller than the median of the subjects
READERS = 4


@dataclass
class DataDiagnosis:
    """What was seen in a folder.

    Attributes:
        files: id -> where the files of each subject are.
        subjects: those that were examined.
        findings: of subjects and of the whole, worst first.
        split: {part: ids}, empty without a configuration.
        mask_fit: whether masks lie on something; None with fewer than 3.
    """

    root: Path
    layout: Layout
    files: Mapping[str, Subject] = field(repr=False)
    subjects: list[SubjectReport]
    findings: list[Finding] = field(default_factory=list)
    split: Mapping[str, list[str]] = field(default_factory=dict)
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


def diagnose_data(
    root: Path,
    data_params: Mapping[str, Any] | None = None,
    limit: int | None = None,
    progress: Progress = silent,
    layout: Choice = None,
) -> DataDiagnosis:
    """Examine the subjects below a folder, and compare them.

    Args:
        data_params: ``data.params`` of a configuration: which contrasts are needed, and the split
            across which nothing may occur twice. None: what most subjects have is needed.
        limit: examine at most so many, spread evenly; files are compared for all.
        progress: wraps the subjects while they are examined.
        layout: see :func:`ldm.data.layouts.detect_layout`; None: recognised.

    Raises:
        DataError: there is no subject at all, or the split cannot be made.
    """
    study = Study.read(data_params) if data_params else None
    layout, found = detect_layout(root, layout, study.contrasts if study else KNOWN)
    subjects = list(found.values())
    split = _split(list(found), data_params)
    required = list(study.needed) if study else _had_by_most(subjects)
    chosen = _spread(subjects, limit)
    compared = {s.id for s in _spread([s for s in chosen if "seg" in s.files], MOST_CASES)}

    def examine(subject: Subject) -> SubjectReport:
        return examine_subject(subject, layout, required, subject.id in compared)

    with ThreadPoolExecutor(READERS) as pool:
        done = pool.map(examine, chosen)
        reports = list(progress(done, "Examining patients", len(chosen)))
    diagnosis = DataDiagnosis(root, layout, found, reports, split=split)
    diagnosis.mask_fit = fit_of_masks({r.id: r.case for r in reports if r.case})
    own = [finding for report in reports for finding in report.findings]
    shared = [*_duplicates(found, reports, split), *_masks(diagnosis), *_scales(reports)]
    shared += _stripping(reports)
    diagnosis.findings = by_severity([*own, *shared])
    return diagnosis


def _split(ids: list[str], params: Mapping[str, Any] | None) -> dict[str, list[str]]:
    names = ("train", "val", "test", "seed", "fold", "folds")
    given = {name: params[name] for name in names if name in params} if params else {}
    return split_subjects(ids, **given) if given else {}


def _had_by_most(subjects: list[Subject]) -> list[str]:
    counts = Counter(name for subject in subjects for name in subject.files)
    usual = (*BRATS, LABELS, MASK_FILE)
    return [name for name, count in counts.items() if count > len(subjects) / 2 and name in usual]


def _spread(subjects: list[Subject], most: int | None) -> list[Subject]:
    if most is None or len(subjects) <= most:
        return subjects
    return [subjects[i] for i in np.linspace(0, len(subjects) - 1, most).round().astype(int)]


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
        for other, copy in others:
            if other == first:
                message = f"{copy.name} and {path.name} are the same file: one is another contrast"
                findings.append(Finding(ERROR, "duplicate", message, first))
            else:
                equal.setdefault((first, other), []).append(copy.name)
    for (first, other), copies in equal.items():
        more = f" and {len(copies) - 1} more" if len(copies) > 1 else ""
        findings.append(finding(first, other, f"same as files of {first}: {copies[0]}{more}"))
    for contrast in sorted({r.anatomy[0] for r in reports}):
        known = {r.id: r.anatomy[1] for r in reports if r.anatomy[0] == contrast}
        for first, second, share in alike(known):
            if (first, second) not in equal and (second, first) not in equal:
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
        f"{len(heads)} subjects are whole heads, {others} are not: strip them all, or give "
        "data.params.mask=nonzero or head for all"
    )
    return [Finding(WARNING, "stripping", message, heads[0])]


def _masks(diagnosis: DataDiagnosis) -> list[Finding]:
    """Return what the masks are like on the whole."""
    findings, share, fit = [], diagnosis.foreground_share, diagnosis.mask_fit
    findings += _schemes(diagnosis.subjects)
    if share:
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
    wrong = [r for r in told if any(f.kind == "labels" for f in r.findings)]
    if wrong and len(wrong) < len(told):
        groups = Counter(" ".join(f"{v:g}" for v in r.labels if v) for r in told)
        shown = "; ".join(f"{labels} in {n}" for labels, n in groups.most_common(4))
        message = f"labels of two schemes seem to be mixed ({shown} subjects): split the folder"
        findings.append(Finding(WARNING, "labels", message, wrong[0].id))
    return findings


def _scales(reports: list[SubjectReport]) -> list[Finding]:
    """Return the contrasts whose intensities are of quite another size than in other subjects."""
    findings = []
    for contrast in sorted({name for r in reports for name in r.contrasts}):
        tops = {r.id: r.contrasts.get(contrast, {}).get("percentile_99") for r in reports}
        known = {subject: top for subject, top in tops.items() if top is not None and top > 0}
        if len(known) < 3:
            continue
        middle = float(np.median(list(known.values())))
        for subject, top in known.items():
            if not 1 / UNLIKE_SCALE < top / middle < UNLIKE_SCALE:
                message = (
                    f"{contrast} reaches {top:.3g}, where others reach {middle:.3g}: other units?"
                )
                findings.append(Finding(NOTE, "scale", message, subject))
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
