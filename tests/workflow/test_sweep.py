"""The sweep: a row a sampler and number of steps, and what is finished is not done again."""

import csv
import json
import shutil

import pytest
from builders import read_scores

from ldm.cli.main import main
from ldm.storage import sha256


def sweep(model, patients, output, steps="1,3,2000", sampler="ddim,heun", *options):
    wanted = ["--steps", steps, "--sampler", sampler, *options]
    folders = ["--input", str(patients), "--output", str(output)]
    return main(["sweep", str(model), *folders, *wanted])


@pytest.fixture(scope="module")
def swept(tmp_path_factory, run_folder, patients):
    """Two samplers at 1 and 3 steps, and at more steps than the schedule has."""
    output = tmp_path_factory.mktemp("sweeps") / "sweep"
    assert sweep(run_folder, patients, output) == 0
    return output


def table(output):
    with (output / "sweep.csv").open(encoding="utf-8") as file:
        return {(row["sampler"], row["steps"]): row for row in csv.DictReader(file)}


def state(output):
    """Time and content of each file of the cells."""
    files = sorted((output / "cells").rglob("*.*"))
    return {file: (file.stat().st_mtime_ns, sha256(file)) for file in files}


def test_every_cell_has_a_row_also_a_refused_one(swept):
    """Heun has two calls a step but for the last; both signs of noise share the first, the mean."""
    rows = table(swept)
    pairs = [(name, steps) for name in ("ddim", "heun") for steps in ("1", "3", "2000")]
    assert list(rows) == [*pairs, ("copy T1", "n/a")]
    calls = {pair: rows[pair]["calls"] for pair in pairs}
    expected = {("ddim", "1"): "1", ("ddim", "3"): "5", ("heun", "1"): "1", ("heun", "3"): "9"}
    assert calls == expected | {("ddim", "2000"): "n/a", ("heun", "2000"): "n/a"}
    for pair in expected:
        row = rows[pair]
        assert row["n"] == "1"  # the validation patient; training's are not swept on
        assert float(row["brain PSNR dB"]) > 5 and float(row["tumour PSNR dB"]) > 5
        assert 0 < float(row["brain MS-SSIM"]) <= 1
        assert float(row["s a volume"]) > float(row["s a slice"]) > 0
    for name in ("ddim", "heun"):
        refused = rows[name, "2000"]
        assert refused["brain PSNR dB"].startswith("refused: 2000 sampling steps; expected")
        assert refused["n"] == "0"
    # one step is the same step for both
    assert rows["ddim", "1"]["brain PSNR dB"] == rows["heun", "1"]["brain PSNR dB"]
    assert rows["ddim", "3"]["brain PSNR dB"] != rows["heun", "3"]["brain PSNR dB"]


def test_volumes_and_scores_are_those_of_sample_and_evaluate(tmp_path, swept, run_folder, patients):
    volumes = ["--input", str(patients), "--output", str(tmp_path), "--subjects", "Phantom_0003"]
    assert main(["sample", str(run_folder), *volumes, "--steps", "3", "--sampler", "heun"]) == 0
    name = "Phantom_0003_t1ce.nii.gz"
    assert sha256(tmp_path / name) == sha256(swept / "cells/heun-3" / name)
    folders = ["--prediction", str(tmp_path), "--reference", str(patients)]
    assert main(["evaluate", *folders, "--output", str(tmp_path / "scores")]) == 0
    scores = read_scores(tmp_path / "scores/metrics.json")
    row = table(swept)["heun", "3"]
    for column, measure in (("brain PSNR dB", "psnr"), ("brain MS-SSIM", "ms_ssim")):
        assert float(row[column]) == scores["prediction", "Phantom_0003", "brain", measure]


def test_plot_and_page(swept):
    assert (swept / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (swept / "sweep.svg").read_text()
    assert (swept / "sweep.md").read_text().startswith("| sampler | steps | calls |")
    page = (swept / "report.html").read_text()
    assert "refused: 2000 sampling steps" in page and page.count("data:image") == 1
    described = json.loads((swept / "sweep.json").read_text())
    assert [c["calls"] for c in described["cells"]] == [1, 5, None, 1, 9, None]


def test_what_is_finished_is_not_done_again(tmp_path, swept, run_folder, patients, monkeypatch):
    """Killed in its last cell, and with a cell's volume lost: these two are done, no other."""
    output = tmp_path / "sweep"
    shutil.copytree(swept, output)
    shutil.rmtree(output / "cells/heun-3")
    lost = output / "cells/ddim-3/Phantom_0003_t1ce.nii.gz"
    lost.unlink()
    before = state(output)
    assert sweep(run_folder, patients, output) == 0
    after = state(output)
    assert sha256(lost) == sha256(swept / "cells/ddim-3" / lost.name)
    changed = {file for file in after if after[file] != before.get(file)}
    assert {file.parent.name for file in changed} == {"heun-3", "ddim-3"}
    assert {f.name for f in changed if f.parent.name == "ddim-3"} >= {lost.name, "cost.json"}
    assert output.joinpath("cells/ddim-3/scores.json") not in changed

    from ldm.inference.synthesis import Synthesiser

    def never(*args):
        raise AssertionError("sampled again")

    monkeypatch.setattr(Synthesiser, "_synthesise", never)
    monkeypatch.setattr("ldm.benchmark.kept_scores.evaluate_folders", never)
    assert sweep(run_folder, patients, output) == 0
    assert state(output) == after
    assert list(table(output)) == list(table(swept))


def test_interrupted_is_told_so(tmp_path, run_folder, patients, monkeypatch, capsys):
    from ldm.inference.synthesis import Synthesiser

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Synthesiser, "_synthesise", interrupt)
    assert sweep(run_folder, patients, tmp_path / "sweep") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not list((tmp_path / "sweep").rglob("*.nii.gz"))


def test_a_cell_that_fails_stops_no_other(tmp_path, run_folder, patients, monkeypatch, capsys):
    from ldm.errors import NonFiniteError
    from ldm.inference.synthesis import Synthesiser

    plain = Synthesiser._synthesise

    def failing(self, *args):
        if self.request.steps == 2:
            raise NonFiniteError("NONFINITE-SAMPLE", "the network returned NaN")
        return plain(self, *args)

    monkeypatch.setattr(Synthesiser, "_synthesise", failing)
    assert sweep(run_folder, patients, tmp_path / "sweep", "2,1", "ddim") == 9
    assert "1 of 2 failed: ddim-2" in capsys.readouterr().err
    rows = table(tmp_path / "sweep")
    assert rows["ddim", "2"]["brain PSNR dB"].startswith("FAILED: NONFINITE-SAMPLE")
    assert rows["ddim", "1"]["n"] == "1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampler", "ddmi"], "sampler is 'ddmi': give one of ddpm, ddim"),
        (["--guidance", "2"], "guidance is 2.0, but in training no item lost"),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(
    tmp_path, run_folder, patients, options, message, capsys
):
    folders = ["--input", str(patients), "--output", str(tmp_path / "out")]
    assert main(["sweep", str(run_folder), *folders, *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.nii.gz"))


@pytest.mark.parametrize("verb", ["sweep", "distill"])
def test_help(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert "--steps" in capsys.readouterr().out
