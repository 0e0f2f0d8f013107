"""Noise schedules and the timesteps that samplers take from them.

Their numbers are compared with the public implementations in test_mathematics.py.
"""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import ConfigError
from ldm.models.diffusion.schedule import (
    BETAS,
    FlowSchedule,
    NoiseSchedule,
    betas,
    gather,
    sampling_timesteps,
)

DIFFUSIONS = {name: NoiseSchedule(name) for name in BETAS} | {
    "scaled_linear": NoiseSchedule("scaled_linear", linear_start=8.5e-4, linear_end=1.2e-2),
}
ENDING_IN_NOISE = {
    "zero_snr": NoiseSchedule(
        "scaled_linear", linear_start=8.5e-4, linear_end=1.2e-2, zero_terminal_snr=True
    ),
    "zero_snr_cosine": NoiseSchedule("cosine", zero_terminal_snr=True),
    "flow": FlowSchedule(),
}
SCHEDULES = DIFFUSIONS | ENDING_IN_NOISE
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_diffusion = pytest.mark.parametrize("schedule", DIFFUSIONS.values(), ids=DIFFUSIONS)
from_noise = pytest.mark.parametrize("schedule", ENDING_IN_NOISE.values(), ids=ENDING_IN_NOISE)


@every_diffusion
def test_noise_only_grows(schedule):
    assert ((schedule.betas > 0) & (schedule.betas < 1)).all()
    assert (schedule.alphas_cumprod.diff() < 0).all()
    assert 0 < schedule.alphas_cumprod[-1] < schedule.alphas_cumprod[0] < 1
    assert torch.isfinite(schedule.snr).all()
    assert schedule.betas.dtype == schedule.alphas_cumprod.dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "stated", "step_betas"),
    [
        ("linear", 4.036e-5, np.linspace(1e-4, 2e-2, 1000)),
        ("scaled_linear", 4.68e-3, np.linspace(8.5e-4**0.5, 1.2e-2**0.5, 1000) ** 2),
    ],
)
def test_terminal_snr(name, stated, step_betas):
    """What is left of the image at T: with Stable Diffusion's schedule, 6.8 % of its amplitude."""
    alphas_cumprod = np.exp(np.log1p(-step_betas).sum())
    terminal = SCHEDULES[name].snr[-1].item()
    assert terminal == pytest.approx(alphas_cumprod / (1 - alphas_cumprod), rel=1e-6)
    assert terminal == pytest.approx(stated, rel=2e-3)


def test_terminal_level_of_cosine_is_set_by_its_last_clipped_beta():
    """cos^2 at (T-1)/T, normalised, times 1 - 0.999."""
    angles = (np.array([0.999, 0.0]) + 8e-3) / (1 + 8e-3) * np.pi / 2
    before_last, at_zero = np.cos(angles) ** 2
    terminal = SCHEDULES["cosine"].alphas_cumprod[-1].item()
    assert terminal == pytest.approx(before_last / at_zero * (1 - 0.999), rel=1e-6)
    assert terminal == pytest.approx(2.4e-9, rel=2e-2)


def test_sqrt_is_the_root_of_linear():
    torch.testing.assert_close(betas("sqrt", 50) ** 2, betas("linear", 50), rtol=1e-12, atol=0)


def test_sigmoid_follows_its_curve_up_to_the_clipped_last_step():
    """Jabri et al. 2022: (sigmoid(3) - sigmoid(6 t - 3)) / (sigmoid(3) - sigmoid(-3))."""
    time = np.arange(1, 1000) / 1000
    low, high = 1 / (1 + np.exp(3)), 1 / (1 + np.exp(-3))
    expected = (high - 1 / (1 + np.exp(3 - 6 * time))) / (high - low)
    schedule = SCHEDULES["sigmoid"]
    np.testing.assert_allclose(schedule.alphas_cumprod[:-1], expected, rtol=1e-9)
    assert schedule.betas[-1] == 0.999


@every_schedule
def test_alpha_and_sigma_of_integer_timesteps(schedule):
    """Inside a batch, and on a sampler's path: alpha falls, sigma rises, none ever is NaN."""
    t = torch.arange(len(schedule))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    in_batch = schedule.at(t, torch.zeros(len(t), 1, dtype=torch.float64))
    assert torch.equal(in_batch[0].flatten(), alpha)
    assert torch.equal(in_batch[1].flatten(), sigma)
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() >= 0).all()
    assert (sigma > 0).all()
    torch.testing.assert_close(
        (2 * schedule.half_log_snr(t)).exp(), schedule.snr, rtol=1e-9, atol=0
    )


