"""Intensity normalisation: per subject and contrast, from its own brain, to [-1, 1], invertible.

MR intensities have no unit, so each volume is brought to its own scale. A normaliser measures the
brain; :class:`IntensityScale` is the map that follows and its inverse. The default is median and
inter-quartile range: healthy tissue then agrees before and after an agent, because vessels and the
tumour rim, which the agent shows, do not set the scale. Effects: ``docs/preprocessing.md``.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from ldm.errors import ConfigError, DataError, bad_value
from ldm.intensity import BACKGROUND, LOWER, UPPER
from ldm.study import T1_WEIGHTED
from ldm.util import instantiate_from_config, nearest, params_of, with_params

OF_PROJECT = ("ldm", "builtins")
THIS_PROCESS = os.urandom(16)
BINS = 512  # of the histogram in which white matter is looked for


@dataclass(frozen=True)
class IntensityScale:
    """z = (f(x) - centre) / width, clipped to [lower, upper], mapped linearly to [-1, 1].

    f is the identity, or runs piecewise linearly through the points (``landmarks``, ``standard``)
    and beyond them with the slope of the outer pieces.

    Args:
        centre, width: in intensities, or in units of ``standard``.
        lower, upper: clip bounds in units of the width.
        landmarks: rising intensities (L,), or none.
        standard: rising values (L,) on the standard scale.
    """

    centre: float
    width: float
    lower: float
    upper: float
    landmarks: tuple[float, ...] = ()
    standard: tuple[float, ...] = ()

    def normalise(self, array: np.ndarray, brain: np.ndarray) -> np.ndarray:
        """Map intensities to [-1, 1] float32; outside the brain the result is -1."""
        z = np.clip(self.standardise(array), self.lower, self.upper)
        unit = 2 * (z - self.lower) / (self.upper - self.lower) - 1
        return np.where(brain, unit, BACKGROUND).astype(np.float32)

    def restore(self, array: np.ndarray) -> np.ndarray:
        """Map [-1, 1] back to intensities (the inverse of :meth:`normalise` inside the clip)."""
        return self._restored(array).astype(np.float32)

    def restore_spread(self, array: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """Map a standard deviation about ``array``, both in [-1, 1] units, to intensities."""
        return spread_through(self._restored, array, spread).astype(np.float32)

    def standardise(self, array: np.ndarray) -> np.ndarray:
        """Map intensities to z, not clipped, in float64."""
        x = np.asarray(array, np.float64)
        if self.landmarks:
            x = _piecewise(x, self.landmarks, self.standard)
        return (x - self.centre) / self.width

    def unstandardise(self, z: np.ndarray) -> np.ndarray:
        """Undo :meth:`standardise`."""
        x = z * self.width + self.centre
        return _piecewise(x, self.standard, self.landmarks) if self.landmarks else x

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, for a sidecar; landmarks only if there are some."""
        numbers = {name: np.asarray(value, float).tolist() for name, value in asdict(self).items()}
        return {name: value for name, value in numbers.items() if value != []}

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any]) -> IntensityScale:
        """Return the scale that :meth:`to_dict` described; further keys are ignored.

        Raises:
            KeyError, TypeError, ValueError: the numbers are no scale.
        """
        affine = {name: float(numbers[name]) for name in ("centre", "width", "lower", "upper")}
        points = {n: tuple(map(float, numbers.get(n, ()))) for n in ("landmarks", "standard")}
        if len(points["landmarks"]) != len(points["standard"]):
            raise ValueError("landmarks and standard differ in length")
        numbers_of = (*affine.values(), *points["landmarks"], *points["standard"])
        rising = all(map(_rises, points.values()))
        if not (np.isfinite(numbers_of).all() and affine["width"] > 0 and rising):
            raise ValueError(f"no scale has {affine}")
        return cls(**affine, **points)

    def _restored(self, array: np.ndarray) -> np.ndarray:
        z = (np.asarray(array, np.float64) + 1) / 2 * (self.upper - self.lower) + self.lower
        return self.unstandardise(z)


def spread_through(
    mapping: Callable[[np.ndarray], np.ndarray], values: np.ndarray, spread: np.ndarray
) -> np.ndarray:
    """Return half of what ``values`` ± ``spread`` span after a rising map (exact if affine)."""
    values = np.asarray(values, np.float64)
    return (mapping(values + spread) - mapping(values - spread)) / 2


