"""The variational bound: its terms against definitions, and what the losses made of it train."""

import math

import pytest
import torch
from scipy.stats import norm

from ldm.errors import ConfigError
from ldm.losses.pointwise import l1
from ldm.models.diffusion.bound import (
    LOSSES,
    bound_term,
    diffusion_loss,
    discretised_log_likelihood,
    normal_kl,
    prior_term,
)
from ldm.models.diffusion.gaussian import PARAMETERISATIONS, p2_weight, q_sample, target_of
from ldm.models.diffusion.schedule import FlowSchedule, NoiseSchedule

LINEAR = NoiseSchedule()
ZERO_SNR = NoiseSchedule(zero_terminal_snr=True)


def item_for_each_timestep(schedule=LINEAR):
    generator = torch.Generator().manual_seed(0)
    shape = len(schedule), 2, 3, 3
    x_0 = torch.rand(shape, generator=generator).double() * 2 - 1
    eps = torch.randn(shape, generator=generator).double()
    t = torch.arange(len(schedule))
    return x_0, eps, q_sample(x_0, t, eps, schedule), t


def test_kl_of_normals_equals_torch():
    means, logs = torch.randn(2, 2, 50, generator=torch.Generator().manual_seed(0)).double()
    ours = normal_kl(means[0], logs[0], means[1], logs[1])
    first, second = (torch.distributions.Normal(means[i], (logs[i] / 2).exp()) for i in (0, 1))
    expected = torch.distributions.kl_divergence(first, second)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_probabilities_of_all_256_values_add_up_to_one():
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, log_variance in ((0.1, -3.0), (-0.97, -2.0), (5.0, 0.0)):
        log_variance = torch.tensor(log_variance).double()
        likelihood = discretised_log_likelihood(values, torch.tensor(mean).double(), log_variance)
        assert likelihood.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_the_decoder_is_the_normal_mass_of_a_bin():
    values = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)
    ours = discretised_log_likelihood(values, torch.tensor(0.1), torch.tensor(-2.0).double()).exp()
    std = math.exp(-1)
    exact = norm.cdf(values + 1 / 255, 0.1, std) - norm.cdf(values - 1 / 255, 0.1, std)
    torch.testing.assert_close(ours, torch.from_numpy(exact), rtol=0.02, atol=0)  # Page's cdf


@pytest.mark.parametrize(
    "schedule", [LINEAR, FlowSchedule(), NoiseSchedule(zero_terminal_snr=True)]
)
def test_a_perfect_prediction_costs_nothing_but_the_first_bin(schedule):
    x_0, eps, x_t, t = item_for_each_timestep(schedule)
    for kind in ("x0", "v", "flow"):
        output = target_of(kind, x_0, eps, t, schedule)
        terms = bound_term(kind, output, x_0, x_t, t, schedule)
        torch.testing.assert_close(terms[1:], torch.zeros(999).double(), rtol=0, atol=1e-9)
        loss = diffusion_loss("mse", kind, output, x_0, eps, t, schedule)
        assert loss["loss"].abs().max() == 0
    # the mass of N(0, exp(log beta~_1)) within half a bin of 2/255
    mass = 2 * norm.cdf(1 / 255 / math.sqrt(beta_tilde(schedule, 1))) - 1
    assert terms[0].item() == pytest.approx(-math.log2(mass), rel=0.05, abs=2e-3)


def beta_tilde(schedule, t):
    (alpha, before), (sigma, sigma_before) = (
        f(torch.tensor([t, t - 1])).tolist() for f in (schedule.alpha, schedule.sigma)
    )
    return (sigma**2 - (alpha / before) ** 2 * sigma_before**2) * sigma_before**2 / sigma**2


def test_the_bound_weighs_an_error_of_eps_as_in_ho_et_al():
    """Eq. 12: beta^2 / (2 beta~ (1 - beta) (1 - alphas_cumprod)) times the squared error."""
    x_0, eps, x_t, t = item_for_each_timestep()
    terms = bound_term("eps", eps + 0.1, x_0, x_t, t, LINEAR)
    beta, left = LINEAR.betas, 1 - LINEAR.alphas_cumprod
    variance = beta * (1 - LINEAR.alphas_cumprod_prev) / left
    expected = beta**2 / (2 * variance * (1 - beta) * left) * 0.1**2 / math.log(2)
    torch.testing.assert_close(terms[1:], expected[1:], rtol=1e-7, atol=1e-12)


