"""The NIfTI border: every volume is validated once on entry, and leaves with the input's geometry.

Arrays inside are float32 in RAS+ orientation (first axis to the patient's right, second anterior,
third superior). Files are read to their last byte, so that the checksum at the end of a ``.nii.gz``
is verified, and never beyond the size that the header states, so that a small file cannot fill the
memory.
"""

from __future__ import annotations

import gzip
import io
import logging
import stat
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from ldm.errors import DataError, OutputError
from ldm.storage import atomic_path

log = logging.getLogger(__name__)

MAX_VOLUME_BYTES = 2 << 30  # stored bytes of one volume; 512^3 float64 is 1 GiB
SUFFIXES = (".nii.gz", ".nii")
GZIP_MAGIC = b"\x1f\x8b"
READABLE = {np.dtype(t) for t in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")}
CANONICAL = axcodes2ornt("RAS")


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a file lie: what an output needs to take the place of its input.

    Args:
        shape: voxels along the stored axes.
        affine: (4, 4) stored voxel index to millimetres (RAS+ world).
        header: the NIfTI header of the file; only its geometry fields are ever copied.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    header: nib.Nifti1Header = field(repr=False)

    @property
    def orientation(self) -> np.ndarray:
        """Orientation transform from stored axes to RAS+."""
        return ornt_transform(io_orientation(self.affine), CANONICAL)

    @property
    def canonical_affine(self) -> np.ndarray:
        """(4, 4) canonical voxel index to millimetres."""
        return self.affine @ inv_ornt_aff(self.orientation, self.shape)

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """Flip and permute a stored array to RAS+; no interpolation."""
        return np.ascontiguousarray(apply_orientation(array, self.orientation))

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """Undo :meth:`to_canonical`, voxel for voxel."""
        back = ornt_transform(CANONICAL, io_orientation(self.affine))
        return np.ascontiguousarray(apply_orientation(array, back))

    def require_same_grid(self, other: Geometry, names: tuple[str, str], case: str | None) -> None:
        """Refuse two contrasts that do not lie on one grid.

        Raises:
            DataError: DATA-SHAPE, or DATA-AFFINE when a corner is off by more than 1e-3 mm.
        """
        if self.shape != other.shape:
            raise DataError(
                "DATA-SHAPE",
                f"{names[0]} is {self.shape} but {names[1]} is {other.shape}; all contrasts of a "
                "subject need one grid: resample them to one",
                case,
            )
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(3, -1)
        corners = np.vstack([corners, np.ones(8)])
        distance = np.abs((self.affine - other.affine) @ corners)[:3]
        if (worst := np.linalg.norm(distance, axis=0).max()) > 1e-3:
            raise DataError(
                "DATA-AFFINE",
                f"{names[1]} lies {worst:.3g} mm away from {names[0]} at a corner (at most 0.001); "
                "register the contrasts to one grid",
                case,
            )


@dataclass(frozen=True)
class Volume:
    """A validated volume: ``array`` (X, Y, Z) float32 in RAS+, and where it came from."""

    array: np.ndarray
    geometry: Geometry


def read_volume(path: Path, case: str | None = None, nonfinite: str = "refuse") -> Volume:
    """Read and validate one NIfTI-1/2 volume.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file.
        case: subject, for messages.
        nonfinite: ``refuse``, or ``zero`` to replace NaN and infinity.

    Raises:
        DataError: DATA-IO, DATA-FORMAT, DATA-HEADER, DATA-TOO-LARGE, DATA-CORRUPT, DATA-NDIM,
            DATA-SCALE, DATA-AFFINE or DATA-NONFINITE.
    """
    path = Path(path)
    header, payload = _read_bytes(path, case)
    shape = _spatial_shape(header, path, case)
    affine = _checked_affine(header, path, case)
    geometry = Geometry(shape, affine, header)
    stored = np.frombuffer(payload, header.get_data_dtype()).reshape(shape, order="F")
    array = geometry.to_canonical(_scaled(stored, header, path, case))
    return Volume(_finite(array, path, case, nonfinite), geometry)


def encode_volume(array: np.ndarray, geometry: Geometry, compress: bool = True) -> bytes:
    """Return the NIfTI file of a canonical float32 array with the geometry of an input.

    The header is new: shape, affine with both codes, zooms and units are the input's, nothing else
    is copied, so no name of a patient travels. Equal input gives equal bytes.
    """
    data = np.asarray(geometry.from_canonical(array), dtype=np.float32)
    source = geometry.header
    image = nib.Nifti1Image(data, geometry.affine)
    image.header.set_xyzt_units(*source.get_xyzt_units())
    image.set_qform(source.get_qform(), int(source["qform_code"]))
    image.set_sform(geometry.affine, int(source["sform_code"]))
    image.header.set_zooms(source.get_zooms()[:3])
    content = image.to_bytes()
    return gzip.compress(content, compresslevel=6, mtime=0) if compress else content


def write_volume(path: Path, content: bytes, overwrite: bool = False) -> None:
    """Write what :func:`encode_volume` returned: atomically, after reading it back.

    Raises:
        OutputError: OUT-EXISTS or OUT-IO.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputError("OUT-EXISTS", f"{path.name} exists: give --overwrite to replace it")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        read_volume(temporary)


def _read_bytes(path: Path, case: str | None) -> tuple[nib.Nifti1Header, bytes]:
    """Return the header and exactly the voxel bytes, reading on until the checksum is verified."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise DataError("DATA-FORMAT", f"{path.name} is not a regular file", case)
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == GZIP_MAGIC
            if is_gzip != path.name.endswith(".gz"):
                kind = "gzip-compressed" if is_gzip else "not gzip-compressed"
                raise DataError("DATA-FORMAT", f"{path.name} is {kind}: rename or repack it", case)
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if is_gzip else raw as stream:
                return _parse(stream, path, case)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            "DATA-CORRUPT", f"{path.name} is truncated or damaged ({error}): copy it again", case
        ) from error
    except OSError as error:
        raise DataError(
            "DATA-IO", f"cannot read {path.name}: {error.strerror or error}", case
        ) from error


