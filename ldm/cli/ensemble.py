"""``dsdiff ensemble``: one model whose network is the mean of those of several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli.arguments import add_output_argument, add_overwrite_argument, add_trust_argument
from ldm.cli.terminal import print_next, sampling_command

EXAMPLES = ("dsdiff ensemble runs/one runs/two --output both",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run folders that differ in seed, patients, length or backbone: two or more",
    )
    add_output_argument(parser, "for the model")
    add_overwrite_argument(parser, "replace an ensemble")
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Join them; say what was written."""
    from ldm.training.ensemble import ensemble

    folder = ensemble(args.runs, args.output, overwrite=args.overwrite, trust=args.trust)
    print(f"Written: {folder}/model.safetensors, config.yaml")
    count = len(args.runs)
    print(f"  the mean of {count} networks: sampling costs {count} times as much as with one")
    print_next(sampling_command(folder, args.trust))
    return 0
