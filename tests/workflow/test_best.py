"""The best validation, early stopping, and a run that starts with the weights of another."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from ldm.callbacks.run import RunCheckpoint
from ldm.checkpoint import load_model, read_run_config
from ldm.cli.main import main
from ldm.curves import read_curves
from ldm.data.seen import SUBJECTS_FILE, read_seen
from ldm.model_file import read_model
from ldm.storage import read_json
from ldm.training.run_config import run_config

EVERY_STEP = ["lightning.trainer.val_check_interval=1", "lightning.trainer.max_steps={}"]
EVERY_STEP += ["lightning.callbacks.samples=null", "lightning.callbacks.curve=null"]
BEST = "lightning.callbacks.checkpoint.params.best_by="
RATE = "model.params.optimizer_config.params.lr="


def options(steps, *more):
    return [text.format(steps) for text in EVERY_STEP] + list(more)


def steps_of(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]


def test_the_model_is_that_of_the_best_validation(tmp_path, train, weights):
    """Also where the run was cut: what is kept survives in the folder, its value in the run."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # a rate that follows the length of the run would make the cut run another one
    constant = "model.params.rate_schedule=constant"
    more = (BEST + "val/loss", RATE + "3.0e-2", "model.params.warmup_steps=1", constant)
    assert train(whole, *options(6, *more)) == 0
    assert train(parts, *options(3, *more)) == 0
    assert main(["train", "--resume", str(parts), "lightning.trainer.max_steps=6"]) == 0
    steps, values = read_curves(whole)["val/loss"]
    known = read_model(whole / "model.safetensors")[1]
    assert known["best"]["val/loss"] == pytest.approx(min(values), rel=1e-4)
    assert known["step"] in (steps[values.index(min(values))] + i for i in (0, 1))
    assert weights(parts) == weights(whole)


def test_training_ends_where_nothing_gets_better(tmp_path, train, weights):
    run, still = tmp_path / "run", RATE + "1e-30"
    patience = "lightning.callbacks.checkpoint.params.patience=2"
    assert train(run, *options(9, BEST + "val/psnr", still, patience)) == 0
    assert json.loads((run / "cost.json").read_text())["steps"] == 3  # the best, and two like it
    before, rows = weights(run), (run / "metrics.csv").read_text()
    assert main(["train", "--resume", str(run)]) == 0  # it has ended: nothing is trained
    assert steps_of(run) == 3
    assert (weights(run), (run / "metrics.csv").read_text()) == (before, rows)
    assert main(["train", "--resume", str(run), patience.replace("=2", "=4")]) == 0
    assert steps_of(run) == 5
    assert weights(run) == before


def test_a_gradient_that_is_half_gathered_is_not_lost_to_patience(tmp_path, train):
    """Validations after batches 1, 2, 3, ... of two that make a step: none ends in between."""
    run, still = tmp_path / "run", RATE + "1e-30"
    patience = "lightning.callbacks.checkpoint.params.patience=2"
    two = "lightning.trainer.accumulate_grad_batches=2"
    assert train(run, *options(9, BEST + "val/psnr", still, patience, two)) == 0
    drawn = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["loops"]["fit_loop"]
    # the third validation is one too many; the fourth is the first after it between two steps
    assert drawn["epoch_loop.batch_progress"]["total"]["ready"] == 4


def test_a_validation_that_is_no_number_is_not_the_best(monkeypatch):
    kept = RunCheckpoint(best_by="val/psnr", patience=3)
    saved, trainer = [], SimpleNamespace(should_stop=False, callback_metrics={})
    trainer.strategy = SimpleNamespace(broadcast=lambda failure: failure)
    monkeypatch.setattr("ldm.callbacks.run.batches_drawn", lambda trainer: 1)
    monkeypatch.setattr("ldm.callbacks.run.is_whole", lambda trainer: True)
    monkeypatch.setattr(kept, "save_weights", lambda trainer, facts: saved.append(facts["best"]))
    for value in (math.nan, 20.0, math.nan, 10.0):
        trainer.callback_metrics = {"val/psnr": value}
        kept.on_validation_end(trainer, None)
    assert saved == [{"val/psnr": 20.0}] and kept.worse == 2
    kept.on_validation_end(trainer, None)
    assert trainer.should_stop


def test_what_is_not_logged_is_no_measure(tmp_path, train, capsys):
    assert train(tmp_path / "run", *options(2, BEST + "val/pnsr")) == 2
    assert "nearest: 'val/psnr'" in capsys.readouterr().err


def network(run):
    """All weights of the network of a run, as one vector."""
    return torch.cat([w.flatten() for w in load_model(run).model.network.parameters()])


def test_a_run_starts_with_the_weights_of_another(tmp_path, train, run_folder):
    """Its optimizer is new; whom the first has seen, the second has seen too."""
    still = options(1, RATE + "1e-30", "data.params.train=[Phantom_0002]")
    assert train(tmp_path / "with_yaml", *still, "--from", str(run_folder)) == 0
    assert torch.equal(network(tmp_path / "with_yaml"), network(run_folder))
    without = ["train", "--from", str(run_folder), "--output", str(tmp_path / "without")]
    assert main([*without, *still]) == 0
    assert torch.equal(network(tmp_path / "without"), network(run_folder))
    assert {"Phantom_0001", "Phantom_0002"} <= read_seen(tmp_path / "without").keys()


def test_fine_tuning_needs_no_more_than_the_folder_of_other_patients(
    tmp_path, run_folder, patients, monkeypatch, capsys
):
    """Which are split anew: the ids of the first training are not theirs."""
    monkeypatch.chdir(tmp_path)
    for file in sorted(patients.rglob("*.nii.gz")):
        subject = file.parent.name.replace("Phantom", "Other")
        (tmp_path / "others" / subject).mkdir(parents=True, exist_ok=True)
        name = file.name.replace("Phantom", "Other")
        (tmp_path / "others" / subject / name).symlink_to(file)
    assert read_run_config(run_folder)["data"]["params"]["val"] == ["Phantom_0003"]
    words = ["data.params.root=others", *options(1)]
    assert main(["train", "--from", str(run_folder), *words]) == 0
    assert f"start     weights of {run_folder}; learning rate 0.00" in capsys.readouterr().err
    tuned = tmp_path / "runs" / f"{run_folder.name}-tuned"
    split = read_json(tuned / SUBJECTS_FILE)
    assert set(split["val"]) == {"Other_0003"}
    assert {"Other_0001", "Other_0002"} < set(split["train"])  # and those that the start has seen
    named = run_config(None, [*words, "name=mine", "data.params.val=[Other_0001]"], run_folder)
    assert (named["name"], named["data"]["params"]["val"]) == ("mine", ["Other_0001"])
    assert run_config(None, (), run_folder)["data"]["params"]["val"] == ["Phantom_0003"]


def test_weights_of_another_network_are_refused(tmp_path, train, run_folder, capsys):
    other = "model.params.unet_config.params.model_channels=64"
    assert train(tmp_path / "run", *options(1, other), "--from", str(run_folder)) == 4
    assert "CKPT-MISMATCH" in capsys.readouterr().err
