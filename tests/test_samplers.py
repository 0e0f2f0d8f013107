"""Samplers against published numbers, closed-form answers and each other."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import TwoModes, exact_denoiser, gaussian_1d, gaussian_2d

from ldm.errors import ConfigError
from ldm.models.diffusion.gaussian import PARAMETERISATIONS, target_of, to_eps, to_x_0
from ldm.models.diffusion.samplers import SAMPLERS, ddim, ddpm, dpmpp_2m, get_sampler
from ldm.models.diffusion.schedule import NoiseSchedule, respace, sampling_timesteps

REFERENCE = np.load(Path(__file__).parent / "reference" / "mathematics.npz")
LINEAR = NoiseSchedule()
LATENT = NoiseSchedule("scaled_linear")  # what latent-diffusion calls "linear"
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def assert_equals_reference(x_0, key):
    expected = torch.from_numpy(REFERENCE[key])
    torch.testing.assert_close(x_0, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def toy_denoiser(kind, schedule):
    """The toy network of the reference numbers (mathematics.json) as denoise(x_t, t)."""

    def denoise(x, t):
        time = t.view(-1, 1, 1, 1)
        output = torch.tanh(x * (1.5 - time / 1000)) * torch.cos(3 * time / 1000) + 0.1 * x
        alpha, sigma = schedule.alpha(t).view(-1, 1, 1, 1), schedule.sigma(t).view(-1, 1, 1, 1)
        x_0 = {"eps": (x - sigma * output) / alpha, "v": alpha * x - sigma * output}[kind]
        return x_0.to(x.dtype)

    return denoise


def even_in_lambda(schedule, steps):
    """The real timesteps from T-1 to 0 at equal distances in lambda."""
    first, last = schedule.half_log_snr(torch.tensor([len(schedule) - 1, 0])).tolist()
    grid = schedule.timestep_of(torch.linspace(first, last, steps + 1, dtype=torch.float64))
    return [len(schedule) - 1.0, *grid[1:-1].tolist(), 0.0]


# --- published numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("steps", [5, 20])
def test_ddim_equals_latent_diffusion(kind, steps):
    """Its last step ends at the noise level of timestep 0, not at clean data."""
    path = [*sampling_timesteps(LATENT, steps, "uniform"), 0]
    x_0 = ddim(toy_denoiser(kind, LATENT), torch.from_numpy(REFERENCE["x_T"]), LATENT, path)
    assert_equals_reference(x_0, f"ldm_ddim/{kind}/{steps}")


@pytest.mark.parametrize(
    "case", [key.removeprefix("dpmpp_2m/") for key in REFERENCE if key.startswith("dpmpp_2m/")]
)
def test_dpmpp_2m_equals_dpm_solver(case):
    """Steps between integer timesteps, of second order up to the end for 15 steps or more."""
    kind, spacing, steps = case.split("/")
    if spacing == "logSNR":
        path = even_in_lambda(LATENT, int(steps))
    else:
        path = np.linspace(999, 0, int(steps) + 1)
    x_0 = dpmpp_2m(toy_denoiser(kind, LATENT), torch.from_numpy(REFERENCE["x_T"]), LATENT, path)
    assert_equals_reference(x_0, f"dpmpp_2m/{case}")


def test_ddim_on_respaced_timesteps_equals_guided_diffusion():
    chosen = respace(1000, "ddim25")
    alphas_cumprod = LINEAR.alphas_cumprod[chosen]
    steps = 1 - alphas_cumprod / torch.cat([torch.ones(1), alphas_cumprod[:-1]])
    np.testing.assert_allclose(steps, REFERENCE["guided_ddim25/betas"], rtol=1e-10)
    denoise = toy_denoiser("eps", LINEAR)
    x_0 = ddim(denoise, torch.from_numpy(REFERENCE["x_T"]), LINEAR, [*chosen[::-1], -1])
    assert_equals_reference(x_0, "guided_ddim25")


# --- exact answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dimensions"), [(gaussian_1d(), 1), (gaussian_2d(), 2), (TwoModes(), 1)]
)
@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpmpp_2m, 2)])
def test_order_of_convergence_to_the_probability_flow(sampler, order, data, dimensions):
    x_T = torch.linspace(-2.5, 2.5, 10 * dimensions, dtype=torch.float64).view(-1, dimensions)
    exact = data.flow(x_T, LINEAR, 999, 0)
    denoise = exact_denoiser(data, LINEAR)
    errors = [
        (sampler(denoise, x_T, LINEAR, even_in_lambda(LINEAR, steps)) - exact).abs().max().item()
        for steps in (40, 80, 160)
    ]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert abs(slopes[-1] - order) < 0.15
    assert errors[-1] < {1: 3e-2, 2: 8e-4}[order]


@pytest.mark.parametrize(
    ("variance", "expected_std"), [("fixed_small", 0.49611), ("fixed_large", 0.50075)]
)
def test_ddpm_propagates_mean_and_variance(variance, expected_std):
    """With an affine denoiser the sample is affine in x_T and in each step's noise.

    Item 0 starts at zero without noise and gives the mean; item 1 starts at one; item 2 + i has
    noise one at step i alone. Their differences from item 0 are the standard deviations that add.
    """
    x_T = torch.zeros(1002, 1, dtype=torch.float64)
    x_T[1] = 1

    def one_hot(step, x):
        noise = torch.zeros_like(x)
        noise[2 + step] = 1
        return noise

    denoise = exact_denoiser(gaussian_1d(), LINEAR)
    x_0 = ddpm(denoise, x_T, LINEAR, 1000, variance=variance, noise=one_hot)
    std = (x_0[1:] - x_0[0]).square().sum().sqrt().item()
    assert x_0[0].item() == pytest.approx(0.299997, abs=1e-6)
    assert std == pytest.approx(expected_std, abs=5e-6)  # the five digits stated


def test_ddpm_samples_have_the_moments_of_the_data():
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    x_T = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    denoise = exact_denoiser(gaussian_1d(), LINEAR)

    def noise(step, x):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    x_0 = ddpm(denoise, x_T, LINEAR, 1000, noise=noise)
    assert x_0.mean().item() == pytest.approx(0.299997, abs=4 * 0.496 / n**0.5)
    assert x_0.std().item() == pytest.approx(0.49611, rel=4 / (2 * n) ** 0.5)


# --- equivalences ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_ddim_with_eta_1_is_ddpm(steps):
    """The same mean and variance, hence the same sample from the same noise."""
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    draws = torch.randn(steps, 9, 1, generator=torch.Generator().manual_seed(0)).double()
    arguments = exact_denoiser(gaussian_1d(), LINEAR), x_T, LINEAR, steps
    by_ddim = ddim(*arguments, eta=1.0, noise=lambda step, x: draws[step])
    by_ddpm = ddpm(*arguments, noise=lambda step, x: draws[step])
    torch.testing.assert_close(by_ddim, by_ddpm, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_eta_scales_the_noise_of_a_step(eta):
    """To eta times the standard deviation of the posterior (Song et al. 2021, eq. 16)."""
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    arguments = exact_denoiser(gaussian_1d(), LINEAR), x_T, LINEAR, [500, 499]
    with_noise = ddim(*arguments, eta=eta, noise=lambda step, x: torch.ones_like(x))
    without = ddim(*arguments, eta=eta, noise=lambda step, x: torch.zeros_like(x))
    alphas_cumprod, before = LINEAR.alphas_cumprod[500], LINEAR.alphas_cumprod[499]
    posterior = (1 - before) / (1 - alphas_cumprod) * LINEAR.betas[500]
    expected = (eta * posterior.sqrt()).expand_as(x_T)
    torch.testing.assert_close(with_noise - without, expected, rtol=0, atol=1e-10)


def test_first_order_steps_of_dpm_solver_are_ddim():
    """One step has no history, and with two the last, to clean data, is of first order."""
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    denoise = exact_denoiser(gaussian_1d(), LINEAR)
    for path in ([999, 600], [999, -1], [999, 600, -1]):
        torch.testing.assert_close(
            dpmpp_2m(denoise, x_T, LINEAR, path),
            ddim(denoise, x_T, LINEAR, path),
            rtol=0,
            atol=1e-10,
        )


@every_sampler
def test_every_parameterisation_of_one_model_gives_the_same_sample(sampler):
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    oracle = exact_denoiser(gaussian_1d(), LINEAR)

    def model(kind):
        def denoise(x, t):
            x_0 = oracle(x, t)
            eps = to_eps("x0", x_0, x, t, LINEAR)
            return to_x_0(kind, target_of(kind, x_0, eps, t, LINEAR), x, t, LINEAR)

        return denoise

    expected = sampler(oracle, x_T, LINEAR, 20, noise=fixed_noise)
    for kind in PARAMETERISATIONS:
        x_0 = sampler(model(kind), x_T, LINEAR, 20, noise=fixed_noise)
        torch.testing.assert_close(x_0, expected, rtol=0, atol=1e-10)


# --- the contract of all samplers -----------------------------------------------------------------


def fixed_noise(step, x):
    return torch.sin(17.0 * step + torch.arange(x[0].numel()).view_as(x[0])).expand_as(x)


@every_sampler
@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_sampling_ends_at_the_last_prediction(sampler, name, steps):
    """No noise and no other factor is left on it: at clean data alpha is exactly 1."""
    predictions = []

    def denoise(x, t):
        predictions.append(torch.tanh(x))
        return predictions[-1]

    x_0 = sampler(denoise, torch.randn(2, 1, 4, 4), NoiseSchedule(name), steps)
    assert len(predictions) == steps
    assert torch.equal(x_0, predictions[-1])


@every_sampler
def test_the_network_sees_the_timesteps_of_the_spacing(sampler):
    seen = []

    def denoise(x, t):
        assert t.dtype == torch.int64
        assert t.shape == (3,)
        seen.append(t.unique().item())
        return torch.zeros_like(x)

    sampler(denoise, torch.zeros(3, 1, 2, 2), LINEAR, 12, spacing="logsnr")
    assert seen == sampling_timesteps(LINEAR, 12, "logsnr").tolist()


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_all_randomness_comes_from_the_noise_given(name):
    """With noise keyed by item, an item's sample does not depend on the batch around it."""
    sampler = get_sampler(name, **{"ddim": {"eta": 0.5}, "ddpm": {}}[name])
    x_T = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    denoise = toy_denoiser("v", LINEAR)

    def sample(items):
        def keyed(step, x):
            generators = [torch.Generator().manual_seed(1000 * i + step) for i in items]
            return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators])

        return sampler(denoise, x_T[items], LINEAR, 10, noise=keyed)

    together = sample([0, 1, 2, 3])
    assert torch.equal(together, sample([0, 1, 2, 3]))
    apart = torch.cat([sample([0]), sample([1, 2]), sample([3])])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)


