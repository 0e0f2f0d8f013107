"""A trained model inside another one: read from its run, saved with the other, never trained."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ldm.checkpoint import read_run_config, read_weights, require_same_state
from ldm.models.base import Config, RunModule
from ldm.study import Study, read_study
from ldm.util import instantiate_from_config, with_params

log = logging.getLogger(__name__)


def described_run(path: Path, trust: Sequence[str] = ()) -> tuple[Config, Study]:
    """Return ``target`` / ``params`` of the model of a run, told the facts of its study, and it.

    Args:
        path: a run folder, or a file of weights in one.
        trust: further classes that the run may name.

    Raises:
        CheckpointError, UnsafeError, ConfigError: see :func:`ldm.checkpoint.read_run_config`.
    """
    config = read_run_config(path, trust)
    study, model = read_study(config), config["model"]
    told = {name: fact for name, fact in study.facts().items() if fact}  # a segmenter has no target
    return with_params(model, told), study


def frozen_model(config: Config, path: Path | None, where: str) -> RunModule:
    """Return the model of a configuration, with the weights of a run, for good in eval mode.

    Args:
        config: see :func:`described_run`.
        path: the run; None where the weights of the other model hold it.
        where: what an error calls the configuration.

    Raises:
        CheckpointError: see :func:`ldm.checkpoint.read_weights`; CKPT-MISMATCH.
    """
    model = instantiate_from_config(config, where=where)
    if path is not None:
        weights, _ = read_weights(path)
        require_same_state(model.state_dict(), weights, path.name)
        model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def without_run(owner: nn.Module, config: Config, model: RunModule) -> Config:
    """Return ``target`` / ``params`` of an owner of ``model_config`` that name no run folder."""
    target = f"{type(owner).__module__}.{type(owner).__qualname__}"
    portable = with_params(config, model.portable_params())
    return {"target": target, "params": {"model_config": portable}}


def warn_of_held_out(name: str, subjects: Iterable[str], data: Any) -> None:
    """Warn where a model was trained on patients that another one's training holds out."""
    held_out = {*data.split["val"], *data.split["test"]}
    if seen := sorted(held_out & {*subjects}):
        log.warning("%s was trained on held-out patients: %s", name, ", ".join(seen))
