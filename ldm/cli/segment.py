"""``dsdiff segment``: train, apply and judge networks that segment tumour regions or lesions."""

from __future__ import annotations

import argparse

from ldm.cli import train

DEBUG = {"action": "store_true", "default": argparse.SUPPRESS, "help": "show the whole traceback"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    verbs = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    training = verbs.add_parser(
        "train", help="train a network from configs/segmentation, or resume a run"
    )
    training.add_argument("--debug", **DEBUG)
    train.add_arguments(training)
    training.set_defaults(task_run=train.run)


def run(args: argparse.Namespace) -> int:
    """Run the task."""
    return args.task_run(args)
