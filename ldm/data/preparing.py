"""Preparing a data set: its subjects checked once, into the cache and a manifest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from ldm.claims import claim, permit
from ldm.config import Overrides, merge_config, validate
from ldm.data.datamodule import ContrastDataModule
from ldm.data.layouts import Choice, Subject
from ldm.data.layouts.base import stored_files
from ldm.data.likeness import likeness
from ldm.data.manifest import Row, examine, read_manifest, said_of, state, write_manifest
from ldm.data.seen import leaks, subject_digests
from ldm.errors import DsdiffError, OutputError, survived
from ldm.progress import Progress, in_threads, silent
from ldm.typed import typed
from ldm.util import instantiate_from_config, listed, user_path

MANIFEST = "manifest.csv"
BASE = "configs/base.yaml"  # whose data section says how data are looked at

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What came of preparing a data set.

    Args:
        manifest: the CSV, which every verb takes in place of the folder.
        rows: of the manifest, one a subject.
        new: subjects that were read, because they are new or their files changed.
        failures: of subjects that cannot be used.
    """

    manifest: Path
    rows: list[Row] = field(repr=False)
    new: int
    failures: list[DsdiffError]


@typed
def prepare(
    source: str | Path,
    output: str | Path,
    config: str | Path | Sequence[str | Path] = BASE,
    overrides: Overrides = (),
    *,
    layout: Choice = None,
    say: Callable[[str], None] | None = None,
    report: Callable[[DsdiffError], None] | None = None,
    progress: Progress = silent,
) -> Prepared:
    """Check the subjects of a folder, fill the cache, and write a manifest with digests.

    A subject whose files are those of the last manifest is not read again; one that cannot be used
    does not stop the others.

    Args:
        source: folder of subjects in any layout, or a CSV.
        output: folder for ``manifest.csv``; the volumes stay where they are.
        config, overrides, layout, progress: see :func:`data_module`.
        say: told in a line what was found.
        report: told of each subject that cannot be used.

    Raises:
        DataError: no subject is found. ConfigError: what is wrong, with its key path.
        OutputError: OUT-EXISTS where ``manifest.csv`` is the source, or a stranger's; OUT-IO.
    """
    source, output = user_path(source), user_path(output)
    manifest = output / MANIFEST
    if manifest.exists() and source.exists() and manifest.samefile(source):
        raise OutputError("OUT-EXISTS", f"{manifest} is the input: choose another --output")
    data = data_module(source, config, overrides, layout=layout, progress=progress)
    found = data.find_subjects()
    if say:
        say(data.found)
    with claim(output, "prepare", inputs=[source, *stored_files(found.values())]) as own:
        before = read_manifest(manifest)
        if before:  # a manifest, also of a version that kept no list
            own.record(MANIFEST)
        permit(manifest, replace=False)  # refused before the work
        data.learn_normaliser(found)
        outcomes = _outcomes(list(found.values()), data, output, before)
        rows = [outcome for outcome in outcomes if isinstance(outcome, dict)]
        failures = [outcome for outcome in outcomes if isinstance(outcome, DsdiffError)]
        if report:
            for failure in failures:
                report(failure)
        if rows:
            write_manifest(manifest, rows)
            _warn_of_leaks(data, {row["id"] for row in rows})
    new = sum(row["state"] != before.get(row["id"], {}).get("state") for row in rows)
    return Prepared(manifest, rows, new, failures)


def data_module(
    root: str | Path,
    config: str | Path | Sequence[str | Path] = BASE,
    overrides: Overrides = (),
    *,
    layout: Choice = None,
    progress: Progress = silent,
) -> ContrastDataModule:
    """Return the data module of a configuration, on the subjects of another folder.

    Args:
        root: folder of subjects, or a CSV.
        config: YAML, or several, whose ``data`` says contrasts, normaliser, axis and split.
        overrides: ``key=value``, such as ``data.params.axis=coronal``, or ``{key: value}``.
        layout: see :func:`ldm.data.layouts.build_layout`; None: as configured, or recognised.
        progress: wraps the subjects that are read.

    Raises:
        ConfigError: what is wrong, with its key path.
    """
    resolved = merge_config(listed(config) or [BASE], overrides)
    validate(resolved, for_training=False)
    own: dict[str, Any] = {"root": str(root), **({"layout": layout} if layout else {})}
    data: ContrastDataModule = instantiate_from_config(resolved["data"], where="data", **own)
    data.progress = progress
    return data


def _outcomes(
    subjects: Sequence[Subject], data: ContrastDataModule, folder: Path, before: Mapping[str, Row]
) -> list[Row | DsdiffError]:
    """Return the row of each subject, or why it has none."""

    def outcome(subject: Subject) -> Row | DsdiffError:
        try:
            return _row(subject, data, folder, before.get(subject.id, {}))
        except Exception as error:
            return survived(error, OutputError)

    return in_threads(outcome, subjects, data.progress, "Preparing")


def _row(subject: Subject, data: ContrastDataModule, folder: Path, row: Row) -> Row:
    """Check a subject, fill its cache entry and return its row of a manifest in ``folder``.

    Raises:
        DataError: it cannot be used. OutputError: the cache cannot be written.
    """
    if row.get("state") != state(subject):
        row = examine(subject, data.layout, folder, data.study)
    cached = data.decode(subject)
    brain = cached.open("brain")
    alike = likeness(cached.open("slices"), brain, data.study)
    part = next((p for p, ids in data.split.items() if subject.id in ids), "")
    covariates = {n: subject.columns.get(n, "") for n in data.study.covariates}
    facts = {"split": part, "brain_voxels": str(int(brain.sum()))}
    facts["likeness"] = "" if alike is None else f"{alike:.3f}"
    return {**row, **facts, **covariates, **said_of(subject)}


def _warn_of_leaks(data: ContrastDataModule, usable: set[str]) -> None:
    """Name the patients that are on two sides of the split under different names."""
    known = {
        part: subject_digests((data.subjects[i] for i in ids if i in usable), data.cache)
        for part, ids in data.split.items()
    }
    for first, second in combinations(known, 2):
        for leak in leaks(known[first], known[second]):
            log.warning(
                "%s in '%s' and %s in '%s' are one patient (%s): leave one out, or give both one "
                "name in a column 'patient' of a CSV",
                *(leak.train, first, leak.test, second, leak.reason),
            )
