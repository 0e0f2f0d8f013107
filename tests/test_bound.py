"""The variational bound: its terms against definitions, and what the losses made of it train."""

import math

import pytest
import torch
from scipy.stats import norm

from ldm.errors import ConfigError
from ldm.models.diffusion.gaussian import PARAMETERISATIONS, q_sample
from ldm.models.diffusion.process import OBJECTIVES, GaussianProcess, Noised
from ldm.models.diffusion.schedule import FlowSchedule, NoiseSchedule
from ldm.models.diffusion.variational_bound import (
    bound_term,
    discretised_log_likelihood,
    normal_kl,
)

LINEAR = NoiseSchedule("linear")


def item_for_each_timestep(schedule=LINEAR):
    generator = torch.Generator().manual_seed(0)
    shape = len(schedule), 2, 3, 3
    x_0 = torch.rand(shape, generator=generator).double() * 2 - 1
    eps = torch.randn(shape, generator=generator).double()
    t = torch.arange(len(schedule))
    return x_0, eps, q_sample(x_0, t, eps, schedule), t


def loss_of(process, output, noised):
    return process.loss(process.estimate(output, noised.x_t, noised.t), noised)


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
    "schedule", [LINEAR, FlowSchedule(), NoiseSchedule("linear", zero_terminal_snr=True)]
)
def test_a_perfect_prediction_costs_nothing_but_the_first_bin(schedule):
    x_0, eps, x_t, t = item_for_each_timestep(schedule)
    for kind in ("x0", "v", "flow"):
        process = GaussianProcess(schedule, kind, objective="mse", loss_type="l2")
        output = process.target(x_0, eps, t)
        terms = bound_term(process.x_0(output, x_t, t), None, x_0, x_t, t, schedule)
        torch.testing.assert_close(terms[1:], torch.zeros(999).double(), rtol=0, atol=1e-9)
        loss = loss_of(process, output, Noised(x_0, eps, t, x_t))
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
    predicted = GaussianProcess(LINEAR, "eps").x_0(eps + 0.1, x_t, t)
    terms = bound_term(predicted, None, x_0, x_t, t, LINEAR)
    beta, left = LINEAR.betas, 1 - LINEAR.alphas_cumprod
    before = torch.cat([torch.ones(1), LINEAR.alphas_cumprod[:-1]])
    variance = beta * (1 - before) / left
    expected = beta**2 / (2 * variance * (1 - beta) * left) * 0.1**2 / math.log(2)
    torch.testing.assert_close(terms[1:], expected[1:], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("kind", PARAMETERISATIONS)
def test_beside_a_squared_error_the_bound_trains_the_variance_only(kind):
    x_0, eps, x_t, t = (each[::100] for each in item_for_each_timestep())
    noised = Noised(x_0, eps, t, x_t)
    output = torch.zeros(10, 4, 3, 3, dtype=torch.float64, requires_grad=True)

    def gradient(name):
        process = GaussianProcess(LINEAR, kind, "learned_range", name, "l2")
        losses = loss_of(process, output, noised)
        return torch.autograd.grad(losses["loss"].sum(), output)[0].chunk(2, dim=1)

    of_prediction, of_variance = gradient("hybrid")
    error = -GaussianProcess(LINEAR, kind).target(x_0, eps, t)
    torch.testing.assert_close(of_prediction, 2 * error / error[0].numel(), rtol=1e-9, atol=1e-12)
    of_prediction_in_kl, of_variance_in_kl = gradient("kl")
    torch.testing.assert_close(of_variance, of_variance_in_kl, rtol=1e-9, atol=1e-12)
    assert (of_prediction_in_kl - of_prediction).abs().max() > 1e-3


def test_losses_relate_as_their_names_say():
    schedule = NoiseSchedule("linear", timesteps=250)
    x_0, eps, x_t, t = item_for_each_timestep(schedule)
    noised, values = Noised(x_0, eps, t, x_t), torch.zeros_like(eps)
    output = torch.cat([eps + 0.1, values], dim=1)

    def of(name, variance="learned_range"):
        return GaussianProcess(schedule, "eps", variance, name, "l2")

    loss = {name: loss_of(of(name), output, noised) for name in OBJECTIVES}
    predicted = of("mse").x_0(eps + 0.1, x_t, t)
    bound = bound_term(predicted, values, x_0, x_t, t, schedule, "learned_range")
    for name, of_bound in (("kl", 1), ("rescaled_kl", 250), ("mse", 1), ("rescaled_mse", 0.25)):
        torch.testing.assert_close(loss[name]["vb"], of_bound * bound)
        assert torch.equal(loss[name]["loss"], loss[name].get("fit", 0) + loss[name]["vb"])
    assert torch.equal(loss["hybrid"]["loss"], loss["rescaled_mse"]["loss"])
    torch.testing.assert_close(loss["mse"]["fit"], torch.full((250,), 0.01).double())
    fixed = loss_of(of("mse", "fixed_small"), eps + 0.1, noised)
    assert set(fixed) == {"loss", "fit"}


def test_the_error_may_be_another_and_weighted():
    x_0, eps, x_t, t = item_for_each_timestep()
    process = GaussianProcess(LINEAR, "eps", objective="mse", loss_type="l1", loss_weight="p2")
    loss = loss_of(process, eps + 0.1, Noised(x_0, eps, t, x_t))
    torch.testing.assert_close(loss["loss"], 0.1 / (1 + LINEAR.snr), rtol=1e-9, atol=0)


def test_losses_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="'vlb': give one of mse, rescaled_mse, hybrid"):
        GaussianProcess(LINEAR, "eps", objective="vlb")
    with pytest.raises(ConfigError, match="'hybrid' with variance 'fixed_small'"):
        GaussianProcess(LINEAR, "eps", objective="hybrid")
