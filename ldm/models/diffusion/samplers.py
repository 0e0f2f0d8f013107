"""Samplers: plain functions from noise to data, each to be checked against its paper.

All share one call, ``sampler(denoise, x_T, schedule, steps, ...) -> x_0``:

- ``denoise(x_t, t)`` predicts ``x_0``; x_t (B, ...), t (B,) on the device of x_t, int64 (floating
  point only where the caller asks for timesteps between integers).
- ``x_T`` (B, ...) is standard normal noise. The arithmetic is float32, or float64 with float64 x_T.
- ``steps`` is their number, placed by ``spacing`` and ending at clean data; or the decreasing
  timesteps themselves, the last of which is where to stop (-1 is clean data). A step calls the
  network once, except with ``plms`` (once more in all) and ``heun`` (twice, but for the last step).
- ``noise(step, x)`` gives standard normal values like x for step 0, 1, ...; all randomness besides
  x_T comes from it. Samplers that use none accept it unused.
- ``callback(step, total, x, x_0)`` sees x after each step and the prediction that led there.

Each works on any schedule, also from pure noise. The last step to clean data is of first order: it
ends at the last prediction. The samplers in lambda are in :mod:`ldm.models.diffusion.solvers`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ldm.errors import ConfigError, bad_value, nearest, one_of
from ldm.models.diffusion.gaussian import VARIANCES, posterior_coefficients, split_output
from ldm.models.diffusion.guidance import THRESHOLDS
from ldm.models.diffusion.path import (
    SHARED_OPTIONS,
    DenoiseLevel,
    Level,
    Noise,
    Sampler,
    Walk,
    sampler,
)
from ldm.models.diffusion.schedule import Schedule
from ldm.models.diffusion.solvers import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, unipc_2, unipc_3

# Adams-Bashforth coefficients of order 2, 3 and 4, for the latest value first
ADAMS = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@sampler
def ddpm(
    denoise: DenoiseLevel,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    *,
    variance: str = "fixed_small",
) -> Walk:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), between any two timesteps.

    ``variance`` is that of the reverse step (section 3.2): ``fixed_small``, the posterior's
    ``beta~``; ``fixed_large``, the forward step's ``beta``; ``learned`` or ``learned_range``, for
    which denoise returns (B, 2C, ...), x_0 and then the network's channels of the variance.
    """
    for step, (now, to) in enumerate(pairwise(levels)):
        x_0, values = split_output(denoise(x, now), variance)
        factor_x_0, factor_x_t, small, large = posterior_coefficients(
            now.alpha, now.sigma, to.alpha, to.sigma
        )
        x = factor_x_0 * x_0 + factor_x_t * x  # eq. 7
        if to.sigma > 0:
            log_variance = VARIANCES[variance](math.log(small), math.log(large), values)
            x = x + torch.exp(torch.as_tensor(log_variance / 2, dtype=x.dtype)) * noise(step, x)
        yield x, x_0


@sampler
def ddim(
    denoise: DenoiseLevel, x: Tensor, levels: Sequence[Level], noise: Noise, *, eta: float = 0.0
) -> Walk:
    """DDIM (Song et al. 2021): deterministic for ``eta = 0``, the variance of DDPM for 1."""
    if not 0 <= eta <= 1:
        raise bad_value(f"eta is {eta!r}; expected a number from 0 (no noise) to 1 (DDPM)")
    for step, (now, to) in enumerate(pairwise(levels)):
        x_0 = denoise(x, now)
        *_, variance, _ = posterior_coefficients(now.alpha, now.sigma, to.alpha, to.sigma)
        std = eta * math.sqrt(variance)  # eq. 16
        x = to.alpha * x_0 + math.sqrt(to.sigma**2 - std**2) * now.eps(x, x_0)  # eq. 12
        if std > 0:
            x = x + std * noise(step, x)
        yield x, x_0


@sampler
def plms(denoise: DenoiseLevel, x: Tensor, levels: Sequence[Level], noise: Noise) -> Walk:
    """Pseudo linear multistep (Liu et al. 2022): Adams-Bashforth of eps in steps of DDIM.

    The first step is the improved Euler method, as in latent-diffusion, which takes one network
    call more; the order then rises to four.
    """
    known: list[Tensor] = []  # eps, the latest first
    for now, to in pairwise(levels):
        x_0 = denoise(x, now)
        known = [now.eps(x, x_0), *known][:4]
        ahead = to.mix(x_0, known[0])  # DDIM, which is all that leads from noise or to data
        if now.alpha > 0 and to.sigma > 0:
            if len(known) == 1:
                eps = (known[0] + to.eps(ahead, denoise(ahead, to))) / 2
            else:
                eps = sum(c * e for c, e in zip(ADAMS[len(known)], known, strict=True))  # eq. 12
            ahead = to.mix((x - now.sigma * eps) / now.alpha, eps)  # eq. 11
        x = ahead
        yield x, x_0


