"""The NIfTI border: what is accepted is read as nibabel reads it, all else is one clear error."""

import gzip
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import RAS, edit_header, head_image, oblique, reoriented, signed_permutations
from builders import write_nifti as write
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.data.nifti import encode_volume, read_volume, write_volume
from ldm.data.synthetic import COMMENT, carried, statement
from ldm.errors import MAX_LINE, DataError, DsdiffError, NonFiniteError, OutputError


def refusal(path: Path, **options) -> DataError:
    with pytest.raises(DataError) as caught:
        read_volume(path, "case-1", **options)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) <= MAX_LINE
    assert line.startswith(f"{caught.value.code} case=case-1: ")
    return caught.value


def read_by_nibabel(path: Path) -> np.ndarray:
    return nib.as_closest_canonical(nib.load(path)).get_fdata().astype(np.float32)


# --- What is accepted -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8"])
def test_every_real_type_is_read_as_nibabel_reads_it(tmp_path, name, dtype):
    image = nib.Nifti1Image(head_image().astype(dtype), RAS, dtype=dtype)
    image.to_filename(tmp_path / name)
    volume = read_volume(tmp_path / name)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, read_by_nibabel(tmp_path / name))


def test_slope_intercept_big_endian_nifti2_and_extremes_of_uint16(tmp_path):
    stored = head_image().astype(np.uint16)
    stored[6, 7, 5] = 65535
    write(tmp_path / "scaled.nii", head_image(), scl_slope=2, scl_inter=-1000)
    write(tmp_path / "u16.nii.gz", stored)
    nib.Nifti2Image(head_image(), RAS).to_filename(tmp_path / "two.nii.gz")
    swapped = nib.Nifti1Header(endianness=">")
    swapped.set_data_dtype(np.int16)
    nib.Nifti1Image(head_image(), RAS, swapped).to_filename(tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == b"\x00\x00\x01\x5c"
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(read_volume(path).array, read_by_nibabel(path)), path.name
    assert read_volume(tmp_path / "u16.nii.gz").array.max() == 65535


@pytest.mark.parametrize("slope", [0, np.nan])
def test_a_slope_of_zero_or_nan_means_unscaled(tmp_path, slope):
    path = write(tmp_path / "a.nii", head_image(), scl_slope=slope, scl_inter=7)
    assert np.array_equal(read_volume(path).array, head_image())


def test_a_fourth_axis_of_length_one_is_dropped(tmp_path, caplog):
    caplog.set_level("INFO")
    path = write(tmp_path / "a.nii.gz", head_image()[..., None])
    assert read_volume(path).array.shape == head_image().shape
    assert "length 1 dropped" in caplog.text


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 11, 1), (2, 3, 5)])
def test_tiny_volumes(tmp_path, shape):
    array = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    assert np.array_equal(read_volume(write(tmp_path / "a.nii", array)).array, array)


def test_header_extensions_lie_before_the_voxels(tmp_path):
    image = nib.Nifti1Image(head_image(), RAS)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JOHN" * 100))
    image.to_filename(tmp_path / "a.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").array, head_image())


def test_all_48_orientations_are_one_canonical_volume(tmp_path):
    expected = head_image()
    for number, turn in enumerate(signed_permutations()):
        stored, affine = reoriented(expected, RAS, turn)
        volume = read_volume(write(tmp_path / f"{number}.nii", stored, affine))
        assert np.array_equal(volume.array, expected)
        assert volume.geometry.canonical_shape == expected.shape
        np.testing.assert_allclose(volume.geometry.canonical_affine, RAS, atol=1e-4)
        assert np.array_equal(volume.geometry.from_canonical(volume.array), stored)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_voxels_are_counted_and_located_as_stored(tmp_path, bad):
    array = head_image().astype(np.float32)
    array[3, 4, 5] = array[8, 2, 1] = bad
    path = write(tmp_path / "a.nii.gz", array, np.diag([-1.0, 1, 1, 1]))
    error = refusal(path)
    assert error.code == "DATA-NONFINITE"
    assert f"bad=2/{array.size} first=(3, 4, 5)" in error.message
    kept = read_volume(path, nonfinite="zero").array[::-1]
    assert kept[3, 4, 5] == kept[8, 2, 1] == 0
    good = np.isfinite(array)
    assert np.array_equal(kept[good], array[good])


