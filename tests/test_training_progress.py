"""What a training says of its progress: the end that is meant, and what a network must beat."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Timer

from ldm.callbacks.baselines import regressed
from ldm.callbacks.progress import TrainingProgress, _validations, validated
from ldm.config import foreign_targets
from ldm.inference.baselines import ContrastRegression, design_matrix


def trainer(step=0, steps=-1, duration=None, elapsed=0.0):
    """What a trainer says of where it stands."""
    timer = Timer(duration, verbose=False)
    timer._offset = elapsed  # as of a resumed run
    return SimpleNamespace(global_step=step, max_steps=steps, callbacks=[timer])


@pytest.mark.parametrize(
    ("state", "position", "share"),
    [
        ({"step": 30, "steps": 40}, "step 30/40", 0.75),
        (
            {"step": 30, "duration": "00:01:00:00", "elapsed": 900},
            "step 30, 0:15:00 of 1:00:00",
            0.25,
        ),
        # both: what ends the run first counts
        (
            {"step": 30, "steps": 100, "duration": "00:01:00:00", "elapsed": 1800},
            "step 30, 0:30:00 of 1:00:00",
            0.5,
        ),
        (
            {"step": 60, "steps": 100, "duration": "00:01:00:00", "elapsed": 1800},
            "step 60/100",
            0.6,
        ),
    ],
)
def test_the_end_is_that_of_steps_or_of_time(state, position, share):
    shown, at = TrainingProgress(print), trainer(**state)
    assert (shown.position(at), shown.share(at)) == (position, pytest.approx(share))


def test_what_is_left_follows_from_the_steps_since_the_start(monkeypatch):
    """A run resumed at step 50 took 20 s for 10 steps: 40 more take 80 s, the limit permitting."""
    shown = TrainingProgress(print)
    shown.first_step, shown.begun, shown.last_step = 50, 100.0, 60
    monkeypatch.setattr("time.monotonic", lambda: 120.0)
    assert shown.left(trainer(60, 100)) == "0:01:20"
    assert shown.left(trainer(60, 100, "00:00:01:00", elapsed=30)) == "0:00:30"
    assert shown.speed(120.0) == "2 s a step"


@pytest.mark.parametrize(
    ("step", "steps", "batches", "accumulated", "said"),
    [
        (0, 4000, 1000, 1, ", every 1000 steps"),
        (0, 4000, 1000, 4, ", every 250 steps"),
        (0, -1, 1000, 1, ", every 1000 steps"),
        (1100, 2000, 1000, 1, ", every 1000 steps"),
        (0, 5, 1, 1, ", every 1 step"),
    ],
)
def test_a_training_says_when_it_validates(step, steps, batches, accumulated, said):
    at = trainer(step, steps)
    at.val_check_interval, at.accumulate_grad_batches = batches, accumulated
    assert _validations(at) == (said, "")


@pytest.mark.parametrize(
    ("step", "steps", "batches", "accumulated", "coming", "advice"),
    [
        (0, 300, 1000, 1, 1000, "=75 validates every 75 steps."),
        (0, 300, 4000, 4, 1000, "=300 validates every 75 steps."),  # it is counted in batches
        (1100, 1900, 1000, 1, 2000, "=475 validates every 475 steps."),
        (0, 3, 1000, 1, 1000, "=1 validates every step."),
    ],
)
def test_a_run_without_validation_says_so(step, steps, batches, accumulated, coming, advice):
    at = trainer(step, steps)
    at.val_check_interval, at.accumulate_grad_batches = batches, accumulated
    assert _validations(at) == (
        "",
        f"Nothing is validated: the run ends at step {steps}, and the next validation would be at "
        f"step {coming}. lightning.trainer.val_check_interval{advice}",
    )


def test_waiting_for_data_is_told_apart_from_working(monkeypatch):
    """Ten steps of 4 s, each after 1 s without data, of two processes with two halves a step."""
    told, clock = [], 1000.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    shown, at = TrainingProgress(told.append), trainer(0, 100)
    at.is_global_zero, at.world_size, at.accumulate_grad_batches = True, 2, 2
    at.datamodule = SimpleNamespace(data=SimpleNamespace(batch_size=3))
    at.callback_metrics = {}
    for step in range(1, 12):
        clock += 1
        shown.on_train_batch_start(at, None)
        clock += 4
        at.global_step = step
        shown.on_train_batch_end(at, None)
    # 12 images a step of 5 s
    told_speed = "speed     5 s a step, 2.4 images/s, 20.0% of the time waiting for data"
    assert f"{told_speed}: about 0:07:25 to go" in told


def test_the_psnr_stands_beside_what_needs_no_network():
    metrics = {"train/loss": 1.0, "val/loss": 0.2, "val/psnr": 20.0, "val/recovery": 0.254}
    assert list(validated(metrics, "copy T1")) == ["val/psnr 20.00 dB", "val/recovery 0.25"]
    metrics |= {"val/psnr_copy": 18.5, "val/psnr_quadratic": 19.25}
    first, _ = validated(metrics, "copy T1")
    assert first == "val/psnr 20.00 dB (copy T1 18.50, quadratic regression 19.25)"
    assert list(validated({"val/loss": 0.5, "val/dice": 0.7}, "")) == [
        "val/loss 0.5",
        "val/dice 0.70",
    ]


def test_a_polynomial_target_is_regressed_exactly():
    rng = np.random.default_rng(0)
    condition = rng.uniform(-0.5, 0.5, (2, 3, 4, 4)).astype(np.float32)
    values = condition.transpose(0, 2, 3, 1).reshape(-1, 3)
    regression = ContrastRegression(2)
    regression.coefficients = rng.uniform(-0.1, 0.1, design_matrix(values, 2).shape[1])
    brain = torch.from_numpy(rng.random((2, 1, 4, 4)) < 0.5)
    target = (design_matrix(values, 2) @ regression.coefficients).reshape(2, 1, 4, 4)
    batch = {"condition": torch.from_numpy(condition), "brain": brain}
    batch["target"] = torch.from_numpy(target).float()
    found = regressed(regression, batch, [0, 1, 2])
    torch.testing.assert_close(found[brain], batch["target"][brain])
    assert not found[~brain].any()


def test_a_class_that_a_run_may_not_name_is_named_once():
    """What the printed command trusts; the classes of this project need no word."""
    own = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion"}
    foreign = {"target": "my_net.MyNet", "params": {"target": "t1ce"}}
    assert foreign_targets({"model": own | {"params": {"a": foreign, "b": foreign}}}) == [
        "my_net.MyNet"
    ]
    assert foreign_targets({"model": own}) == []
