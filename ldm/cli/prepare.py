"""``dsdiff prepare``: subjects of any layout, checked once, into the cache and a manifest."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ldm.cli.arguments import (
    SUBJECTS,
    add_config_argument,
    add_layout_argument,
    add_output_argument,
    split_words,
)
from ldm.cli.main import report_error
from ldm.cli.registering import add_register_arguments, refuse_leftovers, register, unregister
from ldm.cli.terminal import (
    HOLD_OUT,
    print_found,
    print_next,
    reporter,
    show_progress,
    training_command,
)
from ldm.errors import ConfigError, DataError, PartialError

Row = dict[str, str]  # of a manifest
MOST_GRIDS = 5
EXAMPLES = (
    "dsdiff prepare PATIENTS --config data.params.test=0.2 --output prepared",
    "dsdiff prepare PATIENTS --register --output registered",
    "dsdiff prepare --verify prepared/manifest.csv",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("input", type=Path, nargs="?", metavar="PATIENTS", help=SUBJECTS)
    add_output_argument(parser, "for manifest.csv (the volumes stay in place)", required=False)
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

    from ldm.cli.tables import print_table
    from ldm.data.preparing import prepare

    if args.verify:
        return verify_manifest(args.verify)
    if not args.input or not args.output:
        raise ConfigError("USAGE", "give PATIENTS and --output FOLDER, or --verify CSV")
    refuse_leftovers(args)
    if args.register or args.unregister:
        return register(args) if args.register else unregister(args)
    files, overrides = split_words(args.config)
    done = prepare(
        args.input,
        args.output,
        files,
        overrides,
        layout=args.layout,
        say=print_found,
        report=reporter("prepare"),
        progress=show_progress,
    )
    failed = len(done.failures)
    if done.rows:
        for table in tables(done.rows):
            print_table(Console(), table)
        print(f"prepared={len(done.rows)} (new={done.new}) failed={failed}: {done.manifest}")
        if not any(row["split"] == "test" for row in done.rows):
            print(f"Nobody is kept out to test on; with --config {HOLD_OUT} a fifth is")
        print_next(training_command(done.manifest))
    if failed and done.rows:
        raise PartialError("PARTIAL", f"{failed} of {failed + len(done.rows)} subjects failed")
    return done.failures[0].exit_code if failed else 0


def verify_manifest(path: Path) -> int:
    """Compare files with digests; report each that differs."""
    from ldm.data.manifest import verify

    problems = verify(path, show_progress)
    for problem in problems:
        report_error("prepare", problem)
    print(f"{path}: {f'{len(problems)} files differ' if problems else 'every file is as it was'}")
    return DataError.exit_code if problems else 0


def tables(rows: Sequence[Row]) -> list[Any]:
    """Return what was prepared: contrasts of each part, and the grids that occur."""
    from ldm.data.manifest import files_in
    from ldm.report.tables import Table

    files = files_in(rows)
    parts: list[list[Any]] = []
    for part in ("train", "val", "test", ""):
        own = [row for row in rows if row["split"] == part]
        if own:
            counts = [sum(bool(row.get(name)) for row in own) for name in files]
            brain = round(median(int(row["brain_voxels"]) for row in own))
            parts.append([part or "none", len(own), *counts, brain])
    common = Counter((row["shape"], row["spacing"], row["orientation"]) for row in rows)
    grids: list[list[Any]] = [
        [*(text.replace("x", " x ") for text in grid[:2]), grid[2], count]
        for grid, count in common.most_common(MOST_GRIDS)
    ]
    if len(common) > MOST_GRIDS:
        grids.append([f"{len(common) - MOST_GRIDS} more", "", "", None])
    return [
        Table("", ["Part", "Subjects", *files, "Brain voxels (median)"], parts),
        Table("", ["Shape", "Spacing (mm)", "Orientation", "Subjects"], grids),
    ]
