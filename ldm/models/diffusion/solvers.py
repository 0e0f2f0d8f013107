"""Samplers that integrate in ``lambda = log(alpha / sigma)``: DPM-Solver++ and UniPC.

In lambda the probability flow has the exact solution (Lu et al. 2022b, proposition 4.1)

    x_to = sigma_to / sigma_now x_now + sigma_to * integral of e^lambda x_0(lambda),

so that only the prediction x_0 has to be approximated between the levels. All but the stochastic
sampler are deterministic. The order is lower at the first steps, where predictions are still few,
and at the last ones where it would be unstable: on the way to clean data, where lambda is infinite,
and for fewer than 15 steps (the authors' choice).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from ldm.models.diffusion.path import DenoiseLevel, Level, Noise, Walk, sampler

Known = list[tuple[Level, Tensor]]  # predictions of x_0, the latest last

# Gauss-Legendre quadrature on [0, 1], exact to rounding for the exponentials met here
_points, _weights = np.polynomial.legendre.leggauss(32)
POINTS, POINT_WEIGHTS = (_points + 1) / 2, _weights / 2


@sampler
def dpmpp_2m(denoise: DenoiseLevel, x: Tensor, levels: Sequence[Level], noise: Noise) -> Walk:
    """DPM-Solver++(2M), second order, multistep (Lu et al. 2022b, algorithm 2)."""
    known: Known = []
    for step, (now, to) in enumerate(pairwise(levels)):
        known = [*_finite(known, 1), (now, denoise(x, now))]
        h = to.half_log_snr - now.half_log_snr
        D = _at_half_step(known[-_order(2, known, step, levels) :], h)
        x = to.sigma / now.sigma * x - to.alpha * math.expm1(-h) * D
        yield x, known[-1][1]


@sampler
def dpmpp_2m_sde(denoise: DenoiseLevel, x: Tensor, levels: Sequence[Level], noise: Noise) -> Walk:
    """SDE-DPM-Solver++(2M), stochastic (Lu et al. 2022b, eq. 18 with the D of algorithm 2).

    Its steps of first order are those of DDPM with the posterior's variance.
    """
    known: Known = []
    for step, (now, to) in enumerate(pairwise(levels)):
        known = [*_finite(known, 1), (now, denoise(x, now))]
        h = to.half_log_snr - now.half_log_snr
        D = _at_half_step(known[-_order(2, known, step, levels) :], h)
        x = to.sigma / now.sigma * math.exp(-h) * x - to.alpha * math.expm1(-2 * h) * D
        if to.sigma > 0:
            x = x + to.sigma * math.sqrt(-math.expm1(-2 * h)) * noise(step, x)
        yield x, known[-1][1]


@sampler
def dpmpp_3m(denoise: DenoiseLevel, x: Tensor, levels: Sequence[Level], noise: Noise) -> Walk:
    """DPM-Solver++(3M), third order, multistep: the parabola through three predictions.

    Integrated exactly. The authors' code weighs its second difference by half of that, which is of
    second order.
    """
    return _multistep(denoise, x, levels, order=3, correct=False)


@sampler
def unipc_2(denoise: DenoiseLevel, x: Tensor, levels: Sequence[Level], noise: Noise) -> Walk:
    """UniPC-2, third order at one network call a step (Zhao et al. 2023, algorithm 1)."""
    return _multistep(denoise, x, levels, order=2, correct=True)


@sampler
def unipc_3(denoise: DenoiseLevel, x: Tensor, levels: Sequence[Level], noise: Noise) -> Walk:
    """UniPC-3, up to fourth order at one network call a step (Zhao et al. 2023, algorithm 1)."""
    return _multistep(denoise, x, levels, order=3, correct=True)


def _multistep(
    denoise: DenoiseLevel, x: Tensor, levels: Sequence[Level], order: int, correct: bool
) -> Walk:
    """Predictor UniP and, if asked for, corrector UniC (Zhao et al. 2023, section 3.1 and 3.2).

    Both solve for the weights that integrate polynomials exactly (eq. 5), which leaves no choice of
    ``B(h)``. The corrector repeats the last step with the prediction made at its end, which the
    predictor needs anyway; that prediction is not made again.
    """
    known, used = [], []
    x_before = x
    for step, (now, to) in enumerate(pairwise(levels)):
        x_0 = denoise(x, now)
        if correct and _finite(used, order):
            x = _integrate(x_before, used[-1][0], now, [*used, (now, x_0)])
        known = [*_finite(known, order - 1), (now, x_0)]
        used = known[-_order(order, known, step, levels) :]
        x_before, x = x, _integrate(x, now, to, used)
        yield x, x_0


def _integrate(x: Tensor, now: Level, to: Level, known: Known) -> Tensor:
    """The exact solution from now to another level if x_0 were the polynomial through known.

    With one prediction this is the step of DDIM.
    """
    h = to.half_log_snr - now.half_log_snr
    places = [(level.half_log_snr - now.half_log_snr) / h for level, _ in known]
    weights = [-math.expm1(-h)] if len(known) == 1 else _exponential_weights(h, places)
    integral = sum(w * x_0 for w, (_, x_0) in zip(weights, known, strict=True))
    return to.sigma / now.sigma * x + to.alpha * integral


def _exponential_weights(h: float, places: Sequence[float]) -> list[float]:
    """Integrals of ``h e^(-h (1 - s)) l_i(s)`` over s in [0, 1], of the Lagrange basis at places.

    The functions phi of exponential integrators (Hochbruck & Ostermann 2010), combined; unlike
    their recurrence it loses no digits at small h.
    """
    kernel = POINT_WEIGHTS * h * np.exp(-h * (1 - POINTS))
    return [
        float(kernel @ np.prod([(POINTS - b) / (a - b) for b in places if b != a], axis=0))
        for a in places
    ]


def _at_half_step(known: Known, h: float) -> Tensor:
    """``D`` of algorithm 2: the line through the last two predictions, in the middle of a step."""
    now, x_0 = known[-1]
    if len(known) == 1:
        return x_0
    before, x_0_before = known[-2]
    r = (now.half_log_snr - before.half_log_snr) / h
    return (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * x_0_before


def _finite(known: Known, number: int) -> Known:
    """The latest predictions, of which no polynomial may use one at pure noise, lambda = -inf."""
    return [pair for pair in known if math.isfinite(pair[0].half_log_snr)][-number:]


def _order(order: int, known: Known, step: int, levels: Sequence[Level]) -> int:
    """Order of a step, as the module's docstring says."""
    total = len(levels) - 1
    falls_at_the_end = levels[-1].sigma == 0 or total < 15
    return min(order, len(known), total - step if falls_at_the_end else order)
