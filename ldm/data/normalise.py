"""Intensity normalisation: per subject and contrast, from its own brain, to [-1, 1], invertible.

MR intensities have no unit, so each volume is brought to its own scale. A normaliser measures
``centre`` and ``width`` inside the brain; :class:`IntensityScale` is the map that follows and its
inverse. The default is median and inter-quartile range: healthy tissue then agrees between T1 and
T1ce, because vessels and the tumour rim, which only T1ce shows, do not set the scale.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ldm.errors import DataError

BACKGROUND = -1.0


@dataclass(frozen=True)
class IntensityScale:
    """z = (x - centre) / width, clipped to [lower, upper], mapped linearly to [-1, 1]."""

    centre: float
    width: float
    lower: float
    upper: float

    def normalise(self, array: np.ndarray, brain: np.ndarray) -> np.ndarray:
        """Map intensities to [-1, 1] float32; outside the brain the result is -1."""
        z = (array.astype(np.float64) - self.centre) / self.width
        z = np.clip(z, self.lower, self.upper)
        unit = 2 * (z - self.lower) / (self.upper - self.lower) - 1
        return np.where(brain, unit, BACKGROUND).astype(np.float32)

    def restore(self, array: np.ndarray) -> np.ndarray:
        """Map [-1, 1] back to intensities (the inverse of :meth:`normalise` inside the clip)."""
        z = (array + 1) / 2 * (self.upper - self.lower) + self.lower
        return (z * self.width + self.centre).astype(np.float32)

    def to_dict(self) -> dict[str, float]:
        """Return the four numbers, for a sidecar or a cache."""
        return {name: float(value) for name, value in asdict(self).items()}


class Normaliser:
    """Measures an :class:`IntensityScale`. Subclasses say what centre and width are.

    Args:
        lower, upper: clip bounds in units of the width; late, so that the tail of a contrast
            agent's enhancement is kept.
    """

    def __init__(self, lower: float = -4.0, upper: float = 8.0) -> None:
        if not lower < upper:
            raise ValueError(f"lower {lower} must be below upper {upper}")
        self.lower, self.upper = float(lower), float(upper)

    def measure(self, values: np.ndarray) -> tuple[float, float]:
        """Return (centre, width) of the intensities ``values`` (N,)."""
        raise NotImplementedError

    def fit(
        self, array: np.ndarray, brain: np.ndarray, contrast: str, case: str | None = None
    ) -> IntensityScale:
        """Measure the scale of ``array`` where the brain is and the contrast was acquired.

        Raises:
            DataError: DATA-CONSTANT when there is no spread to normalise by.
        """
        values = array[brain & (array != 0)].astype(np.float64)
        centre, width = self.measure(values) if values.size else (0.0, 0.0)
        if not width > 0:
            raise DataError(
                "DATA-CONSTANT",
                f"{contrast} has no spread of intensities in the brain (about {centre:g} almost "
                "everywhere), expected an image: check the file",
                case,
            )
        return IntensityScale(centre, width, self.lower, self.upper)

    def to_dict(self) -> dict[str, Any]:
        """Return name and parameters, for a cache key or a report."""
        return {"name": type(self).__name__, **vars(self)}


class RobustNormaliser(Normaliser):
    """Median and inter-quartile range of the brain (the default)."""

    def measure(self, values: np.ndarray) -> tuple[float, float]:  # noqa: D102
        low, median, high = np.percentile(values, (25, 50, 75))
        return float(median), float(high - low)


class ZScoreNormaliser(Normaliser):
    """Mean and standard deviation of the brain."""

    def measure(self, values: np.ndarray) -> tuple[float, float]:  # noqa: D102
        return float(values.mean()), float(values.std())


class PercentileNormaliser(Normaliser):
    """Percentile min-max. The tumour rim and vessels set the scale: see the module's text.

    Args:
        low, high: percentiles mapped to -1 and 1; intensities beyond are clipped.
    """

    def __init__(self, low: float = 0.5, high: float = 99.5) -> None:
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles {low}, {high}: give 0 <= low < high <= 100")
        super().__init__(lower=0.0, upper=1.0)
        self.low, self.high = float(low), float(high)

    def measure(self, values: np.ndarray) -> tuple[float, float]:  # noqa: D102
        low, high = np.percentile(values, (self.low, self.high))
        return float(low), float(high - low)
