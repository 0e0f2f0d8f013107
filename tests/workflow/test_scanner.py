"""From the scanner to a sample and back: DICOM series of whole heads, each on a grid of its own."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import rotation
from layout_writers import Head, write_series
from test_brain import SIZE, VOXEL, whole_head
from test_registration import error_of, points_of, rigid

from ldm.cli.main import main
from ldm.data.examination import grid_geometry
from ldm.data.layouts import detect_layout
from ldm.data.nifti import Geometry, Volume, read_volume
from ldm.data.registration import resampled

pytest.importorskip("SimpleITK")
pytest.importorskip("dicom2nifti")

PATIENTS = ("anon_1", "anon_2")
OWN = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
OWN[:3, 3] = -SIZE * VOXEL / 2, -SIZE * VOXEL / 2, -60
THICK = (VOXEL, VOXEL, 7.5)


def axes(columns: str, rows: str, slices: str) -> np.ndarray:
    """The directions (3, 3) of a series whose columns go to ``columns``, such as ``P``."""
    letters = "LPIRAS"
    found = np.zeros((3, 3))
    for axis, letter in enumerate(columns + rows + slices):
        place = letters.index(letter)
        found[[0, 1, 2][place % 3], axis] = -1 if place < 3 else 1
    return found


SERIES = {  # contrast -> folder, description, agent, directions, tilt, mm of voxels
    "t1": ("102", "t1_mprage_sag_p2_iso", "", axes("P", "I", "L"), 0, (VOXEL, VOXEL, VOXEL)),
    "t2": ("2 T2", "T2 TSE tra 7mm", "", axes("L", "P", "S"), 12, THICK),
    "flair": ("ser3", "COR FLAIR fs", "NONE", axes("L", "I", "A"), 5, THICK),
    "t1ce": ("1.3.12.4", "Ax T1 SE", "Gadovist 7.5 ml", axes("L", "P", "S"), 8, (VOXEL, 3, 5)),
}


def series_grid(directions: np.ndarray, tilt: float, spacing, shape: tuple) -> Geometry:
    """A grid of a series about the middle of the head, tilted about the left-right axis."""
    wide = np.abs(directions.T) @ (np.array(shape) * VOXEL)
    count = np.ceil(wide / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = rotation(tilt, 1, 2)[:3, :3] @ directions * spacing
    middle = OWN @ [*(np.array(shape) - 1) / 2, 1]
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ ((count - 1) / 2)
    return Geometry(tuple(count.tolist()), affine, grid_geometry(count, np.eye(4)).header)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory) -> tuple[Path, dict]:
    """Two patients as they come from the archive, and how each contrast moved."""
    root, moves = tmp_path_factory.mktemp("archive"), {}
    for number, patient in enumerate(PATIENTS):
        volumes, _ = whole_head(number)
        for place, (contrast, (name, text, agent, axis, tilt, size)) in enumerate(SERIES.items()):
            move = np.eye(4) if contrast == "t1" else rigid(3 + place, 2 * place, seed=place)
            own = Volume(volumes[contrast], grid_geometry(volumes["t1"].shape, OWN))
            grid = series_grid(axis, tilt, size, volumes["t1"].shape)
            made = grid.from_canonical(resampled(own, grid, np.linalg.inv(move)))
            head = Head({contrast: np.clip(made * 4, 0, 4095)}, grid.affine)
            write_series(root / patient / name, head, contrast, place + 1, text, agent)
            moves[patient, contrast] = move
        localizer = Head({"t1": np.clip(volumes["t1"], 0, 4095)}, OWN)
        write_series(root / patient / "0", localizer, "t1", 9, "3-plane localizer", "")
    return root, moves


@pytest.fixture(scope="module")
def registered(tmp_path_factory, scanned) -> Path:
    output = tmp_path_factory.mktemp("registered") / "one-grid"
    arguments = ["prepare", str(scanned[0]), "--register", "--spacing", "5"]
    assert main([*arguments, "--output", str(output)]) == 0
    return output


def test_series_are_found_by_what_they_say(scanned):
    layout, found = detect_layout(scanned[0])
    assert layout.name == "DICOM" and set(found) == set(PATIENTS)
    for subject in found.values():
        names = {contrast: file.path.name for contrast, file in subject.files.items()}
        assert names == {contrast: told[0] for contrast, told in SERIES.items()}


def test_what_is_not_on_one_grid_is_told_how_to_get_there(scanned, capsys):
    assert main(["diagnose", "data", str(scanned[0])]) == 3
    assert "dsdiff prepare PATIENTS --register" in " ".join(capsys.readouterr().out.split())


def test_every_contrast_is_found_where_it_moved(scanned, registered):
    for patient in PATIENTS:
        told = json.loads((registered / patient / "transforms.json").read_text())["sources"]
        volumes, head = whole_head(PATIENTS.index(patient))
        points = points_of(Volume(np.where(head, 1.0, 0.0), grid_geometry(head.shape, OWN)))
        for contrast in ("t2", "flair", "t1ce"):
            move = scanned[1][patient, contrast]
            assert error_of(np.array(told[contrast]["matrix"]), move, points) < 0.25 * VOXEL
            assert error_of(np.eye(4), move, points) > 3
        assert (registered / patient / "registration.png").is_file()


def test_one_grid_is_fit_and_serves_every_verb_to_the_end(scanned, registered, train, tmp_path):
    """Trained, sampled, judged; and the sample lies on the grid of the T2 that came in."""
    split = [f"data.params.{part}=[{','.join(ids)}]" for part, ids in parts().items()]
    sizes = ["data.params.image_size=[64,64]", "lightning.trainer.max_steps=2"]
    assert main(["diagnose", "data", str(registered), "--config", *split, *sizes[:1]]) == 0
    run, samples, back = (tmp_path / name for name in ("run", "samples", "back"))
    assert train(run, f"data.params.root={registered}", *split, *sizes) == 0
    asked = ["--input", str(registered), "--output", str(samples), "--steps", "1"]
    assert main(["sample", str(run), *asked]) == 0
    judged = ["--prediction", str(samples), "--reference", str(registered), "--allow-seen"]
    assert main(["evaluate", *judged, "--output", str(tmp_path / "judged")]) == 0
    arguments = ["prepare", str(samples), "--unregister", str(registered), "--to", "t2"]
    assert main([*arguments, "--output", str(back)]) == 0
    for patient in PATIENTS:
        sample = read_volume(back / f"{patient}_t1ce.nii.gz")
        own = detect_layout(scanned[0])[1][patient].files["t2"].read(patient)
        sample.geometry.require_same_grid(own.geometry, ("sample", "T2"), patient)
        assert sample.geometry.is_synthetic
        bright = own.array > np.percentile(own.array, 95)  # of the head, none of the air
        assert (sample.array[bright] != 0).mean() > 0.95
        air = nib.load(back / f"{patient}_t1ce.nii.gz").get_fdata() == 0
        assert 0.2 < air.mean() < 0.95  # the head alone was synthesised


def parts() -> dict[str, tuple[str, ...]]:
    return {"train": PATIENTS[:1], "val": PATIENTS[1:]}
