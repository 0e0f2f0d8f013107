"""A patient of noise, in memory: what a training is rehearsed on before its patients are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.cache import CachedSubject
from ldm.data.normalise import IntensityScale, Normaliser, build_normaliser
from ldm.data.prepare import measured_scales
from ldm.errors import ConfigError, calling

CASE = "noise"
NOISE_LABELS = 4  # of the labels: 0 to 3


@dataclass(frozen=True)
class NoiseSubject(CachedSubject):
    """A prepared subject that is on no disk.

    Args:
        arrays: what :meth:`open` gives, by name.
    """

    arrays: Mapping[str, np.ndarray]

    def open(self, name: str) -> np.ndarray:
        """Return ``slices``, ``brain`` or ``seg``, see :class:`CachedSubject`."""
        return self.arrays[name]


def noise_subject(
    contrasts: Sequence[str],
    sides: tuple[int, ...],
    normaliser: Normaliser,
    config: Mapping[str, Any] | None = None,
) -> NoiseSubject:
    """Return a patient of noise: a brain but for its edge, with labels, seen by a normaliser.

    Args:
        contrasts: of its slices, in channel order.
        sides: (S, H, W).
        normaliser: which learns from it what it has to.
        config: of the normaliser, which must be the same when it is read from a run; None: no own.

    Raises:
        ConfigError, DataError: see :func:`ldm.data.prepare.measured_scales`.
    """
    own = np.random.default_rng(0)
    brain = np.zeros(sides, bool)
    brain[:, 1:-1, 1:-1] = True
    arrays = {c: brain * own.gamma(25, 4, sides).astype(np.float32) for c in contrasts}
    with calling(normaliser):
        for contrast in normaliser.to_learn(contrasts):
            profile = normaliser.profile(arrays[contrast], brain, contrast, CASE)
            normaliser.learn(contrast, [profile])
    scales = measured_scales(normaliser, arrays, brain, CASE)
    if config:
        _require_kept(normaliser, config, scales, arrays, brain)
    channels = [scales[c].normalise(array, brain) for c, array in arrays.items()]
    parts = {
        "slices": np.stack(channels, axis=1).astype(np.float16),
        "brain": brain,
        "seg": (own.integers(NOISE_LABELS, size=sides) * brain).astype(np.uint8),
    }
    return NoiseSubject(CASE, Path(), brain.mean(axis=(1, 2)), True, (1.0, 1.0, 1.0), parts)


def _require_kept(
    normaliser: Normaliser,
    config: Mapping[str, Any],
    scales: Mapping[str, IntensityScale],
    arrays: Mapping[str, np.ndarray],
    brain: np.ndarray,
) -> None:
    """Refuse a normaliser that measures other scales the second time, or as its run keeps it.

    Raises:
        ConfigError: CONFIG-TARGET.
    """
    with calling(normaliser):
        kept = build_normaliser(normaliser.learned_config(config))
        lost = list(kept.to_learn(list(arrays)))
    for again in () if lost else (normaliser, kept):
        found = measured_scales(again, arrays, brain, CASE)
        lost += [contrast for contrast, scale in scales.items() if found[contrast] != scale]
    if lost:
        raise ConfigError(
            "CONFIG-TARGET",
            f"data.params.normaliser_config: {type(normaliser).__name__} measures {lost[0]} "
            "otherwise the second time, or as it is read from its run: let learned_config return "
            "its params with what it has learned, and nothing else be kept",
        )
