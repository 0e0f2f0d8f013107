"""Normalisation: every scale is undone inside its clip, and says what it measured."""

import importlib
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import SHAPE, head_image, write_subject
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ldm.config import config_root, load_config, trusted_targets
from ldm.data.datamodule import ContrastDataModule
from ldm.data.normalise import (
    HistogramNormaliser,
    IntensityScale,
    PercentileNormaliser,
    PerContrast,
    RobustNormaliser,
    WhiteStripeNormaliser,
    ZScoreNormaliser,
    build_normaliser,
    spread_through,
)
from ldm.data.prepare import Preparation
from ldm.errors import ConfigError, DataError
from ldm.evaluation.case import Case, in_reference_units
from ldm.phantom import write_phantoms
from ldm.study import Study
from ldm.util import instantiate_from_config, refuse_untrusted_targets

EXTREMES = np.linspace(-1, 1, 60, dtype=np.float32)
STANDARD = [-3.0, -1.5, -0.9, -0.5, -0.2, 0.0, 0.3, 0.6, 1.0, 2.0, 5.0]
HISTOGRAM = HistogramNormaliser({"t1": STANDARD, "t2": STANDARD})
NORMALISERS = [RobustNormaliser(), ZScoreNormaliser(), PercentileNormaliser(), HISTOGRAM]
ALL = [*NORMALISERS, WhiteStripeNormaliser()]
REPO = Path(__file__).parents[1]
TARGETS = "ldm.data.normalise."


@pytest.mark.parametrize("normaliser", ALL, ids=lambda n: type(n).__name__)
def test_restore_undoes_normalise_inside_the_clip(normaliser):
    array = head_image().astype(np.float32)
    brain = array > 0
    scale = normaliser.fit(array, brain, "t1")
    unit = scale.normalise(array, brain)
    assert unit.dtype == np.float32
    assert (unit[~brain] == -1).all()
    inside = brain & (np.abs(unit) < 1)
    np.testing.assert_allclose(scale.restore(unit)[inside], array[inside], rtol=1e-5)


def test_the_robust_scale_is_median_and_inter_quartile_range():
    array = np.arange(1, 102, dtype=np.float32)  # median 51, quartiles 26 and 76
    scale = RobustNormaliser(-4, 8).fit(array, array > 0, "t1")
    assert scale == IntensityScale(centre=51, width=50, lower=-4, upper=8)
    assert scale.normalise(np.array([51, 101.0]), True) == pytest.approx([-1 / 3, -1 / 6])
    far = scale.normalise(np.array([51 - 5 * 50, 51 + 9 * 50.0]), True)
    assert far.tolist() == [-1, 1]  # clipped


def test_zeros_inside_the_brain_do_not_move_the_scale():
    array = np.concatenate([np.arange(1, 102), np.zeros(500)]).astype(np.float32)
    brain = np.ones(array.shape, bool)  # another contrast shows brain where this one is 0
    assert RobustNormaliser().fit(array, brain, "t1").centre == 51


@given(
    gain=st.floats(1e-3, 1e3),
    offset=st.floats(0, 1e3),
    normaliser=st.sampled_from(NORMALISERS),
)
def test_gain_and_offset_of_the_scanner_cancel(gain, offset, normaliser):
    array = head_image((6, 6, 6)).astype(np.float64) + 1
    brain = np.ones(array.shape, bool)
    first = normaliser.fit(array, brain, "t1").normalise(array, brain)
    other = gain * array + offset
    second = normaliser.fit(other, brain, "t1").normalise(other, brain)
    np.testing.assert_allclose(second, first, atol=2e-5)


@given(
    array=arrays(
        np.float32, 60, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    ),
    normaliser=st.sampled_from(NORMALISERS),
)
@example(array=EXTREMES * np.float32(3e38), normaliser=NORMALISERS[0])
@example(array=EXTREMES * np.float32(1e-43), normaliser=NORMALISERS[2])
def test_any_intensities_are_refused_or_normalised_in_order(array, normaliser):
    brain = np.ones(60, bool)
    try:
        unit = normaliser.fit(array, brain, "t1").normalise(array, brain)
    except DataError as error:
        assert error.code == "DATA-CONSTANT"
        return
    assert np.isfinite(unit).all()
    assert np.abs(unit).max() <= 1
    assert (np.diff(unit[np.argsort(array, kind="stable")]) >= 0).all()


def test_one_hot_voxel_does_not_squeeze_the_rest():
    array = head_image().astype(np.float32)
    brain = array > 0
    before = RobustNormaliser().fit(array, brain, "t1").normalise(array, brain)
    array[6, 7, 5] = 1e6
    after = RobustNormaliser().fit(array, brain, "t1").normalise(array, brain)
    after[6, 7, 5] = before[6, 7, 5]
    np.testing.assert_allclose(after, before, atol=0.01)