@pytest.mark.parametrize("shape", [(5, 6, 7, 2), (5, 6, 7, 1, 3), (5, 6)])
def test_only_three_axes(tmp_path, shape):
    assert refusal(write(tmp_path / "a.nii.gz", np.ones(shape, np.float32))).code == "DATA-NDIM"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"dim": [3, 0, 4, 4, 1, 1, 1, 1]}, "DATA-HEADER"),
        ({"dim": [3, -4, 4, 4, 1, 1, 1, 1]}, "DATA-HEADER"),
        ({"dim": [8, 4, 4, 4, 1, 1, 1, 1]}, "DATA-HEADER"),
        ({"datatype": 0}, "DATA-HEADER"),
        ({"datatype": 9999}, "DATA-HEADER"),
        ({"datatype": 32}, "DATA-HEADER"),  # complex
        ({"datatype": 128}, "DATA-HEADER"),  # RGB
        ({"vox_offset": np.nan}, "DATA-HEADER"),
        ({"vox_offset": 1e9}, "DATA-HEADER"),
        ({"vox_offset": -1}, "DATA-HEADER"),
        ({"vox_offset": 0}, "DATA-HEADER"),  # the header itself would be read as voxels
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "DATA-TOO-LARGE"),
        ({"dim": [3, 1024, 1024, 1024, 1, 1, 1, 1]}, "DATA-TOO-LARGE"),
        ({"dim": [3, 12, 14, 9, 1, 1, 1, 1]}, "DATA-CORRUPT"),  # bytes are left over
        ({"dim": [3, 12, 14, 11, 1, 1, 1, 1]}, "DATA-CORRUPT"),  # bytes are missing
        ({"scl_slope": np.inf}, "DATA-SCALE"),
        ({"scl_slope": 1e37}, "DATA-SCALE"),
        ({"scl_slope": 1, "scl_inter": np.nan}, "DATA-SCALE"),
        ({"sform_code": 0, "qform_code": 0}, "DATA-AFFINE"),
        ({"sform_code": -1, "qform_code": 0}, "DATA-AFFINE"),
        ({"pixdim": [1, 0, 1, 1, 0, 0, 0, 0]}, "DATA-AFFINE"),
        ({"pixdim": [1, np.nan, 1, 1, 0, 0, 0, 0]}, "DATA-AFFINE"),
        ({"srow_x": [0, 0, 0, 0]}, "DATA-AFFINE"),
        ({"srow_x": [0, 1, 0, 0], "srow_y": [0, 1, 0, 0]}, "DATA-AFFINE"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "DATA-AFFINE"),
        ({"qform_code": 1, "quatern_b": 3}, "DATA-AFFINE"),  # a quaternion longer than 1
        ({"magic": b"ni1"}, "DATA-FORMAT"),
    ],
)
def test_a_wrong_header_is_named_before_anything_is_read(tmp_path, fields, code):
    assert refusal(write(tmp_path / "a.nii", head_image(), **fields)).code == code


def test_a_negative_voxel_size_and_a_missing_qfac_are_read_as_the_standard_says(tmp_path):
    path = write(tmp_path / "a.nii", head_image(), np.diag([2.0, 2, 2, 1]))
    edit_header(path, pixdim=[0, -2, 2, 2, 0, 0, 0, 0], sform_code=0, qform_code=1)
    np.testing.assert_allclose(read_volume(path).geometry.affine, nib.load(path).affine)


