"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.help import group
from ldm.cli.terminal import show_progress

if TYPE_CHECKING:
    from ldm.data.datamodule import ContrastDataModule

SAMPLERS = "as ddim, ddpm, dpmpp_2m, unipc_3, heun; a wrong name is answered with all"
# Groups of options, where a verb has many
PATIENTS, OUTPUT, MACHINE = "patients", "output", "speed and memory"
SUBJECTS = "subjects: a folder of any layout, or a CSV"
ANOTHER = "replace outputs of another model, input or option; the same stay as they are"
# As ldm.data.brain names them, which is not imported to show help; a test holds them together.
MASKS = "auto, nonzero, head"


def add_output_argument(parser: Any, said: str, required: bool = True) -> None:
    """Declare ``--output``, a folder."""
    parser.add_argument("--output", type=Path, required=required, metavar="FOLDER", help=said)


def add_overwrite_argument(parser: Any, said: str) -> None:
    """Declare ``--overwrite``."""
    parser.add_argument("--overwrite", action="store_true", help=said)


def add_trust_argument(parser: Any) -> None:
    """Declare ``--trust``."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="CLASS",
        help="accept this class, such as my_package.MyNet, where the config of a run names it",
    )


def add_layout_argument(parser: Any) -> None:
    """Declare ``--layout``."""
    parser.add_argument(
        "--layout",
        metavar="NAME",
        help="of the files (default: recognised): brats2021, brats2023, brats2013, bids, "
        "nnunet, flat, folders, decathlon, hdf5, dicom, my_module.MyLayout, or "
        '\'{"target": CLASS, "params": {...}}\'',
    )


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``--config`` of a verb that looks at data as a training does."""
    parser.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="CONFIG|KEY=VALUE",
        help="YAML whose data section says contrasts, normaliser, axis and split, then overrides "
        "such as data.params.axis=coronal (default: configs/base.yaml)",
    )


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the YAML files among ``CONFIG|KEY=VALUE`` words, and the overrides."""
    return [word for word in words if "=" not in word], [word for word in words if "=" in word]


def configured_data(args: argparse.Namespace, root: Path) -> ContrastDataModule:
    """Return the data module of ``--config`` and ``--layout``, on the subjects of ``root``."""
    from ldm.data.preparing import data_module

    return data_module(root, *split_words(args.config), layout=args.layout, progress=show_progress)


def add_subject_arguments(parser: argparse.ArgumentParser, written: str, whom: str = "all") -> None:
    """Declare a trained model, the subjects it is run on, and where ``written`` goes.

    Args:
        whom: it is run on where nobody is named.
    """
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="run folder, its model.safetensors, or a checkpoint; or hub:owner/name, which is "
        "downloaded",
    )
    patients, output = group(parser, PATIENTS), group(parser, OUTPUT)
    patients.add_argument("--input", type=Path, required=True, metavar="PATIENTS", help=SUBJECTS)
    add_layout_argument(patients)
    patients.add_argument(
        "--subjects",
        nargs="+",
        metavar="ID",
        help="only these; unseen: those that the run has not seen, as of data.params.test=0.2 "
        f"(default: {whom})",
    )
    add_output_argument(output, f"for the {written}")


def add_devices_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``--devices``."""
    group(parser, MACHINE).add_argument(
        "--devices",
        type=int,
        default=1,
        metavar="N",
        help="share the subjects among N processes, each on a GPU of its own, or all on the CPU; "
        "the volumes are byte for byte those of one",
    )


def add_device_argument(parser: Any) -> None:
    """Declare ``--device``."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")


def add_run_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare the run folder of a training, and ``--dry-run``."""
    add_output_argument(parser, f"run folder (default: {default})", required=False)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config, parameters, FLOPs and memory; write nothing",
    )
    add_trust_argument(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where and on what a trained model is run."""
    from ldm.inference.request import NONFINITE, Request

    patients, machine = group(parser, PATIENTS), group(parser, MACHINE)
    add_device_argument(machine)
    patients.add_argument(
        "--allow-missing",
        nargs="+",
        default=[],
        metavar="CONTRAST",
        help="go on where this contrast is absent (a model trained with condition_dropout)",
    )
    patients.add_argument(
        "--nonfinite", choices=NONFINITE, default=Request.nonfinite, help="NaN or Inf in an input"
    )
    machine.add_argument(
        "--batch-size",
        type=int,
        default=Request.batch_size,
        help="slices, or windows of a volume, at once",
    )
    add_trust_argument(parser)
