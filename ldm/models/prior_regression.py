"""The regression of a prior: what voxels of abnormal tissue tell of where tissue enhances."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.label_scheme import UNKNOWN
from ldm.regions import CAVITY, ENHANCING, OEDEMA

LEAST = 0.005  # of the brain of a patient: one with less abnormal tissue counts less than others
SHARES = (0.02, 0.98)  # of a tumour that enhances, which are balanced
POOLED = 0.5  # of the fit that is to all abnormal tissue, the rest within the tumour of a patient
RIDGE = 0.03  # of the sum over patients, each of whom has weight 1
STEEP = 1e-3  # what a steep curve costs, as where a score tells everything
TINY = 1e-6


class AbnormalTissue(NamedTuple):
    """Voxels of the abnormal tissue of a patient, to which a regression is fitted, float64.

    Args:
        terms: (K, V) of the quadratic form.
        enhancing: (V,) from 0 to 1: what labels say, else how much the truth shows.
        tumour: (V,) 1 or 0: whether it is tumour that was not taken out.
        count: number of voxels of such tissue, of which these are some.
        brain: number of voxels of brain.
    """

    terms: Tensor
    enhancing: Tensor
    tumour: Tensor
    count: int
    brain: int

    def alike(self, weights: Tensor) -> Tensor:
        """Return weights (V,) with which patients count alike, but for one with little tissue."""
        voxels = self.count / max(1, len(weights)) * weights.sum()
        return (
            weights / weights.sum().clamp(min=TINY) * (voxels / (LEAST * self.brain)).clamp(max=1)
        )

    @property
    def weights(self) -> Tensor:
        """(V,) those of all abnormal tissue."""
        return self.alike(torch.ones_like(self.tumour))

    @property
    def pooled(self) -> tuple[Tensor, Tensor]:
        """The second moments (K, K) of the terms, and those (K,) with what enhances."""
        weighted = self.terms * self.weights
        return weighted @ self.terms.T, weighted @ self.enhancing

    @property
    def within(self) -> tuple[Tensor, Tensor]:
        """The same about their means in the tumour.

        What enhances and what does not have half of the weight each, so that they say what tells
        the one from the other, not how much of it there is.
        """
        share = (self.tumour @ self.enhancing / self.tumour.sum().clamp(min=1)).clamp(*SHARES)
        balance = torch.lerp(0.5 / (1 - share), 0.5 / share, self.enhancing)
        weights = self.alike(self.tumour * balance)
        mean = self.terms @ weights / weights.sum().clamp(min=TINY)
        weighted = (self.terms - mean[:, None]) * weights
        return weighted @ (self.terms - mean[:, None]).T, weighted @ self.enhancing


def taught(labels: Tensor | None, shown: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return what enhances (V,), from 0 to 1, and what is tumour (V,), at places of a volume.

    Args:
        labels: (S, H, W), or None. Those that tell neither an enhancing part nor oedema, or of
            which nobody says what they mean, teach nothing.
        shown: (V,) how much the truth enhances.
    """
    known = labels is not None and not (labels == UNKNOWN).any()
    if labels is None or not known or not ((labels == ENHANCING) | (labels == OEDEMA)).any():
        return shown, torch.ones_like(shown)
    told = labels.flatten()[places]
    return told == ENHANCING, (told > 0) & (told != CAVITY)


class Moments(NamedTuple):
    """What the ridge regression of patients takes from them; that of more patients is the sum.

    Args:
        products: (K, K) second moments of the terms, half of them about the means in each tumour.
        moments: (K,) those of the terms with what enhances.
        patients: their number.
    """

    products: Tensor
    moments: Tensor
    patients: Tensor

    def direction(self) -> Tensor:
        """Return the coefficients (K,) of the score, float64; 0 where nothing enhances."""
        products, moments = self.products.double(), self.moments.double()
        ridge = RIDGE * float(self.patients) * torch.eye(len(moments), dtype=moments.dtype)
        return torch.linalg.solve(products + ridge, moments)


def moments_of(patients: Sequence[AbnormalTissue]) -> Moments:
    """Return the moments of patients, one at least: of all tissue, and within each tumour."""
    pooled, told = _total(patient.pooled for patient in patients)
    within, moments = _total(patient.within for patient in patients)
    products = torch.lerp(within, pooled, POOLED)
    return Moments(products, torch.lerp(moments, told, POOLED), torch.tensor(len(patients)))


def _total(found: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    products, moments = zip(*found, strict=True)
    return sum(products), sum(moments)  # type: ignore[return-value]


def line(score: np.ndarray, told: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return intercept and slope of the line of least squares (N,) that tells what enhances."""
    score = score - (mean := np.average(score, weights=weights))
    slope = np.average(score * told, weights=weights) / np.average(score**2, weights=weights)
    return np.average(told, weights=weights) - slope * mean, slope


def curve(score: np.ndarray, told: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return intercept and slope of the logistic curve (N,) that makes it likeliest."""
    from scipy.optimize import minimize
    from scipy.special import expit

    def unlikely(line: np.ndarray) -> tuple[float, np.ndarray]:
        logit = line[0] + line[1] * score
        excess = weights * (expit(logit) - told)
        steep = STEEP * weights.sum() * line[1]  # where a score separates, the curve has no end
        value = (weights * (np.logaddexp(0, logit) - told * logit)).sum() + steep * line[1] / 2
        return value, np.array([excess.sum(), excess @ score + steep])

    return tuple(minimize(unlikely, np.zeros(2), jac=True).x)
