"""The benchmark: one row a backbone and the baselines, resumable, with failed rows in the table."""

import contextlib
import csv
import io
import json

import pytest
import yaml

from ldm.cli.cells import Stopped, Work
from ldm.cli.main import main


@pytest.fixture
def plan(tmp_path, patients):
    """A benchmark of two tiny U-Nets and the regression of the first: a few steps on phantoms."""
    net = {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel"}
    described = {
        "name": "two U-Nets",
        "rows": {
            "eps": {
                "config": "configs/backbone/unet_tiny.yaml",
                "overrides": ["model.params.parameterization=eps"],
            },
            "v": {"config": "configs/backbone/unet_tiny.yaml"},
        },
        "regression_of": "eps",
        "sampling": {"sampler": "ddim", "steps": 2, "batch_size": 16},
        "timing": 1,
        "model": {"params": {"unet_config": net}},
        "data": {
            "params": {
                "root": str(patients),
                "test": ["Phantom_0003"],
                "val": None,
                "image_size": 32,
                "augmentation_config": None,
            }
        },
        "lightning": {"trainer": {"max_steps": 2, "accelerator": "cpu", "precision": 32}},
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(described))
    return path


@pytest.fixture
def inside(monkeypatch):
    """Run the verbs of the cells in this process, which is quicker; return what was called."""
    calls = []

    def run(work, folder, gpu, *arguments):
        calls.append([str(a) for a in arguments])
        text = io.StringIO()
        with contextlib.redirect_stderr(text):
            code = main(calls[-1])
        if code in (130, 143):
            raise Stopped(code)
        return code, (text.getvalue().strip().splitlines() or [""])[-1]

    monkeypatch.setattr(Work, "_dsdiff", run)
    return calls


def table(output):
    with (output / "benchmark.csv").open() as file:
        return {row["backbone"]: row for row in csv.DictReader(file)}


def benchmark(plan, output, *more):
    return main(["benchmark", str(plan), "--output", str(output), *map(str, more)])


def test_rows_baselines_costs_and_page(tmp_path, plan, inside):
    output = tmp_path / "out"
    assert benchmark(plan, output) == 0
    rows = table(output)
    fitted = ["copy T1", "linear", "quadratic", "nearest patient"]
    assert list(rows) == ["eps", "eps-one-step", "v", *fitted]
    for name in ("eps", "eps-one-step", "v"):
        row = rows[name]
        assert float(row["PSNR dB"]) > 0
        assert float(row["parameters M"]) == pytest.approx(1.19, abs=0.01)
        assert float(row["GFLOPs a call"]) > 0
        assert float(row["s a volume"]) > float(row["s a slice"]) > 0
        assert float(row["sample GiB"]) > 0.1
        assert row["n"] == "1/1"
    assert [rows[n]["calls"] for n in ("eps", "eps-one-step")] == ["2", "1"]
    assert rows["copy T1"]["parameters M"] == "n/a"
    assert all(float(rows[name]["PSNR dB"]) > 0 for name in fitted)
    assert (output / "benchmark.md").read_text().startswith("| backbone |")
    page = (output / "report.html").read_text()
    assert page.count("data:image") >= 4


def test_goes_on_after_a_kill_and_reports_a_failed_row(tmp_path, plan, monkeypatch, capsys):
    """The first process dies while the second row trains; the second run repeats nothing."""
    import ldm.cli.benchmark as benchmark

    plain, calls = benchmark._dsdiff, []

    def killed(*arguments):
        calls.append(str(arguments[0]))
        if len(calls) == 3:
            raise MemoryError
        return plain(*arguments)

    output = tmp_path / "out"
    monkeypatch.setattr(benchmark, "_dsdiff", killed)
    assert main(["benchmark", str(plan), "--output", str(output)]) == 7
    assert not (output / "benchmark.csv").exists()
    first = (output / "rows/eps/run/model.safetensors").stat().st_mtime_ns

    def broken(*arguments):
        calls.append(str(arguments[0]))
        if "rows/v/" in str(arguments[1]) and arguments[0] == "train":
            return 6, "dsdiff train: error NONFINITE-LOSS: loss is nan"
        return plain(*arguments)

    calls.clear()
    monkeypatch.setattr(benchmark, "_dsdiff", broken)
    assert main(["benchmark", str(plan), "--output", str(output)]) == 9
    assert calls == ["sample", "train", "sample", "train"]
    assert (output / "rows/eps/run/model.safetensors").stat().st_mtime_ns == first
    rows = table(output)
    assert "FAILED" in rows["v"]["PSNR dB"] and "NONFINITE-LOSS" in rows["v"]["PSNR dB"]
    assert float(rows["eps"]["PSNR dB"]) > 0
    assert json.loads((output / "benchmark.json").read_text())["failures"].keys() == {"v"}


def test_test_patient_in_training_is_a_leak(tmp_path, plan, capsys):
    leak = "data.params.train=[Phantom_0001,Phantom_0003]"
    assert main(["benchmark", str(plan), leak, "--output", str(tmp_path / "out")]) == 3
    assert "LEAK case=Phantom_0003" in capsys.readouterr().err


def test_wrong_row_is_refused_before_anything_runs(tmp_path, plan, capsys):
    wrong = "rows.v.overrides=[model.params.parametrization=v]"
    assert main(["benchmark", str(plan), wrong, "--output", str(tmp_path / "out")]) == 2
    assert "nearest: 'parameterization'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
