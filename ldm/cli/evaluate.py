"""``dsdiff evaluate``: quality and calibration of synthetic volumes against the real ones."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.cli.arguments import add_layout_argument, add_trust_argument
from ldm.errors import ConfigError, PartialError

ROW = "prediction"
REPEATED = ("metric", "region", "against", "lpips_weights", "segmenter", "segmenter_command")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from ldm.data.brain import MASKS

    parser.add_argument(
        "--prediction",
        nargs="+",
        action="extend",
        required=True,
        metavar="[NAME=]FOLDER",
        help="holds ID_t1ce.nii.gz, and ID_t1ce_std.nii.gz where its spread is to be judged; "
        "several NAMEs are compared, folders of one NAME are its training seeds",
    )
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="FOLDER|CSV", help="the real subjects"
    )
    add_layout_argument(parser)
    parser.add_argument("--subjects", nargs="+", metavar="ID", help="only these")
    parser.add_argument(
        "--mask",
        choices=MASKS,
        default="auto",
        help="what is brain (default: auto, which decides as in sampling)",
    )
    parser.add_argument(
        "--protocol",
        nargs="+",
        default=["default"],
        metavar="NAME",
        help="default, region, slices, brasyn, legacy: what is compared with what, see "
        "docs/metrics.md",
    )
    parser.add_argument("--metric", help="of the paired comparison (psnr)")
    parser.add_argument("--region", help="of the paired comparison (brain)")
    parser.add_argument("--against", metavar="NAME", help="compare with this row only")
    parser.add_argument(
        "--lpips-weights", type=Path, metavar="FILE", help="torchvision's vgg16, for LPIPS"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="for metrics.csv, metrics.json, report.html"
    )
    add_segmenter_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the tables, write the files."""
    from rich.console import Console

    from ldm.data.layouts import detect_layout, summary
    from ldm.evaluation.folder import evaluate_protocols
    from ldm.evaluation.protocol import find_protocol

    protocols = [find_protocol(name) for name in dict.fromkeys(args.protocol)]
    rows = named_folders(args.prediction)
    _check_comparison(args, protocols[0], rows)
    print(summary(*detect_layout(args.reference, args.layout)), file=sys.stderr)
    results = evaluate_protocols(
        rows,
        args.reference,
        args.subjects,
        protocols,
        progress=show_progress,
        lpips_weights=args.lpips_weights,
        layout=args.layout,
        mask=args.mask,
    )
    console = Console()
    first = next(iter(results.values()))
    found = first.tables(args.metric, args.region, args.against)
    others = [
        table
        for result in results.values()
        if result is not first
        for table in result.region_tables()
    ]
    downstream = _downstream(args, rows)
    judged = downstream.tables() if downstream else []
    for table in (*found, *others, *judged):
        print_table(console, table)
    for protocol in protocols:
        console.print(f"Protocol {protocol.name}: {protocol.summary}.", style="dim")
    console.print("Definitions: docs/metrics.md", style="dim")
    if args.output:
        for name, result in results.items():
            result.write(args.output, "metrics" if result is first else f"metrics-{name}")
        if downstream:
            downstream.write(args.output)
        write_evaluation_report(results, [*found, *others, *judged], args)
        console.print(f"Written: {args.output}/metrics.csv, metrics.json, report.html")
    return PartialError.exit_code if first.failures else 0


def named_folders(given: Sequence[str]) -> dict[str, list[Path]]:
    """Return row -> folders from ``NAME=FOLDER`` arguments; ``prediction`` where there is no name.

    Raises:
        ConfigError: CONFIG-VALUE for a name or a folder that is empty.
    """
    rows: dict[str, list[Path]] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).is_dir():  # a folder may have `=` in its name
            name, folder = ROW, text
        if not name or not folder:
            raise ConfigError("CONFIG-VALUE", f"--prediction '{text}': expected NAME=FOLDER")
        rows.setdefault(name, []).append(Path(folder))
    return rows


