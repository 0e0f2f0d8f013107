"""Trackers offline: what is written is read back by each tracker's own reader."""

import csv
import io
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.callbacks.metrics_file import MetricsFile
from ldm.callbacks.trackers import MLflow, TensorBoard, Tracker, WandB, WideTable, flat, told_of
from ldm.claims import claim
from ldm.config import load_config
from ldm.errors import ConfigError

SECRET = "Patient_0815"
CONFIG = {
    "name": "mine",
    "seed": 3,
    "model": {"target": "a.B", "params": {"steps": 4}},
    "data": {"target": "c.D", "params": {"root": f"/x/{SECRET}", "val": [SECRET], "axis": "axial"}},
    "lightning": {"trainer": {"max_steps": 9}},
}
METRICS = [(3, {"train/loss": 0.5}), (6, {"train/loss": 0.25, "val/psnr": 21.0})]


def png() -> bytes:
    stream = io.BytesIO()
    pixels = np.arange(48 * 32 * 3).reshape(48, 32, 3) % 251
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "png")
    return stream.getvalue()


def tracked(tracker: Tracker, folder: Path) -> Tracker:
    """Follow a short training, with a picture in its run folder."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "samples/step-000006.png").write_bytes(png())
    tracker.attach(folder, CONFIG)
    for step, metrics in METRICS:
        tracker.log_metrics(metrics, step)
    tracker.log_picture("step", png(), 6)
    assert not tracker.has_failed
    tracker.finalize("success")
    return tracker


def test_tensorboard_holds_values_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked(TensorBoard(), tmp_path)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(3, 0.5), (6, 0.25)]
    (picture,) = found.Images("samples/step")
    kept = Image.open(io.BytesIO(picture.encoded_image_string))
    assert np.array_equal(np.asarray(kept), np.asarray(Image.open(io.BytesIO(png()))))


def test_mlflow_holds_values_settings_and_pictures_and_goes_on_with_a_run(tmp_path):
    client = pytest.importorskip("mlflow.tracking").MlflowClient
    first = tracked(MLflow(), tmp_path)
    store = client(tracking_uri=(tmp_path / "mlruns").as_uri())
    run = store.get_run(first.id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"train/loss": 0.25, "val/psnr": 21.0}
    assert run.data.params["model.params.steps"] == "4"
    history = store.get_metric_history(first.id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(3, 0.5), (6, 0.25)]
    (picture,) = store.list_artifacts(first.id, "samples")
    assert Path(store.download_artifacts(first.id, picture.path)).read_bytes() == png()
    again = MLflow()
    again.attach(tmp_path, CONFIG)
    again.log_metrics({"train/loss": 0.125}, 9)
    again.finalize("failed")
    assert (again.id, again.has_failed) == (first.id, False)
    assert store.get_run(first.id).info.status == "FAILED"
    assert store.get_run(first.id).data.metrics["train/loss"] == 0.125
    assert not [p for p in (tmp_path / "mlruns").rglob("*") if p.is_file() and told(p)]


def told(path: Path) -> bool:
    return SECRET.encode() in path.read_bytes()


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of a ``.wandb`` file: a log as LevelDB writes it, of blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, whole = Record(), parts
            parts = b""
            record.ParseFromString(whole)
            yield record


def test_wandb_offline_holds_values_settings_and_pictures(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(sys, "argv", ["dsdiff", "train", f"data.params.root=/x/{SECRET}"])
    tracked(WandB(), tmp_path)
    wandb.teardown()  # its process writes the last records when it ends
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    values, settings = [], {}
    for record in wandb_records(path):
        items = record.history.item
        values.append({i.key or "/".join(i.nested_key): i.value_json for i in items})
        settings |= {u.key: u.value_json for u in record.run.config.update}
    losses = [(v["step"], v["train/loss"]) for v in values if "train/loss" in v]
    assert losses == [("3", "0.5"), ("6", "0.25")]
    assert json.loads(settings["model"]) == CONFIG["model"]
    (picture,) = (tmp_path / "wandb").glob("offline-run-*/files/media/images/**/*.png")
    kept = np.asarray(Image.open(picture).convert("RGB"))
    assert np.array_equal(kept, np.asarray(Image.open(io.BytesIO(png()))))
    assert not [p for p in (tmp_path / "wandb").rglob("*") if p.is_file() and told(p)]


def test_a_table_has_a_row_a_step(tmp_path):
    with claim(tmp_path, "train"):
        own = MetricsFile(tmp_path)
        for step, metrics in METRICS:
            own.log_metrics(metrics, step)
        tracked(WideTable(), tmp_path)
    rows = list(csv.DictReader((tmp_path / "metrics_wide.csv").open()))
    assert rows == [
        {"step": "3", "train/loss": "0.5", "val/psnr": "n/a"},
        {"step": "6", "train/loss": "0.25", "val/psnr": "21.0"},
    ]


class Broken(Tracker):
    """Fails at each call, and counts them."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def _fail(self, at: str) -> None:
        self.calls += at == self.at
        if at == self.at:
            raise RuntimeError("no disk,\nno network")

    def begin(self) -> None:
        self._fail("begin")

    def write(self, metrics, step) -> None:
        self._fail("write")

    def end(self, is_whole) -> None:
        self._fail("end")


@pytest.mark.parametrize("at", ["begin", "write", "end"])
def test_one_that_fails_is_told_once_and_left_alone(tmp_path, at, caplog):
    tracker = Broken(at)
    tracker.attach(tmp_path, CONFIG)
    for step, metrics in METRICS:
        tracker.log_metrics(metrics, step)
    tracker.log_picture("step", png(), 6)
    tracker.finalize("success")
    tracker.finalize("success")
    assert tracker.calls == 1
    (message,) = [r.getMessage() for r in caplog.records]
    assert message.startswith("Broken failed and is left alone (no disk, no network)")


def test_a_tracker_is_told_neither_patients_nor_places():
    told = flat(told_of(CONFIG))
    assert SECRET not in str(told)
    assert told["data.params.axis"] == "axial"
    assert told["lightning.trainer.max_steps"] == 9


def test_pictures_can_stay_at_home(tmp_path):
    shown = []
    tracker = Tracker(pictures=False)
    tracker.show = lambda *given: shown.append(given)
    tracker.log_picture("step", png(), 1)
    assert shown == []


def test_one_whose_package_is_missing_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = TensorBoard()
    tracker.needs = "wandb"
    with pytest.raises(ConfigError, match=r"pip install 'dsdiff\[wandb\]'"):
        tracker.attach(tmp_path, CONFIG)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "table"])
def test_the_shipped_trackers_stand_behind_any_backbone(name):
    files = ["configs/backbone/unet_tiny.yaml", f"configs/tracker/{name}.yaml"]
    listed = load_config([Path(file) for file in files], ["data.params.root=x"])["lightning"]
    assert len(listed["logger"]) == 2


@pytest.mark.parametrize(
    "override",
    ["lightning.logger=wandb", "lightning.logger=[{target: ldm.callbacks.ema.EMA}]"],
)
def test_what_is_no_list_of_trackers_is_refused(override):
    with pytest.raises(ConfigError):
        load_config([Path("configs/backbone/unet_tiny.yaml")], ["data.params.root=x", override])
