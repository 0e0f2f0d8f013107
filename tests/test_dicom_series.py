"""A derived DICOM series, read back by pydicom, dicom2nifti and ITK: equal voxels, equal place."""

from decimal import Decimal

import dicom2nifti
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from builders import RAS, oblique, write_nifti
from hypothesis import given
from hypothesis import strategies as st

from ldm.data.dicom_series import SeriesFacts, decimal_string, encode_series, quantised
from ldm.data.nifti import read_volume
from ldm.errors import DataError, NonFiniteError

FACTS = SeriesFacts("patient 7", "SYNTHETIC T1ce", "Made up.", ("study", "request"), 9001)


def blob(low=-3.0, high=811.7):
    """(16, 18, 12) float32, different along every axis, with a background of 0."""
    generator = np.random.default_rng(0)
    x, y, z = np.meshgrid(*map(np.arange, (16, 18, 12)), indexing="ij")
    values = low + (high - low) * generator.random((16, 18, 12)) * (1 + x + 2 * y + 3 * z) / 84
    return np.where((x > 2) & (y < 15), values, 0).astype(np.float32)


def written(tmp_path, affine, array, facts=FACTS):
    write_nifti(tmp_path / "input.nii.gz", array, affine)
    volume = read_volume(tmp_path / "input.nii.gz")
    folder = tmp_path / "series"
    folder.mkdir()
    for name, content in encode_series(volume.array, volume.geometry, facts).items():
        (folder / name).write_bytes(content)
    return folder


def canonical(image):
    image = nib.as_closest_canonical(image)
    return image.get_fdata(), image.affine


AFFINES = {
    "straight": np.diag([1.0, 1, 1, 1]),
    "not cubic": np.diag([0.9, 1.1, 3, 1]) @ RAS,
    "oblique": oblique(),
    "sagittal": np.array([[0, 0, 2.0, -9], [-1, 0, 0, 4], [0, 1.5, 0, 7], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", AFFINES)
def test_three_readers_find_the_voxels_where_they_were(tmp_path, name):
    array, affine = blob(), AFFINES[name]
    folder = written(tmp_path, affine, array)
    values, place = canonical(nib.Nifti1Image(array, affine))
    half = float(pydicom.dcmread(folder / "0001.dcm").RescaleSlope) / 2 * 1.001

    dicom2nifti.dicom_series_to_nifti(str(folder), str(tmp_path / "back.nii.gz"))
    read, at = canonical(nib.load(tmp_path / "back.nii.gz"))
    assert np.abs(read - values).max() <= half
    assert np.allclose(at, place, atol=1e-3)

    files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = SimpleITK.ReadImage(files)
    x, y, z = (
        np.array(image.TransformIndexToPhysicalPoint(p)) for p in np.eye(3, dtype=int).tolist()
    )
    origin = np.array(image.GetOrigin())
    lps = np.eye(4)
    lps[:3] = np.stack([x - origin, y - origin, z - origin, origin], axis=1)
    array = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    read, at = canonical(nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1]) @ lps))
    assert np.abs(read - values).max() <= half + 1e-4  # ITK rescales in float32
    assert np.allclose(at, place, atol=1e-3)


def test_a_series_says_that_it_is_synthetic_and_whose_it_is(tmp_path):
    folder = written(tmp_path, RAS, blob())
    images = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    assert len({image.SOPInstanceUID for image in images}) == 12
    for image in images:
        assert image.SOPClassUID.name == "MR Image Storage"
        assert list(image.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert (image.SyntheticData, image.ContentQualification) == ("YES", "RESEARCH")
        assert "not for diagnosis" in image.ImageComments
        assert image.PatientID == "patient 7"
        assert not image.PatientName
        assert not image.PatientBirthDate
        assert "ContrastBolusAgent" not in image
        uids = (image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID)
        assert len({*uids, image.SOPInstanceUID}) == 4
        assert all(pydicom.uid.UID(uid).is_valid for uid in (*uids, image.SOPInstanceUID))


def test_equal_requests_are_equal_bytes_and_others_are_other_series(tmp_path):
    write_nifti(tmp_path / "input.nii.gz", blob(), RAS)
    volume = read_volume(tmp_path / "input.nii.gz")
    first = encode_series(volume.array, volume.geometry, FACTS)
    assert first == encode_series(volume.array, volume.geometry, FACTS)
    facts = SeriesFacts("patient 7", "SYNTHETIC T1ce", "Made up.", ("study", "another"), 9001)
    (tmp_path / "a").write_bytes(first["0001.dcm"])
    (tmp_path / "b").write_bytes(encode_series(volume.array, volume.geometry, facts)["0001.dcm"])
    one, other = (pydicom.dcmread(tmp_path / name) for name in "ab")
    assert one.StudyInstanceUID == other.StudyInstanceUID
    assert one.FrameOfReferenceUID == other.FrameOfReferenceUID
    assert one.SeriesInstanceUID != other.SeriesInstanceUID
    assert one.SOPInstanceUID != other.SOPInstanceUID


def test_axes_that_are_not_at_right_angles_and_nan_are_refused(tmp_path):
    sheared = np.eye(4)
    sheared[0, 2] = 0.2
    with pytest.raises(DataError, match="right angles"):
        written(tmp_path, sheared, blob())
    volume = read_volume(tmp_path / "input.nii.gz")
    with pytest.raises(NonFiniteError):
        encode_series(np.full_like(volume.array, np.nan), volume.geometry, FACTS)


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-6, 1e6), seed=st.integers(0, 1000))
def test_values_come_back_to_half_a_slope_and_zero_as_zero(low, span, seed):
    values = low + span * np.random.default_rng(seed).random((4, 5, 6))
    values[0] = 0
    values = values.astype(np.float32)
    stored, slope, intercept = quantised(values)
    assert len(decimal_string(slope)) <= 16
    assert len(decimal_string(intercept)) <= 16
    assert (Decimal(decimal_string(slope)), Decimal(decimal_string(intercept))) == (
        slope,
        intercept,
    )
    width = max(0.0, float(values.max())) - min(0.0, float(values.min()))
    assert float(slope) <= width / 65534 * 1.0002
    back = stored * float(slope) + float(intercept)
    assert np.abs(back - values).max() <= float(slope) / 2 * (1 + 1e-4)
    assert np.abs(back[0]).max() <= 1e-6 * float(slope)
    constant = quantised(np.zeros((2, 2, 2)))
    assert not (constant[0] * float(constant[1]) + float(constant[2])).any()
