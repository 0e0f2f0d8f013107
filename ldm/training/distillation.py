"""Distillation: from a trained diffusion model to the run of a student of few sampling steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ldm.checkpoint import read_run_config
from ldm.config import Overrides, load_config
from ldm.models.diffusion.distillation import portable_teacher
from ldm.progress import Progress, silent
from ldm.storage import run_folder
from ldm.training.run import TrainedRun, run_training
from ldm.typed import typed
from ldm.util import params_of, user_path

DISTILL = "configs/distill.yaml"
STEPS = 4


@typed
def distill(
    teacher: str | Path,
    overrides: Overrides = (),
    output: str | Path | None = None,
    *,
    steps: int = STEPS,
    trust: Collection[str] = (),
    say: Callable[[str], None] | None = None,
    progress: Progress = silent,
) -> TrainedRun:
    """Train a student that samples in few steps; ``train(resume=...)`` continues it.

    Args:
        teacher: run folder of a diffusion model, or its ``model.safetensors``.
        overrides: of ``configs/distill.yaml`` and of the teacher's configuration.
        output: run folder; None: beside the teacher, ``RUN-distilled-STEPS``.
        steps: of the student.
        trust, say, progress: see :func:`ldm.training.run.train`.

    Raises:
        ConfigError, DataError, OutputError, NonFiniteError: see :func:`ldm.training.run.train`.
        CheckpointError: CKPT-MISSING, CKPT-MISMATCH.
    """
    config, folder = student_config(teacher, steps, overrides, trust), run_folder(Path(teacher))
    place = folder.parent / f"{folder.resolve().name}-distilled-{steps}"
    return run_training(config, user_path(output or place), say=say, progress=progress)


def student_config(
    teacher: str | Path, steps: int, overrides: Overrides = (), trust: Collection[str] = ()
) -> dict[str, Any]:
    """Return the configuration of a student.

    A student that teaches in its turn does so in the steps that it has learned, and a student of a
    model that predicts eps predicts v: from pure noise, eps says nothing of x_0.

    Args:
        teacher, steps, overrides, trust: see :func:`distill`.

    Raises:
        ConfigError: what is wrong, with its key path. CheckpointError: CKPT-MISSING.
    """
    path = user_path(teacher)
    taught: Mapping[str, Any] = read_run_config(run_folder(path), trust)
    params, model = params_of(taught["model"]), portable_teacher(taught["model"])
    student: dict[str, Any] = {
        "teacher": str(path),
        "teacher_config": model,
        "sampling_steps": steps,
    }
    if params.get("teacher_config"):
        student["substeps"] = max(1, params["sampling_steps"] // steps)
    if params.get("parameterization") == "eps":
        student["parameterization"] = "v"
    own = {"name": f"{taught.get('name', 'run')}-distilled-{steps}", "model": {"params": student}}
    return load_config([{**taught, "model": model}, DISTILL, own], overrides)
