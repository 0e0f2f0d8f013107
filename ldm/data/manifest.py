"""The manifest of a data set: a CSV that is read as a layout, with digests and facts.

Columns ``id``, those of the contrasts, ``seg``, ``brain``, ``split``, ``site``, ``patient`` and
``scheme`` are those of :class:`ldm.data.layouts.table.SubjectTable`. Then come ``shape`` (voxels),
``spacing`` (mm), ``orientation`` (stored axes), ``brain_voxels``, ``likeness`` (correlation of the
target with its native contrast in the brain), ``labels`` of the segmentation,
``state`` (changes with the files' sizes and times) and ``sha256_CONTRAST``.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np

from ldm.data.contrasts import as_labels, load_contrasts, scheme_of
from ldm.data.layouts import Layout, Subject, SubjectTable
from ldm.data.layouts.base import DIGEST
from ldm.data.layouts.table import guarded, read_rows
from ldm.errors import DataError
from ldm.label_scheme import USUAL
from ldm.progress import Progress, silent
from ldm.storage import atomic_path
from ldm.study import BRATS, LABELS, MASKS, Study

FACTS = ("shape", "spacing", "orientation", "brain_voxels", "likeness", "labels", "scheme", "state")

Row = dict[str, str]


def examine(subject: Subject, layout: Layout, folder: Path, study: Study) -> Row:
    """Read the volumes of a subject; return its row, less split, brain and what is said of it.

    Args:
        study: what the subject is for. Its contrasts are read, and those of BraTS beside them where
            they exist; others, which may lie on a grid of their own, are noted unread.

    Raises:
        DataError: a volume cannot be used.
    """
    read = [c for c in subject.images if c in (*BRATS, *study.needed)]
    read_too = {"missing": [LABELS], "truth": study.targets}
    arrays, geometry = load_contrasts(subject, layout, [*read, LABELS], **read_too)
    labels = np.unique(as_labels(arrays.get(LABELS, np.zeros(1)), subject.id))
    spacing = np.linalg.norm(geometry.affine[:3, :3], axis=0)
    return {
        "id": subject.id,
        **{name: file.cell(folder) for name, file in subject.files.items()},
        "shape": "x".join(map(str, geometry.shape)),
        "spacing": "x".join(f"{mm:.4g}" for mm in spacing),
        "orientation": "".join(nib.aff2axcodes(geometry.affine)),
        "labels": " ".join(map(str, labels[labels > 0])),
        "state": state(subject),
        **{f"{DIGEST}{name}": subject.sha256(name) for name in subject.files},
    }


def said_of(subject: Subject) -> Row:
    """Return what no volume tells: patient, site, and what labels mean where anything says it."""
    scheme = scheme_of(subject) if LABELS in subject.files else USUAL
    told = str(scheme) if scheme.source or not scheme.parts else ""
    return {"patient": subject.patient, "site": subject.site or "", "scheme": told}


def files_in(rows: Iterable[Row]) -> list[str]:
    """Return the columns of the volumes: of BraTS, further contrasts, labels and mask."""
    told = {name for row in rows for name, value in row.items() if value}
    named = {name.removeprefix(DIGEST) for name in told if name.startswith(DIGEST)}
    return [*BRATS, *sorted(named - {*BRATS, *MASKS}), *MASKS]


def state(subject: Subject) -> str:
    """Return a digest of place, size and time of change of a subject's files.

    Raises:
        DataError: DATA-IO.
    """
    states = {name: file.state(subject.id) for name, file in subject.files.items()}
    return hashlib.sha256(json.dumps(states, sort_keys=True).encode()).hexdigest()[:16]


def write_manifest(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV, sorted by id, atomically; equal rows give equal bytes.

    Raises:
        OutputError: OUT-IO.
    """
    rows = list(rows)
    files = files_in(rows)
    columns = ["id", *files, "split", "site", "patient", *FACTS]
    columns += [f"{DIGEST}{name}" for name in files]
    columns += sorted({name for row in rows for name in row} - {*columns})  # covariates
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in sorted(rows, key=lambda row: row["id"]):
            writer.writerow({column: guarded(cell) for column, cell in row.items()})


def read_manifest(path: Path) -> dict[str, Row]:
    """Return id -> row, empty where there is no such file.

    Raises:
        DataError: DATA-FORMAT, DATA-IO, or DATA-LAYOUT for a CSV that is no manifest.
    """
    rows = read_rows(path) if path.exists() else []
    if rows and not {"id", "state"} <= set(rows[0]):
        raise DataError(
            "DATA-LAYOUT", f"{path.name} is no manifest: make one with dsdiff prepare --output"
        )
    return {row["id"]: row for row in rows}


def verify(path: Path, progress: Progress = silent) -> list[DataError]:
    """Compare every file that a manifest names with its digest; return what differs.

    Args:
        progress: wraps the list of subjects.

    Raises:
        DataError: the manifest cannot be read.
    """
    read_manifest(path)  # refuses what is none
    subjects, problems = SubjectTable().read(path), []
    for subject in progress(list(subjects.values()), "Verifying", len(subjects)):
        for name in subject.files:
            try:
                subject.sha256(name)
            except DataError as error:
                problems.append(error)
    return problems
