"""Samples in pairs of opposite noise: they lie about the posterior mean, as far as is asked."""

import numpy as np
import pytest
import torch
from test_latent_diffusion import batch, noise, plain, probe

from ldm.errors import ConfigError
from ldm.inference.request import Request
from ldm.models.diffusion.noise import KeyedNoise
from ldm.models.diffusion.regression import OneStepRegression
from ldm.models.diffusion.samplers import SAMPLERS, ddim, get_sampler
from ldm.models.diffusion.schedule import FlowSchedule, NoiseSchedule
from ldm.models.diffusion.spread import draw_samples, mean_and_deviation, width

KNOWN = {"mean_share": 0.75, "sampling_steps": 4}  # the posterior mean is learned


class Wavy(torch.nn.Module):
    """A backbone that returns what is neither odd nor even in x, and counts its calls."""

    size_divisor = 1

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen = []

    def forward(self, x, timesteps, context=None, y=None):
        self.seen.append((int(timesteps[0]), x[:, :1].clone()))
        return self.weight * (0.3 * x[:, :1] + 0.1 * x[:, :1] ** 2 + 0.2)


class Unit(torch.nn.Module):
    """The best denoiser of data of unit variance about 0, as a backbone."""

    size_divisor = 1

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.schedule = NoiseSchedule("cosine")
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, timesteps, context=None, y=None):
        return self.one * self.schedule.at(timesteps, x)[0] * x[:, :1]


def wavy(**params):
    return plain({"target": f"{__name__}.Wavy", "params": {}}, **{**KNOWN, **params})


def sampled(model, temperature=1.0, **options):
    data = batch()
    told = KeyedNoise([(0, 0), (0, 1)], "cpu", temperature)
    return model.synthesise(data["condition"], data["presence"], told, **options)


def test_mirrored_noise_is_the_same_from_the_start_with_the_other_sign():
    for keys in ([(0, "a"), (0, "b")], [{(0, 1): 0.6, (0, 2): 0.8}]):
        own = KeyedNoise(keys, "cpu", 0.5)
        first, second = own.draw((4, 4)), own.draw((4, 4))
        other = own.mirrored()
        assert torch.equal(other.draw((4, 4)), -first)
        assert torch.equal(other.draw((4, 4)), -second)
        assert torch.equal(other.mirrored().draw((4, 4)), first)
        assert torch.equal(own.at(1.0).draw((4, 4)), 2 * first)


def test_what_both_signs_have_in_common_is_replaced_by_the_mean():
    """A sampler with an odd part, 3 e, and an even one, e^2: the even one is no sample's."""

    def walk(noise):
        e = noise.draw((5, 5))
        return torch.full_like(e, 7.0) + 3 * e + e**2

    e = noise().draw((5, 5))
    plus, minus = draw_samples(walk, noise(), None, both=True)
    torch.testing.assert_close(plus, 7 + 3 * e + e**2)
    torch.testing.assert_close(minus, 7 - 3 * e + e**2)
    plus, minus = draw_samples(walk, noise(), 1.5, both=True)
    torch.testing.assert_close(plus, 7 + 4.5 * e)
    torch.testing.assert_close(minus, 7 - 4.5 * e)
    (one,) = draw_samples(walk, noise(), 1.5, both=False)
    assert torch.equal(one, plus)


def denoiser_of(schedule):
    """The best denoiser of unit normal data."""

    def denoise(x, t):
        alpha, sigma = schedule.at(t, x)
        return alpha / (alpha**2 + sigma**2) * x

    return denoise


@pytest.mark.parametrize("steps", [2, 4, 25])
@pytest.mark.parametrize("schedule", [NoiseSchedule("cosine"), FlowSchedule()], ids=["vp", "flow"])
def test_width_of_ddim_is_the_product_of_its_steps(schedule, steps):
    """From (a, s) to (b, u) it takes x to b x_0 + u (x - a x_0) / s, with x_0 = a x / (a² + s²)."""
    expected, T = 1.0, len(schedule)
    levels = [T - 1 - round(n * T / steps) for n in range(steps)] + [-1]
    for t, to in zip(levels, levels[1:], strict=False):
        (a, s), (b, u) = (
            (float(schedule.alpha(torch.tensor(x))), float(schedule.sigma(torch.tensor(x))))
            for x in (t, to)
        )
        x_0 = a / (a**2 + s**2)
        expected *= b * x_0 + u * (1 - a * x_0) / s
    assert width(ddim, schedule, steps) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("steps", [3, 10])
@pytest.mark.parametrize("name", SAMPLERS)
def test_width_is_the_deviation_of_samples_of_unit_normal_data(name, steps):
    schedule = NoiseSchedule("cosine")
    sampler = get_sampler(name)
    torch.manual_seed(0)
    x_T = torch.randn(40000, 1, dtype=torch.float64)
    samples = sampler(denoiser_of(schedule), x_T, schedule, steps)
    assert width(sampler, schedule, steps) == pytest.approx(float(samples.std()), rel=0.02)


def test_many_steps_need_no_correction():
    for schedule in (NoiseSchedule("cosine"), NoiseSchedule("linear"), FlowSchedule()):
        assert width(ddim, schedule, 500) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m"])
