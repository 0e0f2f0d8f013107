"""Samples in pairs of opposite noise, that lie about the posterior mean of their own network.

A sampler of few steps drifts: what it makes of a noise e and of -e has something in common that the
posterior mean, which one call of the network gives, has not, and that is error. The difference is
what the noise decides; it is too small where a network is too sure of what it has learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ldm.errors import bad_value
from ldm.models.diffusion.noise import KeyedNoise


def draw_samples(
    walk: Callable[[KeyedNoise], Tensor], noise: KeyedNoise, spread: float | None, both: bool
) -> list[Tensor]:
    """Return x_0 (B, C, ...) of one sample, or of ``both`` signs of the noise.

    Two such samples are antithetic variates (Hammersley & Morton 1956): what is odd in the noise
    cancels in their mean. With a spread k they are ``mean + k d`` and ``mean - k d``, where d is
    half of the difference of what the sampler makes of the noise and of its negative.

    Args:
        walk: a sampler from noise to x_0; at temperature 0 it gives the posterior mean.
        noise: of the sample.
        spread: factor k; None: the sampler's own results.
    """
    if spread is None:
        return [walk(noise), walk(noise.mirrored())] if both else [walk(noise)]
    half = spread / 2 * (walk(noise) - walk(noise.mirrored()))
    mean = walk(noise.at(0.0))
    return [mean + half, mean - half] if both else [mean + half]


def mean_and_deviation(
    images: Iterable[NDArray[Any]], mirrored: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return mean and standard deviation of samples.

    Their squares are divided by N - 1. With a spread every second one mirrors the one before
    (``mirrored``): the mean of a pair does not vary, so that they are divided by N, or, as the last
    of an odd number has no other, by N - 1/N.
    """
    total, squares, count = np.zeros(()), np.zeros(()), 0
    for image in images:
        exact = np.asarray(image, np.float64)
        total, squares, count = total + exact, squares + exact**2, count + 1
    mean, free = total / count, count - (count % 2 / count if mirrored else 1)
    return mean, np.sqrt(np.maximum(squares - count * mean**2, 0) / max(1.0, free))


def calls_of_sample(calls: int, spread: float | None) -> int:
    """Return the network calls of one sample by a sampler that makes so many."""
    return calls if spread is None else 2 * calls + 1


def require_mean(knows_mean: bool, spread: float | None) -> None:
    """Refuse a spread about a mean that a model has not learned; raises ConfigError."""
    if spread is not None and not knows_mean:
        raise bad_value(
            f"spread is {spread}, but the model has not learned a mean that its samples would lie "
            "about: leave it out"
        )
