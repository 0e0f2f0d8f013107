"""Samplers against closed-form answers and each other.

Published numbers are in test_mathematics.py.
"""

import math

import pytest
import torch
from oracles import (
    TwoModes,
    even_in_lambda,
    exact_denoiser,
    gaussian_1d,
    gaussian_2d,
    noise_in,
    toy_denoiser,
)
from scipy.integrate import quad

from ldm.errors import ConfigError
from ldm.models.diffusion.gaussian import PARAMETERISATIONS
from ldm.models.diffusion.process import GaussianProcess
from ldm.models.diffusion.samplers import (
    SAMPLERS,
    asked_timesteps,
    ddim,
    ddpm,
    euler,
    get_sampler,
)
from ldm.models.diffusion.schedule import FlowSchedule, NoiseSchedule, sampling_timesteps
from ldm.models.diffusion.solvers import _exponential_weights

LINEAR = NoiseSchedule("linear")
SCHEDULES = {
    "linear": LINEAR,
    "zero_snr": NoiseSchedule("linear", zero_terminal_snr=True),
    "flow": FlowSchedule(),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


# --- exact answers --------------------------------------------------------------------------------

DATA = {"1d": gaussian_1d(), "2d": gaussian_2d(), "two modes": TwoModes()}
# least and greatest slope of the last halving of the step, and the error at 160 steps
ORDERS = {
    "ddim": (0.85, 1.15, 3e-2),
    "euler": (0.85, 1.15, 3e-2),
    "plms": (1.85, 2.15, 3e-4),
    "heun": (1.85, 2.15, 3e-4),
    "dpmpp_2m": (1.85, 2.15, 8e-4),
    "dpmpp_3m": (2.85, 4.15, 6e-6),  # of fourth order where data are Gaussian
    "unipc_2": (2.85, 3.15, 6e-5),
    "unipc_3": (3.2, 4.0, 2e-6),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence_to_the_probability_flow(name, data):
    dimensions = 2 if data is DATA["2d"] else 1
    x_T = torch.linspace(-2.5, 2.5, 10 * dimensions, dtype=torch.float64).view(-1, dimensions)
    exact = data.flow(x_T, LINEAR, 999, 0)
    denoise = exact_denoiser(data, LINEAR)
    error, finer = (
        (SAMPLERS[name](denoise, x_T, LINEAR, even_in_lambda(LINEAR, steps)) - exact).abs().max()
        for steps in (80, 160)
    )
    least, greatest, bound = ORDERS[name]
    assert least < math.log2(error / finer) < greatest
    assert finer < bound


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("unipc_2", 3)])
def test_order_of_convergence_on_the_straight_path(name, order, data):
    """Euler and Heun in even steps of time, UniPC in even steps of lambda."""
    flow = FlowSchedule()
    dimensions = 2 if data is DATA["2d"] else 1
    x = torch.linspace(-2.5, 2.5, 10 * dimensions, dtype=torch.float64).view(-1, dimensions)
    start, end = 989.0, 9.0
    exact = data.flow(x, flow, start, end)
    denoise = exact_denoiser(data, flow)

    def path(steps):
        if name == "unipc_2":
            return even_in_lambda(flow, steps, start, end)
        return torch.linspace(start, end, steps + 1, dtype=torch.float64).tolist()

    error, finer = (
        (SAMPLERS[name](denoise, x, flow, path(steps)) - exact).abs().max() for steps in (160, 320)
    )
    assert abs(math.log2(error / finer) - order) < 0.2


def one_hot(step, x):
    """Noise of one for item 2 + step alone, none for the others."""
    noise = torch.zeros_like(x)
    noise[2 + step] = 1
    return noise


def mean_and_std(sampler, steps, path, start_mean=0.0, start_std=1.0, **options):
    """Of the samples, exactly: with an affine denoiser they are affine in x_T and in each noise.

    Item 0 starts at the mean without noise and ends there; item 1 starts one standard deviation
    off; item 2 + i has noise one at step i alone. What they differ by from item 0 adds in squares.
    """
    x_T = torch.full((steps + 2, 1), start_mean, dtype=torch.float64)
    x_T[1] += start_std
    denoise = exact_denoiser(gaussian_1d(), LINEAR)
    x_0 = sampler(denoise, x_T, LINEAR, path, noise=one_hot, **options)
    return x_0[0].item(), (x_0[1:] - x_0[0]).square().sum().sqrt().item()


