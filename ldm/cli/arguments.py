"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
from pathlib import Path

SAMPLERS = "as ddim, ddpm, dpmpp_2m, unipc_3, heun; a wrong name is answered with all"
# As ldm.data.brain names them, which is not imported to show help; a test holds them together.
MASKS = "auto, nonzero, head"


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``--trust``."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="CLASS",
        help="accept this class, such as my_package.MyNet, where the config of a run names it",
    )


def add_layout_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``--layout``."""
    parser.add_argument(
        "--layout",
        metavar="NAME",
        help="of the files (default: recognised): brats2021, brats2023, bids, nnunet, flat, "
        "decathlon, hdf5, dicom, or my_module.MyLayout",
    )


def add_subject_arguments(parser: argparse.ArgumentParser, written: str) -> None:
    """Declare a trained model, the subjects it is run on, and where ``written`` goes."""
    parser.add_argument(
        "model", type=Path, help="run folder, its model.safetensors, or a checkpoint"
    )
    parser.add_argument("--input", type=Path, required=True, metavar="FOLDER|CSV", help="subjects")
    add_layout_argument(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help=f"for the {written}"
    )
    parser.add_argument("--subjects", nargs="+", metavar="ID", help="only these (default: all)")


def add_run_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare the run folder of a training, and ``--dry-run``."""
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help=f"run folder (default: {default})"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config, parameters, FLOPs and memory; write nothing",
    )
    add_trust_argument(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where and on what a trained model is run."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    parser.add_argument(
        "--allow-missing",
        nargs="+",
        default=[],
        metavar="CONTRAST",
        help="go on where this contrast is absent (a model trained with condition_dropout)",
    )
    parser.add_argument(
        "--nonfinite", choices=("refuse", "zero"), default="refuse", help="NaN or Inf in an input"
    )
    add_trust_argument(parser)
