"""Any contrast from any others, by two overrides: the whole chain on phantoms.

FLAIR from the other three, T1ce from T1, T2 and a diffusion-weighted image, and of two contrasts
that nobody knows one from the other, each spelled as its files are.
"""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from builders import read_scores, run_inside
from workflow.conftest import SPLIT

from ldm.benchmark.cells import Work
from ldm.benchmark.results import BenchmarkResult
from ldm.checkpoint import load_model, read_run_config, study_of
from ldm.cli.main import main
from ldm.data.layouts import detect_layout
from ldm.inference.synthesis import Synthesiser
from ldm.model_file import read_model
from ldm.phantom import write_phantoms
from ldm.storage import MODEL_FILE

OWN = "data.params.contrasts={swan: [SWAN_min], phase: [pha, PHA]}"


SPARSE = "model.params.sparsity=0.1"  # which only a subtraction image is


@dataclass(frozen=True)
class Chain:
    """A study, what is subtracted from its target, and what it needs on the command line."""

    target: str
    conditions: tuple[str, ...]
    anchor: str | None
    copied: str
    title: str
    more: tuple[str, ...] = ()

    @property
    def overrides(self) -> list[str]:
        conditions = f"data.params.conditions=[{','.join(self.conditions)}]"
        return [f"data.params.target={self.target}", conditions, *self.more]


CHAINS = {
    "flair": Chain("flair", ("t1", "t2", "t1ce"), None, "copy T1", "FLAIR"),
    "dwi": Chain("t1ce", ("t1", "t2", "dwi"), "t1", "copy T1", "T1ce"),
    "own": Chain("swan", ("phase", "t2"), None, "copy phase", "swan", (OWN,)),
}


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Three phantoms with DWI, and two volumes under names of the hospital."""
    folder = tmp_path_factory.mktemp("five")
    write_phantoms(folder, 3, size=32, seed=0, dwi=True)
    for path in folder.rglob("*_dwi.nii.gz"):
        image, values = nib.load(path), np.asarray(nib.load(path).dataobj)
        for name, other in (("SWAN_min", values + 7 * (values > 0)), ("PHA", values // 2)):
            made = nib.Nifti1Image(other.astype(np.int16), image.affine)
            nib.save(made, path.with_name(path.name.replace("_dwi", f"_{name}")))
    return folder


@pytest.fixture(scope="module", params=CHAINS)
def chain(request):
    return CHAINS[request.param]


@pytest.fixture(scope="module")
def run(chain, five, train, tmp_path_factory):
    """A run of two steps on Phantom_0001 and 2, validated on 3."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    more = [f"data.params.root={five}", "lightning.trainer.max_steps=2", SPARSE]
    assert train(folder, *more, *chain.overrides) == 0
    return folder


