"""The end of a training: how far the truth lies from what its samples say, for their deviation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities import move_data_to_device

from ldm.checkpoint import load_model
from ldm.data.datamodule import ContrastDataModule
from ldm.errors import survived
from ldm.model_file import read_model, save_model
from ldm.models.diffusion.error_model import fit_error_model, residuals_of
from ldm.models.prior import maps_of
from ldm.progress import unheard
from ldm.storage import ERROR_MODEL, MODEL_FILE

log = logging.getLogger(__name__)


def is_calibrated(model: Any) -> bool:
    """Return whether samples of a model lie about a mean that it has learned."""
    return bool(getattr(model, "knows_mean", False) and model.sampling.spread)


def calibrate(
    run: Path,
    trained: Any,
    data: ContrastDataModule,
    device: torch.device,
    trust: Collection[str] = (),
    say: Callable[[str], None] = unheard,
) -> None:
    """Write beside the weights of a run by how much more than its samples vary it errs.

    Only where samples lie about a mean that the model has learned, and once for the same weights.
    What fails here is told, and the weights stay as they are: their training is worth more.

    Args:
        trained: the model as the training left it; what is judged are the weights of the run.
        data: set up, as for the training.
        device: of the model.
        trust: see :func:`ldm.checkpoint.load_model`.
        say: told that it begins, for it takes minutes on a CPU.
    """
    if not is_calibrated(trained):
        return
    try:
        weights, metadata = read_model(run / MODEL_FILE)
        if ERROR_MODEL in metadata:  # of a run that was resumed at its end: the same weights
            return
        say("Learning how far the truth lies from a mean of samples: minutes on a CPU")
        model = load_model(run, trust).model.to(device)
        find = partial(maps_of, model.prior) if model.prior else None
        patients = (move_data_to_device(b, device) for b in data.patients_to_judge(find))
        found = fit_error_model([residuals_of(model, batch) for batch in patients])
        save_model(run, weights, {**metadata, ERROR_MODEL: found._asdict()})
    except Exception as error:
        log.warning("the deviation of samples is not calibrated: %s", survived(error))
