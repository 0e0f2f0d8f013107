"""``dsdiff evaluate``: quality and calibration of synthetic volumes against the real ones."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ldm.cli.train import add_trust_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--prediction",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="holds ID_t1ce.nii.gz, and ID_t1ce_std.nii.gz where its spread is to be judged",
    )
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="FOLDER", help="the real subjects"
    )
    parser.add_argument("--subjects", nargs="+", metavar="ID", help="only these")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="for metrics.csv, metrics.json, report.html"
    )
    add_segmenter_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the tables, write the files."""
    from rich.console import Console

    from ldm.evaluation.folder import evaluate_folders

    result = evaluate_folders(
        {"prediction": args.prediction}, args.reference, args.subjects, progress=show_progress
    )
    console = Console()
    for table in result.tables():
        console.print(terminal_table(table))
    downstream = _downstream(args)
    for table in downstream.tables() if downstream else []:
        console.print(terminal_table(table))
        console.print(table.note, style="dim")
    low, high = result.protocol.percentiles
    console.print(
        f"The reference sets the bounds (percentiles {low} to {high} in the brain); details: "
        "docs/metrics.md",
        style="dim",
    )
    if args.output:
        result.write(args.output)
        if downstream:
            downstream.write(args.output)
        write_evaluation_report(result, args, downstream.tables() if downstream else [])
        console.print(f"Written: {args.output}/metrics.csv, metrics.json, report.html")
    return 0


def show_progress(items: Iterable[Any]) -> Iterable[Any]:
    """Wrap the patients in a progress bar."""
    from rich.progress import track

    return track(items, "Evaluating", transient=True)


def terminal_table(table: Any) -> Any:
    """Return a report table for the terminal; deviations stand below their means, to be narrow."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ldm.evaluation.report import format_cell

    shown = Table(title=table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for index, numeric in enumerate(table.numeric_columns()):
        side = "right" if numeric else "left"
        shown.add_column(table.columns[index], justify=side, no_wrap=not index)
    for row in table.rows:
        shown.add_row(*(format_cell(cell).replace(" ± ", "\n±") for cell in row))
    return shown


def add_segmenter_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what judges synthetic T1ce by what is found on it."""
    judge = parser.add_mutually_exclusive_group()
    judge.add_argument(
        "--segmenter",
        type=Path,
        metavar="MODEL",
        help="run of dsdiff segment train: what does it find on synthetic and on real T1ce?",
    )
    judge.add_argument(
        "--segmenter-command",
        metavar="COMMAND",
        help="any program instead, as 'my-segmenter {input} {output}', called for each patient",
    )
    add_trust_argument(parser)


def _downstream(args: argparse.Namespace) -> Any:
    """Return the downstream scores of a prediction folder, or None where no segmenter is named."""
    if not (args.segmenter or args.segmenter_command):
        return None
    from ldm.evaluation.downstream import downstream_scores
    from ldm.evaluation.segmenter import CommandSegmenter, NetworkSegmenter

    if args.segmenter:
        segmenter = NetworkSegmenter(args.segmenter, args.trust)
    else:
        segmenter = CommandSegmenter(args.segmenter_command)
    rows = {"prediction": args.prediction}
    return downstream_scores(segmenter, rows, args.reference, args.subjects, progress=show_progress)


def write_evaluation_report(
    result: Any, args: argparse.Namespace, further: Sequence[Any] = ()
) -> None:
    """Write ``report.html`` of one prediction folder."""
    from ldm.environment import environment
    from ldm.evaluation.pictures import spread_figure, strips_figure
    from ldm.evaluation.report import Report, Section, write_report

    command = f"dsdiff evaluate --prediction {args.prediction} --reference {args.reference}"
    report = Report(
        title="Synthetic against real T1ce",
        lead=f"Patients: {len(result.subjects)}; mean ± standard deviation over patients.",
        tables=[*result.tables(), *further],
        figures=[*strips_figure(result), *spread_figure(result)],
        sections=[Section("Command", [command])],
        protocol=result.protocol.to_dict(),
        environment=environment(),
    )
    write_report(report, args.output / "report.html")
