"""The forward process, its posterior, the parameterisations and the pointwise losses.

Numbers of the public implementations are in test_mathematics.py.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import noise_in
from torch.nn import functional

from ldm.errors import ConfigError
from ldm.losses.pointwise import POINTWISE_LOSSES, charbonnier
from ldm.models.diffusion.gaussian import (
    LOSS_WEIGHTS,
    PARAMETERISATIONS,
    p2_weight,
    p_posterior,
    posterior_coefficients,
    q_posterior,
    q_sample,
    split_output,
)
from ldm.models.diffusion.process import GaussianProcess
from ldm.models.diffusion.schedule import FlowSchedule, NoiseSchedule

LINEAR = NoiseSchedule("linear")
FROM_NOISE = {"zero_snr": NoiseSchedule("linear", zero_terminal_snr=True), "flow": FlowSchedule()}
from_noise = pytest.mark.parametrize("schedule", FROM_NOISE.values(), ids=FROM_NOISE)
every_kind = pytest.mark.parametrize("kind", PARAMETERISATIONS)


def every_timestep(schedule=LINEAR, dtype=torch.float64):
    """Data, noise and noisy data, one item for each timestep."""
    generator = torch.Generator().manual_seed(0)
    shape = len(schedule), 1, 4, 4
    x_0 = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    eps = torch.randn(shape, generator=generator, dtype=torch.float64)
    t = torch.arange(len(schedule))
    x_0, eps = x_0.to(dtype), eps.to(dtype)
    return x_0, eps, t, q_sample(x_0, t, eps, schedule)


def check_inverse(process):
    """The target gives back the data at every timestep."""
    x_0, eps, t, x_t = every_timestep(process.schedule)
    output = process.target(x_0, eps, t)
    torch.testing.assert_close(process.x_0(output, x_t, t), x_0, rtol=0, atol=1e-12)


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
def test_every_parameterisation_gives_back_the_data(kind, name):
    check_inverse(GaussianProcess(NoiseSchedule(name), kind))


@from_noise
@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
def test_parameterisations_that_know_x_0_in_pure_noise(kind, schedule):
    check_inverse(GaussianProcess(schedule, kind))


@from_noise
def test_eps_is_refused_where_the_path_starts_in_pure_noise(schedule):
    """There eps is x_t itself and says nothing of x_0 (Lin et al. 2023)."""
    with pytest.raises(ConfigError, match="'eps' .* pure noise.*; expected v, x0 or flow"):
        GaussianProcess(schedule, "eps")


@pytest.mark.parametrize(("kind", "tolerance"), [("v", 1e-6), ("eps", 1e-5), ("x0", 1e-5)])
def test_round_trips_in_float32(kind, tolerance):
    """Relative to alpha, by which x_0 from eps must divide."""
    x_0, eps, t, x_t = every_timestep(dtype=torch.float32)
    output = GaussianProcess(LINEAR, kind).target(x_0, eps, t)
    alpha, _ = LINEAR.at(t, x_t)
    error = alpha * (GaussianProcess(LINEAR, kind).x_0(output, x_t, t) - x_0)
    assert error.abs().max() < tolerance


def test_v_is_the_velocity_on_the_circle_of_alpha_and_sigma():
    """Salimans & Ho 2022, appendix D: v = d x_t / d phi, with tan(phi) = sigma / alpha."""
    x_0, eps, t, _ = every_timestep()
    alpha, sigma = LINEAR.at(t, x_0)
    phi, step = torch.atan2(sigma, alpha), 1e-6
    ahead, behind = (torch.cos(p) * x_0 + torch.sin(p) * eps for p in (phi + step, phi - step))
    velocity = (ahead - behind) / (2 * step)
    torch.testing.assert_close(
        GaussianProcess(LINEAR, "v").target(x_0, eps, t), velocity, rtol=0, atol=1e-8
    )


def test_flow_is_the_velocity_on_the_straight_path():
    """d x / d time at every timestep, x from q_sample one step of 1/T on either side."""
    schedule = FlowSchedule(100)
    x_0, eps, t, _ = every_timestep(schedule)
    inner = slice(1, 99)
    ahead = q_sample(x_0[inner], t[inner] + 1, eps[inner], schedule)
    behind = q_sample(x_0[inner], t[inner] - 1, eps[inner], schedule)
    velocity = GaussianProcess(schedule, "flow").target(x_0, eps, t)[inner]
    torch.testing.assert_close(velocity, (ahead - behind) * 50, rtol=0, atol=1e-10)


def test_an_unknown_parameterisation_is_refused():
    message = r"parameterization is 'epsilon': give one of eps, x0, v, flow \(nearest: 'eps'\)"
    with pytest.raises(ConfigError, match=message):
        GaussianProcess(LINEAR, "epsilon")


def test_posterior_is_the_product_of_prior_and_likelihood():
    """Bayes: precisions of q(x_{t-1} | x_0) and of q(x_t | x_{t-1}) add up."""
    x_0, _, t, x_t = every_timestep()
    mean, variance, log_variance = q_posterior(x_0, x_t, t, LINEAR)
    alpha_s = LINEAR.alphas_cumprod[:-1].sqrt().view(-1, 1, 1, 1)
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
        weight = GaussianProcess(LINEAR, kind, loss_weight="min_snr").weight(x, t)
        assert weight.shape == (1000, 1, 1, 1)
        torch.testing.assert_close(weight.flatten(), snr.clamp(max=5) / divisor, rtol=1e-10, atol=0)


def test_p2_weights_by_hand():
    """Choi et al. 2022, eq. 8, for eps: 1 / (1 + SNR); of v, 1 / (1 + SNR) times its share."""
    t, x = torch.arange(1000), torch.zeros(1000, 1, dtype=torch.float64)
    snr = LINEAR.snr
    for kind, expected in (
        ("eps", 1 / (1 + snr)),
        ("x0", snr / (1 + snr)),
        ("v", snr / (1 + snr) ** 2),
    ):
        weight = GaussianProcess(LINEAR, kind, loss_weight="p2").weight(x, t)
        torch.testing.assert_close(weight.flatten(), expected, rtol=1e-10, atol=0)
    milder = p2_weight(snr, gamma=0.5, k=2.0) / snr  # of an error of eps
    torch.testing.assert_close(milder, (2 + snr) ** -0.5, rtol=1e-10, atol=0)


def test_truncated_snr_weights_by_hand():
    """Salimans & Ho 2022, eq. 9: max(SNR, 1) over 1, SNR, SNR + 1 for x_0, eps, v."""
    t, x = torch.arange(1000), torch.zeros(1000, 1, dtype=torch.float64)
    snr = LINEAR.snr
    for kind, divisor in (("x0", torch.ones_like(snr)), ("eps", snr), ("v", snr + 1)):
        weight = GaussianProcess(LINEAR, kind, loss_weight="truncated_snr").weight(x, t)
        expected = snr.clamp(min=1) / divisor
        torch.testing.assert_close(weight.flatten(), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("weight", LOSS_WEIGHTS)
@pytest.mark.parametrize("schedule", [LINEAR, *FROM_NOISE.values()])
def test_weights_of_one_error_agree_between_parameterisations(weight, schedule):
    """The weighted squared error is that of x_0, whichever output the error was made in."""
    x_0, eps, t, x_t = every_timestep(schedule)
    wrong = x_0 + 0.1
    of_x_0 = GaussianProcess(schedule, "x0", loss_weight=weight)
    expected = of_x_0.weight(x_t, t) * (wrong - x_0) ** 2
    assert torch.isfinite(expected).all()
    for kind in ("v", "flow"):
        process = GaussianProcess(schedule, kind, loss_weight=weight)
        output = process.target(wrong, noise_in(x_t, wrong, t, schedule), t)
        error = process.weight(x_t, t) * (output - process.target(x_0, eps, t)) ** 2
        torch.testing.assert_close(error, expected, rtol=1e-6, atol=1e-12)


def test_variances_of_the_reverse_step():
    """Learned range runs from beta~ at -1 to beta at 1, geometrically."""
    x_0, _, t, x_t = every_timestep()

    def log_variance(variance, value=None):
        values = None if value is None else torch.full_like(x_t, value)
        mean, log_variance = p_posterior(x_0, values, x_t, t, LINEAR, variance)
        assert torch.equal(mean, q_posterior(x_0, x_t, t, LINEAR)[0])
        return log_variance[:, 0, 0, 0]

    small, large = log_variance("fixed_small"), log_variance("fixed_large")
    torch.testing.assert_close(large[1:].exp(), LINEAR.betas[1:], rtol=1e-9, atol=0)
    assert (small[1:] < large[1:]).all()
    assert small[0] == large[0] == small[1]  # beta would blur the image of the first timestep
    for value, expected in ((-1.0, small), (1.0, large), (0.0, (small + large) / 2)):
        ranged = log_variance("learned_range", value)
        torch.testing.assert_close(ranged[1:], expected[1:], rtol=0, atol=1e-12)
    assert (log_variance("learned", -3.0) == -3).all()


def test_a_learned_variance_is_the_second_half_of_the_channels():
    output = torch.randn(2, 6, 4, 4)
    prediction, values = split_output(output, "learned_range")
    assert torch.equal(torch.cat([prediction, values], dim=1), output)
    assert split_output(output, "fixed_small") == (output, None)
    with pytest.raises(ConfigError, match="returns 3 channels; expected two for each channel"):
        split_output(output[:, :3], "learned")
    with pytest.raises(ConfigError, match="'small': give one of fixed_small, fixed_large"):
        split_output(output, "small")


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
