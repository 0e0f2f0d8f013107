"""Plateaus, and which cause follows from which configuration and curves."""

import numpy as np
import pytest

from ldm.diagnosis.causes import CAUSES, rate_between
from ldm.diagnosis.curves import Curve, plateau_start
from ldm.diagnosis.facts import RunFacts
from ldm.diagnosis.run import RunDiagnosis

STEPS = np.arange(0, 1000, 10)
FALL = 2 * np.exp(-STEPS / 150) + 0.1


def noisy(values, size=0.01, seed=0):
    return values * (1 + size * np.random.default_rng(seed).normal(size=len(values)))


def curve(values):
    return Curve.of(STEPS[: len(values)], values)


def test_a_constant_loss_is_flat_by_the_absolute_rule():
    flat = curve(np.full(100, 0.7) + 1e-6 * np.sin(STEPS))
    assert flat.variance < 1e-6 and flat.late_fall[0] < 1e-4
    assert flat.is_flat and plateau_start(flat) == 0


@pytest.mark.parametrize("scale", [1e-4, 1, 1e4])
def test_flat_and_falling_do_not_depend_on_the_scale_of_the_loss(scale):
    """But for a loss so small that the absolute rule takes it for flat."""
    assert curve(scale * noisy(np.ones(100))).is_flat
    falling = curve(scale * noisy(2 - STEPS / 1000))
    assert falling.is_falling == (scale > 1e-3)


def test_the_late_fall_of_a_line_is_its_slope_and_its_error_that_of_least_squares():
    """A quarter of the windows is 25 values, over which a line from 2 to 1 falls by 24 / 99."""
    line = curve(2 - STEPS / STEPS[-1])
    assert line.late_fall == pytest.approx((24 / 99, 0), abs=1e-9)
    errors = [curve(noisy(2 - STEPS / STEPS[-1], 0.1, seed)).late_fall for seed in range(200)]
    falls, stated = np.array(errors).T
    assert falls.std() == pytest.approx(stated.mean(), rel=0.15)


def test_a_plateau_starts_where_the_fall_ends():
    values = np.where(STEPS < 500, 2 - STEPS / 400, 0.75)
    assert 400 <= plateau_start(curve(noisy(values))) <= 550
    assert plateau_start(curve(noisy(2 - STEPS / 1000))) is None


def test_jumps_are_counted_and_missing_values_left_out():
    values = np.ones(100)
    values[[30, 60]] = 50, np.nan
    assert Curve.of(STEPS, values).jumps == 1


def facts(tmp_path, loss=FALL, rate=2e-4, params=None, size=0.05, **curves):
    """Facts of a run of 1000 steps."""
    optimizer = {"target": "torch.optim.AdamW", "params": {"lr": rate}}
    config = {
        "model": {
            "target": "ldm.models.segmentation.Segmentation",
            "params": {"optimizer_config": optimizer, **(params or {})},
        },
        "data": {"params": {"augmentation_config": None}},
        "lightning": {"callbacks": {"gradients": {"params": {"max_norm": 1.0}}}},
    }
    known = {"train/loss": noisy(loss), "train/lr": np.full(100, rate), **curves}
    return RunFacts(
        tmp_path,
        config,
        {name: curve(np.asarray(values)) for name, values in known.items()},
        parameters=int(2e7),
        train_subjects=100,
        weight_size=size,
    )


def causes(run):
    found = [cause for cause in (find(run) for find in CAUSES) if cause]
    return sorted(found, key=lambda cause: -cause.score)


def first(run):
    return causes(run)[0]


def test_a_run_that_fell_and_settled_is_healthy(tmp_path):
    assert not [c for c in causes(facts(tmp_path)) if c.is_likely]


def test_a_rate_below_the_usual_is_named_with_what_the_weights_could_move(tmp_path):
    cause = first(facts(tmp_path, loss=np.full(100, 2.0), rate=1e-6))
    assert cause.name == "the learning rate is too low" and cause.is_likely
    assert "0.02 of its size" in cause.evidence  # 1e-6 * 1000 steps / 0.05, to two digits
    assert cause.override == f"model.params.optimizer_config.params.lr={rate_between(5e-5, 5e-3):g}"


def test_a_usual_rate_and_few_steps_are_too_short(tmp_path):
    run = facts(tmp_path, loss=2 - STEPS / 1000, size=5.0)
    assert first(run).name == "the run is too short"
    assert first(run).override == "lightning.trainer.max_steps=9910"


def test_a_rate_above_the_usual_is_likely_only_if_the_loss_suffers(tmp_path):
    calm = first(facts(tmp_path, rate=0.02))
    assert calm.name == "the learning rate is too high" and not calm.is_likely
    wild = first(facts(tmp_path, loss=FALL + 3 * (STEPS > 700), rate=0.02))
    assert wild.name == "the learning rate is too high" and wild.is_likely