@pytest.mark.parametrize("level", [0, 7])
def test_no_spread_is_refused(level):
    array = np.full(SHAPE, level, np.float32)
    with pytest.raises(DataError, match=rf"DATA-CONSTANT case=p: t2 .*about {level} "):
        RobustNormaliser().fit(array, np.ones(SHAPE, bool), "t2", "p")


@pytest.mark.parametrize("low_high", [(99, 1), (-1, 99), (0, 101)])
def test_percentiles_are_in_order(low_high):
    with pytest.raises(ValueError, match="low < high"):
        PercentileNormaliser(*low_high)


# --- White stripe ---------------------------------------------------------------------------------


def tissues(seed=0, scale=1.0, rim=200):
    """Grey matter (60 % at 300, sd 20), white matter (40 % at 400, sd 16), a bright rim at 900."""
    rng = np.random.default_rng(seed)
    grey, white = rng.normal(300, 20, 12_000), rng.normal(400, 16, 8_000)
    return scale * np.concatenate([grey, white, rng.normal(900, 20, rim)])


@pytest.mark.parametrize(("contrast", "peak"), [("t1", 400), ("t1ce", 400), ("t2", 300)])
def test_the_stripe_is_about_the_last_or_the_highest_peak(contrast, peak):
    values = tissues()
    scale = WhiteStripeNormaliser(smoothing=0.01).fit(values, values > 0, contrast)
    assert scale.centre == pytest.approx(peak, abs=4)
    # 10 % of all voxels about the peak of a normal density: as wide as its height tells
    spread, share = (16, 0.4) if peak == 400 else (20, 0.6)
    width = 0.1 / (share / (spread * np.sqrt(2 * np.pi)))  # of a stripe of even density
    assert scale.width == pytest.approx(width / np.sqrt(12), rel=0.1)


@pytest.mark.parametrize("gain", [0.01, 7.0])
def test_the_stripe_follows_the_gain_of_the_scanner(gain):
    one, other = tissues(), tissues(scale=gain)
    first = WhiteStripeNormaliser().fit(one, one > 0, "t1").standardise(one)
    second = WhiteStripeNormaliser().fit(other, other > 0, "t1").standardise(other)
    np.testing.assert_allclose(first, second, atol=1e-3)


def test_a_bright_rim_does_not_move_the_stripe():
    scales = [
        WhiteStripeNormaliser().fit(v, v > 0, "t1ce") for v in (tissues(rim=0), tissues(rim=190))
    ]
    assert scales[0].centre == pytest.approx(scales[1].centre, abs=2)


# --- Histogram landmarks --------------------------------------------------------------------------


def test_the_percentiles_of_a_subject_lie_on_the_standard_scale():
    array = head_image().astype(np.float32)
    scale = HISTOGRAM.fit(array, array > 0, "t1")
    landmarks = np.percentile(array[array > 0].astype(float), HISTOGRAM.percentiles)
    np.testing.assert_allclose(scale.standardise(landmarks), STANDARD, atol=1e-9)
    # beyond the last landmark with the slope of the last piece
    step = landmarks[-1] - landmarks[-2]
    assert scale.standardise(landmarks[-1] + step) == pytest.approx(5.0 + 3.0)


@given(bends=arrays(np.float64, 3, elements=st.floats(0.1, 10)), offset=st.floats(-1e3, 1e3))
def test_any_distortion_that_bends_at_the_landmarks_is_undone(bends, offset):
    normaliser = HistogramNormaliser({"t1": [-2, -0.5, 0.5, 3]}, [1, 25, 75, 99])
    values = 2e3 + np.cumsum(np.random.default_rng(0).uniform(1, 9, 101))  # value i: percentile i
    knots = values[[1, 25, 75, 99]]
    images = offset + np.concatenate([[2e3], 2e3 + np.cumsum(bends * np.diff(knots))])
    bent = np.interp(values, knots, images)
    bent[0] -= 1
    bent[-1] += 1
    brain = np.ones(101, bool)
    first, second = (normaliser.fit(v, brain, "t1").standardise(v) for v in (values, bent))
    np.testing.assert_allclose(first[1:-1], second[1:-1], atol=1e-9)


def test_ties_of_quantised_images_are_no_landmarks():
    array = np.repeat([10.0, 20.0, 30.0], 50)
    scale = HISTOGRAM.fit(array, array > 0, "t1")
    assert scale.landmarks == (10, 20, 30)
    np.testing.assert_allclose(scale.unstandardise(scale.standardise(array)), array)


