"""The deviation that is written beside the mean of samples: of the samples, or of its error."""

from __future__ import annotations

import numpy as np
import torch

from ldm.data.prepare import PreparedSubject
from ldm.inference.request import Request
from ldm.inference.trained import TrainedModel
from ldm.inference.windows import asked_of
from ldm.models.diffusion.error_model import ErrorModel, doubt_of


def error_model_of(trained: TrainedModel, request: Request) -> ErrorModel | None:
    """Return what makes the deviation of samples that of an error; None: it stays as it is."""
    draws = request.samples > 1 and request.temperature and request.spread
    return trained.error_model if draws and request.deviation == "error" else None


def deviation_of_error(
    trained: TrainedModel,
    request: Request,
    prepared: PreparedSubject,
    deviation: np.ndarray,
) -> np.ndarray:
    """Return the deviation (S, H, W) that is asked for, of that of samples, in [-1, 1] units.

    That of an error does not depend on how wide samples are asked to be.
    """
    error_model = error_model_of(trained, request)
    if error_model is None:
        return deviation
    own = trained.model.sampling.spread
    width = request.temperature * request.spread / own  # type: ignore[operator]
    slices, wanted = len(prepared.brain), asked_of(prepared, trained.study)
    present = torch.from_numpy(prepared.present).expand(slices, -1)
    wanted = None if wanted is None else wanted.expand(slices, -1)
    maps = None if prepared.maps is None else torch.from_numpy(prepared.maps)
    factor = request.options.get("enhancement", 1.0)
    doubt = doubt_of(trained.model.prior, maps, present, wanted, factor)
    return error_model.deviation(deviation / width, doubt, prepared.brain)
