"""The variational bound of Gaussian diffusion, in bits per dimension.

``-log p(x_0) <= L_T + sum_t L_t`` (Ho et al. 2020, eq. 5). L_T depends on the schedule alone; the
others are a Kullback-Leibler divergence at each timestep and, at t = 0, the likelihood of 8-bit
data, which is what x_0 in [-1, 1] is taken for. x (B, C, ...), t (B,) integer timesteps; results
(B,), averaged over all dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm.models.diffusion.gaussian import p_posterior, q_posterior
from ldm.models.diffusion.schedule import Schedule


def normal_kl(
    mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor
) -> Tensor:
    """Kullback-Leibler divergence of N(mean_1, ...) from N(mean_2, ...), elementwise, in nats."""
    squared = (mean_1 - mean_2) ** 2 * torch.exp(-log_variance_2)
    # expm1 would be closer by 6e-5 of the prior term in float32, but not to the published figures
    ratio = torch.exp(log_variance_1 - log_variance_2)
    return 0.5 * (-1 + log_variance_2 - log_variance_1 + ratio + squared)


def discretised_log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log probability of 8-bit values in [-1, 1] under a normal, elementwise (Ho et al., eq. 13).

    The probability of a bin of width 2/255 about x_0, the outermost bins reaching to infinity.
    """
    inverse_std = torch.exp(-0.5 * log_variance)
    below = _normal_cdf(inverse_std * (x_0 - mean - 1 / 255))
    above = _normal_cdf(inverse_std * (x_0 - mean + 1 / 255))
    below = torch.where(x_0 < -0.999, 0.0, below)
    above = torch.where(x_0 > 0.999, 1.0, above)
    return (above - below).clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """Within 3e-4 (Page 1977); the published bits per dimension rest on this form."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def bound_term(
    predicted: Tensor,
    values: Tensor | None,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    schedule: Schedule,
    variance: str = "fixed_small",
) -> Tensor:
    """``L_{t-1}`` in bits per dimension, (B,): the decoder's at t = 0 (Ho et al. 2020, eq. 5).

    Args:
        predicted: (B, C, ...) what a network takes for clean data.
        values: (B, C, ...) its channels of the variance; None where it is not learned.
        x_0: (B, C, ...) data.
        x_t: (B, C, ...) noisy data that the network saw.
        t: (B,) integer timesteps.
        schedule: of the noise.
        variance: of the reverse step, a key of :data:`~ldm.models.diffusion.gaussian.VARIANCES`.
    """
    mean, log_variance = p_posterior(predicted, values, x_t, t, schedule, variance)
    true_mean, _, true_log_variance = q_posterior(x_0, x_t, t, schedule)
    divergence = normal_kl(true_mean, true_log_variance, mean, log_variance)
    decoder = -discretised_log_likelihood(x_0, mean, log_variance)
    return torch.where(t.to(x_0.device) == 0, _bits(decoder), _bits(divergence))


def _bits(nats: Tensor) -> Tensor:
    return nats.flatten(1).mean(dim=1) / math.log(2)
