"""Noise of the slices of a patient: which slices share it, and that each alone stays normal."""

from math import exp

import pytest
import torch

from ldm.inference.request import NOISES
from ldm.models.diffusion.noise import SMOOTH_WIDTH, KeyedNoise, slice_noise

SHAPE = (2, 24, 20)


def draw(kind, places, sample=0, subject="a", draws=1):
    """The last of so many draws for these slices, (slices, *SHAPE)."""
    keys = [slice_noise(kind, 0, subject, index, sample) for index in places]
    noise = KeyedNoise(keys, "cpu")
    return [noise.draw(SHAPE) for _ in range(draws)][-1]


@pytest.mark.parametrize("kind", NOISES)
def test_independent_of_batches_and_order(kind):
    """Also the second draw, the noise of a step: bit for bit."""
    together = draw(kind, range(9), draws=2)
    assert torch.equal(
        torch.cat([draw(kind, range(4), draws=2), draw(kind, range(4, 9), draws=2)]), together
    )
    assert torch.equal(draw(kind, [7, 2, 2], draws=2), together[[7, 2, 2]])


@pytest.mark.parametrize("kind", NOISES)
def test_steps_samples_and_patients_have_noise_of_their_own(kind):
    one = draw(kind, [3])
    others = [draw(kind, [3], sample=1), draw(kind, [3], subject="b"), draw(kind, [3], draws=2)]
    for other in others:
        correlation = torch.corrcoef(torch.stack([one.ravel(), other.ravel()]))[0, 1]
        assert abs(correlation) < 0.15  # 4.6 standard errors of 960 voxels


@pytest.mark.parametrize("kind", NOISES)
def test_every_slice_by_itself_is_standard_normal(kind):
    values = torch.cat([draw(kind, [index], sample=index) for index in range(100)])
    assert values.mean().abs() < 0.02
    assert values.std() == pytest.approx(1, abs=0.02)
    assert (values**4).mean() == pytest.approx(3, abs=0.15)


def test_one_noise_image_for_all_slices_of_a_patient():
    shared = draw("patient", range(5))
    assert torch.equal(shared, shared[:1].expand_as(shared))
    independent = draw("slice", range(5))
    assert not torch.equal(independent[0], independent[1])


def test_correlation_of_smooth_noise_is_that_of_its_gaussian():
    """exp(-d^2 / 4 w^2) at a distance of d slices, from 200 slices of 960 voxels."""
    noise = draw("smooth", range(200)).flatten(1)
    for distance in (1, 2, 4, 8):
        measured = (noise[distance:] * noise[:-distance]).mean()
        assert measured == pytest.approx(exp(-((distance / SMOOTH_WIDTH) ** 2) / 4), abs=0.02)


def test_independent_noise_is_that_of_the_plain_key():
    """Volumes sampled before there was a choice stay as they are."""
    generator = KeyedNoise([(0, "a", 4, 0)], "cpu")
    assert torch.equal(draw("slice", [4]), generator.draw(SHAPE))
