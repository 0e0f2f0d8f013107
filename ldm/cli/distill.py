"""``dsdiff distill``: from a trained diffusion model to a student of few sampling steps."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.cli.arguments import add_run_arguments
from ldm.cli.train import SHOWN, describe, finish

DISTILL = "configs/distill.yaml"


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
    parser.add_argument("--steps", type=int, default=4, help="of the student (default: 4)")
    add_run_arguments(parser, "RUN-distilled-STEPS")


def run(args: argparse.Namespace) -> int:
    """Train the student; ``dsdiff train --resume`` continues it."""
    from ldm.checkpoint import read_run_config
    from ldm.storage import run_folder
    from ldm.training import run_training

    folder = run_folder(args.run_folder)
    teacher = read_run_config(folder, args.trust)
    config = student_config(teacher, args.run_folder, args.steps, args.config)
    if args.dry_run:
        return describe(config)
    name = f"{folder.resolve().name}-distilled-{args.steps}"
    return finish(run_training(config, args.output or folder.parent / name, **SHOWN))


def student_config(
    teacher: Mapping[str, Any], path: Path, steps: int, overrides: list[str]
) -> dict[str, Any]:
    """Return the configuration of a student.

    A student that teaches in its turn does so in the steps that it has learned, and a student of a
    model that predicts eps predicts v: from pure noise, eps says nothing of x_0.

    Args:
        teacher: configuration of the teacher's run.
        path: its run folder or model file.
        steps: of the student.
        overrides: ``key=value``.

    Raises:
        ConfigError: what is wrong, with its key path.
    """
    from ldm.config import load_config
    from ldm.models.diffusion.distillation import portable_teacher
    from ldm.util import params_of

    params, model = params_of(teacher["model"]), portable_teacher(teacher["model"])
    student: dict[str, Any] = {
        "teacher": str(path),
        "teacher_config": model,
        "sampling_steps": steps,
    }
    if params.get("teacher_config"):
        student["substeps"] = max(1, params["sampling_steps"] // steps)
    if params.get("parameterization") == "eps":
        student["parameterization"] = "v"
    own = {"name": f"{teacher.get('name', 'run')}-distilled-{steps}", "model": {"params": student}}
    return load_config([{**teacher, "model": model}, DISTILL, own], overrides)
