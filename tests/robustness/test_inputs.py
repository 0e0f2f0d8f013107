"""DI of docs/reliability.md through the command line: what is no image is named, with its case."""

import json
import os
import socket
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ldm.data.layouts import detect_layout
from ldm.errors import DataError
from ldm.storage import require_regular, sha256

CONTRASTS = ("t1", "t2", "flair")

P1, P2 = "Phantom_0001", "Phantom_0002"
QUICK = ("--steps", "1")
KINDS = ("pipe", "socket", "device", "folder", "link to a pipe")


def make_odd(path: Path, kind: str) -> None:
    """Put something that is no regular file at ``path``."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        folder = os.open(path.parent, os.O_RDONLY)  # the whole path may be too long for a socket
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to(path.with_name("pipe"))
    assert not stat.S_ISREG(path.stat().st_mode)


@pytest.mark.parametrize("kind", KINDS)
def test_di_14_what_is_no_regular_file_is_refused_before_it_is_opened(tmp_path, kind):
    make_odd(tmp_path / "a.nii.gz", kind)
    for opens in (require_regular, sha256):
        with pytest.raises(DataError, match="DATA-FORMAT: a.nii.gz is a") as refused:
            opens(tmp_path / "a.nii.gz")
        assert "expected a regular file" in str(refused.value)


@pytest.mark.parametrize("way", ["in the folder", "in a table"])
@pytest.mark.parametrize("verb", ["sample", "train", "prepare", "diagnose"])
def test_di_14_a_pipe_hangs_no_verb(dsdiff, tmp_path, cohort, run_folder, train, verb, way):
    make_odd(cohort / P1 / f"{P1}_t2.nii.gz", "pipe")
    given = cohort
    if way == "in a table":
        given = tmp_path / "rows.csv"
        names = ("t1", "t2", "flair", "t1ce")
        rows = [[p, *(f"{cohort}/{p}/{p}_{c}.nii.gz" for c in names)] for p in (P1, P2)]
        given.write_text("\n".join(",".join(row) for row in [["id", *names], *rows]))
    out = tmp_path / "out"
    expected, command = {
        "sample": (9, ("sample", run_folder, "--input", given, *QUICK, "--output", out)),
        "train": (3, ()),
        "prepare": (9, ("prepare", given, "--output", out)),
        "diagnose": (3, ("diagnose", "data", given)),
    }[verb]
    if verb == "train":
        split = (f"data.params.root={given}", f"data.params.train=[{P1}]", "data.params.val=null")
        assert train(tmp_path / "run", "lightning.trainer.max_steps=1", *split) == 3
        return
    code, line = dsdiff(*command)
    assert code == expected, line
    if verb != "diagnose":
        assert f"DATA-FORMAT case={P1}: {P1}_t2.nii.gz is a pipe" in line


@pytest.mark.parametrize("ending", [".h5", ".dcm"])
def test_di_14_a_pipe_among_slices_hangs_no_layout(tmp_path, ending):
    pytest.importorskip("h5py")
    pytest.importorskip("pydicom")
    folder = tmp_path / "a" / "t1"
    folder.mkdir(parents=True)
    os.mkfifo(folder / f"1{ending}")
    try:
        _, subjects = detect_layout(tmp_path)
    except DataError as error:
        assert error.code == "DATA-LAYOUT"
        return
    file = next(iter(subjects.values())).files["t1"]
    with pytest.raises(DataError, match="is a pipe"):
        file.read("a")
    with pytest.raises(DataError, match="is a pipe"):
        file.sha256("a")


@pytest.mark.parametrize("fault", ["missing", "dangling", "unreadable"])
def test_di_07_di_24_a_file_that_cannot_be_opened_is_told_with_its_case(
    dsdiff, tmp_path, cohort, run_folder, fault, monkeypatch
):
    path = cohort / P1 / f"{P1}_flair.nii.gz"
    said = "no flair: expected"
    if fault == "unreadable":  # root may read everything, so the system is asked to refuse
        plain = Path.open

        def refused(self, *args, **options):
            if self.name == path.name:
                raise PermissionError(13, os.strerror(13), str(self))
            return plain(self, *args, **options)

        monkeypatch.setattr(Path, "open", refused)
        said = f"DATA-IO case={P1}: cannot read {path.name}: Permission denied"
    else:
        path.unlink()
    if fault == "dangling":
        path.symlink_to(tmp_path / "gone")
        said = f"DATA-IO case={P1}: cannot read {path.name}: No such file"
    given = ("--input", cohort, "--output", tmp_path / "out", *QUICK)
    code, line = dsdiff("sample", run_folder, *given)
    assert (code, said in line, f"case={P1}" in line) == (9, True, True), line
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == [
        f"Phantom_000{n}_t1ce.nii.gz" for n in (2, 3)
    ]


def test_tr_09_di_13_a_file_is_compared_with_the_manifest_that_names_it(
    dsdiff, tmp_path, cohort, run_folder, train
):
    assert dsdiff("prepare", cohort, "--output", tmp_path / "prepared")[0] == 0
    manifest = tmp_path / "prepared/manifest.csv"
    path = cohort / P1 / f"{P1}_t2.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine), path)
    given = ("--input", manifest, "--output", tmp_path / "out", *QUICK)
    code, line = dsdiff("sample", run_folder, *given)
    assert (code, f"DATA-DIGEST case={P1}: t2 is not the file of the manifest" in line) == (9, True)
    split = (f"data.params.root={manifest}", f"data.params.train=[{P1}]", f"data.params.val=[{P2}]")
    assert train(tmp_path / "run", "lightning.trainer.max_steps=1", *split) == 3
    assert not (tmp_path / "run/checkpoints").exists()


def test_di_01_nan_set_to_zero_is_recorded(dsdiff, tmp_path, cohort, run_folder):
    path = cohort / P1 / f"{P1}_t2.nii.gz"
    image = nib.load(path)
    voxels = np.asarray(image.dataobj, np.float32).copy()
    voxels[tuple(n // 2 for n in voxels.shape)] = np.inf
    nib.save(nib.Nifti1Image(voxels, image.affine), path)
    given = ("--input", cohort, "--subjects", P1, "--output", tmp_path / "out", *QUICK)
    code, line = dsdiff("sample", run_folder, *given)
    assert (code, f"DATA-NONFINITE case={P1}: {path.name} bad=1/" in line) == (3, True)
    assert dsdiff("sample", run_folder, *given, "--nonfinite", "zero") == (0, "")
    sidecar = json.loads((tmp_path / f"out/{P1}_t1ce.json").read_text())
    assert sidecar["request"]["nonfinite"] == "zero"


def test_di_09_a_spacing_that_no_patient_of_the_training_had_is_told(
    dsdiff, tmp_path, cohort, run_folder, caplog
):
    for path in (cohort / P1).glob("*.nii.gz"):
        image = nib.load(path)
        thick = image.affine @ np.diag([1, 1, 5, 1])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), thick), path)
    given = ("--input", cohort, "--subjects", P1, P2, "--output", tmp_path / "out", *QUICK)
    assert dsdiff("sample", run_folder, *given) == (0, "")
    assert f"{P1} has voxels of" in caplog.text and "was trained on" in caplog.text
    assert f"{P2} has voxels of" not in caplog.text
    written = nib.load(tmp_path / f"out/{P1}_t1ce.nii.gz")
    source = nib.load(cohort / P1 / f"{P1}_t1.nii.gz")
    assert written.header.get_zooms() == source.header.get_zooms()


def test_di_09_a_wrong_unit_is_told_as_such_and_not_as_another_spacing(
    dsdiff, tmp_path, cohort, run_folder, caplog
):
    """Metres under a header of millimetres: no resampling mends that."""
    for path in (cohort / P1).glob("*.nii.gz"):
        image = nib.load(path)
        metres = image.affine @ np.diag([1e-3, 1e-3, 1e-3, 1])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), metres), path)
    given = ("--input", cohort, "--subjects", P1, "--output", tmp_path / "out", *QUICK)
    assert dsdiff("sample", run_folder, *given) == (0, "")
    assert f"{P1} has voxels of" in caplog.text and "check xyzt_units" in caplog.text
    assert "resample it" not in caplog.text


def test_di_20_which_form_of_the_header_won_is_recorded(dsdiff, tmp_path, cohort, run_folder):
    for path in (cohort / P1).glob("*.nii.gz"):
        image = nib.load(path)
        moved = image.affine.copy()
        moved[0, 3] += 7
        image.header.set_qform(moved, code=1)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    given = ("--input", cohort, "--subjects", P1, P2, "--output", tmp_path / "out", *QUICK)
    assert dsdiff("sample", run_folder, *given) == (0, "")
    stated = [
        json.loads((tmp_path / f"out/{p}_t1ce.json").read_text())["geometry"] for p in (P1, P2)
    ]
    assert stated == [{"form": "sform", "qform_apart": 7.0}, {"form": "sform"}]


def test_di_07_a_row_that_names_no_file_is_told(dsdiff, tmp_path, cohort, run_folder, caplog):
    row = ",".join(str(cohort / f"Phantom_0001/Phantom_0001_{c}.nii.gz") for c in CONTRASTS)
    table, out = tmp_path / "table.csv", tmp_path / "out"
    given = ("sample", run_folder, "--input", table, "--output", out, "--steps", "1")
    table.write_text("id,t1,t2,flair\nA,,,n/a\n")
    code, line = dsdiff(*given)
    assert (code, "DATA-MISSING case=A: table.csv: no row names a file" in line) == (3, True), line
    table.write_text(f"id,t1,t2,flair\nA,,,n/a\nB,{row}\n")
    assert dsdiff(*given) == (0, "")
    assert "table.csv: A named without a file, and left out" in caplog.text