def test_the_standard_scale_is_the_mean_profile():
    normaliser = HistogramNormaliser(percentiles=[25, 50, 75])
    assert normaliser.to_learn(["t1", "t2"]) == ["t1", "t2"]
    with pytest.raises(ConfigError, match=r"standard has no t1"):
        normaliser.fit(head_image(), head_image() > 0, "t1")
    even, skewed = np.array([0.0, 1, 2]) + 1, np.array([0.0, 1, 4]) + 1
    brain = np.ones(3, bool)
    normaliser.learn("t1", [normaliser.profile(a, brain, "t1") for a in (even, skewed)])
    # quartiles (1.5, 2, 2.5) and (1.5, 2, 3.5) in units of their own median and range
    assert normaliser.standard["t1"] == [(-0.5 - 0.25) / 2, 0, (0.5 + 0.75) / 2]
    assert normaliser.to_learn(["t1", "t2"]) == ["t2"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"percentiles": [50]},
        {"percentiles": [50, 10]},
        {"percentiles": [-1, 50]},
        {"standard": {"t1": [1, 2]}},
        {"standard": {"t1": STANDARD[::-1]}},
    ],
)
def test_a_scale_that_does_not_rise_is_refused(wrong):
    with pytest.raises(ValueError, match="rising"):
        HistogramNormaliser(**wrong)


# --- Scales as numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("normaliser", ALL, ids=lambda n: type(n).__name__)
def test_a_scale_survives_a_sidecar(normaliser):
    array = head_image().astype(np.float32)
    scale = normaliser.fit(array, array > 0, "t1")
    assert IntensityScale.from_dict({"contrast": "t1", **scale.to_dict()}) == scale


def test_the_four_numbers_of_an_early_sidecar_are_read():
    numbers = {"contrast": "t1", "centre": 3, "width": 2, "lower": -4, "upper": 8}
    assert IntensityScale.from_dict(numbers) == IntensityScale(3, 2, -4, 8)
    with pytest.raises(KeyError):
        IntensityScale.from_dict({"centre": 3})
    with pytest.raises(ValueError, match="differ in length"):
        IntensityScale.from_dict({**numbers, "landmarks": [1, 2]})


def test_a_spread_follows_the_slope_of_the_map():
    spread = np.array([0.01, 0.02])
    affine = IntensityScale(100, 50, -4, 8)
    np.testing.assert_allclose(affine.restore_spread(np.zeros(2), spread), spread * 6 * 50, 1e-6)
    bent = IntensityScale(0, 1, -1, 1, (0.0, 10.0, 40.0), (-1.0, 0.0, 1.0))
    values = np.array([-0.5, 0.5])  # slopes 10 and 30
    np.testing.assert_allclose(bent.restore_spread(values, spread), spread * [10, 30], 1e-6)
    assert spread_through(np.negative, 1.0, 2.0) == -2


@pytest.mark.parametrize("normaliser", ALL, ids=lambda n: type(n).__name__)
def test_the_truth_in_its_own_scale_is_the_truth(normaliser):
    """And in the scale of another contrast, it goes there and comes back."""
    reference, other = (head_image(seed=i).astype(np.float32) for i in (0, 1))
    brain = reference > 0
    fits = normaliser if normaliser is not HISTOGRAM else HistogramNormaliser({"t1ce": STANDARD})
    case = Case("p", {}, reference, brain, None, None)
    own = fits.fit(reference, brain, "t1ce")
    same = in_reference_units(reference, own, case, fits)
    np.testing.assert_allclose(same, reference, rtol=1e-5)
    foreign = fits.fit(other * 3, brain, "t1ce")
    moved = foreign.unstandardise(own.standardise(reference))
    np.testing.assert_allclose(in_reference_units(moved, foreign, case, fits), same, rtol=1e-5)
    spread = in_reference_units(reference, own, case, fits, spread=0 * reference + 2)
    np.testing.assert_allclose(spread[brain], 2, rtol=1e-5)


# --- Choices by YAML ------------------------------------------------------------------------------


OWN = """
from ldm.data.normalise import Normaliser

class Own(Normaliser):
    def measure(self, values, contrast):
        return {}
"""


def own_normaliser(folder, monkeypatch, module, returned):
    """The class of a file of the user, as a new process would import it."""
    (folder / f"{module}.py").write_text(OWN.format(returned))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop(module, None)
    return importlib.import_module(module).Own()


def test_a_class_of_ones_own_is_told_apart_by_its_module_and_its_code(tmp_path, monkeypatch):
    """So that what one has written to the cache is not read for another."""
    told = [
        own_normaliser(tmp_path, monkeypatch, *of).to_dict()
        for of in (("a", "0.0, 10.0"), ("a", "0.0, 100.0"), ("b", "0.0, 100.0"), ("a", "0.0, 10.0"))
    ]
    assert told[0] == told[3] and len({t["code"] for t in told}) == 3
    assert "code" not in RobustNormaliser().to_dict()


