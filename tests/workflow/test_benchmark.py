"""The benchmark: a grid of cells, resumable anywhere, with failed rows and honest baselines."""

import contextlib
import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import yaml
from builders import read_scores, run_inside

from ldm.benchmark import cells
from ldm.benchmark.cells import Stopped, Work
from ldm.benchmark.results import BenchmarkResult
from ldm.benchmark.run import Benchmark
from ldm.benchmark.tally import tally
from ldm.callbacks.run import GradientGuard
from ldm.claims import claim, folder_lock
from ldm.cli.main import main
from ldm.cli.terminal import print_found
from ldm.cli.train import finish
from ldm.errors import BusyError, ConfigError
from ldm.progress import PART_OF
from ldm.training.run import TrainedRun

QUALITY = ("row", "PSNR dB", "NRMSE", "SSIM", "MS-SSIM", "n")
PSNR = ("cell", "Phantom_0003", "brain", "psnr")
FITTED = ["copy T1", "linear", "quadratic", "nearest patient"]


class Killed(BaseException):
    """Ends a process in the middle of whatever it does."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory, patients):
    """Two tiny U-Nets and a regression, two seeds, two numbers of steps: on phantom patients."""
    net = {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel"}
    described = {
        "name": "a small grid",
        "rows": {"unet": {"config": "configs/backbone/unet_tiny.yaml"}},
        "seeds": [0, 1],
        "regression_of": "unet",
        "sampling": {"sampler": "ddim", "steps": [1, 2], "batch_size": 16, "temperature": 1},
        "timing": 1,
        "budget": {"steps": 2},
        "model": {
            "params": {
                "unet_config": net,
                "warmup_steps": 1,
                "optimizer_config": {"params": {"lr": 0.002}},
            }
        },
        "data": {
            "params": {
                "root": str(patients),
                "test": ["Phantom_0003"],
                "val": None,
                "image_size": 32,
                "augmentation_config": None,
            }
        },
        "lightning": {
            "trainer": {"accelerator": "cpu", "precision": 32},
            "callbacks": {
                "checkpoint": {"params": {"every_n_steps": 1}},
                **dict.fromkeys(("samples", "features", "curve")),
            },
        },
    }
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(yaml.safe_dump(described))
    return path


ONE_CELL = ["seeds=[0]", "regression_of=null", "baselines=[]", "sampling.steps=2", "timing=0"]


@pytest.fixture
def calls(monkeypatch):
    """Run the verbs of the cells in this process; return what was called."""
    called = []

    def run(work, folder, gpu, *arguments):
        called.append(str(arguments[0]))
        return run_inside(work, folder, gpu, *arguments)

    monkeypatch.setattr(Work, "_dsdiff", run)
    monkeypatch.setattr(
        BenchmarkResult, "figures", lambda self: []
    )  # the slowest part, seen once below
    return called


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, plan):
    """The folder of the whole grid, run without a disturbance."""
    output = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "_dsdiff", run_inside)
        assert benchmark(plan, output) == 0
    return output


@pytest.fixture
def copies(monkeypatch, undisturbed):
    """Take the work of the verbs from the undisturbed grid; return (verb, folder, GPU) of each."""
    called = []

    def run(work, folder, gpu, verb, *arguments):
        called.append((verb, folder.relative_to(work.output).as_posix(), gpu))
        output = arguments[arguments.index("--output") + 1]
        source = undisturbed / output.relative_to(work.output)
        shutil.copytree(source, output, dirs_exist_ok=True)
        return 0, ""

    monkeypatch.setattr(Work, "_dsdiff", run)
    monkeypatch.setattr(BenchmarkResult, "figures", lambda self: [])
    return called


def benchmark(plan, output, *more):
    return main(["benchmark", str(plan), "--output", str(output), *map(str, more)])


def table(output, name="benchmark"):
    with (output / f"{name}.csv").open() as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def kept(output, row="unet", seed=0, sampled="ddim-2"):
    return output / f"rows/{row}/seed-{seed}/{sampled}/scores.json"


def test_rows_of_the_grid_and_the_baselines(undisturbed):
    rows = table(undisturbed)
    assert list(rows) == ["unet · steps 1", "unet · steps 2", "unet-one-step", *FITTED]
    for name in list(rows)[:3]:
        row = rows[name]
        assert float(row["PSNR dB"]) > 0
        assert float(row["parameters M"]) == pytest.approx(1.19, abs=0.01)
        assert float(row["s a volume"]) > float(row["s a slice"]) > 0
        assert float(row["sample GiB"]) > 0.1
        assert [row[c] for c in ("n", "n of", "seeds", "seeds of")] == ["1", "1", "2", "2"]
        assert row["train steps"] == "2"  # over two seeds, and a whole number
    assert [row["calls"] for row in list(rows.values())[:3]] == [
        "1",
        "3",
        "1",
    ]  # a mean, both signs of a noise and the mean
    assert all(float(rows[name]["PSNR dB"]) > 0 for name in FITTED)
    assert rows["linear"]["parameters M"] == "n/a"
    assert float(rows["copy T1"]["Recovery"]) == 0 and float(rows["copy T1"]["AUC tumour"]) == 0.5
    assert all(abs(float(row["Recovery"])) < 5 for row in rows.values())
    page = (undisturbed / "report.html").read_text()
    nothing = page.partition("nothing: recovery below 0.1")[0].rpartition(".")[2]
    assert "linear" in nothing and "copy T1" not in nothing
    assert "2 steps a training" in page  # the budget that held
    assert page.count("data:image") >= 4
    assert "://" not in page
    assert 'id="viewer-data"' in page
    assert (undisturbed / "benchmark.tex").read_text().startswith("\\begin{table}")


def test_costs_say_batch_precision_and_work(undisturbed):
    row = table(undisturbed, "cost")["unet · steps 2"]
    assert (row["train batch"], row["sample batch"]) == ("4", "16")
    assert row["precision train / sample"] == "32-true / 32"
    flops = float(row["GFLOPs a call"]) * 1e9
    assert float(row["train TFLOPs"]) == pytest.approx(3 * flops * 4 * 2 / 1e12)
    assert row["J a volume"] == "n/a"  # a CPU has no counter here, and the table says so
    assert "no energy counter is read on cpu" in (undisturbed / "report.html").read_text()


def test_a_patients_score_is_its_mean_over_seeds(undisturbed):
    """The patient is the unit of statistics; how much the seeds differ has a column of its own."""
    each = [read_scores(kept(undisturbed, seed=seed))[PSNR] for seed in (0, 1)]
    assert each[0] != each[1]
    row = table(undisturbed)["unet · steps 2"]
    assert float(row["PSNR dB"]) == pytest.approx(np.mean(each), rel=1e-12)
    assert float(row["sd over seeds dB"]) == pytest.approx(np.std(each, ddof=1), rel=1e-9)


def test_copy_t1_is_the_row_of_evaluate(tmp_path, undisturbed, patients):
    """Written as a prediction with a sidecar, it scores what ``dsdiff evaluate`` says."""
    prediction = undisturbed / "baselines/copy/prediction"
    words = ["evaluate", "--prediction", prediction, "--reference", patients, "--output", tmp_path]
    assert main([str(word) for word in words]) == 0
    stored = read_scores(tmp_path / "metrics.json")
    own, copied = (
        {key[1:]: value for key, value in stored.items() if key[0] == row}
        for row in ("prediction", "copy T1")
    )
    assert own == copied


def test_killed_in_training_and_in_sampling_then_resumed(
    tmp_path, plan, undisturbed, calls, monkeypatch
):
    """Killed after the first of two steps, then between two files of a patient: the same scores."""
    output, real = tmp_path / "out", GradientGuard.on_before_optimizer_step

    def in_training(guard, trainer, *rest):
        if trainer.global_step == 1:
            raise Killed
        real(guard, trainer, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(GradientGuard, "on_before_optimizer_step", in_training)
        benchmark(plan, output, *ONE_CELL)
    run = output / "rows/unet/seed-0/run"
    assert (run / "checkpoints/last.ckpt").is_file() and not (run / "cost.json").is_file()

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("ldm.inference.forms.write_volume", Mock(side_effect=Killed))
        benchmark(plan, output, *ONE_CELL)
    written = {p.name for p in (run.parent / "ddim-2/prediction").glob("Phantom*")}
    assert written == {"Phantom_0003_t1ce.json"}

    assert benchmark(plan, output, *ONE_CELL) == 0
    assert calls == ["train", "train", "sample", "sample"]
    assert kept(output).read_bytes() == kept(undisturbed).read_bytes()
    resumed = table(output)["unet"]
    assert float(resumed["PSNR dB"]) == read_scores(kept(undisturbed))[PSNR]

    assert benchmark(plan, output, *ONE_CELL) == 0
    assert len(calls) == 4  # what is finished is not done again


def test_failed_row_is_shown_and_tried_again(tmp_path, plan, copies, monkeypatch):
    copied = Work._dsdiff

    def broken(work, folder, gpu, verb, *arguments):
        if verb == "train" and "one-step" in str(folder):
            return 6, "dsdiff train: error NONFINITE-LOSS: loss is nan"
        return copied(work, folder, gpu, verb, *arguments)

    more = ["baselines=[]", "sampling.steps=1", "timing=0", "seeds=[0]"]
    with monkeypatch.context() as patch:
        patch.setattr(Work, "_dsdiff", broken)
        assert benchmark(plan, tmp_path, *more) == 9
    rows = table(tmp_path)
    assert "FAILED: dsdiff train: error NONFINITE-LOSS" in rows["unet-one-step"]["PSNR dB"]
    assert float(rows["unet"]["PSNR dB"]) > 0
    failures = json.loads((tmp_path / "benchmark.json").read_text())["failures"]
    assert failures.keys() == {"unet-one-step"}
    copies.clear()
    assert benchmark(plan, tmp_path, *more) == 0
    again = "rows/unet-one-step/seed-0"
    assert [call[:2] for call in copies] == [("train", again), ("sample", f"{again}/ddim-1")]


def test_a_failed_patient_is_shown_and_tried_again(tmp_path, plan, patients, calls):
    """One of two held-out patients cannot be read: the row has the other one, and says so."""
    own = tmp_path / "patients"
    shutil.copytree(patients, own)
    damaged = own / "Phantom_0002/Phantom_0002_t2.nii.gz"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-100])
    output = tmp_path / "out"
    parts = ["data.params.train=[Phantom_0001]", "data.params.test=[Phantom_0002,Phantom_0003]"]
    more = [*ONE_CELL, f"data.params.root={own}", *parts]
    assert benchmark(plan, output, *more) == 9
    row = table(output)["unet"]
    assert (row["n"], row["n of"]) == ("1", "2") and float(row["PSNR dB"]) > 0
    failures = json.loads((output / "metrics.json").read_text())["failures"]
    assert "DATA-CORRUPT" in failures["unet"]["Phantom_0002"]

    damaged.write_bytes(whole)
    assert benchmark(plan, output, *more) == 0
    assert table(output)["unet"]["n"] == "2"
    assert calls == ["train", "sample", "sample"]


def test_a_segmenter_adds_a_column(tmp_path, plan, undisturbed, copies, segmenter_run, capsys):
    """Dice of what it finds on the synthetic T1ce; not by a judge that knows the patient."""
    given = ["seeds=[0]", f"segmenter={segmenter_run}"]
    parts = ["data.params.train=[Phantom_0003]", "data.params.test=[Phantom_0002]"]
    assert benchmark(plan, tmp_path / "leak", *given, *parts) == 3
    assert "LEAK case=Phantom_0002: is tested, but 'the segmenter'" in capsys.readouterr().err
    assert benchmark(plan, tmp_path / "none", "segmenter=nowhere") == 4
    assert "CKPT-MISSING" in capsys.readouterr().err
    assert copies == []
    assert benchmark(plan, tmp_path, *given) == 0
    rows = table(tmp_path)
    found = read_scores(tmp_path / "downstream.json")
    title = next(c for c in rows["linear"] if c.endswith("Dice"))
    expected = found["linear", "Phantom_0003", title.split()[0].lower(), "dice"]
    assert float(rows["linear"][title]) == expected
    assert "Segmentation with synthetic volumes" in (tmp_path / "report.html").read_text()


def test_another_target_is_trained_sampled_and_judged(tmp_path, plan, calls, capsys):
    """FLAIR from the others, by YAML alone; rows of two targets are refused before any work."""
    target = ["data.params.target=flair", "data.params.conditions=[t1,t2,t1ce]"]
    more = [*ONE_CELL, "baselines=[copy,linear]", *target]
    assert benchmark(plan, tmp_path / "out", *more) == 0
    rows = table(tmp_path / "out")
    assert list(rows) == ["unet", "copy T1", "linear"]
    assert all(float(row["PSNR dB"]) > 0 for row in rows.values())
    assert json.loads((tmp_path / "out/metrics.json").read_text())["target"] == "flair"
    calls.clear()
    other = "{config: configs/backbone/unet_tiny.yaml, overrides: [data.params.target=dwi]}"
    assert benchmark(plan, tmp_path / "two", *more, f"rows.other={other}", "--plan") == 2
    assert "other synthesises dwi, other rows flair" in capsys.readouterr().err
    assert calls == []


def submitted(folder, lines):
    """Run lines of a shell; return options and command of each job that reaches ``sbatch``."""
    log, fake = folder / "sbatch.log", folder / "sbatch"
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" END >> {log}\necho 7\n')
    fake.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", lines], check=True, env=os.environ | {"PATH": path})
    jobs = [job.splitlines() for job in log.read_text().split("END\n")[:-1]]
    return [(job[: job.index("--wrap")], shlex.split(job[-1])) for job in jobs]


def test_plan_cell_and_collect(tmp_path, plan, undisturbed, copies, capsys):
    """The three doors of a job array; what is missing is a failed row, not a shorter table."""
    output = tmp_path / "out"
    shutil.copytree(undisturbed, output)
    shutil.rmtree(output / "rows/unet/seed-1/ddim-2")
    shutil.rmtree(output / "baselines/linear")
    assert benchmark(plan, output, "--plan") == 0
    printed = capsys.readouterr().out
    shown = " ".join(printed.split())
    assert "10 cells: 6 samplings of 4 trainings (2 rows x 2 seeds), 4 baselines" in shown
    assert "4 of 4 trainings, 8 of 10 cells done" in shown
    jobs = submitted(tmp_path, printed.partition("SLURM")[2].partition("\n")[2])
    own = ["dsdiff", "benchmark", str(plan), "--output", str(output)]
    cell = [*own, "--cell", "$SLURM_ARRAY_TASK_ID"]
    assert jobs == [
        (["--parsable", "--array=0-3"], cell),
        (["--parsable", "--array=4-9", "--dependency=afterany:7"], cell),
        (["--dependency=afterany:7"], [*own, "--collect"]),
    ]
    listed = json.loads((output / "plan.json").read_text())["cells"]
    states = {cell["name"]: cell["state"] for cell in listed}
    assert states["unet · steps 2 · seed 1"] == "trained"
    assert states["linear"] == "missing"
    assert list(states.values()).count("done") == 8

    assert benchmark(plan, output, "--collect") == 9
    rows = table(output)
    assert rows["unet · steps 2"]["seeds"] == "1"
    assert rows["linear"]["PSNR dB"] == "FAILED: not done (missing)"
    assert copies == []

    for name in ("unet · steps 2 · seed 1", "linear"):
        number = next(cell["cell"] for cell in listed if cell["name"] == name)
        assert benchmark(plan, output, "--cell", number) == 0
    assert [verb for verb, *_ in copies] == ["sample"]
    assert benchmark(plan, output, "--collect") == 0
    for metrics in ("metrics.csv", "metrics.json"):
        assert (output / metrics).read_bytes() == (undisturbed / metrics).read_bytes()
    assert benchmark(plan, output, "--cell", 10) == 2


def test_it_says_how_much_there_is_and_how_far_it_is(tmp_path, plan, undisturbed, copies, capsys):
    """The work of one training is missing, and a baseline: what is done is not counted anew."""
    output = tmp_path / "out"
    shutil.copytree(undisturbed, output)
    shutil.rmtree(output / "rows/unet/seed-1")
    shutil.rmtree(output / "baselines/linear")
    assert benchmark(plan, output) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line]
    assert said[:8] == [
        "10 cells: 6 samplings of 4 trainings (2 rows x 2 seeds), 4 baselines",
        "3 of 4 trainings, 7 of 10 cells done",
        "unet · steps 1 · seed 1: training 2 of 4",
        "unet · steps 1 · seed 1: sampling 1 patient",
        "unet · steps 1 · seed 1: done (8 of 10 cells done)",
        "unet · steps 2 · seed 1: sampling 1 patient",
        "unet · steps 2 · seed 1: done (9 of 10 cells done)",
        "linear: done (10 of 10 cells done)",
    ]
    assert f"Report: {output}/report.html (every region, quality against" in said[-2]


def test_what_was_lost_is_counted():
    assert tally(["done", "failed", "partial", "missing", "done"]) == (
        "2 of 5 cells done, 1 failed, 1 with failed patients"
    )


def test_two_processes_never_train_one_training(tmp_path, plan, copies, monkeypatch):
    """A cell whose training another process holds waits until that is released."""
    holder = contextlib.ExitStack()
    holder.enter_context(folder_lock(tmp_path / "locks/rows/unet/seed-0"))
    waited = []

    def poll(seconds):
        waited.append(list(copies))
        holder.close()

    monkeypatch.setattr(cells.time, "sleep", poll)
    assert benchmark(plan, tmp_path, *ONE_CELL, "--cell", 0) == 0
    assert waited == [[]]
    assert [verb for verb, *_ in copies] == ["train", "sample"]


def test_a_report_that_another_process_writes_is_waited_for(plan, undisturbed, monkeypatch):
    """Two processes of one benchmark end at about the same time: neither is an error."""
    one, waited = Benchmark(plan, output=undisturbed), []
    lock = folder_lock(undisturbed / "locks" / "report")

    def let_go(seconds):
        waited.append(seconds)
        lock.__exit__(None, None, None)

    monkeypatch.setattr("ldm.benchmark.waiting.time.sleep", let_go)
    lock.__enter__()
    assert one.collect().problems == {}
    assert len(waited) == 1


def test_cells_run_at_once_with_a_gpu_each(tmp_path, plan, copies, monkeypatch):
    """Two jobs on two (pretended) GPUs: each training is done once, on one of them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert benchmark(plan, tmp_path, "--jobs", 2, "timing=0", "baselines=[linear]") == 0
    trained = [folder for verb, folder, _ in copies if verb == "train"]
    assert len(trained) == len(set(trained)) == 4
    assert [verb for verb, *_ in copies].count("sample") == 6
    assert {gpu for *_, gpu in copies} == {"2", "5"}
    assert list(table(tmp_path)) == ["unet · steps 1", "unet · steps 2", "unet-one-step", "linear"]


