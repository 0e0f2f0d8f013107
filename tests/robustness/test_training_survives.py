"""TR and CK of docs/reliability.md: a training outlives its terminal, its log and a failed save."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import Timer

from ldm.callbacks.run import MOST_SKIPPED, GradientGuard, RunCheckpoint
from ldm.cli.main import main
from ldm.curves import read_curves
from ldm.errors import NonFiniteError, OutputError
from ldm.model_file import read_model
from ldm.storage import MODEL_FILE
from ldm.training.module import TrainingModule

STEPS = "lightning.trainer.max_steps=4"


def at_step(monkeypatch, step: int, act) -> None:
    """Call ``act()`` once, in the training step of this number."""
    plain, done = TrainingModule.training_step, []

    def acting(self, batch, batch_idx):
        if batch_idx == step and not done:
            done.append(act())
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", acting)


def steps_of(run: Path) -> int:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]


def test_tr_01_killed_between_its_last_two_files_a_run_has_the_weights_of_its_end(
    tmp_path, train, weights
):
    """``last.ckpt`` is of the last step then, and ``model.safetensors`` of the save before."""
    run, every = tmp_path / "run", "lightning.callbacks.checkpoint.params.every_n_steps=1"
    assert train(run, "lightning.trainer.max_steps=3", every) == 0
    before = (run / MODEL_FILE).read_bytes()
    assert main(["train", "--resume", str(run), STEPS]) == 0
    whole = weights(run)
    (run / MODEL_FILE).write_bytes(before)
    assert weights(run) != whole
    assert main(["train", "--resume", str(run), STEPS]) == 0
    assert weights(run) == whole


@pytest.mark.parametrize("fault", ["reader left", "disk full", "closed"])
def test_tr_13_output_that_nobody_takes_ends_no_training(tmp_path, train, monkeypatch, fault):
    """As in ``dsdiff train ... | head -1``, ``>/dev/full`` and ``>&-``."""
    if fault == "reader left":
        reader, writer = os.pipe()
        os.close(reader)
        stream = os.fdopen(writer, "w", buffering=1)
    else:
        stream = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", buffering=1)
    with pytest.raises(OSError):  # the fault fires
        stream.write("x\n")
    with monkeypatch.context() as patch:
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, None if fault == "closed" else stream)
        code = train(tmp_path / "run", STEPS)
    assert (code, steps_of(tmp_path / "run")) == (0, 4)


def test_tr_13_a_pipe_that_closes_at_the_first_line(patients):
    """A verb of a process of its own whose reader leaves ends as without a reader: exit 0."""
    command = [sys.executable, "-m", "ldm.cli.main", "diagnose", "data", str(patients)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], **options) as process:
        process.stdout.close()
        assert process.stderr.read().count("Traceback") == 0
    assert process.returncode == 0


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_tr_13_a_lost_terminal_saves_and_goes_on(tmp_path, train, weights, monkeypatch, name):
    saved = []
    number = getattr(signal, name)
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), number))
    plain = TrainingModule.on_train_batch_start

    def look(self, batch, batch_idx):
        saved.append((tmp_path / "run/checkpoints/last.ckpt").exists())
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "on_train_batch_start", look)
    assert train(tmp_path / "run", STEPS) == 0
    assert saved == [False, False, True, True]
    monkeypatch.undo()
    assert train(tmp_path / "whole", STEPS) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_tr_02_ctrl_c_answers_at_once_and_saves_before_any_validation(
    tmp_path, train, weights, monkeypatch, caplog
):
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    validated = []
    monkeypatch.setattr(TrainingModule, "validation_step", lambda *a: validated.append(a))
    assert train(tmp_path / "run", STEPS, "lightning.trainer.val_check_interval=100") == 130
    assert "SIGINT: saving after this step; once more ends at once" in caplog.text
    assert (steps_of(tmp_path / "run"), validated) == (2, [])
    monkeypatch.undo()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert train(tmp_path / "whole", STEPS) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def rows_of(run: Path) -> list[str]:
    return sorted((run / "metrics.csv").read_text().splitlines())


@pytest.mark.parametrize("how", ["Ctrl-C", "max_time"])
def test_tr_02_a_gradient_that_is_half_gathered_is_not_lost(
    tmp_path, train, weights, monkeypatch, how
):
    """Two batches make a step, and the end comes in the first of them: the second is trained."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    hours = "lightning.trainer.max_time={{hours: {}}}"
    options = STEPS, "lightning.trainer.accumulate_grad_batches=2", hours.format(1)
    ends = {
        "Ctrl-C": lambda: os.kill(os.getpid(), signal.SIGINT),
        "max_time": lambda: monkeypatch.setattr(Timer, "time_elapsed", lambda *given: 4000),
    }
    at_step(monkeypatch, 2, ends[how])
    assert train(run, *options) == (130 if how == "Ctrl-C" else 0)
    monkeypatch.undo()
    assert steps_of(run) == 2
    assert main(["train", "--resume", str(run), hours.format(2)]) == 0
    assert train(whole, *options) == 0
    assert weights(run) == weights(whole)
    trained = [[row for row in rows_of(folder) if "train/" in row] for folder in (run, whole)]
    assert trained[0] == trained[1]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_tr_01_a_run_made_longer_twice_has_the_rows_of_one_that_was_as_long(
    tmp_path, train, accumulated
):
    """Each part ends with a validation, as in 4 steps, then 6, then 8."""
    run, whole, steps = tmp_path / "run", tmp_path / "whole", "lightning.trainer.max_steps={}"
    options = [
        "model.params.rate_schedule=constant",  # which does not follow the length of the run
        "lightning.callbacks.ema.params.half_life=null",
        f"lightning.trainer.accumulate_grad_batches={accumulated}",
        f"lightning.trainer.val_check_interval={2 * accumulated}",
    ]
    assert train(run, steps.format(4), *options) == 0
    for longer in (6, 8):
        assert main(["train", "--resume", str(run), steps.format(longer)]) == 0
    assert train(whole, steps.format(8), *options) == 0
    assert rows_of(run) == rows_of(whole)


