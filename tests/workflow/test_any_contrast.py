"""Any contrast from any others, by two overrides: the whole chain on phantoms.

FLAIR from the other three, T1ce from T1, T2 and a diffusion-weighted image, and T1ce from a
contrast that nobody knows, spelled as its files are.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from ldm.checkpoint import MODEL_FILE, load_model, read_model, read_run_config, study_of
from ldm.cli.main import main
from ldm.data.layouts import detect_layout
from ldm.data.phantom import write_phantoms
from ldm.inference.synthesis import Synthesiser

OWN = "data.params.contrasts={swan: [SWAN_min, susc]}"


@dataclass(frozen=True)
class Chain:
    """A study, what is subtracted from its target, and what it needs on the command line."""

    target: str
    conditions: tuple[str, ...]
    anchor: str | None
    more: tuple[str, ...] = ()

    @property
    def overrides(self) -> list[str]:
        conditions = f"data.params.conditions=[{','.join(self.conditions)}]"
        return [f"data.params.target={self.target}", conditions, *self.more]


CHAINS = {
    "flair": Chain("flair", ("t1", "t2", "t1ce"), None),
    "dwi": Chain("t1ce", ("t1", "t2", "dwi"), "t1"),
    "own": Chain("t1ce", ("swan", "t2"), None, (OWN,)),
}


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Three phantoms with five contrasts; DWI has a second copy under a name of the hospital."""
    folder = tmp_path_factory.mktemp("five")
    write_phantoms(folder, 3, size=32, seed=0, dwi=True)
    for path in folder.rglob("*_dwi.nii.gz"):
        image = nib.load(path)
        turned = nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine)
        nib.save(turned, path.with_name(path.name.replace("_dwi", "_SWAN_min")))
    return folder


@pytest.fixture(scope="module", params=CHAINS)
def chain(request):
    return CHAINS[request.param]


@pytest.fixture(scope="module")
def run(chain, five, train, tmp_path_factory):
    """A run of two steps on Phantom_0001 and 2, validated on 3."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    more = [f"data.params.root={five}", "lightning.trainer.max_steps=2"]
    assert train(folder, *more, *chain.overrides) == 0
    return folder


@pytest.fixture(scope="module")
def predictions(run, five, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictions")
    given = ["--input", str(five), "--subjects", "Phantom_0003", "--output", str(folder)]
    assert main(["sample", str(run), *given]) == 0
    return folder


def described(run: Path, tmp_path: Path) -> list[str]:
    """Return ``--config`` with the configuration of a run."""
    return ["--config", str(run / "config.yaml")]


def test_the_model_has_the_facts_of_the_study(chain, run):
    model, study, _ = load_model(run)
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
    missing = {"swan": "SWAN_min", "dwi": "dwi"}.get(chain.conditions[0], "t2")
    assert f"expected Phantom_0001_{missing}.nii.gz" in capsys.readouterr().err


def test_a_manifest_has_a_column_for_each_contrast(chain, run, five, tmp_path):
    split = ["data.params.train=[Phantom_0001,Phantom_0002]", "data.params.val=[Phantom_0003]"]
    config = ["--config", "configs/base.yaml", *split, *chain.overrides]
    assert main(["prepare", str(five), *config, "--output", str(tmp_path)]) == 0
    (subject, *_) = detect_layout(tmp_path / "manifest.csv", contrasts=study_of(run).contrasts)[
        1
    ].values()
    assert {*chain.conditions, chain.target, "seg"} <= set(subject.files)
    assert main(["prepare", "--verify", str(tmp_path / "manifest.csv")]) == 0


def test_the_volume_is_named_by_the_target_and_lies_on_its_grid(chain, predictions, five):
    made = nib.load(predictions / f"Phantom_0003_{chain.target}.nii.gz")
    real = nib.load(five / f"Phantom_0003/Phantom_0003_{chain.target}.nii.gz")
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