def test_only_the_benchmark_says_what_to_do_next(tmp_path, capsys):
    """A verb that a cell runs leaves that out."""
    words = ["phantom", str(tmp_path / "a"), "--subjects", "1", "--size", "32"]
    assert main(words) == 0
    assert f"next: dsdiff diagnose data {tmp_path}/a" in capsys.readouterr().out
    work = Work(tmp_path, tmp_path, {}, [], {}, is_quiet=True)
    assert work._dsdiff(tmp_path, None, *words, "--overwrite")[0] == 0
    said = (tmp_path / "log.txt").read_text()
    assert "1 patient (" in said and "next:" not in said


@pytest.mark.parametrize("part", [False, True])
def test_only_the_benchmark_says_how_to_go_on(tmp_path, capsys, monkeypatch, part):
    """A training that a cell runs, and that is stopped, leaves that out."""
    if part:
        monkeypatch.setenv(PART_OF, "benchmark")
    resume = f"dsdiff train --resume {tmp_path}"
    assert finish(TrainedRun(tmp_path, 3, signal.SIGTERM, "dsdiff sample", resume)) == 143
    said = capsys.readouterr().out
    assert "Stopped after step 3; nothing is lost." in said
    assert ("To continue" in said, resume in said) == (not part, not part)
    print_found("BraTS 2023+: 5 subjects")  # which each of its samplings would say again
    assert capsys.readouterr().err == ("" if part else "BraTS 2023+: 5 subjects\n")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("sampling.stesp=5", "'stesp' is no option of sampling (nearest: 'steps'"),
        ("sampling.sampler=ddmi", "ddmi"),
        ("sampling.temperature=[0,-1]", "temperature is -1"),
        ("sampling.steps=2000", "sampling of unet: 2000 sampling steps; expected"),
        ("sampling.overlap=0.5", "overlap is 0.5, but this model samples slices"),
        ("sampling.allow_missing=[t2]", "the model was trained with every contrast"),
        ("sampling.target=t2", "target is 't2': give one of t1ce"),
        ("sampling.guidance=2", "no item lost all its conditions"),
        ("sampling={sampler: heun, eta: 0.5}", "heun takes no eta"),
        ("sampling={spread: 0.5, temperature: 0}", "at temperature 0 there is one image"),
        ("sampling.runtime=onnx", "unet is trained here"),
    ],
)
def test_a_wrong_option_of_sampling_is_refused_before_any_training(
    tmp_path, plan, capsys, option, said
):
    assert benchmark(plan, tmp_path / "out", option) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("sampling=3", "sampling is 3: give options"),
        ("sampling.sampler=[[ddim]]", "sampler"),
        ("rows.unet.config=5", "rows.unet is"),
        ("rows.unet={run: 5}", "rows.unet is"),
    ],
)
def test_a_plan_of_another_form_is_named(tmp_path, plan, capsys, option, said):
    assert benchmark(plan, tmp_path / "out", option, "--plan") == 2
    assert said in capsys.readouterr().err