def test_tr_01_a_kill_just_after_a_save_loses_no_row(tmp_path, train, monkeypatch):
    """The save of step 2 is whole, and nothing of that step is trained, or logged, again."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    every = "lightning.callbacks.checkpoint.params.every_n_steps=2"
    plain = RunCheckpoint.save

    def killed(self, trainer, again=False):
        plain(self, trainer, again)
        os._exit(9)

    monkeypatch.setattr(RunCheckpoint, "save", killed)
    if not (child := os.fork()):
        train(run, STEPS, every)
        os._exit(0)  # it was not killed
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    assert steps_of(run) == 2
    assert main(["train", "--resume", str(run)]) == 0
    assert train(whole, STEPS, every) == 0
    assert rows_of(run) == rows_of(whole)  # each once


VALIDATED = [
    "lightning.trainer.max_steps=6",
    "lightning.trainer.val_check_interval=2",
    "lightning.callbacks.checkpoint.params.every_n_steps=2",
    "lightning.callbacks.checkpoint.params.best_by=val/loss",
    "model.params.optimizer_config.params.lr=3.0e-2",
    "model.params.warmup_steps=1",
]


@pytest.mark.parametrize("how", ["Ctrl-C", "Ctrl-C in the last", "kill", "kill in the last"])
def test_tr_02_a_validation_that_was_cut_off_is_made_up_for(
    tmp_path, train, weights, monkeypatch, how
):
    """It decides which weights are the best, and when a training ends."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    last = 6 if how.endswith("in the last") else 4
    if how.startswith("Ctrl-C"):
        at_step(monkeypatch, last - 1, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert train(run, *VALIDATED) == 130
    else:
        plain = TrainingModule.validation_step

        def killed(self, *given):
            return os._exit(9) if self.global_step == last else plain(self, *given)

        monkeypatch.setattr(TrainingModule, "validation_step", killed)
        if not (child := os.fork()):
            train(run, *VALIDATED)
            os._exit(0)  # it was not killed
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    assert steps_of(run) == last
    assert main(["train", "--resume", str(run)]) == 0
    assert train(whole, *VALIDATED) == 0
    assert read_curves(run)["val/loss"] == read_curves(whole)["val/loss"]
    known = [read_model(folder / MODEL_FILE)[1] for folder in (run, whole)]
    assert known[0]["best"] == known[1]["best"] and known[0]["step"] == known[1]["step"]
    assert weights(run) == weights(whole)


def test_tr_02_a_second_ctrl_c_says_what_is_lost(tmp_path, train, monkeypatch, caplog):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 3, twice)
    every = "lightning.callbacks.checkpoint.params.every_n_steps=2"
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "run", STEPS, every)
    assert stopped.value.code == 130
    assert "SIGINT again: ended; what came after step 2 is lost" in caplog.text
    assert steps_of(tmp_path / "run") == 2


def fail_saves(monkeypatch, *numbers: int) -> list[int]:
    """Let the saves of these numbers find a full disk; return the list of all saves so far."""
    from ldm import checkpoint

    plain, saves = checkpoint.torch.save, []

    def save(*args, **options):
        saves.append(len(saves))
        if saves[-1] in numbers:
            raise OSError(28, os.strerror(28))
        return plain(*args, **options)

    monkeypatch.setattr(checkpoint.torch, "save", save)
    return saves