@every_diffusion
def test_the_variance_is_preserved(schedule):
    t = torch.arange(len(schedule))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    torch.testing.assert_close(alpha**2, schedule.alphas_cumprod, rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma**2, 1 - schedule.alphas_cumprod, rtol=1e-10, atol=0)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=1e-12, atol=0)


def test_a_flow_is_the_straight_line_in_time():
    """Timestep t is the time (t + 1) / T, so that four trailing steps are quarters."""
    flow = FlowSchedule(1000)
    t = torch.tensor([*sampling_timesteps(flow, 4), -1])
    assert flow.sigma(t).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert flow.alpha(t).tolist() == [0, 0.25, 0.5, 0.75, 1]


@every_schedule
def test_timestep_minus_one_is_clean_data(schedule):
    clean = torch.tensor([-1])
    assert schedule.alpha(clean) == 1
    assert schedule.sigma(clean) == 0
    assert schedule.half_log_snr(clean) == torch.inf


@from_noise
def test_the_last_timestep_is_pure_noise(schedule):
    """Exactly, and nowhere on the way there does -inf turn into NaN."""
    last = torch.tensor([999])
    assert (schedule.alpha(last), schedule.sigma(last)) == (0, 1)
    assert schedule.snr[-1] == 0
    assert schedule.half_log_snr(last) == -torch.inf
    assert schedule.timestep_of(torch.tensor([-torch.inf]).double()) == 999
    assert schedule.ends_in_pure_noise
    between = torch.linspace(-1, 999, 4001, dtype=torch.float64)
    alpha, sigma = schedule.alpha(between), schedule.sigma(between)
    assert torch.isfinite(alpha).all()
    assert torch.isfinite(sigma).all()
    assert not schedule.half_log_snr(between).isnan().any()


@pytest.mark.parametrize("name", BETAS)
def test_zero_terminal_snr_shifts_and_scales_alpha(name):
    """Lin et al. 2023, algorithm 1: 0 at the last timestep, unchanged at the first."""
    plain, rescaled = NoiseSchedule(name), NoiseSchedule(name, zero_terminal_snr=True)
    before, after = plain.alphas_cumprod.sqrt(), rescaled.alphas_cumprod.sqrt()
    line = np.polyfit(before, after, 1)
    np.testing.assert_allclose(after, np.polyval(line, before), rtol=0, atol=1e-12)
    assert after[-1] == 0
    assert after[0] == before[0]
    assert ((rescaled.betas > 0) & (rescaled.betas <= 1)).all()
    assert (rescaled.betas == 1).tolist() == [False] * 999 + [True]
    assert not plain.ends_in_pure_noise


@settings(deadline=None)
@given(t=st.floats(0, 998), name=st.sampled_from(list(SCHEDULES)))
def test_timestep_of_inverts_half_log_snr(t, name):
    schedule = SCHEDULES[name]
    t = torch.tensor([t], dtype=torch.float64)
    torch.testing.assert_close(
        schedule.timestep_of(schedule.half_log_snr(t)), t, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_gathered_numbers_never_fall_below_float32(given_dtype, expected):
    x = torch.zeros(2, 1, 3, 3, dtype=getattr(torch, given_dtype))
    numbers = gather(torch.arange(10.0, dtype=torch.float64), torch.tensor([7, 2]), x)
    assert numbers.dtype == getattr(torch, expected)
    assert numbers.shape == (2, 1, 1, 1)
    assert numbers.flatten().tolist() == [7, 2]


@pytest.mark.parametrize("spacing", ["trailing", "logsnr"])
@every_schedule
def test_every_count_of_steps_has_distinct_timesteps(schedule, spacing):
    for steps in range(1, len(schedule) + 1):
        grid = sampling_timesteps(schedule, steps, spacing)
        assert grid.shape == (steps,)
        assert (np.diff(grid) < 0).all()
        assert grid[0] == len(schedule) - 1
        assert grid[-1] >= 0
    assert grid.tolist() == list(range(999, -1, -1))


@settings(deadline=None)
@given(timesteps=st.integers(2, 400), fraction=st.floats(0, 1))
def test_trailing_steps_are_even_for_any_length_of_schedule(timesteps, fraction):
    steps = 1 + round(fraction * (timesteps - 1))
    grid = sampling_timesteps(NoiseSchedule("linear", timesteps=timesteps), steps)
    gaps = -np.diff([*grid, -1])  # the last step, to clean data, is as long as the others
    assert grid[0] == timesteps - 1
    assert abs(gaps - timesteps / steps).max() < 1.001
    assert gaps.min() >= 1


def test_logsnr_steps_are_even_in_lambda_and_include_both_ends():
    schedule = NoiseSchedule("linear")
    grid = sampling_timesteps(schedule, 10, "logsnr")
    half_log_snr = schedule.half_log_snr(torch.from_numpy(grid.copy()))
    gaps = half_log_snr.diff()
    assert (grid[0], grid[-1]) == (999, 0)
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=0.2, atol=0)