def _piecewise(x: np.ndarray, points: Sequence[float], images: Sequence[float]) -> np.ndarray:
    points, images = np.asarray(points), np.asarray(images)
    slopes = np.diff(images) / np.diff(points)
    piece = np.clip(np.searchsorted(points, x, side="right") - 1, 0, len(slopes) - 1)
    return images[piece] + (x - points[piece]) * slopes[piece]


class Normaliser:
    """Measures an :class:`IntensityScale`. Subclasses say what centre and width are.

    Args:
        lower, upper: clip bounds in units of the width; late, so that the tail of a contrast
            agent's enhancement is kept.
    """

    def __init__(self, lower: float = LOWER, upper: float = UPPER) -> None:
        if not lower < upper:
            raise ValueError(f"lower {lower} must be below upper {upper}")
        self.lower, self.upper = float(lower), float(upper)

    def measure(self, values: np.ndarray, contrast: str) -> tuple[float, float]:
        """Return (centre, width) of the intensities ``values`` (N,); no spread is width 0."""
        raise NotImplementedError

    def fit(
        self, array: np.ndarray, brain: np.ndarray, contrast: str, case: str | None = None
    ) -> IntensityScale:
        """Measure the scale of ``array`` where the brain is and the contrast was acquired.

        Raises:
            DataError: DATA-CONSTANT when there is no spread to normalise by.
        """
        values = brain_values(array, brain)
        centre, width = self._measured(values, contrast) if values.size else (0.0, 0.0)
        if not width > 0:
            raise no_spread(contrast, centre, case)
        return IntensityScale(centre, width, self.lower, self.upper)

    def _measured(self, values: np.ndarray, contrast: str) -> tuple[float, float]:
        measured: Any = self.measure(values, contrast)
        try:
            centre, width = (float(number) for number in measured)
        except (TypeError, ValueError):
            centre = width = math.nan
        if not (math.isfinite(centre) and math.isfinite(width)):
            raise bad_value(
                f"{type(self).__name__}.measure returned {reprlib.repr(measured)} for {contrast}: "
                "it must return centre and width, two finite numbers"
            )
        return centre, width

    def to_dict(self) -> dict[str, Any]:
        """Return name, parameters and, of a class of one's own, its code: for a cache key.

        Two classes of one name, or one before and after a change, make other slices.
        """
        return {"name": type(self).__name__, **vars(self), **_own_code(type(self))}

    def to_learn(self, contrasts: Sequence[str]) -> list[str]:
        """Return those contrasts for which training subjects must be looked at first."""
        return []

    def learned_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the configuration of this normaliser with what it has learned."""
        return config


def _own_code(cls: type) -> dict[str, str]:
    """Return a digest of the files of a class that is not the project's, and of its bases.

    A class without a file, such as that of a notebook, is never taken for one of another process.
    """
    own = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in OF_PROJECT]
    if not own:
        return {}
    digest = hashlib.sha256()
    for base in own:
        digest.update(f"{base.__module__}.{base.__qualname__}".encode())
        try:
            digest.update(Path(inspect.getfile(base)).read_bytes())
        except (TypeError, OSError):
            digest.update(THIS_PROCESS)
    return {"code": digest.hexdigest()}


def brain_values(array: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Return the intensities (N,) float64 where the brain is and the contrast was acquired."""
    return array[brain & (array != 0)].astype(np.float64)


def no_spread(contrast: str, centre: float, case: str | None) -> DataError:
    """Return the refusal of a contrast without spread."""
    return DataError(
        "DATA-CONSTANT",
        f"{contrast} has no spread of intensities in the brain (about {centre:g} almost "
        "everywhere), expected an image: check the file",
        case,
    )


class RobustNormaliser(Normaliser):
    """Median and inter-quartile range of the brain (the default)."""

    def measure(self, values: np.ndarray, contrast: str) -> tuple[float, float]:  # noqa: D102
        low, median, high = np.percentile(values, (25, 50, 75))
        return float(median), float(high - low)


class ZScoreNormaliser(Normaliser):
    """Mean and standard deviation of the brain."""

    def measure(self, values: np.ndarray, contrast: str) -> tuple[float, float]:  # noqa: D102
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

    def measure(self, values: np.ndarray, contrast: str) -> tuple[float, float]:  # noqa: D102
        low, high = np.percentile(values, (self.low, self.high))
        return float(low), float(high - low)


