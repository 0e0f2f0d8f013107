"""MetaImage files, as SimpleITK writes them and as they are described, are read as NIfTI is."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest
from builders import rotation

from ldm.data.nifti import read_volume
from ldm.data.volume_file import VolumeFile
from ldm.errors import DataError

RNG = np.random.default_rng(0)
ARRAY = RNG.integers(0, 200, (5, 6, 7))  # (X, Y, Z), along the axes of the file
TURNED = rotation(12, 0, 1)[:3, :3] @ rotation(5, 1, 2)[:3, :3]


def image_of(array: np.ndarray):
    itk = pytest.importorskip("SimpleITK")
    image = itk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing((0.9, 1.1, 3.0))
    image.SetOrigin((-12.0, 30.0, -7.5))
    image.SetDirection(TURNED.ravel().tolist())
    return itk, image


def written(path: Path, header: dict[str, object], voxels: bytes) -> Path:
    """Write a file by the description of the format; None leaves a line out."""
    usual = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1 1 1",
        "DimSize": "5 6 7",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }
    lines = {**usual, **header}
    last = lines.pop("ElementDataFile")
    text = "".join(f"{k} = {v}\n" for k, v in lines.items() if v is not None)
    path.write_bytes(f"{text}ElementDataFile = {last}\n".encode() + voxels)
    return path


def raw(dtype: str = "<i2") -> bytes:
    return ARRAY.astype(dtype).tobytes(order="F")


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".MHA"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_what_itk_writes_is_read_as_its_nifti_is(tmp_path, kind, suffix, deflated):
    itk, image = image_of(ARRAY.astype(kind))
    path = tmp_path / f"a{suffix.lower()}"
    itk.WriteImage(image, str(path), useCompression=deflated)
    path = path.rename(path.with_suffix(suffix))
    itk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    found, expected = read_volume(path), read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(found.array, expected.array)
    assert np.allclose(
        found.geometry.canonical_affine, expected.geometry.canonical_affine, atol=2e-5
    )
    found.geometry.require_same_grid(expected.geometry, ("mha", "nii"), None)


@pytest.mark.parametrize("dtype", [">i2", ">f4", "<f8"])
def test_either_order_of_bytes(tmp_path, dtype):
    kinds = {"i2": "MET_SHORT", "f4": "MET_FLOAT", "f8": "MET_DOUBLE"}
    header = {"ElementType": kinds[dtype[1:]], "BinaryDataByteOrderMSB": str(dtype[0] == ">")}
    path = written(tmp_path / "a.mha", header, raw(dtype))
    assert read_volume(path).geometry.canonical_shape == (5, 6, 7)
    np.testing.assert_array_equal(read_volume(path).array, ARRAY[::-1, ::-1])  # LPS to RAS


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_deflated_voxels_in_either_wrapping(tmp_path, pack):
    path = written(tmp_path / "a.mha", {"CompressedData": "True"}, pack(raw()))
    np.testing.assert_array_equal(read_volume(path).array, ARRAY[::-1, ::-1])


@pytest.mark.parametrize(("size", "before"), [(3, b"abc"), (-1, b"any number")])
def test_voxels_in_a_file_of_their_own_after_a_head(tmp_path, size, before):
    (tmp_path / "a.raw").write_bytes(before + raw())
    header = {"ElementDataFile": "a.raw", "HeaderSize": size}
    path = written(tmp_path / "a.mhd", header, b"")
    np.testing.assert_array_equal(read_volume(path).array, ARRAY[::-1, ::-1])


def test_several_volumes_in_a_file(tmp_path):
    """As channels, which lie side by side, and as a fourth axis, one after the other."""
    both = np.stack([ARRAY, ARRAY + 300])
    side = both.astype("<i2").tobytes(order="F")
    channels = written(tmp_path / "a.mha", {"ElementNumberOfChannels": 2}, side)
    header = {"NDims": 4, "DimSize": "5 6 7 2", "TransformMatrix": None, "Offset": "0 0 0 0"}
    header["ElementSpacing"] = "1 1 1 1"
    after = b"".join(volume.astype("<i2").tobytes(order="F") for volume in both)
    for path in (channels, written(tmp_path / "b.mha", header, after)):
        np.testing.assert_array_equal(read_volume(path, channel=1).array, both[1][::-1, ::-1])
        with pytest.raises(DataError, match="DATA-NDIM"):
            read_volume(path)


def test_the_digest_and_the_state_tell_of_the_voxels(tmp_path):
    (tmp_path / "a.raw").write_bytes(raw())
    file = VolumeFile(written(tmp_path / "a.mhd", {"ElementDataFile": "a.raw"}, b""))
    before = file.sha256(), file.state()
    (tmp_path / "a.raw").write_bytes(raw()[::-1])
    assert file.sha256() != before[0] and file.state() != before[1]
    assert [path.name for path in file.paths] == ["a.mhd", "a.raw"]


@pytest.mark.parametrize(
    ("header", "voxels", "code"),
    [
        ({}, raw()[:-1], "DATA-CORRUPT"),
        ({}, raw() + b"x", "DATA-CORRUPT"),
        ({"CompressedData": "True"}, zlib.compress(raw())[:-9], "DATA-CORRUPT"),
        ({"CompressedData": "True"}, zlib.compress(raw())[:-1], "DATA-CORRUPT"),
        ({"CompressedData": "True"}, zlib.compress(raw() + b"xx"), "DATA-CORRUPT"),
        ({"CompressedData": "True"}, b"no zlib", "DATA-CORRUPT"),
        ({"DimSize": "30000 30000 30000"}, raw(), "DATA-TOO-LARGE"),
        ({"DimSize": "5 6"}, raw(), "DATA-HEADER"),
        ({"DimSize": "5 -6 7"}, raw(), "DATA-HEADER"),
        ({"DimSize": "5 nan 7"}, raw(), "DATA-HEADER"),
        ({"DimSize": None}, raw(), "DATA-HEADER"),
        ({"NDims": 2}, raw(), "DATA-NDIM"),
        ({"NDims": "nan"}, raw(), "DATA-HEADER"),
        ({"ElementType": "MET_STRING"}, raw(), "DATA-HEADER"),
        ({"ElementSpacing": "1 1"}, raw(), "DATA-HEADER"),
        ({"ElementSpacing": "1 0 1"}, raw(), "DATA-AFFINE"),
        ({"ElementSpacing": "1 inf 1"}, raw(), "DATA-AFFINE"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, raw(), "DATA-AFFINE"),
        ({"ElementNumberOfChannels": 0}, raw(), "DATA-HEADER"),
        ({"ElementDataFile": "../a.raw"}, b"", "DATA-FORMAT"),
        ({"ElementDataFile": "LIST"}, b"", "DATA-FORMAT"),
        ({"ElementDataFile": "none.raw"}, b"", "DATA-IO"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(tmp_path, header, voxels, code):
    for suffix in (".mha", ".mhd"):
        path = written(tmp_path / f"a{suffix}", header, voxels)
        with pytest.raises(DataError) as refused:
            VolumeFile(path).read("p1")
        assert refused.value.code == code and "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"NDims = 3\n", b"\x00" * 400, b"a" * 100_000])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "a.mha"
    path.write_bytes(content)
    with pytest.raises(DataError, match="DATA-FORMAT"):
        read_volume(path)