def test_prior_term_by_hand():
    """KL(N(a x_0, 1 - a^2) | N(0, 1)) in bits; nothing at zero terminal SNR."""
    x_0 = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    a2 = LINEAR.alphas_cumprod[-1].item()
    expected = 0.5 * (-a2 - math.log(1 - a2) + a2 * 0.25) / math.log(2)
    assert prior_term(x_0, LINEAR).item() == pytest.approx(expected, rel=1e-7)
    assert prior_term(x_0, ZERO_SNR).item() == 0


@pytest.mark.parametrize("kind", PARAMETERISATIONS)
def test_beside_a_squared_error_the_bound_trains_the_variance_only(kind):
    x_0, eps, _, t = (each[::100] for each in item_for_each_timestep())
    output = torch.zeros(10, 4, 3, 3, dtype=torch.float64, requires_grad=True)

    def gradient(name):
        losses = diffusion_loss(name, kind, output, x_0, eps, t, LINEAR, "learned_range")
        return torch.autograd.grad(losses["loss"].sum(), output)[0].chunk(2, dim=1)

    of_prediction, of_variance = gradient("hybrid")
    error = -target_of(kind, x_0, eps, t, LINEAR)
    torch.testing.assert_close(of_prediction, 2 * error / error[0].numel(), rtol=1e-9, atol=1e-12)
    of_prediction_in_kl, of_variance_in_kl = gradient("kl")
    torch.testing.assert_close(of_variance, of_variance_in_kl, rtol=1e-9, atol=1e-12)
    assert (of_prediction_in_kl - of_prediction).abs().max() > 1e-3


def test_losses_relate_as_their_names_say():
    schedule = NoiseSchedule(timesteps=250)
    x_0, eps, x_t, t = item_for_each_timestep(schedule)
    output = torch.cat([eps + 0.1, torch.zeros_like(eps)], dim=1)
    arguments = "eps", output, x_0, eps, t, schedule, "learned_range"
    loss = {name: diffusion_loss(name, *arguments) for name in LOSSES}
    bound = bound_term("eps", output, x_0, x_t, t, schedule, "learned_range")
    for name, of_bound in (("kl", 1), ("rescaled_kl", 250), ("mse", 1), ("rescaled_mse", 0.25)):
        torch.testing.assert_close(loss[name]["vb"], of_bound * bound)
        assert torch.equal(loss[name]["loss"], loss[name].get("fit", 0) + loss[name]["vb"])
    assert torch.equal(loss["hybrid"]["loss"], loss["rescaled_mse"]["loss"])
    torch.testing.assert_close(loss["mse"]["fit"], torch.full((250,), 0.01).double())
    fixed = diffusion_loss("mse", "eps", eps + 0.1, x_0, eps, t, schedule)
    assert set(fixed) == {"loss", "fit"}


def test_the_error_may_be_another_and_weighted():
    x_0, eps, x_t, t = item_for_each_timestep()
    loss = diffusion_loss(
        "mse",
        "eps",
        eps + 0.1,
        x_0,
        eps,
        t,
        LINEAR,
        pointwise=l1,
        weight=p2_weight("eps", x_t, t, LINEAR),
    )
    torch.testing.assert_close(loss["loss"], 0.1 / (1 + LINEAR.snr), rtol=1e-9, atol=0)


def test_losses_that_cannot_be_are_refused():
    x = torch.zeros(1, 1, 2, 2)
    arguments = "eps", x, x, x, torch.tensor([0]), LINEAR
    with pytest.raises(ConfigError, match="'vlb'; expected one of mse, rescaled_mse, hybrid"):
        diffusion_loss("vlb", *arguments)
    with pytest.raises(ConfigError, match="'hybrid' with variance 'fixed_small'"):
        diffusion_loss("hybrid", *arguments)