def _check_comparison(args: argparse.Namespace, protocol: Any, rows: Mapping[str, Any]) -> None:
    """Refuse a comparison that the first protocol cannot make, before hours of work."""
    from ldm.evaluation.scores import COPY_T1

    for option, known in (
        ("metric", protocol.names()),
        ("region", protocol.regions),
        ("against", (*rows, COPY_T1)),
    ):
        value = getattr(args, option)
        if value is not None and value not in known:
            raise ConfigError("CONFIG-VALUE", f"--{option} {value}: expected {', '.join(known)}")


def show_progress(items: Iterable[Any]) -> Iterable[Any]:
    """Wrap the patients in a progress bar."""
    from rich.progress import track

    return track(items, "Evaluating", transient=True)


def print_table(console: Any, table: Any) -> None:
    """Print a table and its note."""
    from rich.markup import escape

    console.print(terminal_table(table))
    if table.note:
        console.print(f"{escape(table.note)}\n", style="dim")


def terminal_table(table: Any) -> Any:
    """Return a report table for the terminal: narrow, without columns that say nothing.

    Deviations and intervals stand below their means.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from ldm.report.tables import format_cell

    shown = Table(title=table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    cells = [[format_cell(cell) for cell in row] for row in table.rows]
    kept = [i for i in range(len(table.columns)) if any(row[i] != "n/a" for row in cells)]
    kept = kept if len(kept) > len(table.columns) / 2 else range(len(table.columns))
    numeric = table.numeric_columns()
    for index in kept:
        side = "right" if numeric[index] else "left"
        shown.add_column(table.columns[index], justify=side, no_wrap=not index)
    for row in cells:
        texts = (row[i].replace(" ± ", "\n±").replace(" [", "\n[") for i in kept)
        shown.add_row(*map(Text, texts))
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


def _downstream(args: argparse.Namespace, rows: Mapping[str, Sequence[Path]]) -> Any:
    """Return the downstream scores of the rows, or None where no segmenter is named."""
    if not (args.segmenter or args.segmenter_command):
        return None
    from ldm.evaluation.downstream import downstream_scores
    from ldm.inference.segmentation import CommandSegmenter, NetworkSegmenter

    if args.segmenter:
        segmenter = NetworkSegmenter(args.segmenter, args.trust)
    else:
        segmenter = CommandSegmenter(args.segmenter_command)
    return downstream_scores(
        segmenter,
        rows,
        args.reference,
        args.subjects,
        progress=show_progress,
        layout=args.layout,
    )


def write_evaluation_report(
    results: Mapping[str, Any], tables: Sequence[Any], args: argparse.Namespace
) -> None:
    """Write ``report.html`` of the evaluation."""
    from ldm.environment import environment
    from ldm.report.gallery import spread_figure, strips_figure, viewer
    from ldm.report.page import Report, Section, write_report

    result = next(iter(results.values()))
    failed = sum(map(len, result.failures.values()))
    lost = f" {failed} cases failed, see the table." if failed else ""
    report = Report(
        title="Synthetic against real T1ce",
        lead=f"Patients: {len(result.subjects)}; mean ± standard deviation over patients.{lost}",
        tables=tables,
        figures=[*spread_figure(result), *strips_figure(result)],
        sections=[Section("Command", [_command(args)])],
        protocol=_described(results),
        environment=environment(),
        viewer=viewer(result),
    )
    write_report(report, args.output / "report.html")


def _described(results: Mapping[str, Any]) -> dict[str, Any]:
    """One protocol as it is; several by name."""
    described = {name: result.protocol.to_dict() for name, result in results.items()}
    return described if len(described) > 1 else next(iter(described.values()))


def _command(args: argparse.Namespace) -> str:
    """The command line that gives these results again."""
    words = ["dsdiff", "evaluate", "--prediction", *args.prediction]
    words += ["--reference", str(args.reference)]
    words += ["--subjects", *args.subjects] if args.subjects else []
    words += ["--protocol", *args.protocol] if args.protocol != ["default"] else []
    for option in REPEATED:
        value = getattr(args, option)
        words += [f"--{option.replace('_', '-')}", str(value)] if value is not None else []
    return shlex.join(words)