def test_scores_of_a_given_run_are_not_kept_for_other_weights(
    tmp_path, patients, run_folder, monkeypatch, capsys
):
    """Trained on, or another run of that name: neither is sampled anew beside the old volumes."""
    monkeypatch.setattr(Work, "_dsdiff", run_inside)
    monkeypatch.setattr(BenchmarkResult, "figures", lambda self: [])
    run, path = tmp_path / "run", tmp_path / "plan.yaml"
    shutil.copytree(run_folder, run)
    data = {"params": {"root": str(patients), "test": ["Phantom_0003"], "val": None}}
    described = {"rows": {"x": {"run": str(run)}}, "baselines": [], "timing": 0, "data": data}
    path.write_text(json.dumps(described | {"sampling": {"steps": 1}}))
    assert benchmark(path, tmp_path / "out") == 0
    scores = table(tmp_path / "out")
    assert benchmark(path, tmp_path / "out") == 0
    assert table(tmp_path / "out") == scores
    assert main(["train", "--resume", str(run), "lightning.trainer.max_steps=6"]) == 0
    capsys.readouterr()
    assert benchmark(path, tmp_path / "out") == 5
    assert "has the scores of another model" in capsys.readouterr().err
    assert table(tmp_path / "out") == scores
    assert benchmark(path, tmp_path / "new") == 0