@pytest.mark.parametrize("returned", ["1.0", "None", "(float('nan'), 1.0)", "(0.0, float('inf'))"])
def test_a_measure_that_is_no_scale_is_refused(tmp_path, monkeypatch, returned):
    own = own_normaliser(tmp_path, monkeypatch, "returns", returned)
    image = np.linspace(1, 2, 8).reshape(2, 2, 2)
    with pytest.raises(ConfigError, match=r"Own\.measure returned .* for t1: it must"):
        own.fit(image, image > 0, "t1")


def test_each_contrast_has_its_own_normaliser():
    config = {
        "target": TARGETS + "PerContrast",
        "params": {
            "default": {"target": TARGETS + "ZScoreNormaliser"},
            "t1ce": {"target": TARGETS + "PercentileNormaliser", "params": {"high": 99.9}},
        },
    }
    normaliser = build_normaliser(config)
    array = head_image().astype(float)
    brain = array > 0
    assert normaliser.fit(array, brain, "t1") == ZScoreNormaliser().fit(array, brain, "t1")
    expected = PercentileNormaliser(high=99.9).fit(array, brain, "t1ce")
    assert normaliser.fit(array, brain, "t1ce") == expected
    assert normaliser.to_dict()["t1ce"]["high"] == 99.9
    with pytest.raises(ConfigError, match=r"CONFIG-UNKNOWN.*t1ce is no contrast.*nearest: 't1'"):
        Preparation.of(config).require_known(Study(("t1", "t2"), None))


def test_robust_is_the_default():
    assert isinstance(build_normaliser(None), RobustNormaliser)
    assert isinstance(PerContrast().of("t1"), RobustNormaliser)


@pytest.mark.parametrize("within", [False, True], ids=["all", "per contrast"])
def test_the_standard_scale_is_learned_from_training_subjects_alone(brats_folder, within):
    """It is the same whatever the validation subject holds, and travels in the configuration."""
    own = {"target": TARGETS + "HistogramNormaliser", "params": {"upper": 9}}
    parts = dict.fromkeys(("default", "t1ce"), own)
    config = {"target": TARGETS + "PerContrast", "params": parts} if within else own

    def module(config):
        options = {"image_size": 16, "num_workers": 0, "val": ["p3"], "normaliser_config": config}
        data = ContrastDataModule(str(brats_folder), **options)
        data.setup()
        return data

    first = module(config)
    write_subject(brats_folder, "p3", seed=99)  # the validation subject changes
    second = module(config)
    assert first.portable_params() == second.portable_params()
    write_subject(brats_folder, "p0", seed=98)  # a training subject changes
    assert module(config).portable_params() != first.portable_params()
    saved = first.portable_params()["normaliser_config"]
    learned = saved["params"]["t1ce"] if within else saved
    assert learned["params"]["upper"] == 9
    assert set(learned["params"]["standard"]) >= {"t1ce"}
    again = ContrastDataModule(normaliser_config=saved)  # as in sampling: no root, no data
    assert again.preparation.normaliser.to_learn(["t1", "t1ce"]) == []
    assert again.preparation.to_dict() == first.preparation.to_dict()


@pytest.mark.parametrize(
    "path", sorted((config_root() / "preprocessing").glob("*.yaml")), ids=lambda p: p.stem
)
def test_shipped_choices_build_and_are_trusted_in_a_sidecar(path):
    config = load_config(["configs/backbone/unet_tiny.yaml", path])["data"]
    data = instantiate_from_config(config)
    described = config["params"]["normaliser_config"]
    refuse_untrusted_targets(described, trusted_targets(), "sidecar")
    plain = load_config(["configs/backbone/unet_tiny.yaml"])["data"]
    assert data.preparation.to_dict() != instantiate_from_config(plain).preparation.to_dict()


def test_the_page_of_preprocessing_is_made_by_its_script(tmp_path):
    script = runpy.run_path(str(REPO / "scripts" / "compare_normalisers.py"))
    write_phantoms(tmp_path / "phantoms", 3, size=40, seed=0)
    table, cases = script["compare"]({"phantoms": tmp_path / "phantoms"})
    lines = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    quality = {name.strip(): float(value.split()[0]) for name, value in lines}
    assert quality["robust (default)"] > quality["percentile 0.5 to 99.5"] + 3
    page = (REPO / "docs" / "preprocessing.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in page for name in quality)
    script["draw_histograms"](cases[:2], tmp_path / "normalisers.png")
    assert (tmp_path / "normalisers.png").read_bytes().startswith(b"\x89PNG")
