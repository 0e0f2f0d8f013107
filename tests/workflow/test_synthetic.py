"""A synthetic volume says so itself, and is refused wherever an acquired one is meant."""

import json
import shutil

import nibabel as nib
import pytest

import ldm
from ldm.cli.main import main
from ldm.model_file import read_model
from ldm.storage import MODEL_FILE


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, run_folder, patients):
    """Volumes of two samples of Phantom_0003, with their deviation."""
    output = tmp_path_factory.mktemp("sampled")
    where = ["--input", str(patients), "--output", str(output), "--subjects", "Phantom_0003"]
    assert main(["sample", str(run_folder), *where, "--samples", "2"]) == 0
    return output


@pytest.fixture
def mixed(tmp_path, patients, sampled):
    """The patients, of whom one has the synthetic volume in the place of T1ce."""
    shutil.copytree(patients, tmp_path / "mixed")
    name = "Phantom_0003_t1ce.nii.gz"
    shutil.copy(sampled / name, tmp_path / "mixed/Phantom_0003" / name)
    return tmp_path / "mixed"


@pytest.mark.parametrize("name", ["t1ce", "t1ce_std"])
def test_the_header_says_what_made_it(sampled, run_folder, name):
    image = nib.load(sampled / f"Phantom_0003_{name}.nii.gz")
    digest = read_model(run_folder / MODEL_FILE)[1]["sha256"]
    descrip = image.header["descrip"].item().decode()
    assert descrip == f"SYNTHETIC dsdiff {ldm.__version__} {digest[:16]}; not for diagnosis"
    (extension,) = image.header.extensions
    assert json.loads(extension.get_content()) == {
        "Synthetic": True,
        "Warning": "synthetic, not for diagnosis",
        "GeneratedBy": {"Name": "dsdiff", "Version": ldm.__version__},
        "Contrast": "t1ce",
        "Model": digest,
    }


def test_one_in_memory_says_it_too(sampled, run_folder, patients):
    folder = patients / "Phantom_0003"
    given = {c: folder / f"Phantom_0003_{c}.nii.gz" for c in ("t1", "t2", "flair")}
    image = ldm.Synthesiser.load(run_folder)(subject="Phantom_0003", steps=1, **given)
    saved = nib.load(sampled / "Phantom_0003_t1ce.nii.gz")
    assert image.header["descrip"] == saved.header["descrip"]
    assert image.header.extensions == saved.header.extensions


def test_it_is_refused_as_truth(mixed, sampled, run_folder, tmp_path, capsys):
    root = ["data.params.root=" + str(mixed), "data.params.val=0", "lightning.trainer.max_steps=1"]
    config = ["configs/backbone/unet_tiny.yaml", "data.params.image_size=32", *root]
    assert main(["train", *config, "--output", str(tmp_path / "run")]) == 3
    assert "DATA-SYNTHETIC case=Phantom_0003" in capsys.readouterr().err
    evaluation = ["evaluate", "--prediction", str(sampled), "--reference", str(mixed)]
    assert main(evaluation) == 3  # nothing is left to judge
    assert "the real patient: DATA-SYNTHETIC" in capsys.readouterr().out
    assert main(["diagnose", "data", str(mixed)]) != 0
    assert "was synthesised" in capsys.readouterr().out


def test_as_an_input_it_is_taken(mixed, run_folder, tmp_path):
    """T1ce is no input of this model: the patient is sampled as ever."""
    where = ["--input", str(mixed), "--output", str(tmp_path / "out"), "--subjects", "Phantom_0003"]
    assert main(["sample", str(run_folder), *where, "--steps", "1"]) == 0
