"""Calibration of a predicted spread: normal errors of known size, few samples, and by hand."""

import warnings
from math import inf, isnan, sqrt

import numpy as np
import pytest
from builders import evaluate_volume
from scipy.stats import norm

from ldm.errors import DataError
from ldm.evaluation.metrics.calibration import (
    BINS,
    LEVELS,
    calibration_error,
    coverage,
    error_to_spread,
    reliability,
)
from ldm.evaluation.protocol import SPREAD, MetricProtocol
from ldm.models.diffusion.spread import mean_and_deviation

VOXELS = 200_000
SAMPLING = 4 * sqrt(0.25 / VOXELS)  # four standard errors of a share


def normal_case(factor=1.0, seed=0):
    """Truth, spreads from 0.5 to 2, and a prediction whose error is ``factor`` times as large."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(100, 20, VOXELS)
    spread = rng.uniform(0.5, 2, VOXELS)
    return reference + factor * spread * rng.normal(size=VOXELS), reference, spread


def drawn_case(samples, seed=0):
    """Truth and samples from one normal distribution a voxel: mean and spread of the samples."""
    rng = np.random.default_rng(seed)
    sigma, centre = rng.uniform(0.5, 2, VOXELS), rng.normal(100, 20, VOXELS)
    draws = centre + sigma * rng.normal(size=(samples, VOXELS))
    reference = centre + sigma * rng.normal(size=VOXELS)
    return draws.mean(axis=0), reference, draws.std(axis=0, ddof=1)


def test_a_spread_of_the_size_of_the_error_is_calibrated():
    case = normal_case()
    assert coverage(*case, sigmas=1) == pytest.approx(0.6827, abs=SAMPLING)
    assert coverage(*case, sigmas=2) == pytest.approx(0.9545, abs=SAMPLING)
    assert calibration_error(*case) < SAMPLING
    assert error_to_spread(*case) == pytest.approx(1, abs=0.01)
    groups = reliability(*case)
    np.testing.assert_allclose(groups.error, groups.spread, rtol=0.03)
    assert (np.diff(groups.spread) > 0).all()


@pytest.mark.parametrize(("samples", "near"), [(2, SAMPLING), (8, SAMPLING), (3, 0.02)])
def test_samples_in_pairs_of_opposite_noise_are_calibrated(samples, near):
    """Their mean is that of the distribution: as the deviation that sampling writes has it."""
    rng = np.random.default_rng(0)
    sigma, centre = rng.uniform(0.5, 2, VOXELS), rng.normal(100, 20, VOXELS)
    noise = rng.normal(size=((samples + 1) // 2, VOXELS))
    draws = centre + sigma * np.stack([noise, -noise], axis=1).reshape(-1, VOXELS)[:samples]
    mean, spread = mean_and_deviation(draws, mirrored=True)
    case = mean, centre + sigma * rng.normal(size=VOXELS), spread
    told = {"samples": samples, "mirrored": True}
    assert coverage(*case, sigmas=1, **told) == pytest.approx(0.6827, abs=near)
    assert coverage(*case, sigmas=2, **told) == pytest.approx(0.9545, abs=near)
    assert error_to_spread(*case, **told) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_spread_too_small_or_too_large_by_two(factor):
    """Error = factor * spread: ratio and slope are the factor, coverage that of 1 / factor."""
    case = normal_case(factor)
    assert error_to_spread(*case) == pytest.approx(factor, rel=0.01)
    for sigmas in (1, 2):
        expected = 2 * norm.cdf(sigmas / factor) - 1
        assert coverage(*case, sigmas=sigmas) == pytest.approx(expected, abs=SAMPLING)
    reached = [2 * norm.cdf(norm.ppf((1 + p) / 2) / factor) - 1 for p in LEVELS]
    expected = np.mean(np.abs(np.subtract(reached, LEVELS)))
    assert calibration_error(*case) == pytest.approx(expected, abs=SAMPLING)
    groups = reliability(*case)
    assert np.polyfit(groups.spread, groups.error, 1)[0] == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize("samples", [2, 3, 8])
def test_few_samples_of_the_right_distribution_are_calibrated(samples):
    """Only with the correction: as if exact, the same spread looks overconfident."""
    case = drawn_case(samples)
    assert coverage(*case, sigmas=1, samples=samples) == pytest.approx(0.6827, abs=SAMPLING)
    assert coverage(*case, sigmas=2, samples=samples) == pytest.approx(0.9545, abs=SAMPLING)
    assert calibration_error(*case, samples=samples) < SAMPLING
    assert error_to_spread(*case, samples=samples) == pytest.approx(1, abs=0.01)
    assert coverage(*case, sigmas=1) < 0.6827 - 10 * SAMPLING
    assert error_to_spread(*case) == pytest.approx(sqrt(1 + 1 / samples), rel=0.01)


def test_groups_by_hand_and_only_inside_the_mask():
    spread = np.repeat(np.arange(1.0, BINS + 1), 2)[::-1]
    error = np.tile([3.0, -4.0], BINS)
    outside = np.full(7, 100.0)
    mask = np.r_[np.ones(2 * BINS), np.zeros(7)]
    volumes = (np.r_[error, outside], np.zeros(2 * BINS + 7), np.r_[spread, outside])
    groups = reliability(*volumes, mask)
    np.testing.assert_allclose(groups.spread, np.arange(1, BINS + 1))
    np.testing.assert_allclose(groups.error, sqrt((9 + 16) / 2))
    with_four = reliability(*volumes, mask, samples=4)
    np.testing.assert_allclose(with_four.spread, groups.spread * sqrt(1.25))
    np.testing.assert_array_equal(with_four.error, groups.error)


def test_no_spread_and_no_voxels():
    some, none = np.ones(5), np.zeros(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert coverage(some, none, none) == 0  # an error, and none was predicted
        assert error_to_spread(some, none, none) == inf
        assert coverage(some, some, none) == 1
        assert isnan(error_to_spread(some, some, none))
        for measure in (coverage, calibration_error, error_to_spread):
            assert isnan(measure(some, none, some, mask=none))
            assert isnan(measure(some * np.nan, none, some))
            assert isnan(measure(some, none, some * np.nan))
        assert np.isnan(reliability(some, none, some, none)).all()


def test_wrong_input_is_named():
    with pytest.raises(DataError, match="DATA-SHAPE.*spread 4"):
        coverage(np.zeros(5), np.zeros(5), np.zeros(4))
    with pytest.raises(DataError, match="DATA-RANGE: spread down to -1"):
        coverage(np.zeros(2), np.zeros(2), np.array([1.0, -1.0]))
    with pytest.raises(DataError, match="DATA-RANGE.*1 samples"):
        error_to_spread(np.zeros(2), np.zeros(2), np.ones(2), samples=1)


@pytest.fixture(scope="module")
def patient():
    """Prediction, reference, brain, tumour and spread; twice overconfident in the tumour."""
    rng = np.random.default_rng(0)
    shape = (48, 48, 24)
    brain, tumour = np.zeros(shape, bool), np.zeros(shape, bool)
    brain[4:-4, 4:-4, 2:-2] = True
    tumour[10:34, 10:34, 4:20] = True
    spread = np.where(brain, rng.uniform(10, 30, shape), 0)
    reference = np.where(brain, rng.uniform(100, 900, shape), 0)
    error = spread * rng.normal(size=shape) * np.where(tumour, 2, 1)
    return reference + error, reference, brain, tumour, spread


def test_regions_of_a_patient(patient):
    *volumes, spread = patient
    scores = evaluate_volume(*volumes, spread=spread)
    assert not set(SPREAD) & set(scores["full"])
    assert scores["healthy"]["coverage_1sd"] == pytest.approx(0.683, abs=0.02)
    assert scores["healthy"]["error_to_spread"] == pytest.approx(1, abs=0.03)
    assert scores["tumour"]["coverage_2sd"] == pytest.approx(0.683, abs=0.02)
    assert scores["tumour"]["error_to_spread"] == pytest.approx(2, abs=0.06)
    assert 1 < scores["brain"]["error_to_spread"] < 2
    without = evaluate_volume(*volumes)
    for region, values in without.items():
        same = {name: scores[region][name] for name in values}
        assert values == pytest.approx(same, rel=0, abs=0, nan_ok=True)


def test_calibration_has_no_unit_and_is_not_clipped(patient):
    *volumes, spread = patient
    prediction, reference, brain, tumour = volumes
    scores = evaluate_volume(*volumes, spread=spread, samples=5)
    other = evaluate_volume(
        prediction * 3 + 7, reference * 3 + 7, brain, tumour, spread=spread * 3, samples=5
    )
    narrow = MetricProtocol(percentiles=(40, 60))  # clips four voxels of five
    clipped = evaluate_volume(*volumes, protocol=narrow, spread=spread, samples=5)
    for name in SPREAD:
        assert other["brain"][name] == pytest.approx(scores["brain"][name])
        assert clipped["brain"][name] == scores["brain"][name]


def test_undefined_patients_have_all_names(patient):
    prediction, reference, brain, _, spread = patient
    constant = evaluate_volume(prediction, np.where(brain, 300.0, 0), brain, spread=spread)
    assert set(SPREAD) < set(constant["brain"])
    assert all(map(isnan, constant["brain"].values()))