@from_noise
def test_logsnr_steps_leave_pure_noise_first_and_are_then_even(schedule):
    grid = sampling_timesteps(schedule, 11, "logsnr")
    assert (grid[0], grid[1], grid[-1]) == (999, 998, 0)
    # the levels of a flow and of a cosine lie too far apart near clean data to be even there
    gaps = schedule.half_log_snr(torch.from_numpy(grid[1:8].copy())).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=0.3, atol=0)


def test_quadratic_spacing_is_even_in_the_square_root():
    grid = sampling_timesteps(NoiseSchedule("linear"), 10, "quadratic")
    assert grid[::-1].tolist() == [1 + int(800 * (i / 9) ** 2) for i in range(10)]


@pytest.mark.parametrize(("spacing", "exist"), [("uniform", 15), ("quadratic", 29)])
def test_grids_of_the_ddim_code_are_exact_or_refused(spacing, exist):
    """Unchecked, it leaves the range for 599 counts of 1000 and misses the count for 984."""
    schedule, grids = NoiseSchedule("linear"), []
    for steps in range(1, 1001):
        try:
            grids.append(sampling_timesteps(schedule, steps, spacing))
        except ConfigError as error:
            assert f"no {steps} distinct timesteps below 1000" in str(error)
        else:
            assert grids[-1].shape == (steps,)
            assert (np.diff(grids[-1]) < 0).all()
            assert 0 <= grids[-1][-1] <= grids[-1][0] < 1000
    assert len(grids) == exist


@pytest.mark.parametrize("steps", [0, -3, 1001, 2.5, True, "20"])
def test_a_count_of_steps_out_of_range_is_refused(steps):
    with pytest.raises(ConfigError, match="expected an integer from 1 to 1000") as caught:
        sampling_timesteps(NoiseSchedule("linear"), steps)
    assert caught.value.code == "CONFIG-VALUE"
    assert caught.value.exit_code == 2


def test_an_unknown_spacing_is_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError, match="'linspace': give one of trailing, logsnr, uniform, quadratic"
    ):
        sampling_timesteps(NoiseSchedule("linear"), 10, "linspace")


def test_stored_arguments_are_those_of_models_from_before_zero_terminal_snr():
    assert NoiseSchedule("cosine").to_dict() == {
        "name": "cosine",
        "timesteps": 1000,
        "linear_start": 1e-4,
        "linear_end": 2e-2,
        "cosine_s": 8e-3,
    }


def test_a_flow_schedule_is_its_arguments_too():
    stored = json.loads(json.dumps(FlowSchedule(50).to_dict()))
    assert FlowSchedule(**stored) == FlowSchedule(50) != FlowSchedule(51)
    with pytest.raises(ConfigError, match="timesteps is 1; expected an integer of at least 2"):
        FlowSchedule(1)


def test_a_schedule_is_its_arguments():
    schedule = NoiseSchedule("scaled_linear", 500, linear_start=8.5e-4, linear_end=1.2e-2)
    stored = json.loads(json.dumps(schedule.to_dict()))
    assert NoiseSchedule(**stored) == schedule == pickle.loads(pickle.dumps(schedule))
    assert NoiseSchedule(**stored | {"timesteps": 501}) != schedule
    rescaled = NoiseSchedule(**stored, zero_terminal_snr=True)
    assert NoiseSchedule(**rescaled.to_dict()) == rescaled != schedule
    assert len(schedule) == 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "lineal"},
            "'lineal': give one of linear, scaled_linear, sqrt, cosine, sigmoid",
        ),
        ({"timesteps": 1}, "timesteps is 1; expected an integer of at least 2"),
        ({"timesteps": "many"}, "timesteps is 'many'"),
        ({"timesteps": 10.0}, "timesteps is 10.0"),
        ({"linear_start": 0.0}, "linear_start is 0.0; expected a number between 0 and 1"),
        ({"linear_end": float("nan")}, "linear_end is nan"),
        ({"linear_end": "1e-4"}, "linear_end is '1e-4'"),
        ({"linear_start": 0.1}, "linear_start 0.1 is above linear_end 0.02"),
        ({"cosine_s": -1}, "cosine_s is -1; expected a number from 0 to 1"),
        ({"zero_terminal_snr": "yes"}, "zero_terminal_snr is 'yes'; expected true or false"),
    ],
)
def test_bad_arguments_are_refused_with_the_value_seen(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        NoiseSchedule(**arguments)
    assert caught.value.code == "CONFIG-VALUE"
