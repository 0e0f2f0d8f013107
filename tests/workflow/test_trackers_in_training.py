"""A training with several trackers: pictures reach them, and one that fails does not end it."""

import csv

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ldm.callbacks.trackers import TensorBoard

STEPS = ["lightning.trainer.max_steps=2", "lightning.trainer.val_check_interval=2"]
BOTH = (
    "lightning.logger=[{target: ldm.callbacks.trackers.TensorBoard},"
    "{target: ldm.callbacks.trackers.WideTable}]"
)


def test_values_and_pictures_reach_the_trackers(tmp_path, train):
    assert train(tmp_path / "run", *STEPS, BOTH) == 0
    found = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [event.step for event in found.Images("samples/step")] == [2]
    with (tmp_path / "run/metrics_wide.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"] != "n/a"]
    told = [event.value for event in found.Scalars("train/loss")]
    assert len(losses) == 2
    assert all(abs(a - b) < 1e-6 for a, b in zip(losses, told, strict=True))


def test_one_that_fails_does_not_end_the_training(tmp_path, train, monkeypatch, caplog):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(TensorBoard, "write", fail)
    assert train(tmp_path / "run", *STEPS, BOTH) == 0
    told = [r.getMessage() for r in caplog.records if "left alone" in r.getMessage()]
    assert len(told) == 1
    assert (tmp_path / "run/metrics_wide.csv").is_file()
    assert (tmp_path / "run/model.safetensors").is_file()
