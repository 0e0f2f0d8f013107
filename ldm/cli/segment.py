"""``dsdiff segment``: train, apply and judge networks that segment tumour regions or lesions."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from ldm.cli import train
from ldm.cli.arguments import (
    ANOTHER,
    OUTPUT,
    add_devices_argument,
    add_layout_argument,
    add_model_arguments,
    add_output_argument,
    add_overwrite_argument,
    add_subject_arguments,
)
from ldm.cli.evaluate import add_label_argument, add_seen_argument
from ldm.cli.help import group, with_examples
from ldm.cli.main import DEBUG
from ldm.cli.terminal import print_found, print_next, report_written, reporter

PREDICT = ("subjects", "layout", "overwrite", "devices", "device", "trust", "batch_size")
PREDICT += ("allow_missing", "nonfinite")
EXAMPLES = (
    "dsdiff segment train configs/segmentation/unet.yaml data.params.root=PATIENTS",
    "dsdiff segment predict runs/segment-unet --input PATIENTS --output maps",
    "dsdiff segment evaluate --prediction maps --reference PATIENTS --output report",
)
TASKS = {
    "train": "train a network from configs/segmentation, or resume a run",
    "predict": "write label maps (NIfTI) of the subjects in a folder",
    "evaluate": "compare label maps with the reference labels",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    declare = {
        "train": (train.add_arguments, train.run),
        "predict": (_add_predict_arguments, predict),
        "evaluate": (_add_evaluate_arguments, evaluate),
    }
    for name, text in TASKS.items():
        task = tasks.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        task.add_argument("--debug", **DEBUG)
        add, run_task = declare[name]
        add(task)
        own = [command for command in EXAMPLES if command.split()[2] == name]
        task.epilog = with_examples(own)
        task.set_defaults(run_task=run_task)


def run(args: argparse.Namespace) -> int:
    """Run the task."""
    return args.run_task(args)


def _add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    add_subject_arguments(parser, "label maps")
    add_devices_argument(parser)
    add_model_arguments(parser)
    output = group(parser, OUTPUT)
    output.add_argument("--no-pictures", action="store_true", help="write no pictures/*.png")
    add_overwrite_argument(output, ANOTHER)


def _add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prediction",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="holds ID_seg.nii.gz or ID.nii.gz",
    )
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="PATIENTS", help="the subjects with seg"
    )
    parser.add_argument("--subjects", nargs="+", metavar="ID", help="only these")
    add_layout_argument(parser)
    add_label_argument(parser, "--labels", "those of the reference")
    add_label_argument(parser, "--prediction-labels", "those of the prediction")
    add_seen_argument(parser)
    parser.add_argument(
        "--regions",
        choices=("tumour", "lesion"),
        help="ET, TC and WT, or any label (default: tumour where a label is above 1)",
    )
    said = "for segmentation.csv, segmentation.json, report.html"
    add_output_argument(parser, said, required=False)


def predict(args: argparse.Namespace) -> int:
    """Segment every subject; one that fails does not stop the others."""
    from ldm.data.layouts import summary
    from ldm.inference.label_maps import segment
    from ldm.study import LABELS

    labelled: list[str] = []

    def show(layout: Any, found: Any) -> None:
        print_found(summary(layout, found))
        labelled.extend(i for i, subject in found.items() if LABELS in subject.files)

    done = segment(
        args.model,
        args.input,
        args.output,
        pictures=not args.no_pictures,
        watch=show,
        report=reporter("segment"),
        **{name: getattr(args, name) for name in PREDICT},
    )
    code = report_written(done, args.output)
    if set(args.subjects or labelled) & set(labelled):
        words = ["--prediction", str(args.output), "--reference", str(args.input)]
        print_next(shlex.join(["dsdiff", "segment", "evaluate", *words, "--output", "scores"]))
    return code


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate, print the tables, write the files."""
    from rich.console import Console

    from ldm.cli.tables import print_table
    from ldm.cli.terminal import show_progress
    from ldm.regions import region_names
    from ldm.report.score_tables import segmentation_tables
    from ldm.report.segmentation import SEGMENTATION_FILES, evaluate_segmentations

    result = evaluate_segmentations(
        args.prediction,
        args.reference,
        output=args.output,
        subjects=args.subjects,
        regions=region_names(args.regions) if args.regions else None,
        layout=args.layout,
        labels=args.labels,
        prediction_labels=args.prediction_labels,
        allow_seen=args.allow_seen,
        command=args.typed,
        progress=show_progress,
    )
    console = Console()
    for table in segmentation_tables(result):
        print_table(console, table)
    console.print(" ".join(result.remarks()), style="dim")
    if args.output:
        print(f"Written: {args.output}/{', '.join(SEGMENTATION_FILES)}")
    result.require_complete()
    return 0
