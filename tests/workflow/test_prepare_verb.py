"""``dsdiff prepare``: every volume is checked once, and the manifest stands for the folder."""

import csv
import hashlib
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import INPUTS, write_subject
from workflow.conftest import SPLIT

from ldm.cli.main import main
from ldm.data import volume_file
from ldm.data.datamodule import ContrastDataModule
from ldm.data.layouts import detect_layout
from ldm.data.manifest import read_manifest
from ldm.data.seen import leaks, subject_digests
from ldm.data.split import split_subjects
from ldm.errors import DataError


def prepare(root: Path, output: Path, *more: str) -> int:
    return main(["prepare", str(root), "--output", str(output), *more])


def rows_of(output: Path) -> dict[str, dict[str, str]]:
    with (output / "manifest.csv").open() as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def tree_digest(root: Path) -> dict[str, tuple]:
    files = [p for p in sorted(root.rglob("*")) if p.is_file()]
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_the_manifest_states_what_is_in_the_files(tmp_path, patients, capsys):
    before = tree_digest(patients)
    assert prepare(patients, tmp_path, *SPLIT) == 0
    assert tree_digest(patients) == before
    printed = capsys.readouterr()
    assert "BraTS 2017-2021: 3 subjects, t1 3, t1ce 3, t2 3, flair 3, seg 3" in printed.err
    assert "prepared=3 (new=3) failed=0" in printed.out
    rows = rows_of(tmp_path)
    assert {i: row["split"] for i, row in rows.items()} == {
        "Phantom_0001": "train",
        "Phantom_0002": "train",
        "Phantom_0003": "val",
    }
    for subject, row in rows.items():
        images = {c: tmp_path / row[c] for c in (*INPUTS, "t1ce", "seg")}
        for contrast, path in images.items():
            assert row[f"sha256_{contrast}"] == hashlib.sha256(path.read_bytes()).hexdigest()
        voxels = {c: np.asarray(nib.load(path).dataobj) for c, path in images.items()}
        brain = np.any([voxels[c] != 0 for c in INPUTS], axis=0)
        assert int(row["brain_voxels"]) == brain.sum()
        labels = sorted(set(np.unique(voxels["seg"]).tolist()) - {0})
        assert row["labels"] == " ".join(map(str, labels))
        assert row["shape"] == "x".join(map(str, brain.shape))
        zooms = nib.load(images["t1"]).header.get_zooms()
        assert row["spacing"] == "x".join(f"{mm:.4g}" for mm in zooms)
        assert row["orientation"] == "LPS", subject


def test_training_on_the_manifest_is_training_on_the_folder(tmp_path, patients, monkeypatch):
    assert prepare(patients, tmp_path, *SPLIT) == 0
    monkeypatch.setattr(volume_file, "read_volume", lambda *_: pytest.fail("it was not cached"))
    modules = []
    options = {"image_size": 32, "num_workers": 0}
    names = {"train": ["Phantom_0001", "Phantom_0002"], "val": ["Phantom_0003"]}
    for root, split in ((patients, names), (tmp_path / "manifest.csv", {})):
        module = ContrastDataModule(str(root), **options, **split)
        module.setup()
        modules.append(module)
    folder, manifest = modules
    assert manifest.split == folder.split
    assert len(manifest.train_slices) == len(folder.train_slices)
    for name in ("target", "condition", "seg"):
        assert manifest.train_slices[3][name].equal(folder.train_slices[3][name])


def test_a_table_decides_who_is_tested_and_says_so(tmp_path, patients, caplog, capsys):
    assert prepare(patients, tmp_path, *SPLIT) == 0
    assert "Nobody is kept out to test on" in capsys.readouterr().out
    module = ContrastDataModule(str(tmp_path / "manifest.csv"), test=0.4)
    module.find_subjects()
    assert module.split["test"] == [] and "data.params.test=0.4 is not used" in caplog.text
    kept = tmp_path / "kept"
    assert prepare(patients, kept, "data.params.test=0.4", "data.params.val=0.3") == 0
    assert "Nobody is kept out" not in capsys.readouterr().out
    module = ContrastDataModule(str(kept / "manifest.csv"))
    module.find_subjects()
    assert len(module.split["test"]) == 1


