"""A training writes a complete run folder, resumes exactly, and stops before NaN or on a signal."""

import csv
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from ldm.cli.main import main
from ldm.diagnosis.data import diagnose_data
from ldm.errors import NonFiniteError
from ldm.training.module import TrainingModule


def test_run_folder_is_complete(tmp_path, train):
    run = tmp_path / "run"
    assert train(run, "lightning.trainer.max_steps=4", curve=True) == 0
    for name in ("config.yaml", "model.safetensors", "checkpoints/last.ckpt", "cost.json"):
        assert (run / name).is_file()
    assert list((run / "samples").glob("step-*.png")) == []  # no validation in four steps
    assert (run / "loss.svg").read_text().lstrip().startswith("<?xml")
    with (run / "metrics.csv").open() as file:
        steps = [int(r["step"]) for r in csv.DictReader(file) if r["metric"] == "train/loss"]
    assert steps == [0, 1, 2, 3]


def test_a_dry_run_says_that_a_start_does_not_fit(run_folder, capsys):
    told = ["train", "--from", str(run_folder), "data.params.neighbours=1", "--dry-run"]
    assert main(told) == 4
    assert "CKPT-MISMATCH" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["--from", "--resume"])
def test_a_dry_run_of_a_run_trains_nothing(run_folder, tmp_path, monkeypatch, capsys, way):
    monkeypatch.chdir(tmp_path)
    before = sorted(run_folder.rglob("*"))
    assert main(["train", way, str(run_folder), "model.params.spread=0.5", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "spread: 0.5" in said and "backbone            UNetModel" in said
    assert (list(tmp_path.iterdir()), sorted(run_folder.rglob("*"))) == ([], before)


def test_a_segmentation_is_a_start_of_its_kind_alone(segmenter_run, run_folder, tmp_path, capsys):
    """Its loss is one node, where that of a synthesis has names."""
    more = ["lightning.trainer.max_steps=1", "--output", str(tmp_path / "on")]
    assert main(["train", "--from", str(segmenter_run), *more]) == 0
    more[-1] = str(tmp_path / "other")
    config = str(segmenter_run / "config.yaml")
    assert main(["train", config, "--from", str(run_folder), *more]) == 4
    assert "CKPT-MISMATCH" in capsys.readouterr().err


def test_checkpoint_holds_only_tensors_and_plain_values(run_folder):
    checkpoint = torch.load(run_folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory, train):
    """A run of six steps at once."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(folder, "lightning.trainer.max_steps=6") == 0
    return folder


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_resumed_equals_uninterrupted(tmp_path, train, weights, whole, cut):
    """Six steps at once and ``cut`` + the rest give bitwise equal weights, optimizer and metrics.

    A pass over the data is longer than six batches or shorter, whichever: the order is a function
    of seed and position, so no cut point is special.
    """
    parts = tmp_path / "parts"
    assert train(parts, f"lightning.trainer.max_steps={cut}") == 0
    assert main(["train", "--resume", str(parts), "lightning.trainer.max_steps=6"]) == 0
    assert weights(whole) == weights(parts)
    one, other = (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (whole, parts)
    )
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(v, other[key][name]) for name, v in one[key].items())
    torch.testing.assert_close(one["optimizer_states"], other["optimizer_states"], rtol=0, atol=0)
    assert (whole / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, train, weights, caplog):
    run = tmp_path / "run"
    every = "lightning.callbacks.checkpoint.params.every_n_steps=2"
    assert train(run, "lightning.trainer.max_steps=4", every) == 0
    whole = weights(run)
    last = run / "checkpoints/last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    assert main(["train", "--resume", str(run)]) == 0
    assert "going on from previous.ckpt" in caplog.text
    assert weights(run) == whole


def test_validation_logs_metrics_and_pictures(tmp_path, train):
    run = tmp_path / "run"
    steps = ["lightning.trainer.max_steps=2", "lightning.trainer.val_check_interval=2"]
    assert train(run, *steps) == 0
    with (run / "metrics.csv").open() as file:
        names = {r["metric"] for r in csv.DictReader(file)}
    assert {"train/loss", "train/grad_norm", "val/loss", "val/psnr", "val/mae"} <= names
    picture = next((run / "samples").glob("step-*.png"))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_nan_stops_before_the_weights(tmp_path, train, capsys, monkeypatch):
    """The loss of the third step is NaN: exit 6, and the checkpoint of step 2 is whole."""
    from ldm.models.diffusion.ddpm import LatentDiffusion

    plain = LatentDiffusion.batch_loss

    def poisoned(self, batch, draws):
        losses = plain(self, batch, draws)
        return {"loss": losses["loss"] * (float("nan") if self.step == 2 else 1.0)}

    monkeypatch.setattr(LatentDiffusion, "batch_loss", poisoned)
    run = tmp_path / "run"
    every = "lightning.callbacks.checkpoint.params.every_n_steps=1"
    assert train(run, "lightning.trainer.max_steps=4", every) == NonFiniteError.exit_code
    assert "NONFINITE-LOSS" in capsys.readouterr().err
    monkeypatch.undo()
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(torch.isfinite(v).all() for v in checkpoint["current_model_state"].values())


@pytest.mark.parametrize(
    ("number", "accumulated", "place"),
    [
        (signal.SIGINT, 1, 1),
        (signal.SIGTERM, 1, 1),
        (signal.SIGTERM, 2, 2),  # the first of the two batches of a step
        (signal.SIGTERM, 2, 3),
    ],
)
def test_signal_saves_and_the_run_resumes_exactly(
    tmp_path, train, weights, number, accumulated, place, monkeypatch
):
    """In weights and in metrics, in whichever batch of a step the signal came."""
    plain = TrainingModule.training_step

    def interrupted(self, batch, batch_idx):
        if batch_idx == place:
            os.kill(os.getpid(), number)
        return plain(self, batch, batch_idx)

    run, whole = tmp_path / "run", tmp_path / "whole"
    told = [f"lightning.trainer.accumulate_grad_batches={accumulated}"]
    told += ["lightning.trainer.max_steps=4", "lightning.trainer.val_check_interval=8"]
    monkeypatch.setattr(TrainingModule, "training_step", interrupted)
    assert train(run, *told) == 128 + number
    monkeypatch.undo()
    assert main(["train", "--resume", str(run)]) == 0
    assert train(whole, *told) == 0
    assert weights(run) == weights(whole)
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


def test_existing_run_is_not_overwritten(run_folder, train, weights, capsys):
    before = weights(run_folder)
    assert train(run_folder, "lightning.trainer.max_steps=4") == 5
    assert "--resume" in capsys.readouterr().err
    assert weights(run_folder) == before


def test_ema_follows_its_closed_form(tmp_path, train):
    """average_n = d_n average_(n-1) + (1 - d_n) w_n with d_n = min(decay, (1 + n) / (10 + n))."""
    from ldm.callbacks.ema import EMA

    ema = EMA(decay=0.5)
    average, expected = [torch.zeros(3)], torch.zeros(3, dtype=torch.float64)
    for n in range(1, 30):
        weights = torch.randn(3, generator=torch.Generator().manual_seed(n))
        ema.average(average, [weights], n)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weights.double()
    torch.testing.assert_close(average[0].double(), expected, rtol=1e-6, atol=1e-6)


def test_regression_is_the_same_network(tmp_path, train, run_folder):
    from ldm.checkpoint import load_model

    run = tmp_path / "regression"
    assert train(run, "configs/regression.yaml", "lightning.trainer.max_steps=1") == 0
    regression, *_ = load_model(run)
    diffusion, *_ = load_model(run_folder)
    assert type(regression).__name__ == "OneStepRegression"
    assert regression.state_dict().keys() == diffusion.state_dict().keys()


def test_copied_run_folder_resumes(tmp_path, run_folder):
    """A run folder carries everything: it resumes under another name and in another place."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(run_folder, copy)
    assert main(["train", "--resume", str(copy), "lightning.trainer.max_steps=5"]) == 0


def test_a_length_that_a_run_has_passed_is_refused_before_it_is_saved(tmp_path, run_folder, capsys):
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    before = (copy / "config.yaml").read_bytes()
    assert main(["train", "--resume", str(copy), "lightning.trainer.max_steps=2"]) == 4
    assert "max_steps=2, but " in (told := capsys.readouterr().err) and "trained 4 steps" in told
    assert (copy / "config.yaml").read_bytes() == before


def test_a_finished_run_says_so_and_how_to_go_on(tmp_path, run_folder, weights, capsys):
    """Resumed as it is nothing is trained; the command that it prints trains on."""
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    whole, cost = weights(copy), (copy / "cost.json").read_text()
    assert main(["train", "--resume", str(copy)]) == 0
    assert (copy / "cost.json").read_text() == cost  # what the training took, not the look at it
    told = capsys.readouterr().out
    assert f"Finished before, after 4 steps; nothing was trained: {copy}" in told
    assert "Trained" not in told and f"dsdiff train --from {copy}" in told
    assert weights(copy) == whole
    command = told.partition("to train it on: dsdiff ")[2].splitlines()[0]
    assert main(command.split()) == 0
    assert f"Trained 8 steps: {copy}" in capsys.readouterr().out


def test_what_time_or_patience_ended_is_not_told_to_take_more_steps(tmp_path, train, capsys):
    run = tmp_path / "run"
    ended = ["lightning.trainer.max_steps=-1", "lightning.trainer.max_time=00:00:00:01"]
    assert train(run, *ended) == 0
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 0
    assert f"--resume {run} lightning.trainer.max_time=DD:HH:MM:SS" in capsys.readouterr().out


def test_lines_in_a_pipe_count_to_the_end_of_the_whole_run(tmp_path, train, capsys):
    """No bar, no number of an epoch; a resumed run counts on, and the printed command runs."""
    every = "lightning.trainer.val_check_interval=2"
    assert train(tmp_path / "run", "lightning.trainer.max_steps=2", every) == 0
    told = capsys.readouterr()
    assert "patients  2 to train on (" in told.err and "which holds every brain" in told.err
    assert " slices, every 2 steps), 0 to test" in told.err
    assert "step 2/2  val/psnr " in told.err and "(copy T1 " in told.err
    assert not set("\r━█%|") & set(told.err)
    resume = ["train", "--resume", str(tmp_path / "run"), "lightning.trainer.max_steps=4"]
    assert main(resume) == 0
    told = capsys.readouterr()
    assert "step 4/4  val/psnr " in told.err and "step 2/2" not in told.err
    command = told.out.partition("next: ")[2].splitlines()[0]
    assert "--subjects Phantom_0003" in command
    words = command.replace("predictions/run", str(tmp_path / "predictions")).split()
    assert main(words[1:]) == 0
    assert (tmp_path / "predictions/Phantom_0003_t1ce.nii.gz").is_file()


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (
            "[64,64]",
            "every brain (slices up to {}: data.params.image_size=[32,32] has 4.0",
        ),
        ("[32,16]", " of the brain (slices up to {}: data.params.image_size=[32,32] holds them)"),
    ],
)
def test_a_training_names_the_image_size_that_holds_every_brain(
    tmp_path, train, patients, capsys, size, told
):
    words = [f"data.params.image_size={size}", "lightning.trainer.max_steps=1"]
    assert train(tmp_path / "run", *words) == 0
    planes = [s.plane for s in diagnose_data(patients).subjects if s.id != "Phantom_0003"]
    largest = " x ".join(str(max(sides)) for sides in zip(*planes, strict=True))
    assert told.format(largest) in capsys.readouterr().err


def test_a_run_is_resumed_from_another_folder(tmp_path, patients, train, monkeypatch):
    """Its relative root counts from where it was begun."""
    shutil.copytree(patients, tmp_path / "own")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run, steps = tmp_path / "runs/run", "lightning.trainer.max_steps="
    assert train(run, "data.params.root=own", f"{steps}1") == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", "--resume", str(run), f"{steps}2"]) == 0