def test_verbs_run_in_processes_of_their_own(tmp_path, monkeypatch):
    """Their exit code, their last line and the GPU they are given."""
    work = Work(tmp_path, tmp_path, {}, [], {}, is_quiet=True)
    code, reason = work._dsdiff(tmp_path, "7", "sample", "nowhere", "--input", tmp_path)
    assert code == 2 and "--output" in reason
    assert "usage" in (tmp_path / "log.txt").read_text()
    show = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES']); sys.exit(int(sys.argv[3]))"
    fake, python = tmp_path / "python", sys.executable
    fake.write_text(f'#!/bin/sh\nexec {python} -c "{show}" "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with claim(tmp_path, "benchmark", adopt=True):
        assert work._dsdiff(tmp_path, "7", 0)[0] == 0
        assert (tmp_path / "log.txt").read_text().endswith("7\n")
        busy = "import sys; sys.stderr.write('dsdiff train: error RUN-BUSY: x'); sys.exit(11)"
        fake.write_text(f'#!/bin/sh\nexec {python} -c "{busy}"\n')
        with pytest.raises(BusyError, match="RUN-BUSY"):
            work._dsdiff(tmp_path, "7")
        assert "RUN-BUSY" not in (tmp_path / "log.txt").read_text()  # it is waited for
        fake.write_text(f'#!/bin/sh\nexec {python} -c "{show}" "$@"\n')
        with pytest.raises(Stopped):
            work._dsdiff(tmp_path, "7", 143)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo size slices of 32 x 32 >&2; kill -KILL $$",
            "killed by SIGKILL, as where memory runs out: see log.txt; the same command goes on",
        ),
        ("kill -SEGV $$", "killed by SIGSEGV: see log.txt; the same command goes on"),
        (
            "echo 'dsdiff train: error MEMORY: out of memory' >&2; echo bye >&2; exit 7",
            "dsdiff train: error MEMORY: out of memory",
        ),
        ("echo size slices >&2; exit 1", "exit code 1, the last line: size slices"),
    ],
)
def test_why_a_verb_ended_is_no_line_that_it_happened_to_print(
    tmp_path, script, reason, monkeypatch
):
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    work = Work(tmp_path, tmp_path, {}, [], {}, is_quiet=True)
    monkeypatch.setattr(sys, "executable", str(fake))
    with claim(tmp_path, "benchmark", adopt=True):
        assert work._dsdiff(tmp_path, None, "train")[1] == reason


