"""A patient of noise, in memory: what a training is rehearsed on before its patients are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm.data.cache import CachedSubject
from ldm.data.normalise import Normaliser
from ldm.data.prepare import measured_scales
from ldm.errors import calling

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
    contrasts: Sequence[str], sides: tuple[int, ...], normaliser: Normaliser
) -> NoiseSubject:
    """Return a patient of noise: a brain but for its edge, with labels, seen by a normaliser.

    Args:
        contrasts: of its slices, in channel order.
        sides: (S, H, W).
        normaliser: which learns from it what it has to.

    Raises:
        ConfigError, DataError: see :func:`ldm.data.prepare.measured_scales`.
    """
    own, case = np.random.default_rng(0), "noise"
    brain = np.zeros(sides, bool)
    brain[:, 1:-1, 1:-1] = True
    arrays = {c: brain * own.gamma(25, 4, sides).astype(np.float32) for c in contrasts}
    with calling(normaliser):
        for contrast in normaliser.to_learn(contrasts):
            profile = normaliser.profile(arrays[contrast], brain, contrast, case)
            normaliser.learn(contrast, [profile])
    scales = measured_scales(normaliser, arrays, brain, case)
    channels = [scales[c].normalise(array, brain) for c, array in arrays.items()]
    parts = {
        "slices": np.stack(channels, axis=1).astype(np.float16),
        "brain": brain,
        "seg": (own.integers(NOISE_LABELS, size=sides) * brain).astype(np.uint8),
    }
    return NoiseSubject(case, Path(), brain.mean(axis=(1, 2)), True, (1.0, 1.0, 1.0), parts)
