"""Another kind of condition by YAML alone: the age of a patient, from a table to the volume."""

import csv

from ldm.cli.main import main

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


def test_a_folder_does_not_tell_the_age(tmp_path, patients, train, capsys):
    assert train(tmp_path / "run", *OF_AGE) == 3
    assert "DATA-MISSING" in capsys.readouterr().err