def test_sform_wins_over_a_different_qform_and_says_so(tmp_path, caplog):
    image = nib.Nifti1Image(head_image(), RAS)
    image.set_qform(RAS + 9 * np.eye(4, k=3), 1)  # x of the origin
    image.set_sform(RAS, 2)
    image.to_filename(tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").geometry.affine, RAS, atol=1e-5)
    assert "sform and qform lie 9 mm apart" in caplog.text


@pytest.mark.parametrize(("unit", "metre"), [("meter", 1), ("mm", 1e3), ("micron", 1e6)])
def test_how_far_the_forms_lie_apart_is_told_in_mm(tmp_path, caplog, unit, metre):
    image = nib.Nifti1Image(head_image(), np.diag([1e-3 * metre] * 3 + [1]))
    image.header.set_xyzt_units(unit)
    for gap, is_told in ((9e-3, True), (1e-4, False)):
        moved = image.affine + gap * metre * np.eye(4, k=3)
        image.set_qform(moved, 1)
        image.set_sform(image.affine, 2)
        image.to_filename(tmp_path / "a.nii")
        caplog.clear()
        read_volume(tmp_path / "a.nii")
        assert ("sform and qform lie 9 mm apart" in caplog.text) == is_told


def test_sheared_axes_are_kept_with_a_warning(tmp_path, caplog):
    sheared = RAS.copy()
    sheared[0, 1] = 0.3
    read_volume(write(tmp_path / "a.nii", head_image(), sheared))
    assert "not at right angles" in caplog.text


def test_what_is_no_nifti_file(tmp_path):
    plain = write(tmp_path / "plain.nii", head_image()).read_bytes()
    contents = {
        "named.nii.gz": plain,
        "packed.nii": gzip.compress(plain),
        "empty.nii": b"",
        "empty.nii.gz": b"",
        "picture.nii": b"\x89PNG\r\n\x1a\n" + bytes(600),
        "dicom.nii": bytes(128) + b"DICM" + bytes(600),
        "short.nii": plain[:347],
        "html.nii.gz": gzip.compress(b"<html>" * 200),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        error = refusal(tmp_path / name)
        assert error.code == "DATA-FORMAT", name
        assert ("is empty" in error.message) == (not content), name
    (tmp_path / "folder.nii").mkdir()
    assert refusal(tmp_path / "folder.nii").code == "DATA-FORMAT"


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nii.gz")
    assert refusal(tmp_path / "a.nii.gz").code == "DATA-FORMAT"


def test_a_header_and_image_pair_is_refused_with_the_remedy(tmp_path):
    nib.Nifti1Pair(head_image(), RAS).to_filename(tmp_path / "a.img")
    error = refusal(tmp_path / "a.hdr")
    assert error.code == "DATA-FORMAT"
    assert "convert the pair to .nii" in error.message


def test_what_the_system_refuses_is_named(tmp_path):
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    for name in ("link.nii.gz", "gone.nii.gz"):
        error = refusal(tmp_path / name)
        assert error.code == "DATA-IO"
        assert "No such file" in error.message


# --- Damage ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("packed") / "a.nii.gz", head_image((16, 16, 16)))


def test_every_truncation_is_caught(packed, tmp_path):
    content = packed.read_bytes()
    path = tmp_path / "cut.nii.gz"
    random = np.random.default_rng(0).integers(1, len(content), 288)
    for length in (1, 2, 7, 8, 9, 10, 11, 18, *(len(content) - n for n in (1, 4, 7, 8)), *random):
        path.write_bytes(content[:length])
        assert refusal(path).code == "DATA-CORRUPT", length


def test_every_bit_flip_that_changes_voxels_or_geometry_is_caught(packed, tmp_path):
    content, truth = packed.read_bytes(), read_volume(packed)
    path = tmp_path / "flipped.nii.gz"
    rng = np.random.default_rng(1)
    codes = []
    for _ in range(600):
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            volume = read_volume(path)
        except DataError as error:
            codes.append(error.code)
        else:
            assert np.array_equal(volume.array, truth.array)
            assert np.array_equal(volume.geometry.affine, truth.geometry.affine)
    assert len(codes) > 550  # the rest hit bits that mean nothing, such as the time of packing
    assert set(codes) <= {"DATA-CORRUPT", "DATA-FORMAT"}


def test_a_zeroed_page_is_caught(packed, tmp_path):
    content = bytearray(packed.read_bytes())
    content[1000:3000] = bytes(2000)
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert refusal(tmp_path / "a.nii.gz").code == "DATA-CORRUPT"


def test_the_end_of_the_gzip_stream_is_checked(packed, tmp_path):
    content = packed.read_bytes()
    wrong_checksum = content[:-8] + bytes(4) + content[-4:]
    endings = {
        "no trailer": content[:-8],
        "checksum": wrong_checksum,
        "garbage": content + b"garbage",
        "second member": content + gzip.compress(b"more"),
    }
    for name, damaged in endings.items():
        (tmp_path / "a.nii.gz").write_bytes(damaged)
        assert refusal(tmp_path / "a.nii.gz").code == "DATA-CORRUPT", name


MEASURE = """
import resource, sys
from pathlib import Path
from ldm.data.nifti import read_volume
from ldm.errors import DataError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read_volume(Path(path))
    except DataError as error:
        print(error.code)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def bomb(path: Path, dim: list[int], unpacked: int) -> Path:
    """Write a header that claims ``dim`` bytes, with ``unpacked`` bytes of zeros behind it."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header["dim"], header["vox_offset"], header["sform_code"] = dim, 352, 1
    with gzip.open(path, "wb") as stream:
        stream.write(header.binaryblock + bytes(4))
        for _ in range(unpacked >> 20):
            stream.write(bytes(1 << 20))
    return path


def test_a_small_file_cannot_fill_the_memory(tmp_path):
    gigabyte = bomb(tmp_path / "0.nii.gz", [3, 1000, 1000, 1000, 1, 1, 1, 1], 0)
    largest = bomb(tmp_path / "1.nii.gz", [3, 32767, 32767, 32767, 1, 1, 1, 1], 0)
    behind = bomb(tmp_path / "2.nii.gz", [3, 4, 4, 4, 1, 1, 1, 1], 300 << 20)
    assert gigabyte.stat().st_size < 100
    child = [sys.executable, "-c", MEASURE, gigabyte, largest, behind]
    output = subprocess.run(child, capture_output=True, text=True, timeout=60).stdout.split()
    assert output[:3] == ["DATA-TOO-LARGE", "DATA-TOO-LARGE", "DATA-CORRUPT"]
    assert int(output[3]) < 100  # MiB


@settings(max_examples=150)
@given(
    position=st.integers(0, 347),
    value=st.integers(0, 255),
    second=st.integers(0, 347),
    other=st.integers(0, 255),
)
def test_any_header_is_read_or_refused_with_a_stable_code(
    tmp_path_factory, position, value, second, other
):
    path = tmp_path_factory.getbasetemp() / "fuzz.nii"
    content = bytearray(write(path, head_image((4, 5, 6))).read_bytes())
    content[position], content[second] = value, other
    path.write_bytes(content)
    try:
        volume = read_volume(path)
    except DataError:
        return
    assert np.isfinite(volume.array).all()
    assert abs(np.linalg.det(volume.geometry.affine[:3, :3])) > 0
    encode_volume(volume.array, volume.geometry)  # what was let in can be written


# --- Writing --------------------------------------------------------------------------------------

FORMS = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d")
FORMS += ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")


def written(path: Path, source: Path) -> nib.Nifti1Image:
    volume = read_volume(source)
    write_volume(path, encode_volume(volume.array, volume.geometry, path.suffix == ".gz"))
    return nib.load(path)


@pytest.mark.parametrize("turn", [None, *range(48)])
def test_the_output_takes_the_place_of_its_input(tmp_path, turn):
    image, affine = head_image(), oblique()
    if turn is not None:
        image, affine = reoriented(image, RAS, signed_permutations()[turn])
    source = nib.Nifti1Image(image, affine)
    source.set_qform(affine, 1)
    source.set_sform(affine, 4)
    source.header.set_xyzt_units("mm", "sec")
    source.to_filename(tmp_path / "in.nii.gz")
    source = nib.load(tmp_path / "in.nii.gz")
    output = written(tmp_path / "out.nii.gz", tmp_path / "in.nii.gz")
    for name in ("dim", "pixdim", "xyzt_units", *FORMS):
        assert np.array_equal(output.header[name], source.header[name]), name
    assert np.array_equal(output.affine, source.affine)
    assert np.array_equal(output.get_fdata(), image)
    assert output.get_data_dtype() == np.float32
    assert (output.dataobj.slope, output.dataobj.inter) == (1, 0)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 4)])