def test_a_second_run_reads_only_what_changed(tmp_path, patients, monkeypatch, capsys):
    assert prepare(patients, tmp_path, *SPLIT) == 0
    first = (tmp_path / "manifest.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(volume_file, "read_volume", lambda *_: pytest.fail("it was read again"))
        patch.setattr(volume_file, "sha256", lambda *_: pytest.fail("it was read again"))
        assert prepare(patients, tmp_path, *SPLIT) == 0
    assert (tmp_path / "manifest.csv").read_bytes() == first
    path = patients / "Phantom_0002/Phantom_0002_t2.nii.gz"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    capsys.readouterr()
    assert prepare(patients, tmp_path, *SPLIT) == 0
    assert "prepared=3 (new=1)" in capsys.readouterr().out
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_second_run_states_what_labels_mean_now(tmp_path, patients):
    """What no file holds is taken anew, though no volume is read again."""
    for scheme, enhancing in (("brats2017", "enhancing 4"), ("brats2023", "enhancing 3")):
        assert prepare(patients, tmp_path, *SPLIT, f"data.params.labels={scheme}") == 0
        assert all(row["scheme"].endswith(enhancing) for row in rows_of(tmp_path).values())


def test_a_subject_that_fails_stops_no_other(tmp_path, capsys):
    for number in range(3):
        write_subject(tmp_path / "data", f"p{number}", seed=number)
    (tmp_path / "data/p1/p1_t2.nii.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "data/p2/p2_t1ce.nii.gz").unlink()
    assert prepare(tmp_path / "data", tmp_path / "out") == 9
    printed = capsys.readouterr()
    assert "DATA-CORRUPT case=p1: p1_t2.nii.gz" in printed.err
    assert "DATA-MISSING case=p2: no t1ce: expected p2_t1ce.nii.gz" in printed.err
    assert "prepared=1 (new=1) failed=2" in printed.out
    assert set(rows_of(tmp_path / "out")) == {"p0"}
    (tmp_path / "data/p0/p0_t1.nii.gz").write_bytes(b"")
    assert prepare(tmp_path / "data", tmp_path / "none") == 3
    assert not (tmp_path / "none/manifest.csv").exists()


def test_contrasts_and_axis_come_from_the_configuration(tmp_path):
    write_subject(tmp_path / "data", "p0", contrasts=("t1", "t2", "t1ce"))
    everything = ["data.params.train=1.0", "data.params.val=0"]
    assert prepare(tmp_path / "data", tmp_path / "out", *everything) == 3
    two = "data.params.conditions=[t1,t2]"
    assert prepare(tmp_path / "data", tmp_path / "out", "--config", two, *everything) == 0


def test_a_changed_file_is_found_by_its_digest(tmp_path, capsys):
    for number in range(2):
        write_subject(tmp_path / "data", f"p{number}", seed=number)
    assert prepare(tmp_path / "data", tmp_path / "out") == 0
    manifest = str(tmp_path / "out/manifest.csv")
    assert main(["prepare", "--verify", manifest]) == 0
    path = tmp_path / "data/p1/p1_flair.nii.gz"
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-5] ^= 1  # one bit, same size, same time
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "data/p0/p0_t1.nii.gz").unlink()
    capsys.readouterr()
    assert main(["prepare", "--verify", manifest]) == 3
    printed = capsys.readouterr()
    assert "DATA-DIGEST case=p1: flair is not the file of the manifest" in printed.err
    assert "DATA-IO" in printed.err
    assert "2 files differ" in printed.out


def test_a_manifest_is_never_written_over_its_own_input(tmp_path, capsys):
    write_subject(tmp_path / "data", "p0")
    everything = ["data.params.train=1.0", "data.params.val=0"]
    assert prepare(tmp_path / "data", tmp_path, *everything) == 0
    before = (tmp_path / "manifest.csv").read_bytes()
    assert prepare(tmp_path / "manifest.csv", tmp_path, *everything) == 5
    assert (tmp_path / "manifest.csv").read_bytes() == before
    (tmp_path / "manifest.csv").write_text("id,t1\np0,a.nii\n")
    assert prepare(tmp_path / "data", tmp_path, *everything) == 3  # a table of somebody else
    assert "is no manifest" in capsys.readouterr().err


def test_an_id_is_no_formula_and_comes_back(tmp_path):
    write_subject(tmp_path / "data", "=1+1")
    everything = ["data.params.train=1.0", "data.params.val=0"]
    assert prepare(tmp_path / "data", tmp_path, *everything) == 0
    assert set(rows_of(tmp_path)) == {"'=1+1"}
    assert set(detect_layout(tmp_path / "manifest.csv")[1]) == {"=1+1"}