@pytest.mark.parametrize(("name", "order"), [("ddpm", 1), ("dpmpp_2m_sde", 2)])
def test_order_of_convergence_of_stochastic_samplers_in_distribution(name, order):
    """From the mean and variance of x_T to those of x at timestep 0, both known."""
    alpha = LINEAR.alpha(torch.tensor([999, 0])).tolist()
    start_std, std = (math.sqrt(1 - 0.75 * a**2) for a in alpha)  # of a^2 0.5^2 + sigma^2
    errors = []
    for steps in (160, 320):
        path = even_in_lambda(LINEAR, steps)
        ours = mean_and_std(SAMPLERS[name], steps, path, alpha[0] * 0.3, start_std)
        assert ours[0] == pytest.approx(alpha[1] * 0.3, abs=1e-7)
        errors.append(abs(ours[1] - std))
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.15


@pytest.mark.parametrize(
    ("variance", "expected_std"), [("fixed_small", 0.49611), ("fixed_large", 0.50075)]
)
def test_ddpm_propagates_mean_and_variance(variance, expected_std):
    mean, std = mean_and_std(ddpm, 1000, 1000, variance=variance)
    assert mean == pytest.approx(0.299997, abs=1e-6)
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


DETERMINISTIC = [name for name in SAMPLERS if name not in ("ddpm", "dpmpp_2m_sde")]


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if name not in ("heun", "plms")])
def test_first_order_steps_are_ddim(name):
    """One step has no history, and with two the last, to clean data, is of first order."""
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    denoise = exact_denoiser(gaussian_1d(), LINEAR)
    paths = [[999, 600], [999, -1]]
    if "unipc" not in name:  # which corrects the first step when it takes the second
        paths.append([999, 600, -1])
    for path in paths:
        torch.testing.assert_close(
            SAMPLERS[name](denoise, x_T, LINEAR, path),
            ddim(denoise, x_T, LINEAR, path),
            rtol=0,
            atol=1e-10,
        )


def test_a_first_order_step_of_stochastic_dpm_solver_is_ddpm():
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    arguments = exact_denoiser(gaussian_1d(), LINEAR), x_T, LINEAR, [999, 600]
    noisy = {name: SAMPLERS[name](*arguments, noise=fixed_noise) for name in SAMPLERS}
    torch.testing.assert_close(noisy["dpmpp_2m_sde"], noisy["ddpm"], rtol=0, atol=1e-10)
    assert (noisy["ddpm"] - noisy["ddim"]).abs().max() > 0.1


def test_euler_follows_the_velocity_of_a_flow():
    flow, x = FlowSchedule(), torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    denoise = exact_denoiser(gaussian_1d(), flow)
    expected = x
    for time in (1.0, 0.75, 0.5, 0.25):
        t = torch.full((9,), round(1000 * time) - 1)
        velocity = GaussianProcess(flow, "flow").target(*both(denoise, expected, t, flow), t)
        expected = expected - 0.25 * velocity
    torch.testing.assert_close(euler(denoise, x, flow, 4), expected, rtol=0, atol=1e-12)


def both(denoise, x, t, schedule):
    x_0 = denoise(x, t)
    return x_0, noise_in(x, x_0, t, schedule)


@pytest.mark.parametrize("h", [1e-3, 0.3, 5.0, 60.0])
def test_weights_of_the_solvers_integrate_polynomials(h):
    """Integral of h e^(-h (1 - s)) s^k over [0, 1] by parts, for k = 0 ... 3."""
    places = [-1.7, -0.6, 0.0, 1.0]
    weights = _exponential_weights(h, places)
    exact = [quad(lambda s: h * math.exp(-h * (1 - s)) * s**k, 0, 1)[0] for k in range(4)]  # noqa: B023
    for k in range(4):
        ours = sum(w * place**k for w, place in zip(weights, places, strict=True))
        assert ours == pytest.approx(exact[k], rel=1e-9)


@pytest.mark.parametrize(
    ("variance", "values", "equal"),
    [
        ("learned_range", -1.0, "fixed_small"),
        ("learned_range", 1.0, "fixed_large"),
        ("learned", -60.0, None),
    ],
)
def test_ddpm_with_a_learned_variance(variance, values, equal):
    """The network's second half of the channels; a variance of e^-60 is none at all."""
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    oracle = exact_denoiser(gaussian_1d(), LINEAR)

    def denoise(x, t):
        x_0 = oracle(x, t)
        return torch.cat([x_0, torch.full_like(x_0, values)], dim=1)

    ours = ddpm(denoise, x_T, LINEAR, 10, variance=variance, noise=fixed_noise)
    if equal is None:
        expected = ddpm(oracle, x_T, LINEAR, 10, noise=lambda step, x: torch.zeros_like(x))
    else:
        expected = ddpm(oracle, x_T, LINEAR, 10, variance=equal, noise=fixed_noise)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