def test_a_module_beside_the_script_is_found_by_the_verbs(tmp_path, monkeypatch):
    """As this process finds it: in a notebook by ``sys.path``, from another folder."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/net_of_a_notebook.py").write_text("import torch\n")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import net_of_a_notebook"\n')
    fake.chmod(0o755)
    work = Work(tmp_path, tmp_path, {}, [], {}, is_quiet=True)
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))  # what is given stays
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])  # no text: Python passes it over
    monkeypatch.setattr(sys, "executable", str(fake))
    with claim(tmp_path, "benchmark", adopt=True):
        assert work._dsdiff(tmp_path, None, "train") == (0, "exit code 0")
    given, *more = cells._search_path()
    assert given == str(Path.cwd()) and str(tmp_path / "elsewhere") in more
    assert not any("site-packages" in place for place in more)


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True])
def test_a_wrong_number_of_jobs_does_not_wait_for_ever(plan, undisturbed, jobs):
    with pytest.raises(ConfigError, match=rf"jobs is {jobs}( \(\w+\): give int|: give 1 or more)"):
        Benchmark(plan, output=undisturbed).run(jobs=jobs)


def test_other_settings_in_one_folder_are_refused(undisturbed, plan, calls, capsys):
    assert benchmark(plan, undisturbed, "budget.steps=3") == 5
    assert "was begun with another configuration" in capsys.readouterr().err
    assert calls == []


def test_a_value_added_to_an_option_runs_only_what_is_new(tmp_path, plan, calls):
    assert benchmark(plan, tmp_path, *ONE_CELL) == 0
    first = kept(tmp_path).read_bytes()
    assert calls == ["train", "sample"]
    assert benchmark(plan, tmp_path, *ONE_CELL, "sampling.temperature=[0,1]") == 0
    assert calls == ["train", "sample", "sample"]
    assert kept(tmp_path).read_bytes() == first  # of temperature 1, which the plan has
    assert list(table(tmp_path)) == ["unet · temperature 0", "unet · temperature 1"]


def test_test_patient_in_training_is_a_leak(tmp_path, plan, patients, capsys):
    leak = "data.params.train=[Phantom_0001,Phantom_0003]"
    assert benchmark(plan, tmp_path / "out", leak) == 3
    assert "LEAK case=Phantom_0003" in capsys.readouterr().err
    own = (
        'rows.unet.overrides=["data.params.train=[Phantom_0003]","data.params.test=[Phantom_0001]"]'
    )
    other = "rows.other.config=configs/backbone/unet_tiny.yaml"
    assert benchmark(plan, tmp_path / "out", own, other) == 3
    assert "LEAK case=Phantom_0001: is tested, but 'other'" in capsys.readouterr().err


def test_patient_under_another_name_is_a_leak(tmp_path, plan, patients, capsys):
    """The same files as Phantom_0003, copied as a patient of the training."""
    shutil.copytree(patients, tmp_path / "patients")
    copy = tmp_path / "patients/Twin"
    copy.mkdir()
    for file in (patients / "Phantom_0003").glob("*.nii.gz"):
        shutil.copy(file, copy / file.name.replace("Phantom_0003", "Twin"))
    root = f"data.params.root={tmp_path / 'patients'}"
    assert benchmark(plan, tmp_path / "out", root) == 3
    assert "under the name Twin (same image)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_run_trained_elsewhere_is_a_row_and_is_guarded(tmp_path, plan, undisturbed, calls, capsys):
    """A finished run is only sampled; not on a patient that its ``subjects.json`` names."""
    given = [f"rows.mine.run={undisturbed}/rows/unet/seed-0/run", "rows.unet=null"]
    assert benchmark(plan, tmp_path / "a", *ONE_CELL, *given) == 0
    assert calls == ["sample"]
    assert float(table(tmp_path / "a")["mine"]["parameters M"]) == pytest.approx(1.19, abs=0.01)
    seen = "data.params.test=[Phantom_0001]"
    assert benchmark(plan, tmp_path / "b", *ONE_CELL, *given, seen) == 3
    assert "LEAK case=Phantom_0001" in capsys.readouterr().err


@pytest.mark.parametrize("section", ["model", "data"])
def test_a_run_folder_names_no_class_of_its_own(tmp_path, plan, undisturbed, section, capsys):
    """A config that came with somebody's run is not the user's YAML: it imports nothing."""
    run = tmp_path / "theirs"
    shutil.copytree(undisturbed / "rows/unet/seed-0/run", run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[section]["target"] = "antigravity.Net"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    given = [*ONE_CELL, f"rows.mine.run={run}", "rows.unet=null"]
    assert benchmark(plan, tmp_path / "out", *given) == 10
    assert "--trust antigravity.Net" in capsys.readouterr().err
    assert "antigravity" not in sys.modules and not (tmp_path / "out").exists()


def test_sampling_a_training_patient_warns(tmp_path, undisturbed, patients, caplog):
    run = undisturbed / "rows/unet/seed-0/run"
    words = ["sample", run, "--input", patients, "--output", tmp_path, "--steps", 1]
    assert main([str(word) for word in [*words, "--subjects", "Phantom_0001"]]) == 0
    assert "Phantom_0001 was trained on: no test of this model" in caplog.text


def test_wrong_row_is_refused_before_anything_runs(tmp_path, plan, capsys):
    wrong = "rows.unet.overrides=[model.params.parametrization=v]"
    assert benchmark(plan, tmp_path / "out", wrong) == 2
    assert "nearest: 'parameterization'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


OWN_ROW = """
import torch


