"""Gaussian diffusion: the forward process, its posterior, and what a network may predict.

Pure functions of tensors and a :class:`~ldm.models.diffusion.schedule.NoiseSchedule`.
``x_t = alpha_t x_0 + sigma_t eps`` throughout; x (B, ...), t (B,) integer timesteps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ldm.errors import ConfigError
from ldm.models.diffusion.schedule import NoiseSchedule, gather

Number = TypeVar("Number", float, Tensor)

# A network's target is p x_0 + q eps; each row gives (p, q) from alpha_t and sigma_t. With the
# definition of x_t this is a 2 x 2 linear system, from which every conversion below follows.
PARAMETERISATIONS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor | float, Tensor | float]]] = {
    "eps": lambda alpha, sigma: (0.0, 1.0),  # Ho et al. 2020
    "x0": lambda alpha, sigma: (1.0, 0.0),
    "v": lambda alpha, sigma: (-sigma, alpha),  # Salimans & Ho 2022, appendix D
}


def q_sample(x_0: Tensor, t: Tensor, eps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Noisy data ``x_t`` drawn from ``q(x_t | x_0)`` with the noise eps (Ho et al. 2020, eq. 4)."""
    alpha, sigma = schedule.at(t, x_0)
    return alpha * x_0 + sigma * eps


def target_of(kind: str, x_0: Tensor, eps: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """What a network of parameterisation kind (``eps``, ``x0``, ``v``) should return at t."""
    p, q = _row(kind)(*schedule.at(t, x_0))
    return p * x_0 + q * eps


def to_x_0(kind: str, output: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The clean data that a network's output stands for."""
    alpha, sigma = schedule.at(t, x_t)
    p, q = _row(kind)(alpha, sigma)
    return (q * x_t - sigma * output) / (alpha * q - sigma * p)


def to_eps(kind: str, output: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The noise that a network's output stands for."""
    alpha, sigma = schedule.at(t, x_t)
    p, q = _row(kind)(alpha, sigma)
    return (alpha * output - p * x_t) / (alpha * q - sigma * p)


def min_snr_weight(
    kind: str, x: Tensor, t: Tensor, schedule: NoiseSchedule, gamma: float = 5.0
) -> Tensor:
    """Weight on the squared error of a network's output, min-SNR-gamma (Hang et al. 2023).

    An error of ``x_0`` weighs ``min(SNR, gamma)``; an error of the output is one of ``x_0`` times
    ``sigma / (alpha q - sigma p)``, whose square carries the weight over.

    Returns:
        (B, 1, ...), to multiply the losses x (B, ...).
    """
    alpha, sigma = schedule.at(t, x)
    p, q = _row(kind)(alpha, sigma)
    error_of_x_0 = sigma / (alpha * q - sigma * p)
    return (alpha / sigma).square().clamp(max=gamma) * error_of_x_0**2


def posterior_coefficients(
    alpha_t: Number, sigma_t: Number, alpha_s: Number, sigma_s: Number
) -> tuple[Number, Number, Number, Number]:
    """The Gaussian ``q(x_s | x_t, x_0)`` between two noise levels s < t (Ho et al. 2020, eq. 7).

    Written for any s (Kingma et al. 2021, appendix A); ``s = t - 1`` gives the equation of DDPM.

    Returns:
        Factor of ``x_0``, factor of ``x_t``, variance (``beta~``), and the variance of the forward
        step ``q(x_t | x_s)`` (``beta``).
    """
    alpha_ts = alpha_t / alpha_s
    beta = sigma_t**2 - alpha_ts**2 * sigma_s**2
    factor_x_t = alpha_ts * sigma_s**2 / sigma_t**2
    factor_x_0 = alpha_s * beta / sigma_t**2
    return factor_x_0, factor_x_t, beta * sigma_s**2 / sigma_t**2, beta


def q_posterior(
    x_0: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and log variance of ``q(x_{t-1} | x_t, x_0)`` (Ho et al. 2020, eq. 6 and 7).

    The variance at t = 0 is zero; its logarithm is replaced by that of t = 1.

    Returns:
        mean (B, ...), variance (B, 1, ...), log variance (B, 1, ...).
    """
    now = torch.arange(len(schedule))
    factor_x_0, factor_x_t, variance, _ = posterior_coefficients(
        schedule.alpha(now), schedule.sigma(now), schedule.alpha(now - 1), schedule.sigma(now - 1)
    )
    log_variance = torch.cat([variance[1:2], variance[1:]]).log()
    mean = gather(factor_x_0, t, x_t) * x_0 + gather(factor_x_t, t, x_t) * x_t
    return mean, gather(variance, t, x_t), gather(log_variance, t, x_t)


def _row(kind: str) -> Callable[[Tensor, Tensor], tuple[Tensor | float, Tensor | float]]:
    if kind not in PARAMETERISATIONS:
        known = ", ".join(PARAMETERISATIONS)
        raise ConfigError("CONFIG-VALUE", f"parameterisation is {kind!r}; expected one of {known}")
    return PARAMETERISATIONS[kind]
