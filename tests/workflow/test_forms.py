"""``dsdiff sample --bids`` and ``--dicom``: valid, the same voxels, never taken for acquired."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import dicom2nifti
import nibabel as nib
import numpy as np
import pydicom
import pytest
from layout_writers import Head, write_bids, write_dicom, write_series

from ldm import Synthesiser
from ldm.cli.main import main
from ldm.data.layouts import detect_layout
from ldm.errors import DataError
from ldm.phantom import make_patient

FAST = ["--steps", "2"]


@pytest.fixture(scope="module")
def head() -> Head:
    patient = make_patient(size=32, seed=3)
    return Head({**patient.contrasts, "seg": patient.seg}, patient.affine)


def sample(run_folder, source, output, *options) -> int:
    where = ["--input", str(source), "--output", str(output)]
    return main(["sample", str(run_folder), *where, *FAST, *options])


def validated(folder) -> list[dict]:
    """Return what the validator of BIDS says that is an error."""
    tool = Path(sys.executable).with_name("bids-validator-deno")
    if not tool.is_file():
        pytest.skip("bids-validator-deno is not installed")
    command = [str(tool), str(folder), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert found["summary"]["totalFiles"] > 3
    return [issue for issue in found["issues"]["issues"] if issue["severity"] == "error"]


@pytest.fixture(scope="module")
def bids(tmp_path_factory, head, run_folder):
    """A BIDS folder whose third patient is damaged, and its derivative of two samples."""
    root = tmp_path_factory.mktemp("bids")
    write_bids(root / "raw", head)
    first = root / "raw/sub-01/ses-pre/anat"
    for subject in ("sub-02", "sub-03"):
        anat = root / f"raw/{subject}/anat"
        anat.mkdir(parents=True)
        for path in first.iterdir():
            shutil.copy(path, anat / path.name.replace("sub-01_ses-pre", subject))
    damaged = root / "raw/sub-03/anat/sub-03_T2w.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-500])
    description = {"Name": "phantoms", "BIDSVersion": "1.10.0"}
    (root / "raw/dataset_description.json").write_text(json.dumps(description))
    output = root / "raw/derivatives/dsdiff"
    assert sample(run_folder, root / "raw", output, "--bids", "--samples", "2") == 9
    return root / "raw", output


def test_a_derivative_with_a_damaged_patient_is_valid(bids):
    _, output = bids
    assert validated(output) == []
    volumes = sorted(p.relative_to(output).as_posix() for p in output.rglob("*.nii.gz"))
    assert volumes == [
        "sub-01/ses-pre/anat/sub-01_ses-pre_ce-gad_desc-synth_T1w.nii.gz",
        "sub-01/ses-pre/anat/sub-01_ses-pre_ce-gad_desc-synthstd_T1w.nii.gz",
        "sub-02/anat/sub-02_ce-gad_desc-synth_T1w.nii.gz",
        "sub-02/anat/sub-02_ce-gad_desc-synthstd_T1w.nii.gz",
    ]
    rows = list(csv.DictReader((output / "failures.csv").open()))
    assert [(row["subject"], row["code"]) for row in rows] == [("sub-03", "DATA-CORRUPT")]
    described = json.loads((output / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["GeneratedBy"][0]["Name"] == "dsdiff"


def test_the_validator_would_find_a_fault(bids, tmp_path):
    shutil.copytree(bids[1], tmp_path / "copy")
    (anat,) = (tmp_path / "copy").glob("sub-02/anat")
    (anat / "sub-02_wrong.nii.gz").write_bytes(b"x")
    assert validated(tmp_path / "copy")


def test_a_derivative_holds_the_voxels_of_the_usual_form(bids, run_folder, tmp_path):
    raw, output = bids
    only = ["--subjects", "sub-02", "--samples", "2"]
    assert sample(run_folder, raw, tmp_path / "usual", *only) == 0
    for ours, theirs in (("t1ce", "synth"), ("t1ce_std", "synthstd")):
        path = output / f"sub-02/anat/sub-02_ce-gad_desc-{theirs}_T1w.nii.gz"
        assert path.read_bytes() == (tmp_path / f"usual/sub-02_{ours}.nii.gz").read_bytes()


def test_a_derivative_is_continued_and_evaluated(bids, run_folder, tmp_path):
    raw, output = bids
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*.nii.gz")}
    assert sample(run_folder, raw, output, "--bids", "--samples", "2") == 9
    assert before == {p: p.stat().st_mtime_ns for p in output.rglob("*.nii.gz")}
    judged = ["--prediction", str(output), "--reference", str(raw), "--subjects", "sub-02"]
    assert main(["evaluate", *judged, "--output", str(tmp_path / "scores")]) == 0
    text = (tmp_path / "scores/metrics.json").read_text()
    assert "coverage_2sd" in text  # the deviation was found as well


def test_a_derivative_is_no_truth(bids, run_folder, tmp_path, capsys):
    _, output = bids
    copied = tmp_path / "raw"
    shutil.copytree(bids[0], copied, ignore=shutil.ignore_patterns("derivatives", "sub-03"))
    for path in output.rglob("sub-02*desc-synth_T1w.nii.gz"):
        real = copied / "sub-02/anat/sub-02_ce-gad_T1w.nii.gz"
        real.unlink()
        shutil.copy(path, real.with_name(path.name))
    config = ["configs/backbone/unet_tiny.yaml", "data.params.image_size=32", "data.params.val=0"]
    config += [f"data.params.root={copied}", "lightning.trainer.max_steps=1"]
    assert main(["train", *config, "--output", str(tmp_path / "run")]) == 3
    assert "DATA-SYNTHETIC case=sub-02" in capsys.readouterr().err
    judged = ["--prediction", str(output), "--reference", str(copied), "--subjects", "sub-02"]
    assert main(["evaluate", *judged]) != 0
    assert "DATA-SYNTHETIC" in "".join(capsys.readouterr())
    assert main(["diagnose", "data", str(copied)]) != 0
    assert "was synthesised" in capsys.readouterr().out


def test_other_ids_become_labels_and_collisions_are_refused(run_folder, patients, tmp_path, capsys):
    for name in ("Phantom_0001", "Phantom_0002"):
        shutil.copytree(patients / name, tmp_path / f"in/{name}")
    assert sample(run_folder, tmp_path / "in", tmp_path / "out", "--bids") == 0
    assert validated(tmp_path / "out") == []
    found = sorted(p.name for p in (tmp_path / "out").glob("sub-*"))
    assert found == ["sub-Phantom0001", "sub-Phantom0002"]
    (sidecar,) = (tmp_path / "out/sub-Phantom0001").rglob("*.json")
    assert json.loads(sidecar.read_text())["subject"] == "Phantom_0001"
    other = tmp_path / "in/phantom0001"
    other.mkdir()
    for path in (patients / "Phantom_0001").iterdir():
        shutil.copy(path, other / path.name.replace("Phantom_0001", "phantom0001"))
    assert sample(run_folder, tmp_path / "in", tmp_path / "again", "--bids") == 3
    assert "DATA-ID" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


@pytest.fixture(scope="module")
def dicom(tmp_path_factory, head, run_folder):
    """A DICOM examination, its synthetic series of two samples, and the same as NIfTI."""
    root = tmp_path_factory.mktemp("dicom")
    write_dicom(root / "raw", head)
    options = ("--samples", "2")
    assert sample(run_folder, root / "raw", root / "series", "--dicom", *options) == 0
    assert sample(run_folder, root / "raw", root / "usual", *options) == 0
    return root


@pytest.mark.parametrize("name", ["t1ce", "t1ce_std"])
def test_a_series_holds_the_voxels_of_the_usual_form(dicom, tmp_path, name):
    series = dicom / f"series/p1/{name}"
    dicom2nifti.dicom_series_to_nifti(str(series), str(tmp_path / "back.nii.gz"))
    usual = nib.as_closest_canonical(nib.load(dicom / f"usual/p1_{name}.nii.gz"))
    back = nib.as_closest_canonical(nib.load(tmp_path / "back.nii.gz"))
    half = float(pydicom.dcmread(series / "0001.dcm").RescaleSlope) / 2
    assert np.abs(back.get_fdata() - usual.get_fdata()).max() <= half * 1.001
    assert half < usual.get_fdata().max() / 100_000
    assert np.allclose(back.affine, usual.affine, atol=1e-3)


def test_a_series_belongs_to_the_examination_of_its_inputs(dicom):
    source = pydicom.dcmread(next((dicom / "raw/p1/1_ax").iterdir()))
    made = pydicom.dcmread(dicom / "series/p1/t1ce/0001.dcm")
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert made[name].value == source[name].value
    assert made.SeriesInstanceUID != source.SeriesInstanceUID
    assert made.SeriesDescription == "SYNTHETIC T1ce, not for diagnosis"
    spread = pydicom.dcmread(dicom / "series/p1/t1ce_std/0001.dcm")
    assert spread.SeriesInstanceUID != made.SeriesInstanceUID
    assert spread.StudyInstanceUID == made.StudyInstanceUID


def test_a_damaged_series_is_made_again_and_a_whole_one_stays(dicom, run_folder, tmp_path):
    shutil.copytree(dicom / "series", tmp_path / "series")
    place = tmp_path / "series/p1/t1ce"
    whole = {path.name: path.read_bytes() for path in place.iterdir()}
    (place / "0003.dcm").write_bytes(b"damaged")
    (place / "0004.dcm").unlink()
    options = ("--dicom", "--samples", "2")
    assert sample(run_folder, dicom / "raw", tmp_path / "series", *options) == 0
    assert {path.name: path.read_bytes() for path in place.iterdir()} == whole
    times = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    assert sample(run_folder, dicom / "raw", tmp_path / "series", *options) == 0
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == times


def test_a_series_is_no_truth(dicom, head, run_folder, tmp_path, capsys):
    """Under a name of its own it is passed over; in the place of T1ce it is refused."""
    study = tmp_path / "raw/p1"
    for number, (folder, name) in enumerate((("t1", "t1"), ("t2", "t2"), ("flair", "flair")), 1):
        write_series(study / folder, head, name, number, name, "")
    shutil.copytree(dicom / "series/p1/t1ce", study / "9_synthetic")
    assert "t1ce" not in detect_layout(tmp_path / "raw")[1]["p1"].files
    (study / "9_synthetic").rename(study / "t1ce")
    config = ["configs/backbone/unet_tiny.yaml", "data.params.image_size=32", "data.params.val=0"]
    config += [f"data.params.root={tmp_path / 'raw'}", "lightning.trainer.max_steps=1"]
    assert main(["train", *config, "--output", str(tmp_path / "run")]) == 3
    assert "DATA-SYNTHETIC case=p1" in capsys.readouterr().err
    judged = ["--prediction", str(dicom / "usual"), "--reference", str(tmp_path / "raw")]
    assert main(["evaluate", *judged]) != 0
    assert "DATA-SYNTHETIC" in "".join(capsys.readouterr())
    assert main(["diagnose", "data", str(tmp_path / "raw")]) != 0
    assert "was synthesised" in capsys.readouterr().out


def test_python_writes_every_form(run_folder, patients, tmp_path):
    folder = patients / "Phantom_0003"
    given = {name: folder / f"Phantom_0003_{name}.nii.gz" for name in ("t1", "t2", "flair")}
    made = Synthesiser.load(run_folder, steps=1).volume("Phantom_0003", given)
    assert made.save(tmp_path / "bids", form="bids").name.startswith("sub-Phantom0003_ce-gad")
    series = made.save(tmp_path / "dicom", form="dicom")
    assert pydicom.dcmread(series / "0001.dcm").PatientID == "Phantom_0003"
    with pytest.raises(DataError, match="label"):
        Synthesiser.load(run_folder, steps=1).volume("___", given).save(tmp_path, form="bids")
