"""MetaImage (``.mha``, and ``.mhd`` with a file of voxels), as BraTS was published until 2016.

A text of ``Key = Value`` lines, then the voxels, raw or deflated. Its world has axes to the left,
the back and the head; here it becomes a NIfTI header, which is checked as that of any NIfTI file.
Format: https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from ldm.data.nifti_header import MAX_DEFLATE_RATIO, require_backed
from ldm.errors import DataError
from ldm.storage import require_regular

SUFFIXES = (".mha", ".mhd")
MAX_HEADER = 1 << 16  # bytes; a real one has some 500
TYPES = {
    "MET_UCHAR": "u1",
    "MET_CHAR": "i1",
    "MET_USHORT": "u2",
    "MET_SHORT": "i2",
    "MET_UINT": "u4",
    "MET_INT": "i4",
    "MET_ULONG": "u4",
    "MET_LONG": "i4",
    "MET_ULONG_LONG": "u8",
    "MET_LONG_LONG": "i8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
Fields = Mapping[str, str]  # of a header, keys in lower case
LAST = "elementdatafile"  # its line ends the header
LPS = np.array([-1.0, -1, 1])


def is_metaimage(path: Path) -> bool:
    """Return whether a file is one by its name, in any case."""
    return path.suffix.lower() in SUFFIXES


def files_of(path: Path) -> tuple[Path, ...]:
    """Return a file and, of a ``.mhd``, the file of its voxels; itself alone if it cannot be read.

    Raises:
        OSError: it cannot be opened.
    """
    if path.suffix.lower() != ".mhd" or not path.is_file():
        return (path,)
    try:
        voxels = _header(path)[0][LAST]
        return (path,) if voxels.upper() == "LOCAL" else (path, _beside(path, voxels))
    except DataError:  # reading it says why
        return (path,)


def read_metaimage(path: Path) -> tuple[nib.Nifti1Header, bytes]:
    """Return the header, as one of NIfTI, and exactly the voxel bytes, in the order of NIfTI.

    Raises:
        DataError: DATA-FORMAT, DATA-HEADER, DATA-TOO-LARGE, DATA-CORRUPT.
        OSError: it cannot be read.
    """
    require_regular(path)
    fields, begin = _header(path)
    shape, stored = _shape(path, fields), _type(path, fields)
    channels = _whole(path, fields, "elementnumberofchannels", 1)
    if channels < 1:
        raise _refused(path, f"has {channels} channels")
    size = int(np.prod([*shape, channels], dtype=float)) * stored.itemsize
    source = path
    if fields[LAST].upper() != "LOCAL":
        source, begin = _beside(path, fields[LAST]), _whole(path, fields, "headersize", 0)
        if begin < 0:  # the voxels end the file
            begin = max(0, source.stat().st_size - size)
    deflated = fields.get("compresseddata", "").lower() == "true"
    require_backed(path, shape, size, require_regular(source).st_size * MAX_DEFLATE_RATIO)
    with source.open("rb") as stream:
        stream.seek(begin)
        content = stream.read(size + (size // 100 + 1024 if deflated else 1))
    content = _inflated(content, size, path) if deflated else content
    if len(content) != size:
        state = "ends too early" if len(content) < size else "goes on"
        told = f"{source.name} {state}: the header states {size} voxel bytes; copy it again"
        raise DataError("DATA-CORRUPT", told)
    voxels = np.frombuffer(content, stored).astype(stored.newbyteorder("="), copy=False)
    if channels > 1:  # they lie side by side; NIfTI has volume after volume
        voxels = voxels.reshape(-1, channels).T
        shape = (*shape, channels)
    return _nifti_header(shape, stored, _affine(path, fields)), voxels.tobytes()


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields, keys in lower case, and where the header ends."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while LAST not in fields:
            line = stream.readline(MAX_HEADER)
            key, equals, value = line.decode("latin-1").partition("=")
            if not equals or not line.endswith(b"\n") or stream.tell() > MAX_HEADER:
                raise DataError(
                    "DATA-FORMAT",
                    f"{path.name} has no MetaImage header (lines of Key = Value to ElementDataFile)"
                    ": copy it again, or convert it to NIfTI",
                )
            fields[key.strip().lower()] = value.strip()
        return fields, stream.tell()


def _refused(path: Path, what: str) -> DataError:
    return DataError("DATA-HEADER", f"{path.name} {what}; repair the header")


def _numbers(
    path: Path, fields: Fields, *keys: str, count: int, default: Sequence[float] = ()
) -> np.ndarray:
    """Return the first numbers of the first key that there is, or a default."""
    key = next((key for key in keys if key in fields), keys[0])
    try:
        found = [float(n) for n in fields[key].split()] if key in fields else default
    except ValueError:
        found = ()
    if len(found) < count:
        seen = fields.get(key, "nothing")
        raise _refused(path, f"has {key} '{seen}': expected {count} numbers")
    return np.array(found[:count])


def _whole(path: Path, fields: Fields, key: str, *default: int) -> int:
    (number,) = _numbers(path, fields, key, count=1, default=default)
    if not abs(number) < 1 << 31 or number != int(number):
        raise _refused(path, f"has {key} {number:g}: expected a whole number")
    return int(number)


def _shape(path: Path, fields: Fields) -> tuple[int, ...]:
    axes = _whole(path, fields, "ndims")
    if axes not in (3, 4):
        raise DataError("DATA-NDIM", f"{path.name} has {axes} axes: expected three")
    shape = _numbers(path, fields, "dimsize", count=axes)
    if not all(1 <= n < 1 << 15 and n == int(n) for n in shape):
        raise _refused(path, f"has DimSize {fields['dimsize']}: expected positive sizes")
    return tuple(int(n) for n in shape)


def _type(path: Path, fields: Fields) -> np.dtype:
    told = fields.get("elementtype", "nothing").upper()
    if told not in TYPES:
        raise _refused(path, f"has ElementType {told}: expected {', '.join(TYPES)}")
    orders = ("binarydatabyteordermsb", "elementbyteordermsb")
    is_big = any(fields.get(key, "").lower() in ("true", "1") for key in orders)
    return np.dtype((">" if is_big else "<") + TYPES[told])


def _beside(path: Path, name: str) -> Path:
    """Return the file of the voxels: one, in the folder of the header."""
    if Path(name).name != name or name.upper() == "LIST" or "%" in name:
        raise DataError(
            "DATA-FORMAT",
            f"{path.name} has its voxels in {name}: expected one file beside it; convert to NIfTI",
        )
    return path.with_name(name)


def _inflated(content: bytes, size: int, path: Path) -> bytes:
    """Undo zlib or gzip, to no more than one byte beyond what is expected."""
    tool = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        found = tool.decompress(content, size + 1)
        if len(found) == size and not tool.eof:
            found += tool.decompress(tool.unconsumed_tail, 1)  # reads on to the checksum
    except zlib.error as error:
        told = f"{path.name} is truncated or damaged ({error}): copy it again"
        raise DataError("DATA-CORRUPT", told) from error
    if not tool.eof and len(found) <= size:
        raise DataError("DATA-CORRUPT", f"{path.name} is truncated: copy it again")
    return found


def _affine(path: Path, fields: Fields) -> np.ndarray:
    """Return voxels to mm, RAS+: of four axes the first three."""
    axes = int(fields["ndims"])
    first = partial(_numbers, path, fields)
    spacing = first("elementspacing", "elementsize", count=axes, default=[1.0] * axes)
    corner = first("offset", "position", "origin", count=axes, default=[0.0] * axes)
    keys, straight = ("transformmatrix", "rotation", "orientation"), np.eye(axes).ravel()
    turned = first(*keys, count=axes * axes, default=straight.tolist()).reshape(axes, axes)
    affine = np.eye(4)
    affine[:3, :3] = turned[:3, :3].T * spacing[:3]  # an axis after the other
    affine[:3, 3] = corner[:3]
    affine[:3] *= LPS[:, None]
    return affine


def _nifti_header(shape: tuple[int, ...], stored: np.dtype, affine: np.ndarray) -> nib.Nifti1Header:
    header = nib.Nifti1Header()
    header.set_data_dtype(stored.newbyteorder("="))
    header.set_data_shape(shape)
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header.set_xyzt_units("mm")
    header["sform_code"] = 1
    header["srow_x"], header["srow_y"], header["srow_z"] = affine[:3]
    if np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 0:
        header.set_qform(affine, code=1, strip_shears=True)
    return header
