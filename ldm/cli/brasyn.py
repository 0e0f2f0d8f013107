"""``dsdiff brasyn``: the contrast that each case lacks, by the contract of the BraSyn challenge."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli.arguments import add_device_argument, add_output_argument, add_trust_argument
from ldm.cli.terminal import report_written, reporter, show_progress

EXAMPLES = ("dsdiff brasyn --model MODEL --input CASES --output made",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="CASES",
        help="folder of cases, each a folder with three of T1, T1ce, T2 and FLAIR",
    )
    add_output_argument(parser, "for CASE-t1c.nii.gz, or -t1n, -t2w, -t2f: what each case lacks")
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="MODEL",
        help="run or model folder, or hub:owner/name, trained with configs/any_missing.yaml",
    )
    add_device_argument(parser)
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Make what each case lacks; one that fails does not stop the others."""
    from ldm.inference.brasyn import brasyn

    done = brasyn(
        args.input,
        args.output,
        args.model,
        device=args.device,
        trust=args.trust,
        report=reporter("brasyn"),
        progress=show_progress,
    )
    return report_written(done, args.output)
