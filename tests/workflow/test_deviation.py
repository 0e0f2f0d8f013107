"""The deviation beside a mean of samples: of its error, as far as the training has learned it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import ldm
from ldm.checkpoint import load_model
from ldm.cli.main import main
from ldm.data.layouts import detect_layout
from ldm.data.normalise import IntensityScale
from ldm.evaluation.case import load_case, read_prediction
from ldm.intensity import UNIT
from ldm.model_file import read_model
from ldm.study import Study

STEPS = "lightning.trainer.max_steps=3"
ID = "Phantom_0003"


@pytest.fixture(scope="module")
def run(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deviation") / "run"
    assert train(folder, STEPS) == 0
    return folder


@pytest.fixture(scope="module")
def made(run):
    return ldm.Synthesiser.load(run, precision="32", samples=4)


def of(made, patients, **options):
    """The mean, its deviation and the sidecar of one patient."""
    (volume,) = made.volumes(patients, [ID], **options)
    return volume.volume, volume.spread, volume.sidecar


def test_a_training_ends_with_what_patients_tell_of_its_errors(run):
    factors = load_model(run).error_model
    assert set(factors) == {"samples", "doubt", "rest"}
    assert factors["samples"] >= 0
    assert factors["rest"] > 0


def test_the_deviation_is_wider_by_the_factors_of_the_run(made, run, patients):
    mean, error, told = of(made, patients)
    alone, samples, other = of(made, patients, deviation="samples")
    factors = load_model(run).error_model
    np.testing.assert_array_equal(mean, alone)
    assert told["request"]["error_model"] == factors
    assert "error_model" not in other["request"]
    scale = IntensityScale.from_dict(told["intensity"])
    one_z = scale.restore_spread(mean, np.full_like(mean, UNIT))
    least = factors["samples"] * samples**2 + factors["rest"] * one_z**2
    brain = samples > 0
    assert brain.any()
    assert (error[brain] ** 2 >= least[brain] * (1 - 1e-3)).all()
    assert (error[~brain & (one_z > 0)] == 0).any()  # around the brain


def test_it_does_not_depend_on_how_wide_samples_are_asked_to_be(made, patients):
    _, wide, _ = of(made, patients)
    _, narrow, _ = of(made, patients, spread=0.5)
    np.testing.assert_allclose(narrow, wide, rtol=1e-3, atol=1e-4 * wide.max())
    _, narrow, _ = of(made, patients, spread=0.5, deviation="samples")
    assert narrow.sum() < 0.7 * wide.sum()


def test_without_draws_there_is_nothing_to_learn_of(train, tmp_path, patients):
    """A model that has not learned a mean has samples of its own width."""
    assert train(tmp_path / "run", STEPS, "model.params.spread=null") == 0
    assert load_model(tmp_path / "run").error_model is None
    plain = ldm.Synthesiser.load(tmp_path / "run", precision="32", samples=2)
    error, samples = (of(plain, patients, deviation=kind)[1] for kind in ("error", "samples"))
    np.testing.assert_array_equal(error, samples)


def test_evaluate_takes_it_for_exact(made, patients, tmp_path):
    """Of so many samples it is not: no t distribution makes up for their number."""
    layout, found = detect_layout(patients, None, Study().contrasts)
    case = load_case(found[ID], layout, Study())
    known = {}
    for kind in ("error", "samples"):
        (volume,) = made.volumes(patients, [ID], deviation=kind)
        volume.save(tmp_path / kind)
        own, made_of = detect_layout(tmp_path / kind, None, Study().contrasts)
        known[kind] = read_prediction(made_of[ID], own, case)
    assert known["error"].samples is None
    assert known["samples"].samples == 4


def test_a_run_that_goes_on_learns_it_anew_and_ends_as_one_that_was_not_stopped(
    train, run, tmp_path
):
    assert train(tmp_path / "run", "lightning.trainer.max_steps=2") == 0
    before = load_model(tmp_path / "run").error_model
    assert main(["train", "--resume", str(tmp_path / "run"), STEPS]) == 0
    assert load_model(tmp_path / "run").error_model == load_model(run).error_model != before


def test_a_finished_run_that_is_resumed_keeps_its_weights_file(run, tmp_path, capsys):
    """Nothing is trained and nothing judged anew; weights that are not whole are written again."""
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    file = copy / "model.safetensors"
    whole, written = file.read_bytes(), file.stat().st_ino
    assert main(["train", "--resume", str(copy)]) == 0
    assert "Finished before" in capsys.readouterr().out
    assert (file.read_bytes(), file.stat().st_ino) == (whole, written)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(["train", "--resume", str(copy)]) == 0
    assert "Learning how far the truth lies" in capsys.readouterr().err
    again, before = load_model(copy), load_model(run)
    assert (again.digest, again.error_model) == (before.digest, before.error_model)


def test_an_exported_model_keeps_it(run, tmp_path):
    ldm.export(run, tmp_path / "model")
    assert load_model(tmp_path / "model").error_model == load_model(run).error_model


def test_what_fails_in_it_costs_no_training(train, tmp_path, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("ldm.training.calibration.residuals_of", full)
    assert train(tmp_path / "run", STEPS) == 0
    assert "the deviation of samples is not calibrated" in caplog.text
    assert "error_model" not in read_model(tmp_path / "run" / "model.safetensors")[1]