class WhiteStripeNormaliser(Normaliser):
    """Mean and standard deviation of a stripe about the white-matter peak (Shinohara et al. 2014).

    White matter is the last large peak of the histogram in ``last_peak`` contrasts and the highest
    peak in the others. Approximations: the histogram is smoothed by a Gaussian instead of a
    penalised spline; each contrast has its own stripe over the whole brain, where the paper also
    describes one stripe of T1 and T2 together; a peak counts from 20 % of the highest on. In T2 and
    FLAIR the highest peak may be grey matter, and a large oedema moves it.

    Args:
        tau: the stripe reaches from the quantile of the peak - tau to that + tau.
        smoothing: standard deviation of the Gaussian, as a share of percentiles 1 to 99.
        last_peak: contrasts in which white matter is the brightest large tissue.
        lower, upper: clip bounds in standard deviations of the stripe, which are narrow.
    """

    def __init__(
        self,
        tau: float = 0.05,
        smoothing: float = 0.02,
        last_peak: Sequence[str] = T1_WEIGHTED,
        lower: float = -120.0,
        upper: float = 240.0,
    ) -> None:
        if not 0 < tau < 0.5 or not smoothing > 0:
            raise ValueError(f"tau {tau}, smoothing {smoothing}: give 0 < tau < 0.5, smoothing > 0")
        super().__init__(lower, upper)
        self.tau, self.smoothing, self.last_peak = float(tau), float(smoothing), list(last_peak)

    def measure(self, values: np.ndarray, contrast: str) -> tuple[float, float]:  # noqa: D102
        from scipy.signal import find_peaks  # it imports all of scipy.stats

        low, high = np.percentile(values, (1, 99))
        if not high > low:
            return float(low), 0.0
        counts, _ = np.histogram((values - low) / (high - low), BINS, (0, 1))
        density = gaussian_filter1d(counts.astype(float), self.smoothing * BINS, mode="constant")
        peaks, found = find_peaks(np.pad(density, 1), height=0.2 * density.max())
        number = -1 if contrast in self.last_peak else found["peak_heights"].argmax()
        peak = low + (peaks[number] - 0.5) / BINS * (high - low)  # padding moved it by one
        rank = (values < peak).mean()
        first, last = np.quantile(values, np.clip((rank - self.tau, rank + self.tau), 0, 1))
        stripe = values[(values >= first) & (values <= last)]
        return float(stripe.mean()), float(stripe.std())


class HistogramNormaliser(Normaliser):
    """Percentile landmarks to a standard scale, piecewise linearly (Nyul, Udupa and Zhang 2000).

    The standard scale of a contrast is the mean over the training subjects of their landmarks in
    units of median and inter-quartile range (the paper: of two extreme percentiles, which the
    tumour rim would set). It is learned once and stored in the configuration of the run.

    Args:
        standard: contrast -> rising values (L,), one for each percentile; None: to be learned.
        percentiles: the landmarks (L,).
        lower, upper: clip bounds on the standard scale.
    """

    def __init__(
        self,
        standard: Mapping[str, Sequence[float]] | None = None,
        percentiles: Sequence[float] = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99),
        lower: float = LOWER,
        upper: float = UPPER,
    ) -> None:
        super().__init__(lower, upper)
        self.percentiles = [float(p) for p in percentiles]
        if not _rises([-1e-9, *self.percentiles, 100 + 1e-9]) or len(self.percentiles) < 2:
            raise ValueError(f"percentiles {self.percentiles}: give rising numbers in 0 to 100")
        self.standard = {c: [float(v) for v in values] for c, values in (standard or {}).items()}
        for contrast, values in self.standard.items():
            if len(values) != len(self.percentiles) or not np.all(np.diff(values) >= 0):
                count = len(self.percentiles)
                raise ValueError(f"standard of {contrast} is {values}: give {count} rising values")

    def fit(  # noqa: D102
        self, array: np.ndarray, brain: np.ndarray, contrast: str, case: str | None = None
    ) -> IntensityScale:
        if contrast not in self.standard:
            raise ConfigError(
                "CONFIG-MISSING",
                f"normaliser_config.params.standard has no {contrast}: train with the normaliser, "
                "which learns it, or copy it from the config.yaml of a run",
            )
        values = brain_values(array, brain)
        points = np.percentile(values, self.percentiles) if values.size else np.zeros(1)
        kept: list[tuple[float, float]] = []
        for pair in zip(points.tolist(), self.standard[contrast], strict=False):
            if not kept or (pair[0] > kept[-1][0] and pair[1] > kept[-1][1]):
                kept.append(pair)
        if len(kept) < 2:
            raise no_spread(contrast, points[0], case)
        landmarks, standard = zip(*kept, strict=True)
        return IntensityScale(0.0, 1.0, self.lower, self.upper, landmarks, standard)

    def to_learn(self, contrasts: Sequence[str]) -> list[str]:  # noqa: D102
        return [c for c in contrasts if c not in self.standard]

    def profile(
        self, array: np.ndarray, brain: np.ndarray, contrast: str, case: str | None = None
    ) -> np.ndarray:
        """Return the landmarks (L,) of one subject in units of median and inter-quartile range."""
        scale = RobustNormaliser().fit(array, brain, contrast, case)
        return scale.standardise(np.percentile(brain_values(array, brain), self.percentiles))

    def learn(self, contrast: str, profiles: Sequence[np.ndarray]) -> None:
        """Set the standard scale of a contrast: the mean of :meth:`profile` over subjects."""
        self.standard[contrast] = np.mean(profiles, axis=0).round(6).tolist()

    def learned_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: D102
        return with_params(config, {"standard": self.standard})