@every_sampler
def test_callback_sees_every_step(sampler):
    seen = []
    x_0 = sampler(
        lambda x, t: x / 2,
        torch.randn(2, 1, 4, 4),
        LINEAR,
        5,
        callback=lambda step, total, x, x_0: seen.append((step, total, x, x_0)),
    )
    assert [(step, total) for step, total, _, _ in seen] == [(i, 5) for i in range(5)]
    assert torch.equal(seen[-1][2], x_0)
    assert torch.equal(seen[-1][3], x_0)


@every_sampler
def test_arithmetic_is_float32_around_a_bfloat16_network(sampler):
    def denoise(x, t):
        assert x.dtype == torch.float32
        return torch.tanh(x).bfloat16()

    x_T = torch.randn(2, 1, 4, 4).bfloat16()
    assert sampler(denoise, x_T, LINEAR, 4).dtype == torch.float32


@every_sampler
@pytest.mark.parametrize(
    "steps", [[], [999], [0, 10], [10, 10, 0], [1000, 0], [5, -2], [math.nan, 0]]
)
def test_a_path_that_does_not_descend_in_range_is_refused(sampler, steps):
    with pytest.raises(ConfigError, match="expected two or more, decreasing from at most 999"):
        sampler(lambda x, t: x, torch.zeros(1, 1), LINEAR, steps)


