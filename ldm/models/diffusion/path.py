"""What all samplers share: the path from noise to data, and the call that a user sees."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.errors import bad_value
from ldm.models.diffusion.schedule import Schedule, sampling_timesteps

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int, Tensor], Tensor]
Callback = Callable[[int, int, Tensor, Tensor], None]
Sampler = Callable[..., Tensor]
SHARED_OPTIONS = ("noise", "spacing", "callback")


class Level(NamedTuple):
    """A point on a sampler's path: timestep, ``alpha_t``, ``sigma_t``, ``lambda_t``."""

    t: float
    alpha: float
    sigma: float
    half_log_snr: float

    def timesteps(self, x: Tensor) -> Tensor:
        """(B,) this level's timestep for each item of x (B, ...)."""
        dtype = torch.int64 if isinstance(self.t, Integral) else x.dtype
        return torch.full((len(x),), self.t, dtype=dtype, device=x.device)

    def eps(self, x: Tensor, x_0: Tensor) -> Tensor:
        """The noise in x if x_0 is its clean data."""
        return (x - self.alpha * x_0) / self.sigma

    def mix(self, x_0: Tensor, eps: Tensor) -> Tensor:
        """Noisy data of this level."""
        return self.alpha * x_0 + self.sigma * eps


DenoiseLevel = Callable[[Tensor, Level], Tensor]
Walk = Iterator[tuple[Tensor, Tensor]]


def standard_normal(step: int, x: Tensor) -> Tensor:
    """Noise from torch's global generator."""
    return torch.randn_like(x)


def sampler(walk: Callable[..., Walk]) -> Sampler:
    """Make a sampler of a function that walks a path.

    Args:
        walk: ``walk(denoise, x, levels, noise, **options)`` with ``denoise(x, level) -> x_0`` and
            levels from most to least noise. After each step it yields x and the prediction of x_0
            that led there. Its keyword-only arguments are the options of the sampler.

    Returns:
        A function as described in :mod:`ldm.models.diffusion.samplers`.
    """

    @functools.wraps(walk)
    def sample(
        denoise: Denoise,
        x_T: Tensor,
        schedule: Schedule,
        steps: int | Sequence[float],
        *,
        noise: Noise = standard_normal,
        spacing: str = "trailing",
        callback: Callback | None = None,
        **options: Any,
    ) -> Tensor:
        levels = levels_of(schedule, steps, spacing)
        x = x_T.to(torch.promote_types(x_T.dtype, torch.float32))

        def predict(x: Tensor, level: Level) -> Tensor:
            return denoise(x, level.timesteps(x)).to(x.dtype)

        for step, (x, x_0) in enumerate(walk(predict, x, levels, noise, **options)):  # noqa: B020
            if callback is not None:
                callback(step, len(levels) - 1, x, x_0)
        return x

    return sample


def levels_of(schedule: Schedule, steps: int | Sequence[float], spacing: str) -> list[Level]:
    """The levels of a path, from where sampling starts to where it stops.

    Raises:
        ConfigError: CONFIG-VALUE for a count of steps that the spacing has no grid for, and for
            timesteps that do not decrease in range.
    """
    if np.ndim(steps) == 0:
        path = [*sampling_timesteps(schedule, steps, spacing).tolist(), -1]
    else:
        path = [int(t) if isinstance(t, Integral) else float(t) for t in steps]
        falls = all(t > s for t, s in pairwise(path))
        if len(path) < 2 or not falls or path[0] > len(schedule) - 1 or path[-1] < -1:
            raise bad_value(
                f"timesteps {path}; expected two or more, decreasing from at most "
                f"{len(schedule) - 1} to no less than -1"
            )
    t = torch.tensor(path, dtype=torch.float64)
    columns = schedule.alpha(t), schedule.sigma(t), schedule.half_log_snr(t)
    return [Level(*row) for row in zip(path, *(c.tolist() for c in columns), strict=True)]
