"""Samplers: plain functions from noise to data, each to be checked against its paper.

All share one call, ``sampler(denoise, x_T, schedule, steps, ...) -> x_0``:

- ``denoise(x_t, t)`` predicts ``x_0``; x_t (B, ...), t (B,) on the device of x_t, int64 (floating
  point only where the caller asks for timesteps between integers).
- ``x_T`` (B, ...) is standard normal noise. The arithmetic is float32, or float64 with float64 x_T.
- ``steps`` is the number of network calls, placed by ``spacing`` and ending at clean data; or the
  decreasing timesteps themselves, the last of which is where to stop (-1 is clean data).
- ``noise(step, x)`` gives standard normal values like x for step 0, 1, ...; all randomness besides
  x_T comes from it. Samplers that use none accept it unused.
- ``callback(step, total, x, x_0)`` sees x after each step and the prediction that led there.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.errors import ConfigError
from ldm.models.diffusion.gaussian import posterior_coefficients
from ldm.models.diffusion.schedule import NoiseSchedule, sampling_timesteps

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int, Tensor], Tensor]
Callback = Callable[[int, int, Tensor, Tensor], None]
Sampler = Callable[..., Tensor]


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


def standard_normal(step: int, x: Tensor) -> Tensor:
    """Noise from torch's global generator."""
    return torch.randn_like(x)


def ddpm(
    denoise: Denoise,
    x_T: Tensor,
    schedule: NoiseSchedule,
    steps: int | Sequence[float],
    *,
    variance: str = "fixed_small",
    noise: Noise = standard_normal,
    spacing: str = "trailing",
    callback: Callback | None = None,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), between any two timesteps.

    ``variance`` is that of the reverse step (section 3.2): ``fixed_small``, the posterior's
    ``beta~``, or ``fixed_large``, the forward step's ``beta``.
    """
    if variance not in ("fixed_small", "fixed_large"):
        raise _bad_value(f"variance is {variance!r}; expected fixed_small or fixed_large")
    x, levels = _start(x_T, schedule, steps, spacing)
    for step, (now, to) in enumerate(pairwise(levels)):
        x_0 = denoise(x, now.timesteps(x))
        factor_x_0, factor_x_t, small, large = posterior_coefficients(
            now.alpha, now.sigma, to.alpha, to.sigma
        )
        x = factor_x_0 * x_0 + factor_x_t * x  # eq. 7
        if to.sigma > 0:
            std = math.sqrt(small if variance == "fixed_small" else large)
            x = x + std * noise(step, x)
        if callback is not None:
            callback(step, len(levels) - 1, x, x_0)
    return x


def ddim(
    denoise: Denoise,
    x_T: Tensor,
    schedule: NoiseSchedule,
    steps: int | Sequence[float],
    *,
    eta: float = 0.0,
    noise: Noise = standard_normal,
    spacing: str = "trailing",
    callback: Callback | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021): deterministic for ``eta = 0``, the variance of DDPM for 1."""
    if not 0 <= eta <= 1:
        raise _bad_value(f"eta is {eta!r}; expected a number from 0 (no noise) to 1 (DDPM)")
    x, levels = _start(x_T, schedule, steps, spacing)
    for step, (now, to) in enumerate(pairwise(levels)):
        x_0 = denoise(x, now.timesteps(x))
        eps = (x - now.alpha * x_0) / now.sigma
        *_, variance, _ = posterior_coefficients(now.alpha, now.sigma, to.alpha, to.sigma)
        std = eta * math.sqrt(variance)  # eq. 16
        x = to.alpha * x_0 + math.sqrt(to.sigma**2 - std**2) * eps  # eq. 12
        if std > 0:
            x = x + std * noise(step, x)
        if callback is not None:
            callback(step, len(levels) - 1, x, x_0)
    return x


def dpmpp_2m(
    denoise: Denoise,
    x_T: Tensor,
    schedule: NoiseSchedule,
    steps: int | Sequence[float],
    *,
    noise: Noise = standard_normal,
    spacing: str = "trailing",
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M), deterministic, second order, multistep (Lu et al. 2022, algorithm 2).

    The last step is of first order where it ends at clean data (there ``lambda`` is infinite) and
    for fewer than 15 steps (the authors' choice against instability).
    """
    x, levels = _start(x_T, schedule, steps, spacing)
    total = len(levels) - 1
    first_order_last = levels[-1].sigma == 0 or total < 15
    x_0_before, h_before = x, math.inf  # nothing before the first step: 1/r = 0, D = x_0
    for step, (now, to) in enumerate(pairwise(levels)):
        x_0 = denoise(x, now.timesteps(x))
        h = to.half_log_snr - now.half_log_snr
        if step == total - 1 and first_order_last:
            D = x_0
        else:
            r = h_before / h
            D = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * x_0_before
        x = to.sigma / now.sigma * x - to.alpha * math.expm1(-h) * D
        x_0_before, h_before = x_0, h
        if callback is not None:
            callback(step, total, x, x_0)
    return x


SAMPLERS: dict[str, Sampler] = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m}


def get_sampler(name: str, **options: Any) -> Sampler:
    """The sampler of that name, with options of its own (such as ``eta``) already given.

    Raises:
        ConfigError: CONFIG-VALUE for an unknown name, CONFIG-UNKNOWN for an option that this
            sampler does not take.
    """
    if name not in SAMPLERS:
        raise _bad_value(f"sampler is {name!r}; expected one of {', '.join(SAMPLERS)}")
    sampler = SAMPLERS[name]
    parameters = inspect.signature(sampler).parameters.values()
    taken = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in taken:
            raise ConfigError(
                "CONFIG-UNKNOWN",
                f"sampler {name} takes no {option}; it takes {', '.join(taken)}",
            )
    return functools.partial(sampler, **options)


def _start(
    x_T: Tensor, schedule: NoiseSchedule, steps: Any, spacing: str
) -> tuple[Tensor, list[Level]]:
    """The noise in the dtype of the arithmetic, and the path from it to where sampling stops."""
    if np.ndim(steps) == 0:
        path = [*sampling_timesteps(schedule, steps, spacing).tolist(), -1]
    else:
        path = [int(t) if isinstance(t, Integral) else float(t) for t in steps]
        falls = all(t > s for t, s in pairwise(path))
        if len(path) < 2 or not falls or path[0] > len(schedule) - 1 or path[-1] < -1:
            raise _bad_value(
                f"timesteps {path}; expected two or more, decreasing from at most "
                f"{len(schedule) - 1} to no less than -1"
            )
    t = torch.tensor(path, dtype=torch.float64)
    columns = schedule.alpha(t), schedule.sigma(t), schedule.half_log_snr(t)
    levels = [Level(*row) for row in zip(path, *(c.tolist() for c in columns), strict=True)]
    return x_T.to(torch.promote_types(x_T.dtype, torch.float32)), levels


def _bad_value(message: str) -> ConfigError:
    return ConfigError("CONFIG-VALUE", message)
