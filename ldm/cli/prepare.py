"""``dsdiff prepare``: subjects of any layout, checked once, into the cache and a manifest."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from ldm.cli.arguments import add_config_argument, add_layout_argument, data_module
from ldm.cli.main import report_error
from ldm.cli.registering import add_register_arguments, refuse_leftovers, register, unregister
from ldm.cli.terminal import print_next, show_progress, training_command
from ldm.errors import ConfigError, DataError, DsdiffError, OutputError, PartialError, survived

Row = dict[str, str]  # of a manifest
MANIFEST = "manifest.csv"
log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "input", type=Path, nargs="?", metavar="FOLDER|CSV", help="subjects, in any layout"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help=f"for {MANIFEST} (the volumes stay in place)"
    )
    add_config_argument(parser)
    add_layout_argument(parser)
    parser.add_argument(
        "--verify",
        type=Path,
        metavar="CSV",
        help="compare a manifest with its files",
    )
    add_register_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prepare every subject; one that fails does not stop the others."""
    from rich.console import Console

    from ldm.claims import claim, permit
    from ldm.data.layouts.base import stored_files
    from ldm.data.manifest import read_manifest, write_manifest

    if args.verify:
        return verify_manifest(args.verify)
    if not args.input or not args.output:
        raise ConfigError("USAGE", "give FOLDER and --output FOLDER, or --verify MANIFEST")
    refuse_leftovers(args)
    if args.register or args.unregister:
        return register(args) if args.register else unregister(args)
    manifest = args.output / MANIFEST
    if manifest.exists() and args.input.exists() and manifest.samefile(args.input):
        raise OutputError("OUT-EXISTS", f"{manifest} is the input: choose another --output")
    data = data_module(args.config, args.input, args.layout)
    found = data.find_subjects()
    subjects = list(found.values())
    print(data.found, file=sys.stderr)
    with claim(args.output, "prepare", inputs=[args.input, *stored_files(subjects)]) as own:
        before = read_manifest(manifest)
        if before:  # a manifest, also of a version that kept no list
            own.record(MANIFEST)
        permit(manifest, replace=False)  # refused before the work
        data.learn_normaliser(found)
        work = Preparer(data, args.output, before)
        outcomes = work.all_of(subjects)
        rows = [outcome for outcome in outcomes if isinstance(outcome, dict)]
        failures = [outcome for outcome in outcomes if isinstance(outcome, DsdiffError)]
        for failure in failures:
            report_error("prepare", failure)
        if rows:
            write_manifest(manifest, rows)
            warn_of_leaks(data, {row["id"] for row in rows})
    if rows:
        for table in tables(rows):
            Console().print(table)
        new = sum(row["state"] != work.before.get(row["id"], {}).get("state") for row in rows)
        print(f"prepared={len(rows)} (new={new}) failed={len(failures)}: {manifest}")
        print_next(training_command(manifest))
    if failures and rows:
        raise PartialError("PARTIAL", f"{len(failures)} of {len(subjects)} subjects failed")
    return failures[0].exit_code if failures else 0


def warn_of_leaks(data: Any, usable: set[str]) -> None:
    """Name the patients that are on two sides of the split under different names."""
    from ldm.data.seen import leaks, subject_digests

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


def verify_manifest(path: Path) -> int:
    """Compare files with digests; report each that differs."""
    from ldm.data.manifest import verify

    problems = verify(path, show_progress)
    for problem in problems:
        report_error("prepare", problem)
    print(f"{path}: {f'{len(problems)} files differ' if problems else 'every file is as it was'}")
    return DataError.exit_code if problems else 0


@dataclass
class Preparer:
    """What it takes to prepare one subject after another.

    Args:
        data: the data module, with its split.
        folder: where the manifest will lie.
        before: rows of the last manifest; a subject whose files are unchanged is not read again.
    """

    data: Any
    folder: Path
    before: dict[str, Row]

    def all_of(self, subjects: Sequence[Any]) -> list[Row | DsdiffError]:
        """Return the row of each subject, or why it has none."""
        with ThreadPoolExecutor(max_workers=4) as pool:  # zlib releases the interpreter lock
            done = pool.map(self.row, subjects)
            return list(show_progress(done, "Preparing", len(subjects)))

    def row(self, subject: Any) -> Row | DsdiffError:
        """Check a subject, fill its cache entry and return its row.

        Raises:
            OutputError: the cache cannot be written.
        """
        from ldm.data.manifest import examine, state

        try:
            row = self.before.get(subject.id, {})
            if row.get("state") != state(subject):
                row = examine(subject, self.data.layout, self.folder, self.data.study)
            brain = int(self.data.decode(subject).open("brain").sum())
        except Exception as error:
            return survived(error, OutputError)
        part = next((p for p, ids in self.data.split.items() if subject.id in ids), "")
        told = {name: subject.columns.get(name, "") for name in self.data.study.covariates}
        told |= {"patient": subject.patient, "split": part, "brain_voxels": str(brain)}
        return {**row, **told}


def tables(rows: Sequence[Row]) -> list[Any]:
    """Return what was prepared: contrasts of each part, and the grids that occur."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ldm.data.manifest import files_in

    files = files_in(rows)
    parts = Table("Part", "Subjects", *files, "Brain voxels (median)", box=SIMPLE_HEAD)
    for part in ("train", "val", "test", ""):
        own = [row for row in rows if row["split"] == part]
        if own:
            counts = [str(sum(bool(row.get(name)) for row in own)) for name in files]
            brain = f"{median(int(row['brain_voxels']) for row in own):,.0f}"
            parts.add_row(part or "none", str(len(own)), *counts, brain)
    grids = Table("Shape", "Spacing (mm)", "Orientation", "Subjects", box=SIMPLE_HEAD)
    common = Counter((row["shape"], row["spacing"], row["orientation"]) for row in rows)
    for grid, count in common.most_common(5):
        grids.add_row(*(text.replace("x", " x ") for text in grid[:2]), grid[2], str(count))
    if len(common) > 5:
        grids.add_row(f"{len(common) - 5} more", "", "", "")
    for table in (parts, grids):
        for column in table.columns[1:]:
            column.justify = "right"
    return [parts, grids]