@every_sampler
@pytest.mark.parametrize("steps", [0, 1001, 2.5])
def test_a_count_of_steps_out_of_range_is_refused(sampler, steps):
    with pytest.raises(ConfigError, match="expected an integer from 1 to 1000"):
        sampler(lambda x, t: x, torch.zeros(1, 1), LINEAR, steps)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_out_of_range_is_refused(eta):
    with pytest.raises(ConfigError, match="expected a number from 0"):
        ddim(lambda x, t: x, torch.zeros(1, 1), LINEAR, 2, eta=eta)


def test_an_unknown_variance_is_refused():
    with pytest.raises(ConfigError, match="'learned'; expected fixed_small or fixed_large"):
        ddpm(lambda x, t: x, torch.zeros(1, 1), LINEAR, 2, variance="learned")


def test_the_registry_knows_the_options_of_each_sampler():
    assert get_sampler("ddim", eta=0.5).keywords == {"eta": 0.5}
    with pytest.raises(ConfigError, match="sampler dpmpp_2m takes no eta") as caught:
        get_sampler("dpmpp_2m", eta=0.5)
    assert caught.value.code == "CONFIG-UNKNOWN"
    with pytest.raises(ConfigError, match="'plms2'; expected one of ddpm, ddim, dpmpp_2m"):
        get_sampler("plms2")