class PerContrast(Normaliser):
    """A normaliser for each contrast.

    Args:
        **configs: contrast -> ``target`` / ``params`` of its normaliser; ``default`` is for all
            others (:class:`RobustNormaliser` if it is not given).
    """

    def __init__(self, **configs: Mapping[str, Any]) -> None:
        where = "data.params.normaliser_config.params"
        self.normalisers: dict[str, Normaliser] = {"default": RobustNormaliser()} | {
            name: instantiate_from_config(config, where=f"{where}.{name}")
            for name, config in configs.items()
        }

    def of(self, contrast: str) -> Normaliser:
        """Return the normaliser of a contrast."""
        return self.normalisers.get(contrast, self.normalisers["default"])

    def require_known(self, contrasts: Sequence[str]) -> None:
        """Refuse a normaliser for a contrast that does not exist.

        Raises:
            ConfigError: CONFIG-UNKNOWN.
        """
        for name in self.normalisers.keys() - {"default", *contrasts}:
            raise ConfigError(
                "CONFIG-UNKNOWN",
                f"data.params.normaliser_config.params.{name} is no contrast of this run"
                f"{nearest(name, contrasts)}: give {', '.join(contrasts)} or default",
            )

    def fit(  # noqa: D102
        self, array: np.ndarray, brain: np.ndarray, contrast: str, case: str | None = None
    ) -> IntensityScale:
        return self.of(contrast).fit(array, brain, contrast, case)

    def to_dict(self) -> dict[str, Any]:  # noqa: D102
        parts = {name: normaliser.to_dict() for name, normaliser in self.normalisers.items()}
        return {"name": type(self).__name__, **parts}

    def to_learn(self, contrasts: Sequence[str]) -> list[str]:  # noqa: D102
        return [c for c in contrasts if self.of(c).to_learn([c])]

    def profile(  # noqa: D102
        self, array: np.ndarray, brain: np.ndarray, contrast: str, case: str | None = None
    ) -> np.ndarray:
        return self.of(contrast).profile(array, brain, contrast, case)

    def learn(self, contrast: str, profiles: Sequence[np.ndarray]) -> None:  # noqa: D102
        self.of(contrast).learn(contrast, profiles)

    def learned_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: D102
        params = params_of(config)
        learned = {name: self.of(name).learned_config(params[name]) for name in params}
        return {**config, "params": learned}


def build_normaliser(config: Mapping[str, Any] | None) -> Normaliser:
    """Return the normaliser that a configuration names; None means the robust default."""
    if not config:
        return RobustNormaliser()
    where, needs = "data.params.normaliser_config", ("fit", "to_dict", "to_learn", "learned_config")
    return instantiate_from_config(config, where=where, needs=needs)


def _rises(values: Sequence[float]) -> bool:
    return bool(np.all(np.diff(values) > 0))
