"""One patient in every layout: one training example, one evaluation."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import INPUTS, read_scores, rotation
from layout_writers import WRITERS, Head, write_dicom

from ldm.cli.main import main
from ldm.data.layouts import detect_layout, summary
from ldm.data.prepare import Preparation, prepare_subject
from ldm.phantom import make_patient

MM = np.diag([-1.0, -1.0, 1.0, 1.0])  # what an HDF5 file is taken to have


@pytest.fixture(scope="module")
def head() -> Head:
    """A phantom that lies at an angle in the scanner."""
    patient = make_patient(size=32, seed=3)
    tilted = rotation(12, 0, 1) @ rotation(5, 1, 2) @ patient.affine
    return Head({**patient.contrasts, "seg": patient.seg}, tilted)


def root_of(folder: Path) -> Path:
    table = folder / "table.csv"
    return table if table.exists() else folder


def evaluation(folder: Path, head: Head, layout: str) -> dict:
    """Return the scores of a blurred truth as the synthetic volume."""
    subject = WRITERS[layout](folder / "data", head)
    blurred = (head.volumes["t1ce"] + np.roll(head.volumes["t1ce"], 1, axis=0)) / 2
    affine = MM if layout.startswith("HDF5") else head.affine
    (folder / "predictions").mkdir()
    image = nib.Nifti1Image(blurred.astype(np.float32), affine)
    nib.save(image, folder / f"predictions/{subject}_t1ce.nii.gz")
    arguments = ["--prediction", folder / "predictions", "--reference", root_of(folder / "data")]
    assert main(["evaluate", *map(str, arguments), "--output", str(folder / "out")]) == 0
    scores = read_scores(folder / "out/metrics.json")
    return {(row, *rest): value for (row, _, *rest), value in scores.items()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory, head) -> tuple[dict, np.ndarray]:
    """Scores and slices of the first layout."""
    folder = tmp_path_factory.mktemp("first")
    scores = evaluation(folder, head, "BraTS 2017-2021")
    own, copied = (scores[row, "tumour", "psnr"] for row in ("prediction", "copy T1"))
    assert own > copied
    return scores, slices(folder / "data")


def slices(root: Path) -> np.ndarray:
    layout, subjects = detect_layout(root_of(root))
    (subject,) = subjects.values()
    prepared = prepare_subject(subject, layout, INPUTS, "t1ce", Preparation())
    return np.concatenate([prepared.slices, prepared.seg[:, None]], axis=1)


@pytest.mark.parametrize("layout", WRITERS)
def test_one_patient_gives_one_evaluation_in_every_layout(tmp_path, head, expected, layout, capsys):
    assert evaluation(tmp_path, head, layout) == expected[0]
    name = layout.removesuffix(" volume")
    assert f"{name}: 1 subject, t1 1, t1ce 1, t2 1, flair 1, seg 1\n" in capsys.readouterr().err
    assert np.array_equal(slices(tmp_path / "data"), expected[1])


@pytest.mark.parametrize("layout", WRITERS)
def test_a_manifest_of_any_layout_is_the_same_patient(tmp_path, head, expected, layout, capsys):
    """The manifest names channels, slices and series, and is read without the layout's rules."""
    WRITERS[layout](tmp_path / "data", head)
    root, output = root_of(tmp_path / "data"), tmp_path / "out"
    everything = ["data.params.train=1.0", "data.params.val=0"]
    assert main(["prepare", str(root), "--output", str(output), *everything]) == 0
    manifest = output / "manifest.csv"
    found = detect_layout(manifest)
    assert summary(*found) == "CSV: 1 subject, t1 1, t1ce 1, t2 1, flair 1, seg 1, train 1"
    assert main(["prepare", "--verify", str(manifest)]) == 0
    layout_of_csv, subjects = found
    (subject,) = subjects.values()
    prepared = prepare_subject(subject, layout_of_csv, INPUTS, "t1ce", Preparation())
    assert np.array_equal(
        np.concatenate([prepared.slices, prepared.seg[:, None]], axis=1), expected[1]
    )


def test_all_that_the_cache_keeps_of_a_patient_lies_under_its_id(tmp_path, head, monkeypatch):
    """As docs/data.md says: who deletes these folders leaves no volume behind."""
    monkeypatch.setenv("DSDIFF_CACHE", str(tmp_path / "cache"))
    write_dicom(tmp_path / "raw", head)
    assert main(["prepare", str(tmp_path / "raw"), "--output", str(tmp_path / "prepared")]) == 0
    volumes = [p for p in (tmp_path / "cache").rglob("*") if p.suffix in (".gz", ".npy")]
    assert sum(path.suffix == ".gz" for path in volumes) == 4  # a series each
    for path in volumes:
        assert path.relative_to(tmp_path / "cache").parts[0].startswith("p1-")
