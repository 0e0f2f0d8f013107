"""Contrasts that were moved are laid back on each other; those that lie right stay."""

import csv
import json
import shutil
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ldm.cli.main import main
from ldm.data.examination import grid_geometry, isotropic, onto, strip_alike
from ldm.data.layouts import detect_layout
from ldm.data.nifti import Volume, encode_volume, read_volume
from ldm.data.outline import Outline
from ldm.data.registration import Reference, from_itk, itk_rigid, moved, resampled, world
from ldm.data.synthetic import UNKNOWN, statement
from ldm.phantom import write_phantoms
from ldm.storage import sha256

itk = pytest.importorskip("SimpleITK")

ID = "Phantom_0001"
FIFTH = 0.2 * 3.75  # mm, of a voxel


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One patient of 64 x 64 x 41 voxels of 3.75 mm."""
    root = tmp_path_factory.mktemp("phantom")
    write_phantoms(root, 1, size=64, seed=3)
    return root


@pytest.fixture(scope="module")
def volumes(folder) -> dict[str, Volume]:
    return {c: read_volume(folder / ID / f"{ID}_{c}.nii.gz") for c in ("t1", "t1ce", "t2", "flair")}


def brain_of(volume: Volume) -> np.ndarray:
    return volume.array != 0


@cache
def rigid(millimetres: float, degrees: float, seed: int = 0) -> np.ndarray:
    """A move of this length, and a turn by this angle about a point outside the head."""
    rng = np.random.default_rng(seed)
    axis, way = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix()
    matrix[:3, 3] = millimetres * way
    return matrix


def displaced(volume: Volume, matrix: np.ndarray, spacing=None) -> Volume:
    """The contrast of a head that moved by ``matrix``, on its own or another grid."""
    grid = volume.geometry
    if spacing:
        shape = np.ceil(np.array(grid.canonical_shape) * grid.spacing / spacing).astype(int)
        scale = np.diag([*(np.array(spacing) / grid.spacing), 1.0])
        grid = grid_geometry(shape, grid.canonical_affine @ scale)
    return Volume(resampled(volume, grid, np.linalg.inv(matrix)), grid)


def error_of(found: np.ndarray, true: np.ndarray, points: np.ndarray) -> float:
    """Mean distance over the brain, in mm."""
    return float(np.linalg.norm(moved(points, found) - moved(points, true), axis=1).mean())


def points_of(volume: Volume) -> np.ndarray:
    return world(np.argwhere(brain_of(volume)), volume.geometry.canonical_affine)


def test_the_transform_of_itk_is_the_matrix():
    matrix, centre = rigid(7, 20), np.array([3.0, -5, 9])
    transform = itk_rigid(itk, matrix, centre)
    assert np.allclose(from_itk(transform), matrix)
    point = np.array([[10.0, -20, 30]])
    lps = transform.TransformPoint((point[0] * [-1, -1, 1]).tolist())
    assert np.allclose(np.array(lps) * [-1, -1, 1], moved(point, matrix)[0])


@pytest.mark.parametrize("order", ["nearest", "linear", "cubic"])
def test_a_grid_that_is_the_same_changes_nothing(volumes, order):
    volume = volumes["t2"]
    assert np.allclose(
        resampled(volume, volume.geometry, np.eye(4), order), volume.array, atol=0.01
    )


def test_a_shift_by_whole_voxels_moves_them(volumes):
    volume, matrix = volumes["t2"], np.eye(4)
    matrix[:3, 3] = volume.geometry.canonical_affine[:3, :3] @ [2, -1, 0]
    found = resampled(volume, volume.geometry, matrix)
    assert np.allclose(found[:-2, 1:], volume.array[2:, :-1], atol=0.01)


@pytest.mark.parametrize("contrast", ["t1ce", "t2", "flair"])
def test_a_contrast_that_lies_right_stays(volumes, contrast):
    reference = Reference(volumes["t1"], brain_of(volumes["t1"]))
    for found in (reference.compare(volumes[contrast]), reference.register(volumes[contrast])):
        assert not found.is_clear


@pytest.mark.parametrize(
    ("contrast", "millimetres", "degrees", "spacing"),
    [("t2", 10, 10, None), ("flair", 10, 5, (3.0, 3.0, 6.0)), ("t1ce", 5, 8, (3.75, 3.75, 3.75))],
)
def test_a_contrast_that_moved_is_found(volumes, contrast, millimetres, degrees, spacing):
    true = rigid(millimetres, degrees)
    other = displaced(volumes[contrast], true, spacing)
    reference = Reference(volumes["t1"], brain_of(volumes["t1"]))
    found, points = reference.register(other), points_of(volumes["t1"])
    assert found.is_clear and reference.compare(other).is_clear
    assert error_of(found.matrix, true, points) < FIFTH
    assert error_of(np.eye(4), true, points) > millimetres / 2


def test_a_header_far_off_is_found_from_the_centres(volumes):
    """The contrast lies 150 mm away, as after a conversion that lost the origin."""
    matrix = np.eye(4)
    matrix[:3, 3] = 150, -80, 60
    far = volumes["flair"].geometry
    far = Volume(
        volumes["flair"].array, grid_geometry(far.canonical_shape, matrix @ far.canonical_affine)
    )
    found = Reference(volumes["t1"], brain_of(volumes["t1"])).register(far)
    assert error_of(found.matrix, matrix, points_of(volumes["t1"])) < FIFTH


def test_nothing_is_said_of_an_empty_image_nor_of_a_speck(volumes):
    empty = Volume(np.zeros_like(volumes["t2"].array), volumes["t2"].geometry)
    speck = np.zeros_like(brain_of(volumes["t1"]))
    speck[30:32, 30:32, 20] = True
    assert Reference(volumes["t1"], brain_of(volumes["t1"])).compare(empty) is None
    assert Reference(volumes["t1"], speck).compare(volumes["t2"]) is None


def test_cubes_have_the_centre_and_reach_every_voxel(volumes):
    own = volumes["t1"].geometry
    cubes = isotropic(own, 2.0)
    assert np.allclose(cubes.spacing, 2)
    ends = [
        world((np.array([[0, 0, 0], g.canonical_shape]) - [[0], [1]]), g.canonical_affine)
        for g in (own, cubes)
    ]
    assert np.allclose(*(e.mean(0) for e in ends), atol=1e-3)
    assert (ends[1][0] <= ends[0][0] + 1e-3).all() and (ends[1][1] >= ends[0][1] - 1e-3).all()


@pytest.mark.parametrize("air", [0.0, -1.0])
def test_what_lies_around_a_stripped_brain_keeps_its_one_value(volumes, air):
    array = np.where(brain_of(volumes["t1"]), volumes["t1"].array / 500 - 1, air).astype("f4")
    volume = Volume(array, volumes["t1"].geometry)
    made = onto(volume, isotropic(volume.geometry, 2.0), rigid(3, 4))
    share = (made != air).mean() / (array != air).mean()
    assert share == pytest.approx(1, abs=0.1)
    assert made[0, 0, 0] == air


def test_an_image_that_lies_on_the_grid_is_not_touched(volumes):
    volume = volumes["t2"]
    assert onto(volume, volume.geometry, np.eye(4)) is volume.array


@pytest.mark.parametrize("air", [0.0, -1.0])
def test_what_interpolation_smears_around_a_brain_is_no_brain(volumes, air):
    """A spline moved it, and a spline brings it back: the brain is that of T1, to the voxel."""
    true, grid, brain = rigid(5, 6), volumes["t1"].geometry, brain_of(volumes["t1"])
    shown = [np.where(brain, volumes[c].array / 500, 0).astype("f4") + air for c in ("t1", "t2")]
    there = resampled(Volume(shown[1], grid), grid, np.linalg.inv(true), "cubic", air)
    back = onto(Volume(there, grid), grid, true)
    assert ((back != air) & ~brain).sum() > 0.05 * brain.sum()
    inside = back[brain].copy()
    strip_alike(back, shown[0], grid)
    assert (back[~brain] == air).all() and np.array_equal(back[brain], inside)


def test_a_brain_that_goes_further_than_that_of_t1_keeps_what_it_has(volumes):
    """The field of view of T1 ends early."""
    cut, whole = volumes["t1"].array.copy(), volumes["t2"].array.copy()
    cut[:, :, np.flatnonzero(brain_of(volumes["t1"]).any((0, 1))).max() - 8 :] = 0
    strip_alike(whole, cut, volumes["t1"].geometry)
    assert np.array_equal(whole, volumes["t2"].array)


# --- The outline of a stripped brain ---


@pytest.mark.parametrize("order", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("spacing", [None, (3.0, 3.0, 6.0)])
def test_one_mask_tells_where_a_contrast_was_stripped(volumes, order, spacing):
    """To a fifth of a voxel, whatever its intensities are and however it was resampled."""
    true, volume = rigid(3, 4, seed=5), volumes["t2"]
    grid = displaced(volume, true, spacing).geometry
    array = resampled(volume, grid, np.linalg.inv(true), order)
    scrambled = np.where(array != 0, 500.0, 0.0) if order == "nearest" else array
    reference = Outline.of(volumes["t1"].array, volumes["t1"].geometry)
    found = Outline.of(scrambled, grid).laid(reference.points(), np.eye(4))
    assert error_of(found, true, points_of(volumes["t1"])) < FIFTH


def test_brains_that_were_stripped_apart_do_not_tell(volumes):
    """One mask lacks what another holds: a cap of three voxels at the front and at the top."""
    array = volumes["t2"].array.copy()
    front, top = (np.flatnonzero(brain_of(volumes["t2"]).any(a)).max() for a in ((0, 2), (0, 1)))
    array[:, front - 5 :], array[:, :, top - 5 :] = 0, 0
    array[:12] = 0
    own = Outline.of(volumes["t1"].array, volumes["t1"].geometry).points()
    other = Outline.of(array, volumes["t2"].geometry)
    spread = Outline.of(volumes["t2"].array, volumes["t2"].geometry)
    assert spread.laid(own, np.eye(4)) is not None
    assert other.laid(own, np.eye(4)) is None


def test_noisy_air_has_no_outline(volumes):
    rng = np.random.default_rng(0)
    noisy = volumes["t1"].array + np.abs(rng.normal(0, 9, volumes["t1"].array.shape))
    assert Outline.of(noisy, volumes["t1"].geometry) is None
    assert Outline.of(np.zeros((4, 4, 4)), volumes["t1"].geometry) is None


def test_intensities_outweigh_an_outline_that_contradicts_them(volumes):
    """T2 moved within the mask that stripped T1: its outline lies right, its anatomy does not."""
    true = rigid(9, 8, seed=4)
    other = displaced(volumes["t2"], true)
    masked = Volume(
        np.where(brain_of(volumes["t1"]), np.maximum(other.array, 1), 0), other.geometry
    )
    found = Reference(volumes["t1"], brain_of(volumes["t1"])).compare(masked)
    assert found.is_clear and not found.by_outline


@pytest.mark.parametrize("moved_by", [(1.5, 0), (0, 1.5)])
def test_a_small_move_after_stripping_is_seen(volumes, moved_by):
    """Less than half a voxel: intensities alone would not tell."""
    other = displaced(volumes["flair"], rigid(*moved_by, seed=1), (3.0, 3.0, 3.0))
    found = Reference(volumes["t1"], brain_of(volumes["t1"])).compare(other)
    assert found.by_outline and found.is_clear


# --- The verb -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scanned(tmp_path_factory, folder, volumes) -> Path:
    """The patient as it comes from a scanner: T2 and FLAIR moved, on grids of their own."""
    root = tmp_path_factory.mktemp("scanned")
    shutil.copytree(folder / ID, root / ID)
    for contrast, matrix, spacing in (
        ("t2", rigid(8, 6, seed=1), (3.0, 3.0, 5.0)),
        ("flair", rigid(6, 4, seed=2), None),
    ):
        other = displaced(volumes[contrast], matrix, spacing)
        path = root / ID / f"{ID}_{contrast}.nii.gz"
        path.write_bytes(encode_volume(other.array, other.geometry))
    return root


@pytest.fixture(scope="module")
def registered(tmp_path_factory, scanned) -> Path:
    output = tmp_path_factory.mktemp("out") / "registered"
    assert main(["prepare", str(scanned), "--register", "--output", str(output)]) == 0
    return output


def test_other_grids_are_refused_with_the_command_that_helps(scanned, tmp_path, capsys):
    everything = ["--config", "data.params.train=1.0", "data.params.val=0"]
    assert main(["prepare", str(scanned), "--output", str(tmp_path), *everything]) == 3
    assert "dsdiff prepare PATIENTS --register" in capsys.readouterr().err
    assert main(["diagnose", "data", str(scanned)]) == 3
    assert "dsdiff prepare PATIENTS --register" in " ".join(capsys.readouterr().out.split())


def test_contrasts_come_back_to_one_grid(registered, volumes):
    layout, found = detect_layout(registered)
    assert layout.name == "BraTS 2017-2021" and set(found) == {ID}
    told = json.loads((registered / ID / "transforms.json").read_text())["sources"]
    points = points_of(volumes["t1"])
    for contrast, true in (("t2", rigid(8, 6, seed=1)), ("flair", rigid(6, 4, seed=2))):
        assert error_of(np.array(told[contrast]["matrix"]), true, points) < FIFTH
        back = read_volume(registered / ID / f"{ID}_{contrast}.nii.gz").array
        assert not (back[~brain_of(volumes["t1"])]).any()
        assert told[contrast]["moved_mm"] == pytest.approx(error_of(np.eye(4), true, points), abs=1)
    assert told["t1ce"]["moved_mm"] == 0 and np.allclose(told["t1ce"]["matrix"], np.eye(4))
    for contrast in ("t1", "t1ce"):  # not touched
        back = read_volume(registered / ID / f"{ID}_{contrast}.nii.gz")
        assert np.allclose(back.array, volumes[contrast].array, atol=0.01)
    labels = [nib.load(root / ID / f"{ID}_seg.nii.gz") for root in (registered,)]
    assert set(np.unique(labels[0].dataobj)) <= {0, 1, 2, 4}


def test_labels_and_masks_are_rounded_not_cut(scanned, tmp_path):
    """As tools store them: 1.992 for 2, by a slope, and shares of voxels for a mask."""
    patients = tmp_path / "patients"
    shutil.copytree(scanned, patients)
    path, mask = (patients / ID / f"{ID}_{name}.nii.gz" for name in ("seg", "brain"))
    image = nib.load(path)
    labels = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image((labels * 0.998).astype(np.float32), image.affine), path)
    nib.save(nib.Nifti1Image(np.full(labels.shape, 0.9, np.float32), image.affine), mask)
    registered = tmp_path / "registered"
    assert main(["prepare", str(patients), "--register", "--output", str(registered)]) == 0
    found = np.asarray(nib.load(registered / ID / path.name).dataobj)
    assert found.dtype == np.uint8 and set(np.unique(found)) == set(np.unique(labels))
    assert np.asarray(nib.load(registered / ID / mask.name).dataobj).all()


def test_what_is_registered_is_prepared_and_has_a_picture(registered, tmp_path):
    assert (registered / ID / "registration.png").read_bytes().startswith(b"\x89PNG")
    everything = ["--config", "data.params.train=1.0", "data.params.val=0"]
    assert main(["prepare", str(registered), "--output", str(tmp_path), *everything]) == 0
    with (tmp_path / "manifest.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == [ID]


def test_what_cannot_be_compared_is_told_and_stays(scanned, tmp_path, capsys):
    """As of a header in metres that says mm, whose voxels are too small for any grid."""
    patients, registered = tmp_path / "patients", tmp_path / "registered"
    shutil.copytree(scanned, patients)
    for path in (patients / ID).glob("*.nii.gz"):
        image = nib.load(path)
        affine = image.affine / [[1000], [1000], [1000], [1]]
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    assert main(["diagnose", "data", str(patients)]) == 3  # of other grids
    assert "expected 0.05 to 20" in " ".join(capsys.readouterr().out.split())
    assert main(["prepare", str(patients), "--register", "--output", str(registered)]) == 0
    told = capsys.readouterr().out
    for contrast in ("t1ce", "t2", "flair"):
        assert f"{contrast} stays where its header puts it" in told


def test_a_second_run_does_nothing_and_other_wishes_are_met(registered, scanned, capsys):
    again = ["prepare", str(scanned), "--register", "--output", str(registered)]
    assert main(again) == 0
    assert "written=0 failed=0 skipped=1" in capsys.readouterr().out


def test_a_volume_goes_back_to_the_grid_of_a_contrast(registered, scanned, volumes, tmp_path):
    """FLAIR as registered, put back, is FLAIR as it came, but for two interpolations."""
    (tmp_path / "samples").mkdir()
    shutil.copy(registered / ID / f"{ID}_flair.nii.gz", tmp_path / "samples" / f"{ID}_t1ce.nii.gz")
    (tmp_path / "samples" / f"{ID}_t1ce.json").write_text(
        '{"Synthetic": true, "sha256": "0", "std_sha256": "0"}'
    )
    spread = tmp_path / "samples" / f"{ID}_t1ce_std.nii.gz"
    shutil.copy(registered / ID / f"{ID}_flair.nii.gz", spread)
    arguments = ["prepare", str(tmp_path / "samples"), "--unregister", str(registered)]
    arguments += ["--to", "flair", "--output", str(tmp_path / "back")]
    assert main(arguments) == 0
    back = read_volume(tmp_path / "back" / f"{ID}_t1ce.nii.gz")
    own = read_volume(scanned / ID / f"{ID}_flair.nii.gz")
    back.geometry.require_same_grid(own.geometry, ("back", "own"), None)
    assert back.geometry.is_synthetic  # as its sidecar said
    inside = (back.array != 0) & (own.array != 0)
    assert inside.sum() > 0.97 * brain_of(volumes["flair"]).sum()
    assert np.corrcoef(back.array[inside], own.array[inside])[0, 1] > 0.9
    sidecar = json.loads((tmp_path / "back" / f"{ID}_t1ce.json").read_text())
    assert sidecar["Synthetic"] is True
    assert sidecar["sha256"] == sha256(tmp_path / "back" / f"{ID}_t1ce.nii.gz")
    assert sidecar["std_sha256"] == sha256(tmp_path / "back" / spread.name)


def test_what_is_made_of_a_synthetic_volume_names_its_maker(registered, volumes, tmp_path):
    """Registered and put back, without a sidecar; other words of a header go nowhere."""
    said = statement({"target": "t1ce", "request": {"model_digest": "5e" * 32}})
    place = tmp_path / "patients" / ID
    shutil.copytree(registered / ID, place)
    path = place / f"{ID}_t1ce.nii.gz"
    image = volumes["t1ce"]
    for written, known in ((said, said), (said | {"Model": "Dr. Who"}, said | {"Model": UNKNOWN})):
        path.write_bytes(encode_volume(image.array, image.geometry, synthetic=written))
        made, back = (tmp_path / f"{name}_{written['Model']}" for name in ("made", "back"))
        assert main(["prepare", str(place.parent), "--register", "--output", str(made)]) == 0
        assert stated(made / ID / path.name) == known
        samples = ["prepare", str(place), "--unregister", str(registered)]
        assert main([*samples, "--output", str(back)]) == 0
        assert stated(back / path.name) == known


def stated(path: Path) -> dict:
    (extension,) = nib.load(path).header.extensions
    return json.loads(extension.get_content())


def test_a_program_of_the_user_finds_the_brain(scanned, tmp_path, monkeypatch):
    """One that keeps what is brighter than the mean, in place of HD-BET."""
    program = tmp_path / "bin/hd-bet"
    program.parent.mkdir()
    program.write_text(
        f"#!{shutil.which('python3')}\nimport sys, shutil\nshutil.copy(sys.argv[2], sys.argv[4])\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    arguments = ["prepare", str(scanned), "--register", "--to", "t1ce", "--brain", "hd-bet"]
    assert main([*arguments, "--spacing", "4", "--output", str(tmp_path / "out")]) == 0
    brain = read_volume(tmp_path / f"out/{ID}/{ID}_brain.nii.gz")
    image = read_volume(tmp_path / f"out/{ID}/{ID}_t1ce.nii.gz")
    assert np.allclose(brain.geometry.spacing, 4)
    assert ((image.array != 0) <= (brain.array > 0)).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "t2"], "--to is for --register"),
        (["--register", "--to", "pd"], "--to is pd: give one of t1, t1ce"),
        (["--register", "--spacing", "0"], "give 0.2 to 10 mm"),
        (["--register", "--brain", "bet"], "--brain is 'bet': give one of hd-bet"),
    ],
)
def test_wrong_options_are_refused(scanned, tmp_path, capsys, options, said):
    assert main(["prepare", str(scanned), "--output", str(tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err