class Fails(torch.nn.Conv2d):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x, timesteps, context=None, y=None):
        raise RuntimeError("not yet written")
"""
NET = "model.params.unet_config"
UNFIT = [  # an override of a row, what is said of it, and the exit code
    (f"{NET}={{target: torch.nn.Linear, params: null}}", "in_features is required by Linear", 2),
    (f"{NET}.params.model_channels=33", "33 channels cannot be normalised in 32 groups", 2),
    (f"{NET}={{target: own_row.Fails, params: null}}", "RuntimeError: not yet written", 2),
    ("lightning.trainer.gradient_clip_algorithm=most", "`gradient_clip_algorithm` most is inv", 2),
    ("data.params.conditions=[t1,t9]", "no t9", 3),
    ("model.params.parametrization=v", "nearest: 'parameterization'", 2),
]


@pytest.mark.parametrize(("override", "said", "code"), UNFIT)
def test_a_row_that_cannot_be_trained_is_refused_before_the_others_are(
    tmp_path, plan, calls, monkeypatch, capsys, override, said, code
):
    (tmp_path / "own_row.py").write_text(OWN_ROW)
    monkeypatch.syspath_prepend(str(tmp_path))
    row = {"config": "configs/backbone/unet_tiny.yaml", "overrides": [override]}
    more = [*ONE_CELL, f"rows.other={json.dumps(row)}"]
    assert benchmark(plan, tmp_path / "out", *more) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert "rows.other" in line and said in line
    assert not list(tmp_path.rglob("run"))


def test_a_row_that_is_mended_goes_on_in_the_same_folder(tmp_path, plan, calls, monkeypatch):
    """What was tried of it has left nothing that a mended row could contradict."""
    (tmp_path / "own_mended.py").write_text(OWN_ROW)
    monkeypatch.syspath_prepend(str(tmp_path))
    row = {"config": "configs/backbone/unet_tiny.yaml"}
    row["overrides"] = [f"{NET}={{target: own_mended.Fails, params: null}}"]
    more = [*ONE_CELL, f"rows.other={json.dumps(row)}"]
    assert benchmark(plan, tmp_path / "out", *more) == 2
    row["overrides"] = []
    more = [*ONE_CELL, f"rows.other={json.dumps(row)}"]
    assert benchmark(plan, tmp_path / "out", *more) == 0
    assert calls == ["train", "train", "sample", "train", "sample"]  # the first on noise


def test_a_given_run_without_whole_weights_is_refused_before_any_training(
    tmp_path, plan, undisturbed, calls, capsys
):
    run = shutil.copytree(undisturbed / "rows/unet/seed-0/run", tmp_path / "given")
    more = [*ONE_CELL, f"rows.given.run={run}"]
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert benchmark(plan, tmp_path / "out", *more) == 4
    assert "rows.given: " in capsys.readouterr().err
    weights.unlink()
    assert benchmark(plan, tmp_path / "out", *more) == 2
    assert f"rows.given.run: {run} holds no model.safetensors" in capsys.readouterr().err
    assert calls == []


@pytest.mark.slow
def test_sigkill_twice_gives_the_table_of_an_undisturbed_run(tmp_path, plan, undisturbed):
    """First the whole group is killed in a training, then the benchmark alone in a sampling."""
    command = [sys.executable, "-m", "ldm.cli.main", "benchmark", str(plan), "--output"]

    def start():
        return subprocess.Popen([*command, str(tmp_path)], start_new_session=True)

    def wait_for(pattern, process):
        while not list(tmp_path.glob(pattern)):
            assert process.poll() is None
            time.sleep(0.02)

    process = start()
    wait_for("rows/unet/seed-1/run/checkpoints/last.ckpt", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process = start()
    wait_for("rows/unet/seed-1/ddim-*/prediction/.lock", process)
    process.kill()
    process.wait()
    process = start()
    assert process.wait() == 0
    for metrics in ("metrics.csv", "metrics.json"):
        assert (tmp_path / metrics).read_bytes() == (undisturbed / metrics).read_bytes()
    killed, whole = (
        {name: [row[q] for q in QUALITY] for name, row in table(output).items()}
        for output in (tmp_path, undisturbed)
    )
    assert killed == whole
