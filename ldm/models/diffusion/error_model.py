"""How far the truth may lie from the mean of samples: what they vary by is a part of it.

Samples about a mean vary by what the noise decides (:mod:`ldm.models.diffusion.spread`), and little
of the error is that: the network errs in what it takes for certain, and so does its prior. The
variance of the error is a sum of three, whose factors patients tell: that of the samples, as in the
scaling of Levi et al. (2022, arXiv:1905.11659), that of the enhancement that the prior is unsure
of, and what is left everywhere in the brain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldm.called import tensor_from
from ldm.intensity import UNIT
from ldm.models.base import places
from ldm.models.diffusion.noise import KeyedNoise
from ldm.models.diffusion.spread import mean_and_deviation
from ldm.models.prior import brain_of, prior_inputs
from ldm.study import ASKED, MAPS

PAIRS = 4  # of samples of opposite noise that a patient is judged by
STEPS = 2  # of each: samples about a mean are as wide with any number
TINY = 1e-8  # of a variance, in units of [-1, 1]
BOUNDS = (-12.0, 6.0)  # of the logarithm of a factor


class Residuals(NamedTuple):
    """Voxels (N,) of the brain of one patient, in squared units of [-1, 1].

    Args:
        error: of the mean of its samples.
        variance: of the samples.
        doubt: of the enhancement that the prior adds.
    """

    error: NDArray[np.float64]
    variance: NDArray[np.float64]
    doubt: NDArray[np.float64]


class ErrorModel(NamedTuple):
    """Factors of the parts of the variance of an error.

    Args:
        samples: of the variance of samples.
        doubt: of the variance of what the prior adds.
        rest: of one z everywhere in the brain.
    """

    samples: float
    doubt: float
    rest: float

    def deviation(
        self,
        deviation: NDArray[np.floating],
        doubt: NDArray[np.floating] | None,
        brain: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """Return the standard deviation of the error of the mean, in units of [-1, 1].

        Args:
            deviation: of samples.
            doubt: variance of what the prior adds; None: it adds nothing.
            brain: outside of it samples alone tell.
        """
        parts = np.square(deviation, dtype=np.float64), 0.0 if doubt is None else doubt, UNIT**2
        variance = sum(factor * part for factor, part in zip(self, parts, strict=True))
        return np.where(brain, np.sqrt(variance), deviation)


def doubt_of(
    prior: nn.Module | None,
    maps: Tensor | None,
    presence: Tensor,
    asked: Tensor | None = None,
    factor: float = 1.0,
) -> NDArray[np.float64] | None:
    """Return the variance (B, *S) of what a prior adds where it has found maps (B, K, *S).

    None: it has found nothing, or does not say how sure it is. See
    :meth:`ldm.models.prior.EnhancementPrior.doubt`.
    """
    if maps is None or not hasattr(prior, "doubt"):
        return None
    shape = (len(maps), *maps.shape[2:])
    return tensor_from(prior.doubt, shape, maps, presence, asked, factor).double().cpu().numpy()


@torch.no_grad()
def residuals_of(model: Any, batch: Mapping[str, Any]) -> Residuals:
    """Return how a model errs on slices, or patches, of one patient.

    Args:
        model: whose samples lie about a mean.
        batch: as of training; images on the device of the model.
    """
    condition, presence = batch["condition"], batch["presence"]
    others = {**model.model.others(batch), **prior_inputs(batch)}
    images: list[NDArray[Any]] = []
    for pair in range(PAIRS):
        keys = [(model.seed, "error", *place, pair) for place in places(batch)]
        noise = KeyedNoise(keys, condition.device)
        both = model.synthesise(condition, presence, noise, None, STEPS, others, both=True)
        images.extend(both.squeeze(2).cpu().numpy())
    mean, deviation = mean_and_deviation(images, mirrored=True)
    doubt = doubt_of(model.prior, batch.get(MAPS), presence, batch.get(ASKED))
    inside = brain_of(condition).squeeze(1).cpu().numpy()
    error = mean - batch["target"].squeeze(1).cpu().numpy()
    doubt = np.zeros_like(mean) if doubt is None else doubt
    return Residuals(*(part[inside] for part in (error**2, deviation**2, doubt)))


def fit_error_model(patients: Sequence[Residuals]) -> ErrorModel:
    """Return the factors under which errors are likeliest, if they are normal; patients alike."""
    from scipy.optimize import minimize

    shown = [p for p in patients if p.error.size]
    parts = [np.stack([p.variance, p.doubt, np.full(p.error.shape, UNIT**2)]) for p in shown]

    def loss(logs: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        factors, value, slope = np.exp(logs), 0.0, np.zeros(len(logs))
        for patient, part in zip(shown, parts, strict=True):
            variance = factors @ part + TINY
            ratio = patient.error / variance
            value += float(np.mean(np.log(variance) + ratio)) / len(shown)
            slope += factors * (part @ ((1 - ratio) / variance)) / ratio.size / len(shown)
        return value, slope

    start = np.log([1.0, 0.5, 0.1])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[BOUNDS] * len(start))
    told = np.array([any(part[row].any() for part in parts) for row in range(len(start))])
    return ErrorModel(*(round(float(factor), 6) for factor in np.where(told, np.exp(found.x), 0)))