@pytest.fixture(scope="module")
def predictions(run, five, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictions")
    given = ["--input", str(five), "--subjects", "Phantom_0003", "--output", str(folder)]
    assert main(["sample", str(run), *given]) == 0
    return folder


def file_of(folder: Path, contrast: str) -> Path:
    name = {"swan": "SWAN_min", "phase": "PHA"}.get(contrast, contrast)
    return folder / f"Phantom_0003/Phantom_0003_{name}.nii.gz"


def described(run: Path, tmp_path: Path) -> list[str]:
    """Return ``--config`` with the configuration of a run."""
    return ["--config", str(run / "config.yaml")]


def test_the_model_has_the_facts_of_the_study(chain, run):
    model, study, *_ = load_model(run)
    assert (study.target, study.conditions) == (chain.target, chain.conditions)
    assert model.conditions == chain.conditions
    assert (model.anchor and model.anchor.extra_repr()) == chain.anchor
    assert bool(model.losses) == (chain.anchor is not None)  # only a subtraction image is sparse


def test_the_folder_is_diagnosed_for_this_study(chain, run, five, tmp_path, capsys):
    arguments = [*described(run, tmp_path), "--output", str(tmp_path)]
    assert main(["diagnose", "data", str(five), *arguments]) == 0
    subjects = json.loads((tmp_path / "diagnosis.json").read_text())["subjects"]
    assert {*chain.conditions, chain.target} <= set(subjects[0]["contrasts"])


def test_a_missing_contrast_is_named_by_its_file(chain, run, five, tmp_path, capsys):
    folder = tmp_path / "patients"
    write_phantoms(folder, 1, size=32, seed=0)
    (folder / "Phantom_0001/Phantom_0001_t2.nii.gz").unlink()
    given = ["--input", str(folder), "--output", str(tmp_path / "out")]
    assert main(["sample", str(run), *given]) == 3
    missing = {"phase": "pha"}.get(chain.conditions[0], "t2")
    assert f"expected Phantom_0001_{missing}.nii.gz" in capsys.readouterr().err


def test_a_manifest_has_a_column_for_each_contrast(chain, run, five, tmp_path):
    config = ["--config", "configs/base.yaml", *SPLIT, *chain.overrides]
    assert main(["prepare", str(five), *config, "--output", str(tmp_path)]) == 0
    (subject, *_) = detect_layout(tmp_path / "manifest.csv", contrasts=study_of(run).contrasts)[
        1
    ].values()
    assert {*chain.conditions, chain.target, "seg"} <= set(subject.files)
    assert main(["prepare", "--verify", str(tmp_path / "manifest.csv")]) == 0


def test_the_volume_is_named_by_the_target_and_lies_on_its_grid(chain, predictions, five):
    made = nib.load(predictions / f"Phantom_0003_{chain.target}.nii.gz")
    real = nib.load(file_of(five, chain.target))
    assert made.shape == real.shape
    np.testing.assert_allclose(made.affine, real.affine)
    sidecar = json.loads((predictions / f"Phantom_0003_{chain.target}.json").read_text())
    assert set(sidecar["inputs"]) == set(chain.conditions)
    assert sidecar["intensity"]["contrast"] == chain.conditions[0]


def test_python_samples_the_same_volume(chain, run, predictions, five):
    (made,) = Synthesiser.load(run, device="cpu").volumes(five, subjects=["Phantom_0003"])
    written = nib.load(predictions / f"Phantom_0003_{chain.target}.nii.gz")
    np.testing.assert_array_equal(made.image.get_fdata(), written.get_fdata())


def test_the_run_folder_says_the_facts_once(chain, run):
    config = read_run_config(run)
    assert config["data"]["params"]["conditions"] == list(chain.conditions)
    assert not {"conditions", "image_size", "neighbours", "target"} & set(config["model"]["params"])


@pytest.fixture(scope="module")
def judged(run, five, predictions, tmp_path_factory):
    """What ``dsdiff evaluate`` finds, told neither target nor inputs: sidecars state them."""
    output = tmp_path_factory.mktemp("judged")
    given = ["--prediction", str(predictions), "--reference", str(five)]
    assert main(["evaluate", *given, "--output", str(output)]) == 0
    return output


def test_the_volume_is_judged_beside_a_copy_of_its_source(chain, judged):
    scores = read_scores(judged / "metrics.json")
    assert {row for row, *_ in scores} == {"prediction", chain.copied}
    quality = [value for (*_, region, name), value in scores.items() if name == "psnr" and region]
    assert quality and all(value > 5 for value in quality)
    page = (judged / "report.html").read_text()
    assert f"Synthetic against real {chain.title}" in page
    assert ("T1ce" in page) == ("t1ce" in (*chain.conditions, chain.target))


def test_a_sweep_judges_the_same_target(chain, run, five, tmp_path):
    given = ["--input", str(five), "--output", str(tmp_path / "sweep"), "--steps", "1"]
    assert main(["sweep", str(run), *given, "--sampler", "ddim"]) == 0
    with (tmp_path / "sweep/sweep.csv").open(encoding="utf-8") as file:
        rows = {row["sampler"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["ddim", chain.copied]
    assert (rows["ddim"]["n"], rows["ddim"]["n of"]) == ("1", "1")


@pytest.fixture(scope="module")
def plan(chain, five, tmp_path_factory):
    """One tiny U-Net for two steps, beside a copy of the source and a regression."""
    described = {
        "rows": {"unet": {"config": "configs/backbone/unet_tiny.yaml"}},
        "baselines": ["copy", "linear"],
        "sampling": {"sampler": "ddim", "steps": 1, "batch_size": 16},
        "timing": 0,
        "budget": {"steps": 2},
        "data": {"params": {"root": str(five), "test": ["Phantom_0003"], "val": None}},
        "lightning": {"trainer": {"accelerator": "cpu", "precision": 32}},
    }
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(yaml.safe_dump(described))
    small = ["data.params.image_size=32", "data.params.augmentation_config=null"]
    return [str(path), *small, *chain.overrides]


def test_a_benchmark_judges_every_row(chain, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(Work, "_dsdiff", run_inside)
    monkeypatch.setattr(BenchmarkResult, "figures", lambda self: [])
    assert main(["benchmark", *plan, "--output", str(tmp_path / "b")]) == 0
    with (tmp_path / "b/benchmark.csv").open(encoding="utf-8") as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["unet", chain.copied, "linear"]
    assert all(row["n"] == row["n of"] == "1" for row in rows.values())
    assert all(float(row["PSNR dB"]) > 5 for row in rows.values())


def test_patients_without_the_target_are_refused_before_any_training(chain, plan, five, tmp_path):
    folder = tmp_path / "patients"
    shutil.copytree(five, folder)
    file_of(folder, chain.target).unlink()
    moved = [*plan, f"data.params.root={folder}"]
    assert main(["benchmark", *moved, "--output", str(tmp_path / "b"), "--plan"]) == 3


def test_a_student_makes_the_same_contrast(chain, run, tmp_path):
    """Its teacher is told the facts by the student, which its own run folder states only once."""
    few = ["lightning.trainer.max_steps=1", "data.params.batch_size=2"]
    output = ["--steps", "1", *few, "--output", str(tmp_path / "student")]
    assert main(["distill", str(run), *output]) == 0
    model, study, *_ = load_model(tmp_path / "student")
    assert study == study_of(run) and model.conditions == chain.conditions


def test_an_imported_model_has_the_study_of_its_yaml(chain, run, five, tmp_path, capsys):
    weights = {name: value.clone() for name, value in read_model(run / MODEL_FILE)[0].items()}
    torch.save({"state_dict": weights}, tmp_path / "last.ckpt")
    config = ["--config", str(run / "config.yaml")]
    arguments = [str(tmp_path / "last.ckpt"), *config, "--output", str(tmp_path / "model")]
    assert main(["import", *arguments]) == 0
    given = ", ".join(chain.conditions)
    assert f"given {given} (from the YAML" in " ".join(capsys.readouterr().out.split())
    assert study_of(tmp_path / "model") == study_of(run)


def test_a_segmenter_takes_the_same_contrasts(chain, five, train_segmenter, tmp_path):
    """What is learned is ``seg``, so the target of the study joins the contrasts."""
    inputs = f"data.params.conditions=[{','.join((*chain.conditions, chain.target))}]"
    own = [word for word in chain.more if "contrasts" in word]
    more = [f"data.params.root={five}", "lightning.trainer.max_steps=2", inputs, *own]
    folder = tmp_path / "segmenter"
    assert train_segmenter(folder, *more) == 0
    given = ["--input", str(five), "--subjects", "Phantom_0003", "--output", str(tmp_path / "out")]
    assert main(["segment", "predict", str(folder), *given]) == 0
    sidecar = json.loads((tmp_path / "out/Phantom_0003_seg.json").read_text())
    assert set(sidecar["inputs"]) == {*chain.conditions, chain.target}