def test_ck_12_a_failed_save_is_told_and_tried_again(tmp_path, train, weights, monkeypatch, caplog):
    every = "lightning.callbacks.checkpoint.params.every_n_steps=2"
    saves = fail_saves(monkeypatch, 0)
    assert train(tmp_path / "run", STEPS, every) == 0
    assert "step 2 is not saved: OUT-IO: cannot write last.ckpt: No space left" in caplog.text
    assert len(saves) == 3  # of step 2; again, of step 3; of the last
    monkeypatch.undo()
    assert train(tmp_path / "whole", STEPS) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_ck_12_the_third_failure_ends_the_training_and_the_old_save_stays(
    tmp_path, train, monkeypatch, capsys
):
    every = "lightning.callbacks.checkpoint.params.every_n_steps=2"
    fail_saves(monkeypatch, 1, 2, 3)
    code = train(tmp_path / "run", "lightning.trainer.max_steps=12", every)
    assert code == OutputError.exit_code
    assert "OUT-IO: cannot write last.ckpt" in capsys.readouterr().err
    assert steps_of(tmp_path / "run") == 2


def test_ck_12_the_last_save_must_succeed(tmp_path, train, monkeypatch, capsys):
    fail_saves(monkeypatch, 0)
    assert train(tmp_path / "run", STEPS) == OutputError.exit_code
    assert "No space left" in capsys.readouterr().err


def test_ex_05_a_removed_working_directory(tmp_path, dsdiff, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, line = dsdiff("doctor")
    assert code == 2
    assert "USAGE: the working directory was removed: cd into one that exists" in line


@pytest.mark.parametrize("accumulated", [1, 2])
def test_tr_03_a_nan_gradient_names_step_and_cases(
    tmp_path, train, weights, monkeypatch, capsys, accumulated
):
    """A finite loss with a gradient that is not: nothing of it reaches the weights."""

    def poison():
        parameter = next(p for p in model[0].parameters() if p.requires_grad)
        parameter.register_hook(lambda gradient: gradient * float("nan"))

    model, plain = [], TrainingModule.on_fit_start
    monkeypatch.setattr(
        TrainingModule, "on_fit_start", lambda self: (model.append(self.model), plain(self))[1]
    )
    at_step(monkeypatch, 2 * accumulated, poison)
    every = "lightning.callbacks.checkpoint.params.every_n_steps=2"
    steps = f"lightning.trainer.accumulate_grad_batches={accumulated}"
    assert train(tmp_path / "run", STEPS, every, steps) == 6
    line = next(n for n in capsys.readouterr().err.splitlines() if ": error " in n)
    assert "NONFINITE-GRADIENT: gradient norm is nan at step 2" in line
    assert line.count("Phantom_000") == 2 * accumulated and " slice " in line
    assert steps_of(tmp_path / "run") == 2
    assert weights(tmp_path / "run")  # refuses what is not finite


def scaled_steps(scale: float, steps: int, gradient: float = 1.0) -> tuple[torch.nn.Linear, int]:
    """Train one number with losses scaled for fp16, as Lightning's plugin does it.

    Returns the layer and how many of the steps changed it.
    """
    layer = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-4)
    scaler, guard = torch.amp.GradScaler("cpu", init_scale=scale), GradientGuard()
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler), global_step=0)
    layer.log, changed = lambda *args: None, 0
    for _ in range(steps):
        batch = {"subject": ["P1"], "slice": torch.tensor([3])}
        guard.on_train_batch_start(trainer, layer, batch, 0)
        before = layer.weight.item()
        optimizer.zero_grad()
        scaler.scale(layer(torch.full((1, 1), gradient)).sum()).backward()
        scaler.unscale_(optimizer)
        guard.on_before_optimizer_step(trainer, layer, optimizer)
        scaler.step(optimizer)
        scaler.update()
        changed += layer.weight.item() != before
    return layer, changed


def test_tr_04_steps_that_overflow_in_fp16_are_left_out_until_the_scale_fits(caplog):
    layer, changed = scaled_steps(scale=2.0**127, steps=10, gradient=30.0)  # float32 ends at 2^128
    assert changed == 10 - caplog.text.count("overflows in fp16 and is left out")
    assert 0 < changed < 10 and torch.isfinite(layer.weight).all()


def test_tr_04_a_gradient_that_overflows_at_every_scale_ends_the_training(caplog):
    with pytest.raises(NonFiniteError, match="NONFINITE-GRADIENT.*of P1 slice 3"):
        scaled_steps(scale=2.0**16, steps=40, gradient=float("nan"))
    assert caplog.text.count("is left out") == MOST_SKIPPED