def test_a_dominant_dice_term_is_named_with_its_weight(tmp_path):
    terms = {"train/loss_dice": 50 + FALL, "train/loss_cross_entropy": FALL}
    run = facts(tmp_path, params={"loss_config": {"params": {"dice": 50}}}, **terms)
    assert first(run).name == "the Dice term weighs too much"
    assert first(run).override == "model.params.loss_config.params.dice=1"
    even = facts(tmp_path, params={"loss_config": {"params": {"dice": 1}}}, **terms)
    assert "the Dice term weighs too much" not in [c.name for c in causes(even)]


GRADIENTS = ("encoder_first", "encoder_last", "decoder_first", "output")


def vanishing(tmp_path, norms, loss):
    logged = {f"gradient/{n}": np.full(100, v) for n, v in zip(GRADIENTS, norms, strict=True)}
    return [
        c for c in causes(facts(tmp_path, loss=loss, **logged)) if c.name == "the gradients vanish"
    ]


@pytest.mark.parametrize("norms", [(1, 1e-5, 1e-5, 1), (1e-5, 1e-5, 1e-5, 1e-5)])
def test_vanishing_gradients_are_a_cause_where_the_loss_is_stuck(tmp_path, norms):
    (cause,) = vanishing(tmp_path, norms, np.full(100, 2.0))
    assert cause.is_likely
    (cause,) = vanishing(tmp_path, norms, FALL)
    assert not cause.is_likely


def test_a_ratio_of_gradients_alone_is_a_hint(tmp_path):
    """A ratio above 10 is common in healthy U-Nets, whose skips carry the gradient."""
    (cause,) = vanishing(tmp_path, (1, 0.05, 0.05, 1), np.full(100, 2.0))
    assert not cause.is_likely
    assert vanishing(tmp_path, (1, 0.2, 0.2, 1), np.full(100, 2.0)) == []


def test_gradients_that_grow_while_the_loss_rises_explode(tmp_path):
    grown = {"train/grad_norm": np.exp(STEPS / 100)}
    run = facts(tmp_path, loss=1 + STEPS / 500, **grown)
    assert first(run).name == "the gradients explode"
    assert first(run).override == "lightning.callbacks.gradients.params.max_norm=0.1"


def test_a_rising_validation_loss_asks_for_augmentation(tmp_path):
    run = facts(tmp_path, **{"val/loss": [1.0, 0.5, 0.6, 0.7, 0.9]})
    assert first(run).name == "the network is large for the data"
    assert first(run).override.endswith("SegmentationAugmentation")
    run.config["data"]["params"]["augmentation_config"] = {"target": "x"}
    run.config["model"]["params"]["unet_config"] = {"params": {"channels": [64, 128]}}
    assert first(run).override == "model.params.unet_config.params.channels=[32,64]"


def test_a_quarter_of_the_timesteps_that_is_not_learned_is_named(tmp_path):
    quarters = {f"train/loss_t{i}": FALL for i in range(3)} | {"train/loss_t3": np.ones(100)}
    found = [c for c in causes(facts(tmp_path, **quarters)) if "timesteps" in c.name]
    assert [c.name for c in found] == ["the timesteps of t3 are not learned"]
    assert found[0].override == "model.params.loss_weight=min_snr"


def test_a_sparsity_above_the_fit_weighs_too_much(tmp_path):
    terms = {"train/fit": FALL, "train/sparsity": 5 * FALL}
    run = facts(tmp_path, params={"sparsity": 2.0}, **terms)
    assert first(run).override == "model.params.sparsity=0.2"


def test_what_is_written_says_what_was_concluded(tmp_path):
    run = facts(tmp_path, loss=np.full(100, 2.0), rate=1e-6)
    written = RunDiagnosis(run, causes(run)).to_dict()
    assert written["healthy"] is False
    assert written["causes"][0]["likely"] is True
    assert written["loss"]["flat"] is True
    assert written["travel"] == pytest.approx(1e-6 * 991 / 0.05)


@pytest.mark.parametrize("rate", [2e-5, 2e-4, 0.05])
@pytest.mark.parametrize("loss", [[0.9], [0.9, 0.8], [0.2, 0.9, 3.0], np.linspace(1, 0.99, 9)])
def test_a_few_logged_points_tell_no_more_than_that_they_are_few(tmp_path, rate, loss):
    """Whatever the rate: one value is neither flat nor falling, and no weight could have moved."""
    few = {"train/grad_norm": np.geomspace(1, 99, len(loss)), "train/fit": [0.1] * len(loss)}
    few |= {"train/sparsity": [9.0] * len(loss)}
    run = facts(tmp_path, np.asarray(loss), rate, size=5.0, **few)
    likely = [cause for find in CAUSES if (cause := find(run)) and cause.is_likely]
    assert [cause.name for cause in likely] == ["the run is too short"]
    assert f"{len(loss)} values of the loss" in likely[0].evidence
