"""Samples in pairs of opposite noise, that lie about the posterior mean of their own network.

A sampler of few steps drifts: what it makes of a noise e and of -e has something in common that the
posterior mean, which one call of the network gives, has not, and that is error. The difference is
what the noise decides. Few steps make it too small by a factor that is known, see :func:`width`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.errors import bad_value
from ldm.models.diffusion.noise import KeyedNoise
from ldm.models.diffusion.path import Denoise, Sampler
from ldm.models.diffusion.schedule import Schedule


def draw_samples(
    walk: Callable[[KeyedNoise], Tensor], noise: KeyedNoise, factor: float | None, both: bool
) -> list[Tensor]:
    """Return x_0 (B, C, ...) of one sample, or of ``both`` signs of the noise.

    Two such samples are antithetic variates (Hammersley & Morton 1956): what is odd in the noise
    cancels in their mean. With a factor k they are ``mean + k d`` and ``mean - k d``, where d is
    half of the difference of what the sampler makes of the noise and of its negative.

    Args:
        walk: a sampler from noise to x_0; at temperature 0 it gives the posterior mean.
        noise: of the sample.
        factor: k, the spread that is asked for over :func:`width`; None: the sampler's own results.
    """
    if factor is None:
        return [walk(noise), walk(noise.mirrored())] if both else [walk(noise)]
    half = factor / 2 * (walk(noise) - walk(noise.mirrored()))
    mean = walk(noise.at(0.0))
    return [mean + half, mean - half] if both else [mean + half]


def width(sampler: Sampler, schedule: Schedule, steps: int | Sequence[int]) -> float:
    """Return the standard deviation that a sampler gives to data whose own is 1.

    The best denoiser of normal data is linear, and so is every sampler, given it: what it makes of
    each of its noises by itself adds up. DDIM of 2, 4, 10 and 50 steps of the cosine schedule has
    0.50, 0.73, 0.88 and 0.98, and networks make as much less of few steps.
    """
    noises = torch.eye(1 + (steps if isinstance(steps, int) else len(steps)), dtype=torch.float64)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.at(t, x)
        return alpha / (alpha**2 + sigma**2) * x

    def noise(step: int, x: Tensor) -> Tensor:
        return noises[:, 1 + step, None]

    of_each = sampler(denoise, noises[:, :1], schedule, steps, noise=noise, callback=None)
    return float(of_each.norm())


def asked_once(denoise: Denoise, start: int) -> Denoise:
    """Return a denoiser that is called once at the first timestep, whatever the noise there.

    Where a network shows its mean, all samplers of one batch begin with the same call.
    """
    known: list[Tensor] = []

    def answer(x: Tensor, t: Tensor) -> Tensor:
        if not bool((t == start).all()):
            return denoise(x, t)
        if not known:
            known.append(denoise(x, t))
        return known[0]

    return answer


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
        exact = np.where(np.isinf(exact), np.nan, exact)  # which numpy adds up without a warning
        total, squares, count = total + exact, squares + exact**2, count + 1
    mean, free = total / count, count - (count % 2 / count if mirrored else 1)
    return mean, np.sqrt(np.maximum(squares - count * mean**2, 0) / max(1.0, free))


def calls_of(asked: Sequence[float], start: int, spread: float | None) -> int:
    """Return the network calls of one sample.

    Args:
        asked: the timesteps at which its sampler calls the network.
        start: the first timestep, at which all samplers that lie about a mean share a call.
    """
    return len(asked) if spread is None else 1 + 2 * sum(t != start for t in asked)


def require_mean(knows_mean: bool, spread: float | None) -> None:
    """Refuse a spread about a mean that a model has not learned; raises ConfigError."""
    if spread is not None and not knows_mean:
        raise bad_value(
            f"spread is {spread}, but the model has not learned a mean that its samples would lie "
            "about: leave it out"
        )