def test_codes_of_both_forms_are_kept(tmp_path, codes):
    source = nib.Nifti1Image(head_image(), RAS)
    source.set_qform(RAS, codes[0])
    source.set_sform(RAS, codes[1])
    source.to_filename(tmp_path / "in.nii")
    output = written(tmp_path / "out.nii", tmp_path / "in.nii")
    assert (output.header["qform_code"], output.header["sform_code"]) == codes
    np.testing.assert_array_equal(output.affine, nib.load(tmp_path / "in.nii").affine)


@pytest.mark.parametrize("affine", [RAS, oblique(), np.diag([-1.0, -1, 5, 1])])
def test_simpleitk_sees_the_same_voxels_and_geometry(tmp_path, affine):
    itk = pytest.importorskip("SimpleITK")
    source = write(tmp_path / "in.nii.gz", head_image().astype(np.float32), affine)
    written(tmp_path / "out.nii.gz", source)
    before, after = (itk.ReadImage(str(tmp_path / n)) for n in ("in.nii.gz", "out.nii.gz"))
    assert np.array_equal(itk.GetArrayFromImage(before), itk.GetArrayFromImage(after))
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(after, get)(), getattr(before, get)(), atol=1e-4)


def test_an_int16_input_does_not_squeeze_the_output(tmp_path):
    volume = read_volume(write(tmp_path / "in.nii.gz", head_image()))
    values = np.random.default_rng(0).uniform(-1, 1, volume.array.shape).astype(np.float32)
    write_volume(tmp_path / "out.nii.gz", encode_volume(values, volume.geometry))
    assert np.array_equal(read_volume(tmp_path / "out.nii.gz").array, values)


