"""The contract of the BraSyn challenge: each contrast missing in turn, and cases of no use."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

import ldm
from ldm.cli.main import main
from ldm.data.nifti import read_volume
from ldm.errors import DataError, OutputError

NAMES = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}
CASE = "Phantom_0003"


@pytest.fixture(scope="module")
def run(tmp_path_factory, train):
    """A run of two steps that makes any contrast."""
    folder = tmp_path_factory.mktemp("runs") / "any"
    short = ["lightning.trainer.max_steps=2", "model.params.temperature=0"]
    assert train(folder, "configs/any_missing.yaml", *short) == 0
    return folder


@pytest.fixture
def cases(patients, tmp_path):
    """A folder of four cases of one patient, each of which lacks another contrast, and its name."""
    for missing in NAMES.values():
        folder = tmp_path / "input" / f"BraTS-GLI-{missing}"
        folder.mkdir(parents=True)
        for name, written in NAMES.items():
            if written != missing:
                source = patients / CASE / f"{CASE}_{name}.nii.gz"
                shutil.copy(source, folder / f"{folder.name}-{written}.nii.gz")
    return tmp_path / "input"


def outputs(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != ".lock")


def test_each_missing_contrast_is_made(run, cases, patients, tmp_path):
    output = tmp_path / "output"
    before = {p: p.read_bytes() for p in cases.rglob("*") if p.is_file()}
    command = ["--input", str(cases), "--output", str(output), "--model", str(run)]
    assert main(["brasyn", *command]) == 0
    assert outputs(output) == sorted(f"BraTS-GLI-{m}-{m}.nii.gz" for m in NAMES.values())
    assert {p: p.read_bytes() for p in cases.rglob("*") if p.is_file()} == before
    synthesiser = ldm.Synthesiser.load(run)
    for name, missing in NAMES.items():
        path = output / f"BraTS-GLI-{missing}-{missing}.nii.gz"
        made, real = nib.load(path), nib.load(patients / CASE / f"{CASE}_{name}.nii.gz")
        assert made.shape == real.shape and np.array_equal(made.affine, real.affine)
        assert np.array_equal(np.asarray(made.dataobj) != 0, np.asarray(real.dataobj) != 0)
        assert read_volume(path).geometry.is_synthetic
        said = json.loads(made.header.extensions[0].get_content())
        assert (said["Contrast"], said["Synthetic"]) == (name, True)
        files = {
            c: patients / CASE / f"{CASE}_{c}.nii.gz" for c in NAMES if c != name
        }  # the noise is keyed by the case, of which temperature 0 has none
        own = synthesiser(subject=path.name.removesuffix(f"-{missing}.nii.gz"), **files)
        assert np.array_equal(np.asarray(own.dataobj), np.asarray(made.dataobj))
    stamps = {p: p.read_bytes() for p in output.glob("*.nii.gz")}
    assert main(["brasyn", *command]) == 0  # once more: the same bytes
    assert {p: p.read_bytes() for p in output.glob("*.nii.gz")} == stamps


def test_a_bad_case_ends_no_other(run, cases, tmp_path, capsys):
    output, good = tmp_path / "output", "BraTS-GLI-t2w"
    torn = next((cases / "BraTS-GLI-t1c").glob("*t2f.nii.gz"))
    torn.write_bytes(torn.read_bytes()[:200])
    next((cases / "BraTS-GLI-t1n").glob("*t2f.nii.gz")).unlink()  # two are missing
    shutil.rmtree(cases / "BraTS-GLI-t2f")
    (cases / "BraTS-GLI-t2f").mkdir()
    (cases / "BraTS-GLI-t2f" / "notes.txt").write_text("nothing")
    shutil.copytree(cases / good, cases / "two")
    for path in list((cases / "two").iterdir()):
        shutil.copy(path, path.with_name(f"other-{path.name}"))
    (cases / "readme.txt").write_text("no case")
    told = []
    done = ldm.brasyn(cases, output, run, report=told.append)
    assert (done.new, len(done.failures)) == (1, 4)
    assert {e.case: e.code for e in told} == {
        "BraTS-GLI-t1c": "DATA-CORRUPT",
        "BraTS-GLI-t1n": "DATA-MISSING",
        "BraTS-GLI-t2f": "DATA-LAYOUT",
        "two": "DATA-AMBIGUOUS",
    }
    assert outputs(output) == [f"{good}-t2w.nii.gz", "failures.csv"]
    with (output / "failures.csv").open(newline="") as file:
        assert {row["subject"] for row in csv.DictReader(file)} == {e.case for e in told}
    command = ["--input", str(cases), "--output", str(output), "--model", str(run)]
    capsys.readouterr()
    assert main(["brasyn", *command]) == 9  # some, not all
    lines = capsys.readouterr().err.splitlines()
    assert sum("error DATA" in line for line in lines) == 4


def test_nothing_of_the_user_is_written_over(run, cases, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    (output / "BraTS-GLI-t1c-t1c.nii.gz").write_text("a stranger's")
    with pytest.raises(OutputError, match="OUT-EXISTS"):
        ldm.brasyn(cases, output, run)
    assert (output / "BraTS-GLI-t1c-t1c.nii.gz").read_text() == "a stranger's"
    with pytest.raises(DataError, match="DATA-MISSING: there is no folder"):
        ldm.brasyn(tmp_path / "nowhere", output, run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="DATA-EMPTY"):
        ldm.brasyn(tmp_path / "empty", output, run)
