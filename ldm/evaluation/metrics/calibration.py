"""Is the error within the predicted spread? Calibration of a mean with a standard deviation.

``prediction`` is the mean of N samples and ``spread`` their sample standard deviation (N - 1). If
the truth is one more draw from the same normal distribution, then its distance from the mean has
variance ``sigma^2 (1 + 1/N)``, and ``distance / (spread sqrt(1 + 1/N))`` follows Student's t with
N - 1 degrees of freedom. Intervals and spreads here are corrected by that, so that a few samples do
not make a calibrated model look overconfident. ``samples=None`` takes the spread for exact.

Samples may come in pairs of opposite noise (``mirrored``), as those of ``dsdiff sample`` with
a spread do. Their mean does not vary, but for the last of an odd number, and ``spread`` has one
degree of freedom a pair.

Pure functions of numpy arrays like those of :mod:`ldm.evaluation.metrics.similarity`, with the
same errors; their formulas stand in ``docs/metrics.md``.
"""

from __future__ import annotations

from math import inf, nan, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm.errors import DataError
from ldm.evaluation.metrics.similarity import same_shape

LEVELS = tuple(level / 20 for level in range(1, 20))  # 0.05 to 0.95
BINS = 10


class Reliability(NamedTuple):
    """Groups of voxels from the least to the most spread, as many voxels in each."""

    spread: NDArray[np.float64]  # (BINS,) root mean square of the predicted standard deviation
    error: NDArray[np.float64]  # (BINS,) root mean square error


def coverage(
    prediction: ArrayLike,
    reference: ArrayLike,
    spread: ArrayLike,
    sigmas: float = 1.0,
    mask: ArrayLike | None = None,
    samples: int | None = None,
    mirrored: bool = False,
) -> float:
    """Share of the voxels of ``mask`` whose reference lies within ± ``sigmas`` of the prediction.

    Args:
        prediction, reference, spread: arrays of one shape.
        sigmas: half width of the interval, in standard deviations of a normal distribution; with
            ``samples``, that of the t interval of the same probability.
        mask: voxels to compare; all if None.
        samples: how many samples ``prediction`` and ``spread`` come from.
        mirrored: whether they come in pairs of opposite noise.

    Returns:
        0 to 1, for a calibrated prediction 0.6827 at 1 sigma and 0.9545 at 2; NaN without voxels.

    Raises:
        DataError: DATA-SHAPE if the shapes differ, DATA-RANGE for a negative spread or samples < 2.
    """
    from scipy.stats import norm

    error, sd, law = _errors(prediction, reference, spread, mask, samples, mirrored)
    return _within(error, sd, law, 2 * norm.cdf(sigmas) - 1)


def calibration_error(
    prediction: ArrayLike,
    reference: ArrayLike,
    spread: ArrayLike,
    mask: ArrayLike | None = None,
    samples: int | None = None,
    mirrored: bool = False,
) -> float:
    """Mean of ``abs(coverage - p)`` over the intervals of probability p = 0.05, 0.1, ..., 0.95.

    The expected calibration error of a regression (Kuleshov et al. 2018, arXiv:1807.00263) with
    central intervals. 0 is calibrated, 0.5 the worst; NaN without voxels. Arguments and errors are
    those of :func:`coverage`.
    """
    error, sd, law = _errors(prediction, reference, spread, mask, samples, mirrored)
    shares = [_within(error, sd, law, p) for p in LEVELS]
    return float(np.mean(np.abs(np.subtract(shares, LEVELS))))


def error_to_spread(
    prediction: ArrayLike,
    reference: ArrayLike,
    spread: ArrayLike,
    mask: ArrayLike | None = None,
    samples: int | None = None,
    mirrored: bool = False,
) -> float:
    """Root mean square error over root mean square spread: the factor that the spread lacks.

    1 is calibrated, 2 a spread half as large as the error (overconfident); infinity without spread,
    NaN without spread and error, or without voxels. Arguments and errors are those of
    :func:`coverage`.
    """
    error, sd, _ = _errors(prediction, reference, spread, mask, samples, mirrored)
    if not error.size:
        return nan
    size, predicted = _rms(error), _rms(sd)
    if predicted == 0:
        return inf if size > 0 else nan
    return size / predicted


def reliability(
    prediction: ArrayLike,
    reference: ArrayLike,
    spread: ArrayLike,
    mask: ArrayLike | None = None,
    samples: int | None = None,
    mirrored: bool = False,
) -> Reliability:
    """Predicted spread and observed error in ten groups of voxels ordered by their spread.

    A calibrated prediction lies on the diagonal. With few samples the spread of a voxel is itself
    uncertain, which flattens the curve. Empty groups are NaN. Arguments and errors are those of
    :func:`coverage`.
    """
    error, sd, _ = _errors(prediction, reference, spread, mask, samples, mirrored)
    groups = np.array_split(np.argsort(sd, kind="stable"), BINS)
    values = [[_rms(array[g]) if g.size else nan for g in groups] for array in (sd, error)]
    return Reliability(*map(np.array, values))


def _errors(
    prediction: ArrayLike,
    reference: ArrayLike,
    spread: ArrayLike,
    mask: ArrayLike | None,
    samples: int | None,
    mirrored: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64], Any]:
    """Absolute errors (N,), the deviations (N,) predicted for them, and the law of their ratio."""
    from scipy.stats import norm, t

    predicted, true, sd = (np.asarray(a, np.float64) for a in (prediction, reference, spread))
    inside = np.ones(true.shape, bool) if mask is None else np.asarray(mask) != 0
    same_shape(prediction=predicted, reference=true, spread=sd, mask=inside)
    if samples is not None and samples < 2:
        raise DataError("DATA-RANGE", f"a spread of {samples} samples; expected two or more")
    if (sd < 0).any():
        raise DataError("DATA-RANGE", f"spread down to {sd.min():g}; expected >= 0")
    variance, law = 0.0, norm  # of the mean, as a part of that of a sample
    if samples is not None:
        variance = samples % 2 / samples**2 if mirrored else 1 / samples
        law = t((samples + 1) // 2 if mirrored else samples - 1)
    return np.abs(predicted - true)[inside], sd[inside] * sqrt(1 + variance), law


def _within(
    error: NDArray[np.float64], sd: NDArray[np.float64], law: Any, probability: float
) -> float:
    """Share of the errors inside the central interval of that probability."""
    if not error.size or np.isnan(error + sd).any():
        return nan
    return float(np.mean(error <= law.ppf((1 + probability) / 2) * sd))


def _rms(values: NDArray[np.float64]) -> float:
    return sqrt(np.mean(values**2))