def test_a_spread_is_as_wide_with_few_steps_as_with_many(sampler):
    """Of a network that answers as the best denoiser of unit normal data: the noise times it."""
    model = plain(
        {"target": f"{__name__}.Unit", "params": {}},
        **{**KNOWN, "threshold": "none", "parameterization": "x0"},
    )
    data, own = batch(), KeyedNoise([(0, 0), (0, 1)], "cpu")
    given = model.given(model.space.encode_condition(data["condition"], data["presence"]), data)
    noise = own.at(1.0).draw((1, 8, 8))
    for steps in (2, 4, 10):
        (x_0,) = model.generate(given, own.at(1.0), sampler, steps, spread=0.5)
        torch.testing.assert_close(x_0, 0.5 * noise, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m_sde", "heun"])
def test_the_mean_of_a_pair_is_what_temperature_0_gives(sampler):
    model = wavy(spread=0.4)
    pair = sampled(model, sampler=sampler, both=True)
    mean = sampled(model, temperature=0.0)
    assert not torch.allclose(pair[0], mean, atol=1e-2)
    torch.testing.assert_close(pair.mean(dim=0), mean, atol=1e-5, rtol=0)
    assert torch.equal(pair[0], sampled(model, sampler=sampler))
    torch.testing.assert_close(sampled(model, sampler=sampler, spread=0.0), mean)
    wider = sampled(model, sampler=sampler, spread=0.8)
    torch.testing.assert_close(wider - mean, 2 * (pair[0] - mean), atol=1e-5, rtol=0)


def test_without_a_spread_a_pair_is_two_results_of_the_sampler():
    model = wavy(spread=None, mean_share=0.0)
    plus, minus = sampled(model, both=True)
    assert torch.equal(plus, sampled(model))
    data = batch()
    mirrored = KeyedNoise([(0, 0), (0, 1)], "cpu").mirrored()
    assert torch.equal(minus, model.synthesise(data["condition"], data["presence"], mirrored))
    assert not torch.allclose((plus + minus) / 2, sampled(model, temperature=0.0), atol=1e-3)


def test_noise_alone_is_shown_as_0_to_a_network_that_has_learned_the_mean_there():
    """The first call of every sampler; later states are what they are."""
    for share, is_shown in ((0.75, False), (0.0, True)):
        model = wavy(mean_share=share)
        sampled(model)
        seen = model.model.diffusion_model.seen
        assert [t for t, _ in seen][0] == len(model.schedule) - 1
        assert bool(seen[0][1].any()) == is_shown
        assert all(x.any() for _, x in seen[1:]) and len(seen) == 4


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
@pytest.mark.parametrize("spread", [None, 1.5])
def test_the_calls_that_are_told_are_those_that_are_made(sampler, spread):
    model = wavy(spread=spread)
    sampled(model, sampler=sampler)
    assert len(model.model.diffusion_model.seen) == model.network_calls(4, sampler)
    assert model.network_calls(4, sampler, temperature=0.0) == 1
    assert model.network_calls(1, sampler) == 1  # the mean: nothing lies about it
    alone = sampled(model, sampler=sampler, steps=1)
    assert torch.equal(alone, sampled(model, temperature=0.0))


def test_a_model_that_has_not_learned_its_mean_has_no_spread():
    """The shipped recipe sets one for every process; some of them learn no mean."""
    model = wavy(spread=1.5, mean_share=0.0)
    assert torch.equal(sampled(model), sampled(wavy(spread=None, mean_share=0.0)))
    with pytest.raises(ConfigError, match="has not learned a mean"):
        model.network_calls(4, spread=1.5)


def test_a_regression_gives_the_same_twice_and_refuses_a_spread():
    model = plain(probe(weight=0.5), OneStepRegression, **KNOWN, spread=1.5)
    pair = sampled(model, both=True)
    assert torch.equal(pair[0], pair[1])
    assert torch.equal(pair[0], sampled(model))
    with pytest.raises(ConfigError, match="has not learned a mean"):
        model.network_calls(4, spread=1.5)


def test_what_is_asked_holds_what_decides_the_voxels():
    """The spread in the sidecar is that of the model where none is given, and none without one."""
    model = wavy(spread=1.5)
    assert Request().of(model).options == {"spread": 1.5}
    told = Request(samples=3, spread=1.5).of(model).to_dict("digest")
    assert told == Request(samples=3).of(model).to_dict("digest")
    assert told["mirrored"] is True
    for changed in ({"temperature": 0.0}, {"steps": 1}):
        assert Request(**changed).of(model).options == {}
    with pytest.raises(ConfigError, match="at temperature 0 there is one image"):
        Request(spread=1.5, temperature=0.0).of(model)
    plainly = Request(samples=2).of(wavy(mean_share=0.0)).to_dict("digest")
    assert "mirrored" not in plainly and plainly["options"] == {}


@pytest.mark.parametrize("samples", [2, 5])
def test_deviation_of_samples_by_chance_and_in_pairs(samples):
    images = np.random.default_rng(0).normal(size=(samples, 7))
    mean, deviation = mean_and_deviation(images, mirrored=False)
    np.testing.assert_allclose(mean, images.mean(axis=0))
    np.testing.assert_allclose(deviation, images.std(axis=0, ddof=1))
    pair = np.stack([images[0], -images[0]]) + 3
    np.testing.assert_allclose(mean_and_deviation(pair, mirrored=True)[1], np.abs(images[0]))