def test_no_text_of_the_input_travels(tmp_path):
    image = nib.Nifti1Image(head_image(), RAS)
    image.header["descrip"], image.header["aux_file"] = b"DOE^JOHN", b"DOE^JOHN.dcm"
    image.header["intent_name"], image.header["db_name"] = b"DOE^JOHN", b"DOE^JOHN"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JOHN"))
    image.to_filename(tmp_path / "in.nii")
    assert b"DOE^JOHN" in (tmp_path / "in.nii").read_bytes()
    written(tmp_path / "out.nii", tmp_path / "in.nii")
    assert b"DOE" not in (tmp_path / "out.nii").read_bytes()


@pytest.mark.parametrize(
    "behind",
    [
        b"",
        b"\1\0\0\0",
        b"\1\0\0\0" + np.array([2**31 - 1, COMMENT], "<i4").tobytes() + b"{}",
        b"\1\0\0\0" + np.array([-(2**31), COMMENT], "<i4").tobytes() + b"{}",
        b"\1\0\0\0" + np.array([64, COMMENT], "<i4").tobytes() + b'{"Model": ["A. Name"]}',
        b"\1\0\0\0" + np.array([10**6, COMMENT], "<i4").tobytes() + b"[" * 10**5,
    ],
)
def test_whatever_lies_behind_a_header_that_says_synthetic_is_survived(tmp_path, behind):
    start = 352 + len(behind) // 16 * 16 + 16
    said = {"descrip": b"SYNTHETIC dsdiff 1", "vox_offset": start}
    content = write(tmp_path / "a.nii", head_image(), **said).read_bytes()
    path = tmp_path / "b.nii"
    path.write_bytes(content[:348] + behind.ljust(start - 348, b"\0") + content[352:])
    volume = read_volume(path)
    assert np.array_equal(volume.array, head_image())
    assert carried(volume.geometry.header, "t1ce") == statement({"target": "t1ce"})


def test_equal_input_gives_equal_bytes(tmp_path, monkeypatch):
    volume = read_volume(write(tmp_path / "in.nii.gz", head_image()))
    first = encode_volume(volume.array, volume.geometry)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert encode_volume(volume.array, volume.geometry) == first
    assert encode_volume(volume.array, volume.geometry, compress=False) == gzip.decompress(first)


def test_an_existing_output_is_kept(tmp_path):
    volume = read_volume(write(tmp_path / "a.nii.gz", head_image()))
    before = (tmp_path / "a.nii.gz").read_bytes()
    content = encode_volume(volume.array + 1, volume.geometry)
    with pytest.raises(OutputError, match="OUT-EXISTS"):
        write_volume(tmp_path / "a.nii.gz", content)
    assert (tmp_path / "a.nii.gz").read_bytes() == before


def test_nothing_half_good_is_written(tmp_path):
    volume = read_volume(write(tmp_path / "in.nii.gz", head_image()))
    content = encode_volume(volume.array, volume.geometry)
    with pytest.raises(OutputError, match="cannot be read back"):
        write_volume(tmp_path / "out.nii.gz", content[:-9])
    with pytest.raises(NonFiniteError):
        encode_volume(np.where(volume.array > 0, np.nan, 0), volume.geometry)
    assert [p.name for p in tmp_path.iterdir()] == ["in.nii.gz"]


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path):
    volume = read_volume(write(tmp_path / "in.nii", head_image()))
    content = encode_volume(volume.array, volume.geometry, compress=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match="OUT-IO") as caught:
            write_volume(tmp_path / "out.nii", content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(caught.value, DsdiffError)
    assert [p.name for p in tmp_path.iterdir()] == ["in.nii"]


def test_contrasts_on_different_grids_are_told_apart(tmp_path):
    def geometry(affine=RAS, shape=(12, 14, 10)):
        return read_volume(write(tmp_path / "a.nii", head_image(shape), affine)).geometry

    def refused(other):
        with pytest.raises(DataError) as caught:
            geometry().require_same_grid(other, ("t1", "t2"), "case-1")
        return str(caught.value)

    shift = np.zeros((4, 4))
    shift[0, 3] = 1
    geometry().require_same_grid(geometry(RAS + 0.04 * shift), ("t1", "t2"), "case-1")
    assert "t2 lies 0.1 mm away from t1" in refused(geometry(RAS + 0.1 * shift))
    assert "DATA-AFFINE" in refused(geometry(RAS @ np.diag([-1, 1, 1, 1])))
    assert "DATA-AFFINE" in refused(geometry(oblique(1)))
    assert "t1 is (12, 14, 10) but t2 is (12, 14, 9)" in refused(geometry(shape=(12, 14, 9)))