def _parse(stream: BinaryIO, path: Path, case: str | None) -> tuple[nib.Nifti1Header, bytes]:
    head = stream.read(540)
    header = _parse_header(head, path, case)
    offset, count = float(header["vox_offset"]), int(np.prod(header.get_data_shape(), dtype=float))
    size = count * header.get_data_dtype().itemsize
    if size > MAX_VOLUME_BYTES:
        raise DataError(
            "DATA-TOO-LARGE",
            f"{path.name} claims {header.get_data_shape()} = {size} bytes; at most "
            f"{MAX_VOLUME_BYTES} are read",
            case,
        )
    if not offset <= 1 << 20:  # also refuses NaN
        raise DataError("DATA-HEADER", f"{path.name} has vox_offset {offset}", case)
    end = int(offset) + size
    content = io.BytesIO(head + stream.read(max(0, end - len(head))))
    content.seek(int(offset))
    payload = content.read(size)
    beyond = max(0, len(content.getvalue()) - end) + len(stream.read(1))
    if len(payload) < size or beyond:
        state = f"holds {len(payload)} of {size} voxel bytes" if not beyond else "has bytes beyond"
        raise DataError(
            "DATA-CORRUPT", f"{path.name} {state} what its header states: copy it again", case
        )
    return header, payload


def _parse_header(head: bytes, path: Path, case: str | None) -> nib.Nifti1Header:
    for cls, length in ((nib.Nifti1Header, 348), (nib.Nifti2Header, 540)):
        if len(head) >= length and cls.may_contain_header(head):
            header = cls(head[:length], check=False)
            break
    else:
        raise DataError("DATA-FORMAT", f"{path.name} has no NIfTI header", case)
    if header["magic"].item().rstrip(b"\0")[:2] in (b"ni",):
        raise DataError(
            "DATA-FORMAT", f"{path.name} is half of a .hdr/.img pair: convert to .nii", case
        )
    dim = [int(d) for d in header["dim"]]
    if not 1 <= dim[0] <= 7 or any(d < 1 for d in dim[1 : dim[0] + 1]):
        raise DataError("DATA-HEADER", f"{path.name} has dimensions {dim}: expected 3", case)
    try:
        dtype = header.get_data_dtype().newbyteorder("=")
    except Exception:
        dtype = None
    if dtype not in READABLE:
        code = int(header["datatype"])
        raise DataError(
            "DATA-HEADER", f"{path.name} has data type {code}: expected a real number type", case
        )
    return header


def _spatial_shape(header: nib.Nifti1Header, path: Path, case: str | None) -> tuple[int, int, int]:
    shape = header.get_data_shape()
    while len(shape) > 3 and shape[-1] == 1:
        log.info("%s: trailing axis of length 1 dropped", path.name)
        shape = shape[:-1]
    if len(shape) != 3:
        raise DataError("DATA-NDIM", f"{path.name} has shape {shape}: expected three axes", case)
    return tuple(int(n) for n in shape)


def _checked_affine(header: nib.Nifti1Header, path: Path, case: str | None) -> np.ndarray:
    zooms = header["pixdim"][1:4]
    if int(header["sform_code"]) == int(header["qform_code"]) == 0:
        raise DataError(
            "DATA-AFFINE",
            f"{path.name} states no orientation (sform and qform codes are 0): set one of them",
            case,
        )
    try:
        affine = header.get_best_affine()
    except Exception as error:
        raise DataError("DATA-AFFINE", f"{path.name}: {error}", case) from error
    bad_zooms = not (np.isfinite(zooms).all() and (zooms != 0).all())
    if bad_zooms or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(
            "DATA-AFFINE", f"{path.name} has a degenerate affine (voxel sizes {zooms})", case
        )
    if header["sform_code"] and header["qform_code"]:
        difference = np.abs(header.get_sform() - header.get_qform()).max()
        if difference > 1e-2:
            log.warning("%s: sform and qform differ by %.3g; sform is used", path.name, difference)
    return np.asarray(affine, dtype=np.float64)


def _scaled(
    stored: np.ndarray, header: nib.Nifti1Header, path: Path, case: str | None
) -> np.ndarray:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return stored.astype(np.float32)
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        raise DataError("DATA-SCALE", f"{path.name} has slope {slope}, offset {intercept}", case)
    with np.errstate(over="ignore"):
        scaled = (stored * slope + intercept).astype(np.float32)
    if not np.isfinite(scaled).all() and np.isfinite(stored).all():
        raise DataError("DATA-SCALE", f"{path.name}: slope {slope} overflows float32", case)
    return scaled


def _finite(array: np.ndarray, path: Path, case: str | None, nonfinite: str) -> np.ndarray:
    bad = ~np.isfinite(array)
    if not bad.any():
        return array
    if nonfinite == "zero":
        log.warning("%s: %d NaN or infinite voxels set to 0", path.name, bad.sum())
        return np.where(bad, np.float32(0), array)
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    raise DataError(
        "DATA-NONFINITE",
        f"{path.name} bad={int(bad.sum())}/{array.size} first={first}: voxels are NaN or Inf; "
        "fix the file or pass --nonfinite zero",
        case,
    )
