"""``dsdiff sample``: synthetic volumes of the subjects in a folder."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from ldm.cli.arguments import (
    ANOTHER,
    MACHINE,
    OUTPUT,
    SAMPLERS,
    add_devices_argument,
    add_model_arguments,
    add_overwrite_argument,
    add_subject_arguments,
)
from ldm.cli.help import group
from ldm.cli.terminal import print_found, print_next, report_written, reporter, show_progress
from ldm.util import trusting

DRAWN = "what is sampled"
SAMPLE = ("subjects", "layout", "overwrite", "form", "devices", "device", "trust", "timing")
EXAMPLES = (
    "dsdiff sample runs/mine --input NEW_PATIENTS --output predictions",
    "dsdiff sample runs/mine --input PATIENTS --subjects unseen --output tested",
    "dsdiff sample runs/mine --input PATIENTS --output drawn --temperature 1",
    "dsdiff sample runs/mine --input PATIENTS --output eight --samples 8",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_volume_arguments(parser)
    drawn, output, machine = (group(parser, title) for title in (DRAWN, OUTPUT, MACHINE))
    drawn.add_argument("--sampler", help=f"{SAMPLERS} (default: the model's, in general ddim)")
    drawn.add_argument("--steps", type=int, help="of the sampler (default: the model's)")
    drawn.add_argument("--eta", type=float, help="ddim: 0 deterministic (default) to 1 as ddpm")
    add_devices_argument(parser)
    form = output.add_mutually_exclusive_group()
    form.add_argument(
        "--bids",
        action="store_const",
        dest="form",
        const="bids",
        default="nifti",
        help="write a BIDS derivative: sub-X/anat/sub-X_ce-gad_desc-synth_T1w.nii.gz (default: "
        "ID_TARGET.nii.gz)",
    )
    form.add_argument(
        "--dicom",
        action="store_const",
        dest="form",
        const="dicom",
        help="write a derived DICOM series a subject, of the examination that the inputs are of",
    )
    add_overwrite_argument(output, ANOTHER)
    machine.add_argument(
        "--timing",
        type=int,
        metavar="N",
        help="write no volume: sample the first subject N times after a warm-up, and write its "
        "seconds, memory and energy to cost.json",
    )


def add_volume_arguments(
    parser: argparse.ArgumentParser,
    written: str = "synthetic volumes",
    whom: str = "all",
    temperature: str = "the model's, and 1 with --samples",
) -> None:
    """Declare the arguments of every verb that samples volumes; what differs is their defaults."""
    add_subject_arguments(parser, written, whom)
    _add_drawn_arguments(group(parser, DRAWN), temperature)
    _add_strength_arguments(group(parser, DRAWN))
    _add_network_arguments(group(parser, MACHINE))
    add_model_arguments(parser)


def _add_drawn_arguments(drawn: Any, temperature: str) -> None:
    """Declare what is drawn, and how many times."""
    from ldm.inference.request import DEVIATIONS, NOISES, Request

    drawn.add_argument(
        "--target",
        metavar="CONTRAST",
        help="of a model that makes any contrast, the one to make (default: the one that is "
        "missing); where it is there, it is not read",
    )
    drawn.add_argument(
        "--temperature",
        type=float,
        help="of the noise: 1 samples from the model, 0 gives one image close to the conditional "
        f"mean (default: {temperature})",
    )
    drawn.add_argument(
        "--samples",
        type=int,
        default=Request.samples,
        help="average this many and write a deviation too",
    )
    drawn.add_argument(
        "--deviation",
        choices=DEVIATIONS,
        default=Request.deviation,
        help="of the error of their mean, where the training has learned it, or of the samples "
        "alone",
    )
    drawn.add_argument("--seed", type=int, default=Request.seed, help="of the noise")
    drawn.add_argument(
        "--noise",
        choices=NOISES,
        default=Request.noise,
        help="independent in every slice, smooth along the slices, or one for a patient",
    )


def _add_strength_arguments(drawn: Any) -> None:
    """Declare how strongly what a model has learned shows in its images."""
    drawn.add_argument(
        "--spread",
        type=float,
        help="how far samples lie from the mean that the model has learned, whatever the steps; "
        "less: less error and less texture (default: the model's, 1 in the shipped recipe)",
    )
    drawn.add_argument(
        "--enhancement",
        type=float,
        help="factor of what the prior of the model adds to abnormal tissue; 0: the network alone "
        "(default: 1)",
    )
    drawn.add_argument(
        "--guidance",
        type=float,
        help="above 1 exaggerates what the conditions say (a model trained with drop_all; "
        "default: 1)",
    )
    drawn.add_argument(
        "--rescale",
        type=float,
        help="share, 0 to 1, of the contrast that guidance adds taken back (default: 0)",
    )
    drawn.add_argument(
        "--overlap",
        type=float,
        help="of the windows of a model of volumes, along each axis, 0 to 0.9 (default: 0.25)",
    )


def _add_network_arguments(machine: Any) -> None:
    """Declare in what and by what the network computes."""
    from ldm.inference.request import PRECISIONS, RUNTIMES, Request

    machine.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=Request.precision,
        help="of the network; auto: bf16 where the device multiplies in it, else 32",
    )
    machine.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default=Request.runtime,
        help="of the network; compile: torch.compile, on a GPU with CUDA graphs, no faster on a "
        "CPU; onnx: denoiser.onnx, which dsdiff export --onnx wrote, by onnxruntime",
    )


def run(args: argparse.Namespace) -> int:
    """Sample every subject; one that fails does not stop the others."""
    from ldm.checkpoint import study_of
    from ldm.config import foreign_targets
    from ldm.data.layouts import summary
    from ldm.inference.request import OPTIONS
    from ldm.inference.sampling import sample

    there: dict[str, Any] = {}

    def show(layout: Any, found: Any) -> None:
        print_found(summary(layout, found))
        there.update(found)

    done = sample(
        args.model,
        args.input,
        args.output,
        watch=show,
        report=reporter("sample"),
        say=print,
        progress=show_progress,
        **{name: getattr(args, name) for name in (*SAMPLE, *OPTIONS)},
    )
    if args.timing is not None:
        return 0
    if code := report_written(done, args.output):
        return code  # all failed
    study = study_of(args.model, args.trust)
    is_read = args.form in ("nifti", "bids")  # by dsdiff evaluate
    if is_read and any(study.target in there[i].files for i in done.tried):
        words = ["--prediction", str(args.output), "--reference", str(args.input)]
        words += ["--layout", args.layout] if args.layout else []
        words += trusting(foreign_targets(study.data.get("normaliser_config") or {}))
        print_next(shlex.join(["dsdiff", "evaluate", *words, "--output", "evaluation"]))
    return 0
