"""The forward process, its posterior, the parameterisations and the pointwise losses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ldm.errors import ConfigError
from ldm.losses.pointwise import POINTWISE_LOSSES, charbonnier, l2
from ldm.models.diffusion.gaussian import (
    PARAMETERISATIONS,
    min_snr_weight,
    posterior_coefficients,
    q_posterior,
    q_sample,
    target_of,
    to_eps,
    to_x_0,
)
from ldm.models.diffusion.schedule import NoiseSchedule

REFERENCE = np.load(Path(__file__).parent / "reference" / "mathematics.npz")
LINEAR = NoiseSchedule()
every_kind = pytest.mark.parametrize("kind", PARAMETERISATIONS)


def reference(key):
    return torch.from_numpy(REFERENCE[key])


def toy(x, t):
    """The network of the reference numbers (mathematics.json)."""
    t = t.view(-1, 1, 1, 1)
    return torch.tanh(x * (1.5 - t / 1000)) * torch.cos(3 * t / 1000) + 0.1 * x


def every_timestep(schedule=LINEAR, dtype=torch.float64):
    """Data, noise and noisy data, one item for each timestep."""
    generator = torch.Generator().manual_seed(0)
    shape = len(schedule), 1, 4, 4
    x_0 = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    eps = torch.randn(shape, generator=generator, dtype=torch.float64)
    t = torch.arange(len(schedule))
    x_0, eps = x_0.to(dtype), eps.to(dtype)
    return x_0, eps, t, q_sample(x_0, t, eps, schedule)


def test_forward_process_equals_guided_diffusion():
    x_t = q_sample(reference("x_0"), reference("t"), reference("noise"), LINEAR)
    torch.testing.assert_close(x_t, reference("guided_q_sample"), rtol=1e-5, atol=1e-6)


def test_forward_process_has_the_moments_of_a_gaussian():
    n, t = 200_000, 300
    noise = torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_t = q_sample(torch.full((n,), 0.7).double(), torch.full((n,), t), noise, LINEAR)
    alphas_cumprod = LINEAR.alphas_cumprod[t].item()
    std = (1 - alphas_cumprod) ** 0.5
    assert x_t.mean().item() == pytest.approx(0.7 * alphas_cumprod**0.5, abs=4 * std / n**0.5)
    assert x_t.var().item() == pytest.approx(std**2, rel=4 * (2 / n) ** 0.5)


@every_kind
@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_every_parameterisation_gives_back_data_and_noise(kind, name):
    schedule = NoiseSchedule(name)
    x_0, eps, t, x_t = every_timestep(schedule)
    output = target_of(kind, x_0, eps, t, schedule)
    torch.testing.assert_close(to_x_0(kind, output, x_t, t, schedule), x_0, rtol=0, atol=1e-12)
    torch.testing.assert_close(to_eps(kind, output, x_t, t, schedule), eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "tolerance"), [("v", 1e-6), ("eps", 1e-5), ("x0", 1e-5)])
def test_round_trips_in_float32(kind, tolerance):
    """Relative to alpha and sigma, by which x_0 from eps, and eps from x_0, must divide."""
    x_0, eps, t, x_t = every_timestep(dtype=torch.float32)
    output = target_of(kind, x_0, eps, t, LINEAR)
    alpha, sigma = LINEAR.at(t, x_t)
    data_error = alpha * (to_x_0(kind, output, x_t, t, LINEAR) - x_0)
    noise_error = sigma * (to_eps(kind, output, x_t, t, LINEAR) - eps)
    assert data_error.abs().max() < tolerance
    assert noise_error.abs().max() < tolerance


def test_v_is_the_velocity_on_the_circle_of_alpha_and_sigma():
    """Salimans & Ho 2022, appendix D: v = d x_t / d phi, with tan(phi) = sigma / alpha."""
    x_0, eps, t, _ = every_timestep()
    alpha, sigma = LINEAR.at(t, x_0)
    phi, step = torch.atan2(sigma, alpha), 1e-6
    ahead, behind = (torch.cos(p) * x_0 + torch.sin(p) * eps for p in (phi + step, phi - step))
    velocity = (ahead - behind) / (2 * step)
    torch.testing.assert_close(target_of("v", x_0, eps, t, LINEAR), velocity, rtol=0, atol=1e-8)


def test_an_unknown_parameterisation_is_refused():
    x = torch.zeros(1, 1)
    with pytest.raises(ConfigError, match="'epsilon'; expected one of eps, x0, v"):
        to_x_0("epsilon", x, x, torch.tensor([0]), LINEAR)


def test_posterior_is_the_product_of_prior_and_likelihood():
    """Bayes: precisions of q(x_{t-1} | x_0) and of q(x_t | x_{t-1}) add up."""
    x_0, _, t, x_t = every_timestep()
    mean, variance, log_variance = q_posterior(x_0, x_t, t, LINEAR)
    alpha_s = LINEAR.alphas_cumprod_prev[1:].sqrt().view(-1, 1, 1, 1)
    prior = 1 / (1 - alpha_s**2)
    beta = LINEAR.betas[1:].view(-1, 1, 1, 1)
    likelihood = (1 - beta) / beta
    expected_variance = 1 / (prior + likelihood)
    pulled = prior * alpha_s * x_0[1:] + likelihood * x_t[1:] / (1 - beta).sqrt()
    torch.testing.assert_close(variance[1:], expected_variance, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mean[1:], expected_variance * pulled, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(log_variance[1:], variance[1:].log(), rtol=1e-12, atol=0)


def test_posterior_of_the_first_timestep_is_the_data():
    x_0, _, t, x_t = every_timestep()
    mean, variance, log_variance = q_posterior(x_0, x_t, t, LINEAR)
    assert torch.equal(mean[0], x_0[0])
    assert variance[0] == 0
    assert (variance[1:] > 0).all()
    assert log_variance[0] == log_variance[1]


def test_posterior_equals_guided_diffusion():
    mean, variance, log_variance = q_posterior(
        reference("x_0"), reference("guided_q_sample"), reference("t"), LINEAR
    )
    for ours, key in (
        (mean, "mean"),
        (variance, "variance"),
        (log_variance, "log_variance_clipped"),
    ):
        expected = reference(f"guided_q_posterior/{key}")
        torch.testing.assert_close(ours.expand_as(expected), expected, rtol=1e-5, atol=1e-7)


def test_prediction_from_a_network_equals_guided_diffusion():
    x_t, t = reference("guided_q_sample"), reference("t")
    x_0 = to_x_0("eps", toy(x_t, t), x_t, t, LINEAR).clamp(-1, 1)
    mean, _, _ = q_posterior(x_0, x_t, t, LINEAR)
    key = "guided_p_mean_variance/EPSILON"
    torch.testing.assert_close(x_0, reference(f"{key}/pred_xstart"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean, reference(f"{key}/mean"), rtol=1e-5, atol=1e-6)


def test_simple_loss_equals_guided_diffusion():
    x_t, t, noise = reference("guided_q_sample"), reference("t"), reference("noise")
    loss = l2(toy(x_t, t), target_of("eps", reference("x_0"), noise, t, LINEAR))
    expected = reference("guided_losses/EPSILON/MSE/mse")
    torch.testing.assert_close(loss.mean(dim=(1, 2, 3)), expected, rtol=1e-5, atol=0)


@settings(deadline=None)
@given(t=st.integers(1, 999), s=st.integers(-1, 998))
def test_a_long_posterior_step_keeps_the_marginals(t, s):
    """Drawing x_s from q(x_s | x_t, x_0) must give the mean and variance of q(x_s | x_0)."""
    s = min(s, t - 1)
    ends = torch.tensor([t, s])
    (alpha_t, alpha_s), (sigma_t, sigma_s) = LINEAR.alpha(ends), LINEAR.sigma(ends)
    factor_x_0, factor_x_t, variance, _ = posterior_coefficients(alpha_t, sigma_t, alpha_s, sigma_s)
    torch.testing.assert_close(factor_x_0 + factor_x_t * alpha_t, alpha_s, rtol=1e-12, atol=0)
    spread = variance + factor_x_t**2 * sigma_t**2
    torch.testing.assert_close(spread, sigma_s**2, rtol=1e-10, atol=1e-14)


def test_min_snr_weights_by_hand():
    """Hang et al. 2023: min(SNR, 5) over 1, SNR, SNR + 1 for x_0, eps, v."""
    t = torch.arange(1000)
    snr = LINEAR.snr
    assert snr[0] > 5 > snr[-1]  # both sides of the minimum are met
    x = torch.zeros(1000, 1, 2, 2, dtype=torch.float64)
    for kind, divisor in (("x0", torch.ones_like(snr)), ("eps", snr), ("v", snr + 1)):
        weight = min_snr_weight(kind, x, t, LINEAR)
        assert weight.shape == (1000, 1, 1, 1)
        torch.testing.assert_close(weight.flatten(), snr.clamp(max=5) / divisor, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", POINTWISE_LOSSES)
def test_losses_keep_the_shape_and_are_least_at_the_target(name):
    loss = POINTWISE_LOSSES[name]
    target = torch.linspace(-1, 1, 24).view(2, 3, 4)
    assert loss(target + 0.1, target).shape == target.shape
    torch.testing.assert_close(loss(target + 0.1, target), loss(target - 0.1, target))
    least = {"l1": 0.0, "l2": 0.0, "charbonnier": 1e-3}[name]
    torch.testing.assert_close(loss(target, target), torch.full_like(target, least))


def test_l1_and_l2_equal_torch():
    a, b = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(2))
    for name, loss in (("l1", functional.l1_loss), ("l2", functional.mse_loss)):
        torch.testing.assert_close(POINTWISE_LOSSES[name](a, b), loss(a, b, reduction="none"))


@settings(deadline=None)
@given(error=st.floats(-10, 10))
def test_charbonnier_is_l1_rounded_at_zero(error):
    value = charbonnier(torch.tensor(error, dtype=torch.float64), torch.tensor(0.0)).item()
    assert abs(error) - 1e-12 <= value <= abs(error) + 1e-3


def test_charbonnier_is_differentiable_at_zero():
    x = torch.tensor([0.0, 1e-3, 2.0], dtype=torch.float64, requires_grad=True)
    charbonnier(x, torch.zeros(3, dtype=torch.float64)).sum().backward()
    torch.testing.assert_close(
        x.grad, torch.tensor([0.0, 0.5**0.5, 1.0]).double(), atol=1e-6, rtol=0
    )