def test_usage_without_a_folder(capsys):
    assert main(["prepare"]) == 2
    assert "give PATIENTS and --output" in capsys.readouterr().err


# --- Leaks ----------------------------------------------------------------------------------------


def test_a_patient_on_both_sides_is_found_by_id_session_or_image(tmp_path):
    for number, subject in enumerate(("a", "b", "sub-1_ses-1")):
        write_subject(tmp_path / "train", subject, seed=number)
    write_subject(tmp_path / "test", "sub-1_ses-2", seed=7)
    write_subject(tmp_path / "test", "a", seed=8)
    write_subject(tmp_path / "test", "renamed", seed=1)  # the images of b
    write_subject(tmp_path / "test", "new", seed=9)
    assert prepare(tmp_path / "train", tmp_path / "out") == 0
    sides = (tmp_path / "out/manifest.csv", tmp_path / "test")
    train, test = (subject_digests(detect_layout(side)[1].values()) for side in sides)
    assert leaks(train, test) == [
        ("a", "a", "same id"),
        ("b", "renamed", "same image"),
        ("sub-1_ses-1", "sub-1_ses-2", "same patient"),
    ]
    assert leaks(train, {"new": test["new"]}) == []
    assert set(read_manifest(tmp_path / "out/manifest.csv")) == set(train)


def test_equal_segmentations_are_no_leak(tmp_path):
    """Two patients without a tumour have the same file."""
    empty = {"seg": np.zeros((12, 14, 10), np.uint8)}
    for number, part in enumerate(("train", "test")):
        write_subject(tmp_path / part, part, seed=number, images=empty)
    sides = [subject_digests(detect_layout(tmp_path / p)[1].values()) for p in ("train", "test")]
    assert leaks(*sides) == []


def test_examinations_of_one_patient_are_on_one_side():
    ids = [f"sub-{n}_ses-{s}" for n in range(10) for s in range(3)]
    ids += [f"BraTS-GLI-0000{n}-00{t}" for n in range(10) for t in range(2)]
    parts = split_subjects(ids, val=0.2, test=0.2, seed=1)
    assert sorted(s for part in parts.values() for s in part) == sorted(ids)
    patients = [{s.rpartition("_")[0] or s[:-4] for s in part} for part in parts.values()]
    assert [len(p) for p in patients] == [12, 4, 4]
    assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]
    listed = split_subjects(ids, val=["sub-0_ses-1"])
    assert not [s for s in listed["train"] if s.startswith("sub-0")]
    with pytest.raises(DataError, match=r"LEAK case=sub-0_ses-2"):
        split_subjects(ids, train=["sub-0_ses-1"], val=["sub-0_ses-2"])


def test_the_sidecar_of_a_sample_names_the_channel(tmp_path, run_folder, patients):
    """Sampling from a 4-D file gives what the separate files give, byte for byte."""
    names = ("flair", "t1", "t1ce", "t2")
    images = [nib.load(patients / f"Phantom_0003/Phantom_0003_{c}.nii.gz") for c in names]
    stack = np.stack([np.asarray(image.dataobj) for image in images], axis=-1)
    nib.save(nib.Nifti1Image(stack, None, images[0].header), tmp_path / "stack.nii.gz")
    table = tmp_path / "table.csv"
    table.write_text("id,flair,t1,t2\nPhantom_0003,stack.nii.gz#0,stack.nii.gz#1,stack.nii.gz#3\n")
    for name, root in (("4d", table), ("3d", patients)):
        options = ["--subjects", "Phantom_0003", "--device", "cpu", "--steps", "1"]
        output = ["--input", str(root), "--output", str(tmp_path / name)]
        assert main(["sample", str(run_folder), *output, *options]) == 0
    volumes = [(tmp_path / n / "Phantom_0003_t1ce.nii.gz").read_bytes() for n in ("4d", "3d")]
    assert volumes[0] == volumes[1]
    sidecar = json.loads((tmp_path / "4d/Phantom_0003_t1ce.json").read_text())
    assert {c: digest[-2:] for c, digest in sidecar["inputs"].items()} == {
        "t1": "#1",
        "t2": "#3",
        "flair": "#0",
    }