@every_sampler
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_parameterisation_of_one_model_gives_the_same_sample(sampler, schedule):
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    oracle = exact_denoiser(gaussian_1d(), schedule)

    def model(kind):
        def denoise(x, t):
            output = GaussianProcess(schedule, kind).target(*both(oracle, x, t, schedule), t)
            return GaussianProcess(schedule, kind).x_0(output, x, t)

        return denoise

    expected = sampler(oracle, x_T, schedule, 20, noise=fixed_noise)
    for kind in PARAMETERISATIONS:
        if kind == "eps" and schedule.ends_in_pure_noise:
            continue
        x_0 = sampler(model(kind), x_T, schedule, 20, noise=fixed_noise)
        torch.testing.assert_close(x_0, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_path_leads_to_the_data(name, schedule):
    """Also from pure noise, where lambda is infinite: within the error of so many steps."""
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    exact = gaussian_1d().flow(x_T, schedule, 999, -1)
    for steps in (100, 200):
        x_0 = SAMPLERS[name](exact_denoiser(gaussian_1d(), schedule), x_T, schedule, steps)
        error = (x_0 - exact).abs().max()
        assert error < 5 / steps
    assert error < 0.03


# --- the contract of all samplers -----------------------------------------------------------------


def fixed_noise(step, x):
    values = torch.arange(x[0].numel(), dtype=x.dtype, device=x.device).view_as(x[0])
    return torch.sin(17 * step + values).expand_as(x)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_sampling_ends_at_the_last_prediction(name, schedule, steps):
    """No noise and no other factor is left on it: at clean data alpha is exactly 1."""
    predictions = []

    def denoise(x, t):
        predictions.append(torch.tanh(x))
        return predictions[-1]

    x_0 = SAMPLERS[name](denoise, torch.randn(2, 1, 4, 4), NoiseSchedule(schedule), steps)
    assert len(predictions) == len(asked_timesteps(name, NoiseSchedule(schedule), steps))
    assert torch.equal(x_0, predictions[-1])


def test_calls_of_the_network_by_sampler():
    """One a step, but for the first of PLMS and all but the last of Heun."""
    calls = {name: len(asked_timesteps(name, LINEAR, 10)) for name in SAMPLERS}
    assert calls == dict.fromkeys(SAMPLERS, 10) | {"plms": 11, "heun": 19}
    assert asked_timesteps("plms", LINEAR, 1) == asked_timesteps("heun", LINEAR, 1) == [999]


@every_sampler
def test_the_network_sees_the_timesteps_of_the_spacing(sampler):
    seen = []

    def denoise(x, t):
        assert t.dtype == torch.int64
        assert t.shape == (3,)
        seen.append(t.unique().item())
        return torch.zeros_like(x)

    sampler(denoise, torch.zeros(3, 1, 2, 2), LINEAR, 12, spacing="logsnr")
    assert list(dict.fromkeys(seen)) == sampling_timesteps(LINEAR, 12, "logsnr").tolist()


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp_2m_sde"])
def test_all_randomness_comes_from_the_noise_given(name):
    """With noise keyed by item, an item's sample does not depend on the batch around it."""
    sampler = get_sampler(name, **({"eta": 0.5} if name == "ddim" else {}))
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
    x_0 = sampler(denoise, x_T, LINEAR, 4, noise=fixed_noise)
    assert x_0.dtype == torch.float32
    rounded = sampler(lambda x, t: denoise(x, t).float(), x_T, LINEAR, 4, noise=fixed_noise)
    assert torch.equal(x_0, rounded)  # the network's output is rounded, nothing after it


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
    with pytest.raises(ConfigError, match="'large': give one of fixed_small, fixed_large"):
        ddpm(lambda x, t: x, torch.zeros(1, 1), LINEAR, 2, variance="large")
    with pytest.raises(ConfigError, match="returns 1 channels; expected two for each channel"):
        ddpm(lambda x, t: x, torch.zeros(1, 1), LINEAR, 2, variance="learned")


def test_the_registry_knows_the_options_of_each_sampler():
    assert get_sampler("ddim", eta=0.5).keywords == {"eta": 0.5}
    with pytest.raises(ConfigError, match="sampler dpmpp_2m takes no eta") as caught:
        get_sampler("dpmpp_2m", eta=0.5)
    assert caught.value.code == "CONFIG-UNKNOWN"
    with pytest.raises(ConfigError, match="'plms2': give one of ddpm, ddim, plms, dpmpp_2m"):
        get_sampler("plms2")
