"""Exact denoisers: data distributions whose posterior mean E[x_0 | x_t] is known in closed form.

A sampler that is given one has no network error, so what is left is its own error. Besides, the toy
network of the reference numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp


def exact_denoiser(data, schedule):
    """denoise(x_t, t) of the samplers, for x_t (B, D) and one timestep for all items."""
    return lambda x, t: data.x_0(x, schedule.alpha(t[:1]), schedule.sigma(t[:1]))


def noise_in(x_t, x_0, t, schedule):
    """The eps of x_t = alpha x_0 + sigma eps."""
    alpha, sigma = schedule.at(t, x_t)
    return (x_t - alpha * x_0) / sigma


def toy(x, t):
    """The network of the reference numbers (mathematics.json), x (B, C, H, W), t (B,)."""
    time = t.view(-1, 1, 1, 1)
    return torch.tanh(x * (1.5 - time / 1000)) * torch.cos(3 * time / 1000) + 0.1 * x


def toy_denoiser(kind, schedule):
    """The same as denoise(x_t, t), at real timesteps."""

    def denoise(x, t):
        output = toy(x, t)
        alpha, sigma = schedule.alpha(t).view(-1, 1, 1, 1), schedule.sigma(t).view(-1, 1, 1, 1)
        x_0 = {"eps": (x - sigma * output) / alpha, "v": alpha * x - sigma * output}[kind]
        return x_0.to(x.dtype)

    return denoise


def even_in_lambda(schedule, steps, start=999.0, end=0.0):
    """The real timesteps between two at equal distances in lambda."""
    ends = schedule.half_log_snr(torch.tensor([start, end])).tolist()
    grid = schedule.timestep_of(torch.linspace(*ends, steps + 1, dtype=torch.float64))
    return [start, *grid[1:-1].tolist(), end]


@dataclass
class GaussianData:
    """N(mean, covariance) in D dimensions; mean (D,), covariance (D, D)."""

    mean: torch.Tensor
    covariance: torch.Tensor

    def x_0(self, x, alpha, sigma):
        """Posterior mean, in the eigenbasis: mu + a s^2 / (a^2 s^2 + sigma^2) (x - a mu)."""
        variance, basis = torch.linalg.eigh(self.covariance)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return self.mean + ((x - alpha * self.mean) @ basis * gain) @ basis.T

    def flow(self, x, schedule, start, end):
        """Solution at timestep end of the probability-flow ODE through x at timestep start.

        Along each eigenvector the flow keeps (x - a mu) / std, the standardised position.
        """
        variance, basis = torch.linalg.eigh(self.covariance)
        t = torch.tensor([start, end])
        alpha, sigma = schedule.alpha(t).view(2, 1), schedule.sigma(t).view(2, 1)
        std = torch.sqrt(alpha**2 * variance + sigma**2)
        standardised = (x - alpha[0] * self.mean) @ basis / std[0]
        return alpha[1] * self.mean + (standardised * std[1]) @ basis.T


def gaussian_1d():
    """The data of the project's reference figures: N(0.3, 0.5^2)."""
    return GaussianData(torch.tensor([0.3]).double(), torch.tensor([[0.25]]).double())


def gaussian_2d():
    covariance = torch.tensor([[0.25, 0.12], [0.12, 0.09]]).double()
    return GaussianData(torch.tensor([0.3, -0.2]).double(), covariance)


@dataclass
class TwoModes:
    """Half N(-0.6, 0.2^2), half N(0.6, 0.2^2), in one dimension."""

    mode: float = 0.6
    std: float = 0.2

    def x_0(self, x, alpha, sigma):
        variance = alpha**2 * self.std**2 + sigma**2
        centre = torch.tanh(alpha * self.mode * x / variance) * self.mode
        return centre + alpha * self.std**2 / variance * (x - alpha * centre)

    def flow(self, x, schedule, start, end):
        """The probability-flow ODE by DOP853.

        In y = x / alpha and lambda = log(alpha / sigma) it reads dy / dlambda = x_0 - y.
        """
        span = schedule.half_log_snr(torch.tensor([start, end]))
        alpha = schedule.alpha(torch.tensor([start, end]))

        def slope(half_log_snr, y):
            t = schedule.timestep_of(torch.tensor([half_log_snr]).double())
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            return self.x_0(alpha * torch.from_numpy(y), alpha, sigma).numpy() - y

        y_start = (x / alpha[0]).numpy().ravel()
        solved = solve_ivp(slope, span.tolist(), y_start, "DOP853", rtol=1e-12, atol=1e-13)
        return alpha[1] * torch.from_numpy(np.ascontiguousarray(solved.y[:, -1])).reshape(x.shape)
