"""How far the truth lies from the mean of samples: three parts, whose factors patients tell."""

import numpy as np
import pytest
import torch
from test_prior import SIZE, all_present, fitted, patient

from ldm.intensity import BACKGROUND, UNIT
from ldm.models.diffusion.error_model import (
    ErrorModel,
    Residuals,
    doubt_of,
    fit_error_model,
)

VOXELS = 40_000


def residuals(seed, truth, scale=1.0):
    """A patient whose errors are normal, with the variance that an error model says."""
    rng = np.random.default_rng(seed)
    variance = scale * UNIT**2 * rng.exponential(0.5, VOXELS)
    doubt = UNIT**2 * np.where(rng.random(VOXELS) < 0.2, rng.uniform(0, 3, VOXELS), 0)
    of_error = truth.samples * variance + truth.doubt * doubt + truth.rest * UNIT**2
    return Residuals(of_error * rng.normal(size=VOXELS) ** 2, variance, doubt)


def test_the_factors_are_those_that_errors_were_made_with():
    truth = ErrorModel(samples=2.0, doubt=0.6, rest=0.05)
    found = fit_error_model([residuals(seed, truth, 1 + seed) for seed in range(3)])
    assert found == pytest.approx(truth, rel=0.1)


def test_a_part_that_no_patient_shows_has_no_factor():
    truth = ErrorModel(samples=2.0, doubt=0.0, rest=0.05)
    without = [residuals(seed, truth)._replace(doubt=np.zeros(VOXELS)) for seed in range(2)]
    found = fit_error_model(without)
    assert found.doubt == 0
    assert found == pytest.approx(truth, rel=0.1)


def test_a_patient_without_brain_in_its_slices_says_nothing():
    truth = ErrorModel(samples=1.5, doubt=0.3, rest=0.1)
    patients = [residuals(seed, truth) for seed in range(2)]
    nothing = Residuals(*(np.zeros(0) for _ in range(3)))
    assert fit_error_model([*patients, nothing]) == fit_error_model(patients)


def test_two_thirds_of_normal_errors_lie_within_the_deviation():
    truth = ErrorModel(samples=2.0, doubt=0.6, rest=0.05)
    one = residuals(7, truth)
    inside = np.ones(VOXELS, bool)
    deviation = truth.deviation(np.sqrt(one.variance), one.doubt, inside)
    assert np.mean(np.sqrt(one.error) <= deviation) == pytest.approx(0.683, abs=0.01)
    assert np.mean(np.sqrt(one.error) <= 2 * deviation) == pytest.approx(0.954, abs=0.01)


def test_outside_of_the_brain_the_deviation_is_that_of_samples():
    deviation, inside = np.full((2, 3), 0.2), np.array([[True, False, True]] * 2)
    found = ErrorModel(4.0, 0.0, 0.09).deviation(deviation, None, inside)
    np.testing.assert_allclose(found[~inside], 0.2)
    np.testing.assert_allclose(found[inside], np.sqrt(4 * 0.2**2 + (0.3 * UNIT) ** 2))


@pytest.mark.parametrize("factor", [0.0, 1.0, 1.5])
def test_the_doubt_of_a_prior_is_the_variance_of_an_image_that_enhances_or_does_not(factor):
    """With p it adds what it adds for certain, else nothing: p (1 - p) of the difference."""
    prior = fitted([patient(0), patient(1)], strength=1.0, relative=True)
    images, _ = patient(2)
    condition, present = images[:, :3], all_present()
    flat = torch.where(condition[:, :1] == BACKGROUND, BACKGROUND, torch.zeros(()))
    maps = prior.maps(condition)
    abnormal, certainty = maps.split(1, 1)
    for_certain, never = (
        prior(flat, condition, present, factor, maps=torch.cat([abnormal, p * abnormal**0], 1))
        for p in (1.0, 0.0)
    )
    expected = (certainty * (1 - certainty) * (for_certain - never) ** 2)[:, 0].double().numpy()
    found = doubt_of(prior, maps, present, factor=factor)
    brain = (condition != BACKGROUND).any(1).numpy()
    np.testing.assert_allclose(found[brain], expected[brain], atol=1e-6)
    assert (found.max() > 0) == (factor > 0)


def test_a_prior_that_does_not_act_has_no_doubt():
    prior = fitted([patient(0), patient(1)], relative=True)
    maps = prior.maps(patient(2)[0][:, :3])
    absent = all_present()
    absent[:, 2] = False
    assert not doubt_of(prior, maps, absent).any()
    assert doubt_of(None, maps, absent) is None
    assert doubt_of(prior, None, absent) is None
    assert maps.shape[-2:] == SIZE
