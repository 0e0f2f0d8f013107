"""What a curve of a run says: how far it fell, whether it still falls, whether it jumps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

WINDOWS = 20  # a run is one endless pass, so its curve is cut into windows, not epochs
LAST = 5  # windows that decide whether it is flat
FLAT_VARIANCE, FLAT_FALL = 1e-6, 1e-4  # of the loss itself, over the last windows
FLAT_SHARE = 0.01  # of its level: the same question where the loss has another scale
SURE = 2.0  # standard errors
JUMP, BEFORE = 3.0, 10  # times the median of so many values before


@dataclass(frozen=True)
class Curve:
    """A metric over training steps.

    Args:
        steps, values: (N,), at least one.
    """

    steps: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, steps: Sequence[int], values: Sequence[float]) -> Curve:
        """Return the curve of the finite values."""
        steps, values = np.asarray(steps), np.asarray(values, float)
        known = np.isfinite(values)
        return cls(steps[known], values[known])

    @cached_property
    def windows(self) -> np.ndarray:
        """Means (W,) of at most WINDOWS windows of equally many values, two of them at least."""
        count = max(1, min(WINDOWS, len(self.values) // 2))
        return np.array([part.mean() for part in np.array_split(self.values, count)])

    @property
    def first(self) -> float:
        """Mean of the first window."""
        return float(self.windows[0])

    @property
    def level(self) -> float:
        """Mean of the last windows."""
        return float(self.windows[-LAST:].mean())

    @property
    def fall(self) -> float:
        """Share of the first window that the curve has lost."""
        return 1 - self.level / self.first if self.first else 0.0

    @property
    def is_long(self) -> bool:
        """Whether there are enough values to speak of a trend."""
        return len(self.windows) > LAST

    @property
    def variance(self) -> float:
        """Variance of the last windows."""
        return float(self.windows[-LAST:].var())

    @cached_property
    def late_fall(self) -> tuple[float, float]:
        """Fall over the last windows, by a straight line through their values, and its error."""
        count = len(self.values) * LAST // len(self.windows)
        values = self.values[-count:]
        if len(values) < 3:
            return 0.0, np.inf
        x = np.linspace(-0.5, 0.5, len(values))
        slope = (x * values).sum() / (x * x).sum()
        residual = values - values.mean() - slope * x
        error = np.sqrt((residual**2).sum() / (len(values) - 2) / (x * x).sum())
        return float(-slope), float(error)

    @property
    def is_flat(self) -> bool:
        """Whether the end is a plateau.

        By the absolute rule (variance below 1e-6 and a fall below 1e-4); or, for losses of another
        scale, if the fall is less than 1 % of the level or no larger than its own uncertainty.
        """
        fall, error = self.late_fall
        absolute = self.variance < FLAT_VARIANCE and fall < FLAT_FALL
        return absolute or fall < max(FLAT_SHARE * abs(self.level), SURE * error)

    @property
    def is_falling(self) -> bool:
        """Whether it surely still falls at the end."""
        return self.is_long and not self.is_flat

    @property
    def jumps(self) -> int:
        """How many values are JUMP times the median of the BEFORE values before, or more."""
        if len(self.values) <= BEFORE:
            return 0
        before = np.lib.stride_tricks.sliding_window_view(self.values, BEFORE)[:-1]
        return int((self.values[BEFORE:] > JUMP * np.median(before, axis=1)).sum())

    @property
    def rise(self) -> float:
        """How far the last windows lie above the lowest, as a share of it."""
        lowest = float(self.windows.min())
        return self.level / lowest - 1 if lowest > 0 else 0.0


def plateau_start(curve: Curve) -> int | None:
    """Return the step from which a flat curve has its last level; None if it is not flat."""
    if not (curve.is_long and curve.is_flat):
        return None
    near = np.abs(curve.windows - curve.level) < 0.05 * abs(curve.first - curve.level) + 1e-12
    near |= np.abs(curve.windows - curve.level) < FLAT_SHARE * abs(curve.level)
    away = np.flatnonzero(~near[:-LAST])
    start = int(away[-1]) + 1 if len(away) else 0
    return int(
        curve.steps[min(start * len(curve.steps) // len(curve.windows), len(curve.steps) - 1)]
    )
