"""``dsdiff diagnose``: what is wrong with a data set, and why a training is stuck."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.arguments import (
    SUBJECTS,
    add_config_argument,
    add_layout_argument,
    add_output_argument,
    configured_data,
)
from ldm.cli.help import with_examples
from ldm.cli.main import DEBUG
from ldm.cli.terminal import HOLD_OUT, print_next, show_progress, training_command

if TYPE_CHECKING:
    from ldm.diagnosis.data import DataDiagnosis
    from ldm.diagnosis.run import RunDiagnosis

DATA_FAILS = 3  # exit code of data on which no training succeeds
MOST_ROWS = 30
MOST_FINDINGS = 40
MOST_NAMED = 3  # subjects of one finding
MOST_LABELS = 6
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
EXAMPLES = (
    "dsdiff diagnose data PATIENTS",
    "dsdiff diagnose data PATIENTS --config data.params.axis=coronal",
    "dsdiff diagnose run runs/mine",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    kinds = parser.add_subparsers(dest="kind", metavar="data|run", required=True)
    data = kinds.add_parser(
        "data",
        help="check the subjects of a folder; exit code 3 if something breaks a training",
        description="Check the subjects below a folder. Exit code 3 if something would break a "
        "training, else 0. What is checked: docs/diagnose.md.",
    )
    data.add_argument("folder", type=Path, metavar="PATIENTS", help=SUBJECTS)
    add_config_argument(data)
    run_parser = kinds.add_parser(
        "run",
        help="rank the likely causes of a training that is stuck, each with its cure",
        description="Rank the likely causes of a training that is stuck, each with the override "
        "that tries its cure. What is checked: docs/diagnose.md.",
    )
    run_parser.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    run_parser.add_argument(
        "--no-data", action="store_true", help="look at curves and configuration only"
    )
    run_parser.add_argument(
        "--root", type=Path, metavar="PATIENTS", help="where the subjects are now, if they moved"
    )
    data.epilog, run_parser.epilog = with_examples(EXAMPLES[:2]), with_examples(EXAMPLES[2:])
    for kind in (data, run_parser):
        add_layout_argument(kind)
        kind.add_argument("--debug", **DEBUG)
        add_output_argument(kind, "for diagnosis.json and pictures", required=False)


def run(args: argparse.Namespace) -> int:
    """Diagnose, print, write; return the exit code."""
    return diagnose_folder(args) if args.kind == "data" else diagnose_training(args)


def diagnose_folder(args: argparse.Namespace) -> int:
    """Run ``dsdiff diagnose data``."""
    from ldm.claims import claim
    from ldm.data.layouts.base import stored_files
    from ldm.data.prepare import size_override, smaller_size
    from ldm.diagnosis.data import diagnose
    from ldm.diagnosis.pictures import write_pictures
    from ldm.storage import write_json

    data = configured_data(args, args.folder)
    diagnosis = diagnose(data)
    written = "see diagnosis.json" if args.output else "--output FOLDER writes all of them"
    show_data(diagnosis, written)
    if args.output:
        inputs = [args.folder, *stored_files(diagnosis.files.values())]
        with claim(args.output, "diagnose", inputs=inputs):
            write_json(args.output / "diagnosis.json", diagnosis.to_dict())
            pictures = write_pictures(diagnosis, args.output)
        print(f"Written: {args.output}/diagnosis.json, {pictures} pictures")
    if not diagnosis.breaks_training:
        layout = [f"data.params.layout={args.layout}"] if args.layout else []
        planes = [subject.plane for subject in diagnosis.subjects if subject.plane]
        is_given = any(word.startswith("data.params.image_size=") for word in args.config)
        is_free = data.study.dims == 2 and not is_given
        smaller = smaller_size(data.image_size, planes) if is_free else []
        size = [size_override(smaller)] if smaller else []
        kept = [] if data.is_split else [HOLD_OUT]
        print_next(training_command(args.folder, [*args.config, *layout, *kept, *size]))
    return DATA_FAILS if diagnosis.breaks_training else 0


def diagnose_training(args: argparse.Namespace) -> int:
    """Run ``dsdiff diagnose run``."""
    from ldm.claims import claim
    from ldm.diagnosis.pictures import run_picture
    from ldm.diagnosis.run import diagnose_run
    from ldm.storage import write_file, write_json

    told = (not args.no_data, args.root, show_progress, args.layout)
    diagnosis = diagnose_run(args.folder, *told)
    show_run(diagnosis)
    if tried := next((c.override for c in diagnosis.likely if c.override), None):
        print_next(cure_command(args.folder, tried))
    if args.output:
        with claim(args.output, "diagnose", inputs=[args.folder]):
            write_json(args.output / "diagnosis.json", diagnosis.to_dict())
            write_file(args.output / "diagnosis.png", run_picture(diagnosis))
        print(f"Written: {args.output}/diagnosis.json, diagnosis.png")
    return 0


def cure_command(run: Path, override: str) -> str:
    """Return what tries a cure: a run goes on longer; anything else is a new one."""
    from ldm.storage import CONFIG_FILE

    if override.startswith("lightning.trainer.max_steps="):
        return shlex.join(["dsdiff", "train", "--resume", str(run), *override.split()])
    words = [str(run / CONFIG_FILE), "data.params.root=PATIENTS", *override.split()]
    return shlex.join(["dsdiff", "train", *words, "--output", f"{run}-cured"])


def show_data(diagnosis: DataDiagnosis, where: str) -> None:
    """Print a row a subject, those with findings first, then the findings.

    Args:
        where: all of them are, if they are too many for the terminal.
    """
    from rich.console import Console
    from rich.markup import escape

    from ldm.cli.tables import print_table
    from ldm.diagnosis.findings import together
    from ldm.util import how_many

    console = Console(highlight=False)
    print_table(console, *_subject_table(diagnosis))
    count = len(diagnosis.subjects)
    if count > MOST_ROWS:
        more = how_many(count - MOST_ROWS, "more subject")
        console.print(f"... and {more}: {where}", style="dim")
    findings = together(diagnosis.findings)
    for finding, subjects in findings[:MOST_FINDINGS]:
        label = f"[{STYLES[finding.severity]}]{finding.severity:8}[/]"
        more = f" and {len(subjects) - MOST_NAMED} more" if len(subjects) > MOST_NAMED else ""
        whom = f"{escape(', '.join(subjects[:MOST_NAMED]))}{more}: " if subjects else ""
        console.print(f"{label} {whom}{escape(finding.message)}")
    if (hidden := len(findings) - MOST_FINDINGS) > 0:
        console.print(f"... and {hidden} more: {where}", style="dim")
    verdict = "something breaks a training" if diagnosis.breaks_training else "fit to train on"
    counted = how_many(count, "subject")
    console.print(f"{counted} ({diagnosis.layout.name}): {verdict}", style="bold")


def _subject_table(diagnosis: DataDiagnosis) -> tuple[Any, list[str]]:
    """Return a row a subject, the worst first, and in which style each is drawn."""
    from ldm.diagnosis.findings import ERROR, SEVERITIES, WARNING
    from ldm.report.tables import Number, Table

    found = {s.id: diagnosis.of_subject(s.id) for s in diagnosis.subjects}  # each the worst first
    worst = {
        i: SEVERITIES.index(own[0].severity) if own else len(SEVERITIES) for i, own in found.items()
    }
    shown = sorted(diagnosis.subjects, key=lambda s: worst[s.id])[:MOST_ROWS]
    rows = []
    for subject in shown:
        first = next(iter(subject.contrasts.values()), {})
        share = subject.share
        rows.append(
            [
                subject.id,
                len(subject.contrasts.keys() - {"seg"}),
                "x".join(map(str, first.get("shape", []))),
                _labels(subject.labels),
                None if share is None else Number(share, f"{share:.2%}"),
                " ".join(dict.fromkeys(f.kind for f in found[subject.id])) or "-",
            ]
        )
    styles = [STYLES[ERROR], STYLES[WARNING], "", ""]
    columns = ["subject", "contrasts", "voxels", "labels", "mask", "findings"]
    return Table("", columns, rows), [styles[worst[s.id]] for s in shown]


def _labels(labels: list[float] | None) -> str:
    if not labels:
        return "-"
    whole = all(value == round(value) for value in labels)
    if whole and len(labels) <= MOST_LABELS:
        return " ".join(f"{value:g}" for value in labels)
    return "not whole" if not whole else "many"


def show_run(diagnosis: RunDiagnosis) -> None:
    """Print the causes, most likely first."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for line in diagnosis.summary:
        console.print(escape(line))
    console.print()
    if not diagnosis.causes:
        console.print("No likely cause of trouble was found.", style="bold")
    for place, cause in enumerate(diagnosis.causes, 1):
        style = "bold red" if cause.is_likely else "bold"
        console.print(f"[{style}]{place}. {escape(cause.name)}[/]  score {cause.score:.2f}")
        console.print(f"   seen: {escape(cause.evidence)}")
        console.print(f"   try:  {escape(cause.cure)}")
        if cause.override:  # in one line, to be copied
            console.print(f"         [bold]{escape(cause.override)}[/]", soft_wrap=True)
    if diagnosis.causes and not diagnosis.likely:
        console.print("None of these is likely: the run looks healthy.", style="bold")