@sampler
def euler(denoise: DenoiseLevel, x: Tensor, levels: Sequence[Level], noise: Noise) -> Walk:
    """Euler's method for the probability flow ``dx = x_0 d alpha + eps d sigma``.

    On the straight path of rectified flow ``dx = (eps - x_0) d time`` (Liu et al. 2023, eq. 1); on
    any path a step of DDIM.
    """
    for now, to in pairwise(levels):
        x_0 = denoise(x, now)
        x = to.mix(x_0, now.eps(x, x_0))
        yield x, x_0


@sampler
def heun(denoise: DenoiseLevel, x: Tensor, levels: Sequence[Level], noise: Noise) -> Walk:
    """Heun's method for the same flow: the mean of the slopes at both ends of Euler's step."""
    for now, to in pairwise(levels):
        x_0 = denoise(x, now)
        eps = now.eps(x, x_0)
        ahead = to.mix(x_0, eps)
        if to.sigma > 0:
            x_0_ahead = denoise(ahead, to)
            eps_ahead = to.eps(ahead, x_0_ahead)
            ahead = x + (to.alpha - now.alpha) * (x_0 + x_0_ahead) / 2
            ahead = ahead + (to.sigma - now.sigma) * (eps + eps_ahead) / 2
        x = ahead
        yield x, x_0


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "plms": plms,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc_2": unipc_2,
    "unipc_3": unipc_3,
    "euler": euler,
    "heun": heun,
}


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled in validation, and by ``dsdiff sample`` where nothing else is asked.

    Args:
        sampler: ``ddim``, ``ddpm``, ``dpmpp_2m``, ``unipc_3``, ``heun`` or another of
            :data:`SAMPLERS`.
        sampling_steps: steps of the sampler.
        temperature: of the noise: 0, one image close to the conditional mean; 1, a sample, see
            :class:`~ldm.models.diffusion.noise.KeyedNoise`.
        threshold: of predicted images in pixel space: ``clip``, ``dynamic`` or ``none``.
        spread: of samples about the posterior mean, where the model has learned it; 1: as wide as
            data of unit variance are, whatever the sampler and its steps, see
            :func:`ldm.models.diffusion.spread.width`; None: as sampled.

    Raises:
        ConfigError: CONFIG-VALUE for an unknown name.
    """

    sampler: str = "ddim"
    sampling_steps: int = 10
    temperature: float = 0.0
    threshold: str = "clip"
    spread: float | None = None

    def __post_init__(self) -> None:
        one_of("model.params.sampler", self.sampler, SAMPLERS)
        one_of("model.params.threshold", self.threshold, THRESHOLDS)


def options_of(name: str) -> list[str]:
    """The options that the sampler of that name takes.

    Raises:
        ConfigError: CONFIG-VALUE for an unknown name.
    """
    one_of("sampler", name, SAMPLERS)
    parameters = inspect.signature(SAMPLERS[name]).parameters.values()
    return [*SHARED_OPTIONS, *(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)]


def get_sampler(name: str, **options: Any) -> Sampler:
    """The sampler of that name, with options of its own (such as ``eta``) already given.

    Raises:
        ConfigError: CONFIG-VALUE for an unknown name, CONFIG-UNKNOWN for an option that this
            sampler does not take.
    """
    taken = options_of(name)
    for option in options:
        if option not in taken:
            raise ConfigError(
                "CONFIG-UNKNOWN",
                f"sampler {name} takes no {option}{nearest(option, taken)}; it takes "
                f"{', '.join(taken)}",
            )
    return functools.partial(SAMPLERS[name], **options)


def asked_timesteps(name: str, schedule: Schedule, steps: int, **options: Any) -> list[float]:
    """The timesteps at which a sampler calls the network, found by letting it sample a number.

    Raises:
        ConfigError: see :func:`get_sampler`; CONFIG-VALUE for a count of steps without a grid.
    """
    asked: list[float] = []
    sample = get_sampler(name, **options)
    sample(lambda x, t: asked.append(t.item()) or x, torch.zeros(1, 1), schedule, steps)
    return asked
