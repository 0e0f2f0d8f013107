"""Gaussian diffusion: the forward process, its posterior, and what a network may predict.

Tables, and pure functions of tensors and a :class:`~ldm.models.diffusion.schedule.Schedule`, which
:class:`~ldm.models.diffusion.process.GaussianProcess` makes one object of.
``x_t = alpha_t x_0 + sigma_t eps`` throughout; x (B, ...), t (B,) integer timesteps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ldm.errors import bad_value, one_of
from ldm.models.diffusion.schedule import Schedule, gather

Number = TypeVar("Number", float, Tensor)

# A network's target is p x_0 + q eps; each row gives (p, q) from alpha_t and sigma_t. With the
# definition of x_t this is a 2 x 2 linear system, from which every conversion below follows.
PARAMETERISATIONS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor | float, Tensor | float]]] = {
    "eps": lambda alpha, sigma: (0.0, 1.0),  # Ho et al. 2020
    "x0": lambda alpha, sigma: (1.0, 0.0),
    "v": lambda alpha, sigma: (-sigma, alpha),  # Salimans & Ho 2022, appendix D
    "flow": lambda alpha, sigma: (-1.0, 1.0),  # Liu et al. 2023: d x / d time on a FlowSchedule
}

# Log variance of the reverse step from the logarithms of beta~ and beta (Ho et al. 2020, section
# 3.2) and, if learned, the values that a network returns in channels of their own.
VARIANCES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "fixed_small": lambda small, large, values: small,
    "fixed_large": lambda small, large, values: large,
    "learned": lambda small, large, values: values,
    # Nichol & Dhariwal 2021, eq. 15, with its v = (values + 1) / 2
    "learned_range": lambda small, large, values: small + (values + 1) / 2 * (large - small),
}
LEARNED = ("learned", "learned_range")


def q_sample(x_0: Tensor, t: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """Noisy data ``x_t`` drawn from ``q(x_t | x_0)`` with the noise eps (Ho et al. 2020, eq. 4)."""
    alpha, sigma = schedule.at(t, x_0)
    return alpha * x_0 + sigma * eps


def min_snr_weight(snr: Tensor, gamma: float = 5.0) -> Tensor:
    """Weight on the squared error of x_0 by the SNR, min-SNR-gamma (Hang et al. 2023)."""
    return snr.clamp(max=gamma)


def p2_weight(snr: Tensor, gamma: float = 1.0, k: float = 1.0) -> Tensor:
    """Weight on the squared error of x_0 by the SNR, P2 (Choi et al. 2022, eq. 8).

    An error of ``eps`` weighs ``1 / (k + SNR)^gamma``, hence one of ``x_0`` SNR times as much.
    """
    return snr / (k + snr) ** gamma


def truncated_snr_weight(snr: Tensor) -> Tensor:
    """Weight on the squared error of x_0 by the SNR (Salimans & Ho 2022, eq. 9).

    It counts even in pure noise.
    """
    return snr.clamp(min=1)


LOSS_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "min_snr": min_snr_weight,
    "p2": p2_weight,
    "truncated_snr": truncated_snr_weight,
}


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
    x_0: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and log variance of ``q(x_{t-1} | x_t, x_0)`` (Ho et al. 2020, eq. 6 and 7).

    The variance at t = 0 is zero; its logarithm is replaced by that of t = 1.

    Returns:
        mean (B, ...), variance (B, 1, ...), log variance (B, 1, ...).
    """
    factor_x_0, factor_x_t, variance, _ = _posterior_of_every_step(schedule)
    mean = gather(factor_x_0, t, x_t) * x_0 + gather(factor_x_t, t, x_t) * x_t
    return mean, gather(variance, t, x_t), gather(_log_from_first_step(variance), t, x_t)


def split_output(output: Tensor, variance: str) -> tuple[Tensor, Tensor | None]:
    """What a network predicts of the mean and of the variance: halves of the channels if learned.

    Raises:
        ConfigError: CONFIG-VALUE for a variance that is not in :data:`VARIANCES`, or a learned one
            of a network without channels for it.
    """
    one_of("variance", variance, VARIANCES)
    if variance not in LEARNED:
        return output, None
    channels = output.shape[1]
    if channels % 2:
        raise bad_value(
            f"variance is {variance!r}, but the network returns {channels} channels; expected two "
            "for each channel of the image, or a fixed variance"
        )
    prediction, values = output.chunk(2, dim=1)
    return prediction, values


def p_posterior(
    x_0: Tensor, values: Tensor | None, x_t: Tensor, t: Tensor, schedule: Schedule, variance: str
) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the reverse step ``p(x_{t-1} | x_t)`` of a network.

    Args:
        x_0: (B, C, ...) what the network takes for clean data.
        values: (B, C, ...) its channels of the variance; None where it is not learned.
        x_t: (B, C, ...) noisy data.
        t: (B,) integer timesteps.
        schedule: gives the two bounds of the variance.
        variance: a key of :data:`VARIANCES`. For ``fixed_large`` the first timestep has the small
            variance of the second, since ``beta`` would blur the image there.

    Returns:
        mean (B, C, ...), log variance (B, C, ...) or (B, 1, ...).
    """
    mean, _, small = q_posterior(x_0, x_t, t, schedule)
    *_, beta_tilde, beta = _posterior_of_every_step(schedule)
    log_beta = beta.log()
    if variance == "fixed_large":
        log_beta[0] = _log_from_first_step(beta_tilde)[0]
    return mean, VARIANCES[variance](small, gather(log_beta, t, x_t), values)


def _posterior_of_every_step(schedule: Schedule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`posterior_coefficients` from each t to t - 1, four of (T,)."""
    now = torch.arange(len(schedule))
    return posterior_coefficients(
        schedule.alpha(now), schedule.sigma(now), schedule.alpha(now - 1), schedule.sigma(now - 1)
    )


def _log_from_first_step(variance: Tensor) -> Tensor:
    return torch.cat([variance[1:2], variance[1:]]).log()
