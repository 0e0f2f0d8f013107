"""Baselines without a network: what a backbone must beat to have learned anything.

Each is fitted on the prepared training patients (intensities in [-1, 1], inside the brain) and
gives the target of another patient on the grid of its slices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ldm.data.cache import CachedSubject
from ldm.data.prepare import PreparedSubject
from ldm.data.resample import nearest_inside
from ldm.errors import DataError
from ldm.intensity import BACKGROUND
from ldm.modules.polynomial import polynomial

GRID = (24, 24, 24)  # of the thumbnails that are compared: about 7 mm a voxel


def design_matrix(values: np.ndarray, degree: int) -> np.ndarray:
    """Return the terms (N, K) of contrasts (N, M) in float64, see :func:`polynomial`."""
    return np.stack(polynomial(list(values.astype(np.float64).T), degree), axis=1)


class ContrastRegression:
    """Least squares of the target on the contrasts, voxel by voxel, over all brain voxels.

    The normal equations are summed patient by patient in float64, so that memory does not grow
    with the number of patients; in [-1, 1] their condition is harmless.

    Args:
        degree: 1, or 2 for squares and products too.
    """

    def __init__(self, degree: int = 1) -> None:
        self.degree = degree
        self.coefficients: np.ndarray | None = None

    def fit(self, subjects: Iterable[CachedSubject], target: int = -1) -> ContrastRegression:
        """Fit on patients; return self.

        Args:
            target: channel of the target; the others are the contrasts.

        Raises:
            DataError: DATA-EMPTY without a patient.
        """
        products = moments = 0
        for subject in subjects:
            channels = np.moveaxis(subject.open("slices"), 1, -1)[subject.open("brain")]  # (N, M+1)
            terms = design_matrix(np.delete(channels, target, axis=1), self.degree)
            products = products + terms.T @ terms
            moments = moments + terms.T @ channels[:, target].astype(np.float64)
        if np.ndim(products) == 0:
            raise DataError("DATA-EMPTY", "no patient to fit the regression on: see data.params")
        self.coefficients = np.linalg.lstsq(products, moments, rcond=None)[0]  # (K,)
        return self

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return the target (N,) of contrasts (N, M)."""
        return design_matrix(values, self.degree) @ self.coefficients

    def predict(self, prepared: PreparedSubject) -> np.ndarray:
        """Return the target (S, H, W) in [-1, 1] units of a patient."""
        values = np.moveaxis(prepared.slices, 1, -1)[prepared.brain]
        image = np.full(prepared.brain.shape, BACKGROUND, np.float32)
        image[prepared.brain] = self.of(values)
        return np.clip(image, -1, 1)


class NearestPatient:
    """The target of the training patient whose contrasts look most alike, laid on the brain.

    Patients are compared by the mean over contrasts of the correlation of their images, cut to the
    brain and averaged to GRID. The target of the nearest is stretched from its brain box to that of
    the patient; where it has no brain there, its nearest brain voxel fills in.
    """

    def __init__(self) -> None:
        self.subjects: list[CachedSubject] = []
        self.thumbnails = np.zeros((0, 0, 0))

    def fit(self, subjects: Iterable[CachedSubject]) -> NearestPatient:
        """Keep a thumbnail of each patient; return self.

        Raises:
            DataError: DATA-EMPTY without a patient.
        """
        self.subjects = list(subjects)
        if not self.subjects:
            raise DataError("DATA-EMPTY", "no patient to be the nearest: see data.params")
        self.thumbnails = np.stack([thumbnail(s.open("slices")[:, :-1]) for s in self.subjects])
        return self

    def nearest(self, slices: np.ndarray) -> CachedSubject:
        """Return the training patient most like the contrasts (S, M, H, W)."""
        likeness = (self.thumbnails * thumbnail(slices)).sum(axis=(1, 2))
        return self.subjects[int(likeness.argmax())]  # the first by id where two are equal

    def predict(self, prepared: PreparedSubject) -> np.ndarray:
        """Return the target (S, H, W) in [-1, 1] units of a patient."""
        other = self.nearest(prepared.slices)
        target = np.asarray(other.open("slices")[:, -1], np.float32)
        filled = target[nearest_inside(np.asarray(other.open("brain")))]
        image = F.interpolate(
            torch.from_numpy(filled)[None, None], prepared.brain.shape, mode="trilinear"
        )[0, 0].numpy()
        return np.where(prepared.brain, image, BACKGROUND).astype(np.float32)


def thumbnail(slices: np.ndarray) -> np.ndarray:
    """Return images (S, M, H, W) as (M, voxels of GRID), each of mean 0 and norm 1."""
    volumes = torch.from_numpy(np.asarray(slices, np.float32)).swapaxes(0, 1)[None]
    small = F.adaptive_avg_pool3d(volumes, GRID)[0].flatten(1).double().numpy()
    centred = small - small.mean(axis=1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


Baseline = ContrastRegression | NearestPatient
FITTED: dict[str, Callable[[], Baseline]] = {
    "linear": lambda: ContrastRegression(1),
    "quadratic": lambda: ContrastRegression(2),
    "nearest": NearestPatient,
}


def fit_baseline(name: str, subjects: Sequence[CachedSubject]) -> Baseline:
    """Return the baseline ``linear``, ``quadratic`` or ``nearest``, fitted on training patients."""
    return FITTED[name]().fit(sorted(subjects, key=lambda subject: subject.id))
