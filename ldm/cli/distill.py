"""``dsdiff distill``: from a trained diffusion model to a student of few sampling steps."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli.arguments import add_run_arguments
from ldm.cli.train import SHOWN, describe, finish

EXAMPLES = (
    "dsdiff distill runs/mine --steps 4",
    "dsdiff distill runs/mine --steps 1 lightning.trainer.max_steps=2000",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the teacher, a run folder")
    parser.add_argument(
        "config",
        nargs="*",
        metavar="KEY=VALUE",
        help="changes of configs/distill.yaml or of the teacher's configuration, as "
        "lightning.trainer.max_steps=2000 model.params.substeps=8",
    )
    parser.add_argument("--steps", type=int, default=4, help="of the student")
    add_run_arguments(parser, "RUN-distilled-STEPS")


def run(args: argparse.Namespace) -> int:
    """Train the student; ``dsdiff train --resume`` continues it."""
    from ldm.training.distillation import distill, student_config

    told = {"steps": args.steps, "overrides": args.config, "trust": args.trust}
    if args.dry_run:
        return describe(student_config(args.run_folder, **told))
    return finish(distill(args.run_folder, output=args.output, **told, **SHOWN))
