"""What is refused of a row before the first training of a benchmark: found later it costs days."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ldm.data.layouts import Layout, Subject
from ldm.environment import resolve_precision
from ldm.errors import DsdiffError, OutOfMemory, bad_value
from ldm.inference.request import Request
from ldm.study import build_model, read_study
from ldm.training.rehearsal import new_trainer, quiet
from ldm.util import trainer_options

BESIDE = ("device", "devices")  # options of dsdiff sample that decide no voxel


@contextmanager
def of_row(name: Any) -> Iterator[None]:
    """In the block an error is of one row, and says so."""
    try:
        yield
    except DsdiffError as error:
        told, row = error.args[1], f"rows.{name}"
        told = told if told.startswith(row) else f"{row}: {told}"
        raise type(error)(error.code, told, error.case) from error


def request_of(setting: Mapping[str, Any]) -> Request:
    """Return what options of sampling ask for."""
    asked = {name: v for name, v in setting.items() if v is not None and name not in BESIDE}
    asked |= {"precision": str(asked.get("precision", "32"))}  # YAML takes it for a number
    return Request().changed(**asked)


def require_met(training: Any, settings: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a model that cannot be built, or a sampling that it cannot do.

    One that needs more memory than there is here may be planned here, and trained elsewhere.

    Args:
        training: a :class:`ldm.benchmark.plan.Training`.
        settings: options of sampling.

    Raises:
        ConfigError: CONFIG-VALUE, or why the model cannot be built. CheckpointError: of a run that
            it is built of.
    """
    study = read_study(training.config)
    try:
        with of_row(training.row):
            model = build_model(training.config, study)
    except OutOfMemory:
        return
    if not hasattr(model, "synthesise"):
        raise bad_value(
            f"{training.row} is a {type(model).__name__}, which synthesises nothing: leave it out"
        )
    for setting in settings:
        request = request_of(setting)
        if request.runtime == "onnx" and not training.is_given:
            raise bad_value(
                f"sampling.runtime is onnx, of exported models, and {training.row} is trained "
                "here: leave it out"
            )
        try:
            request.met_by(model, study)
        except DsdiffError as error:
            raise bad_value(f"sampling of {training.row}: {error.message}") from error


def require_startable(training: Any, subjects: Mapping[str, Subject], layout: Layout) -> None:
    """Refuse a training that would end before its first step; no file of a patient is read.

    Raises:
        ConfigError: CONFIG-VALUE. DataError: DATA-MISSING, a patient lacks a contrast.
    """
    study = read_study(training.config)
    options = trainer_options(training.config)
    with of_row(training.row):
        told = options.get("precision", "auto"), options.get("accelerator", "auto")
        with quiet("pytorch_lightning"):
            new_trainer(**{**options, "precision": resolve_precision(*told), "logger": False})
        for part in ("train", "val"):
            for i in training.config["data"]["params"][part]:
                subjects[i].require([*study.conditions, *study.targets], layout)
