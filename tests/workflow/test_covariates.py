"""Another kind of condition by YAML alone: the age of a patient, from a table to the volume."""

import csv

import nibabel as nib
import numpy as np
import pytest

from ldm import Synthesiser
from ldm.cli.main import main
from ldm.errors import DataError

CONTRASTS = ("t1", "t1ce", "t2", "flair")
OF_AGE = ["configs/covariates.yaml", "lightning.trainer.max_steps=3"]


def table(path, patients, ages):
    """A CSV of patients with their age."""
    rows = [
        {"id": i, **{c: patients / i / f"{i}_{c}.nii.gz" for c in CONTRASTS}, "age": age}
        for i, age in ages.items()
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_age_is_a_condition_by_yaml(tmp_path, patients, train):
    ages = {"Phantom_0001": 45, "Phantom_0002": "", "Phantom_0003": 70}
    root, run = table(tmp_path / "p.csv", patients, ages), tmp_path / "run"
    assert train(run, *OF_AGE, f"data.params.root={root}") == 0
    volumes = []
    for age in (70, 70, 20):
        source = table(tmp_path / "q.csv", patients, {"Phantom_0003": age})
        output = tmp_path / f"out{len(volumes)}"
        assert main(["sample", str(run), "--input", source, "--output", str(output)]) == 0
        volumes.append((output / "Phantom_0003_t1ce.nii.gz").read_bytes())
    assert volumes[0] == volumes[1] != volumes[2]
    # the age is a part of the request: source is now that of 20
    assert main(["sample", str(run), "--input", source, "--output", str(tmp_path / "out0")]) == 5

    synthesiser, name = Synthesiser.load(run, device="cpu"), "Phantom_0003"
    files = {c: patients / name / f"{name}_{c}.nii.gz" for c in ("t1", "t2", "flair")}
    assert synthesiser.volume(name, {**files, "age": 70}).content == volumes[0]
    with pytest.raises(DataError, match="no age: this model takes t1, t2, flair, age; give age=NU"):
        synthesiser(**files)


def test_a_folder_does_not_tell_the_age(tmp_path, patients, train, capsys):
    """To train and to sample: what is said next holds for both."""
    ages, run = {f"Phantom_000{n}": 45 for n in (1, 2, 3)}, tmp_path / "run"
    root = table(tmp_path / "p.csv", patients, ages)
    assert train(run, *OF_AGE, f"data.params.root={root}") == 0
    capsys.readouterr()
    assert train(tmp_path / "other", *OF_AGE) == 3
    assert main(["sample", str(run), "--input", str(patients), "--output", f"{tmp_path}/out"]) == 3
    told = "no age: data.params.covariates are columns of a CSV of subjects; give one that has it"
    assert capsys.readouterr().err.count(told) >= 2


def test_how_the_target_is_acquired_is_a_condition_that_need_not_be_told(tmp_path, patients, train):
    """From `prepare`, which measures it, to patients of whom it is told, and others."""
    assert main(["prepare", str(patients), "--output", str(tmp_path / "prepared")]) == 0
    manifest = tmp_path / "prepared" / "manifest.csv"
    with manifest.open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    for name, row in rows.items():
        t1, t1ce = (
            nib.load(patients / name / f"{name}_{c}.nii.gz").get_fdata() for c in CONTRASTS[:2]
        )
        measured = np.corrcoef(t1[t1 > 0], t1ce[t1 > 0])[0, 1]
        assert float(row["likeness"]) == pytest.approx(
            measured, abs=0.05
        )  # intensities are clipped

    run, name = tmp_path / "run", "Phantom_0003"
    told = ["configs/acquisition.yaml", "lightning.trainer.max_steps=3"]
    assert train(run, *told, f"data.params.root={manifest}") == 0
    outputs = {}
    for source in (manifest, patients):
        outputs[source] = tmp_path / source.name
        told = ["--input", str(source), "--subjects", name, "--output", str(outputs[source])]
        assert main(["sample", str(run), *told]) == 0
    of_manifest, of_folder = ((o / f"{name}_t1ce.nii.gz").read_bytes() for o in outputs.values())
    assert of_manifest != of_folder  # in a folder nothing is told

    synthesiser = Synthesiser.load(run, device="cpu")
    files = {c: patients / name / f"{name}_{c}.nii.gz" for c in ("t1", "t2", "flair")}
    likeness = float(rows[name]["likeness"])
    assert synthesiser.volume(name, {**files, "likeness": likeness}).content == of_manifest
    assert synthesiser.volume(name, files).content == of_folder
