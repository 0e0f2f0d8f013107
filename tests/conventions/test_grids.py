"""One grid however it is written down: by quaternion, in another order of axes, in other units."""

import nibabel as nib
import numpy as np
import pytest
from builders import RAS, edit_header, head_image, write_nifti
from scipy.spatial.transform import Rotation

from ldm.data.layouts import detect_layout
from ldm.data.manifest import examine
from ldm.data.nifti import encode_volume, read_volume
from ldm.diagnosis.data import diagnose_data
from ldm.errors import DataError
from ldm.study import Study

SHAPE = (240, 220, 100)  # a large grid: errors of an angle grow with it
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def turned(degrees, axes=RAS, spacing=(1.0, 1.0, 1.0)) -> np.ndarray:
    """Return an affine whose axes are turned by angles about x, y and z."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.sign(axes[:3, :3]) @ np.diag(spacing)
    affine[:3, 3] = (-118.3, 97.2, -61.7)
    return affine


def by_quaternion(path, image, affine):
    """Write an image whose qform alone says where it lies."""
    file = nib.Nifti1Image(image, None)
    file.header.set_qform(affine, code=1)
    file.header.set_sform(None, code=0)
    nib.save(file, path)
    return path


@pytest.mark.parametrize("axes", [RAS, LPS], ids=["RAS", "LPS"])
@pytest.mark.parametrize(
    "degrees", [(0.7, 0.3, -0.2), (0.02, 0, 0.01), (0, 0, 0), (12, -7, 31), (0.3, -0.3, 0.3)]
)
def test_a_quaternion_of_float32_says_the_same_grid(tmp_path, degrees, axes):
    image, affine = np.ones(SHAPE, np.uint8), turned(degrees, axes)
    exact = read_volume(write_nifti(tmp_path / "a.nii", image, affine)).geometry
    coarse = read_volume(by_quaternion(tmp_path / "b.nii", image, affine)).geometry
    exact.require_same_grid(coarse, ("t1", "t2"), None)
    coarse.require_same_grid(exact, ("t2", "t1"), None)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 0.5, 3), (2, 2, 2)])
def test_an_offset_is_judged_in_voxels(tmp_path, spacing):
    def geometry(voxels):
        affine = turned((0, 0, 0), LPS, spacing)
        affine[0, 3] += voxels * min(spacing)
        return read_volume(write_nifti(tmp_path / "a.nii", head_image(), affine)).geometry

    geometry(0).require_same_grid(geometry(0.03), ("t1", "t2"), None)
    for voxels in (0.2, 0.5, 1):
        with pytest.raises(DataError, match=r"DATA-AFFINE case=p: t2 lies .* register"):
            geometry(0).require_same_grid(geometry(voxels), ("t1", "t2"), "p")


@pytest.mark.parametrize("axes", [LPS, np.diag([-1.0, 1, -1, 1]), np.eye(4)[[1, 2, 0, 3]]])
def test_a_file_saved_in_the_closest_canonical_order_lies_on_the_same_grid(tmp_path, axes):
    """TorchIO and MONAI save so."""
    image = head_image((12, 14, 10))
    affine = axes.astype(float).copy()
    affine[:3, 3] = (40, -30, 20)
    stored = nib.Nifti1Image(image, affine)
    nib.save(stored, tmp_path / "a.nii.gz")
    nib.save(nib.as_closest_canonical(stored), tmp_path / "b.nii.gz")
    first, second = (read_volume(tmp_path / f"{name}.nii.gz") for name in "ab")
    first.geometry.require_same_grid(second.geometry, ("t1", "t2"), None)
    np.testing.assert_array_equal(first.array, second.array)


def test_a_mirrored_file_is_no_reordered_one(tmp_path):
    image = head_image((12, 14, 10))
    first = read_volume(write_nifti(tmp_path / "a.nii", image, LPS)).geometry
    second = read_volume(write_nifti(tmp_path / "b.nii", image, np.diag([1.0, -1, 1, 1]))).geometry
    with pytest.raises(DataError, match="DATA-AFFINE"):
        first.require_same_grid(second, ("t1", "t2"), None)


@pytest.mark.parametrize(
    ("code", "millimetres"), [(0, 1.0), (2, 1.0), (1, 1000.0), (3, 0.001), (3 + 8, 0.001)]
)
def test_spatial_units_are_read_as_itk_reads_them(tmp_path, code, millimetres):
    sitk = pytest.importorskip("SimpleITK")
    affine = turned((3, -2, 8), LPS, (5, 5, 7))
    path = write_nifti(tmp_path / "a.nii", head_image(), affine)
    edit_header(path, xyzt_units=code)
    volume = read_volume(path)
    np.testing.assert_allclose(
        np.linalg.norm(volume.geometry.affine[:3, :3], axis=0),
        sitk.ReadImage(str(path)).GetSpacing(),
        rtol=1e-5,
    )
    np.testing.assert_allclose(volume.geometry.affine[:3], millimetres * affine[:3], rtol=1e-5)
    (tmp_path / "b.nii.gz").write_bytes(encode_volume(volume.array, volume.geometry))
    again = read_volume(tmp_path / "b.nii.gz").geometry
    np.testing.assert_allclose(again.affine, volume.geometry.affine, rtol=1e-6)


@pytest.mark.parametrize(
    ("spacing", "usual"),
    [((1, 1, 1), True), ((0.43, 0.43, 6.5), True), ((0.06, 0.06, 0.2), True)]
    + [((1, 1, 25), False), ((0.01, 0.01, 0.01), False), ((1000, 1000, 1000), False)],
)
def test_voxels_of_no_brain_scan_are_found(tmp_path, spacing, usual):
    affine = turned((0, 0, 0), LPS, spacing)
    geometry = read_volume(write_nifti(tmp_path / "a.nii", head_image(), affine)).geometry
    assert bool(geometry.unusual_spacing) != usual


def test_the_manifest_states_micrometres_in_millimetres(tmp_path):
    affine = turned((0, 0, 0), LPS, (5000, 5000, 5000))
    path = tmp_path / "p/p_t1.nii"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(head_image(), affine), path)
    edit_header(path, xyzt_units=3)
    layout, subjects = detect_layout(tmp_path)
    assert examine(subjects["p"], layout, tmp_path, Study())["spacing"] == "5x5x5"


def test_diagnosis_finds_them_too(tmp_path):
    for contrast in ("t1", "t2"):
        path = tmp_path / f"p/p_{contrast}.nii"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(head_image(), turned((0, 0, 0), LPS)), path)
        edit_header(path, xyzt_units=1)
    found = diagnose_data(tmp_path).of_kind("spacing")
    assert [f.message.split(":")[0] for f in found] == [
        f"{contrast} has voxels of 1e+03 x 1e+03 x 1e+03 mm" for contrast in ("t1", "t2")
    ]


@pytest.mark.parametrize("code", [1, 3])
def test_a_wrong_unit_is_not_cured_by_registration(tmp_path, code):
    """One of two contrasts states metres or micrometres."""
    for contrast in ("t1", "t2"):
        nib.save(
            nib.Nifti1Image(head_image(), turned((0, 0, 0), LPS)), tmp_path / f"{contrast}.nii"
        )
    edit_header(tmp_path / "t2.nii", xyzt_units=code)
    first, second = (read_volume(tmp_path / f"{c}.nii").geometry for c in ("t1", "t2"))
    for told in ((first, second, ("t1", "t2")), (second, first, ("t2", "t1"))):
        with pytest.raises(DataError, match="t2 has voxels of .* check xyzt_units"):
            told[0].require_same_grid(told[1], told[2], "p")
