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
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from ldm.data import metaimage
from ldm.data.nifti_header import (
    FORM_TOLERANCE,
    MAX_DEFLATE_RATIO,
    MAX_VOLUME_BYTES,
    UNBACKED_BYTES,
    checked_affine,
    corner_distance,
    gap_of_forms,
    quiet_header,
    read_header,
    require_backed,
    spatial_shape,
)
from ldm.data.synthetic import is_marked, mark, read_statement
from ldm.errors import DataError, NonFiniteError, OutputError, of_case
from ldm.storage import CHUNK, atomic_path, require_regular, require_space

log = logging.getLogger(__name__)

SUFFIXES = (".nii.gz", ".nii", *metaimage.SUFFIXES)
GZIP_START = b"\x1f"  # no NIfTI file starts so; the second byte of gzip may be what is damaged
CANONICAL = axcodes2ornt("RAS")
GRID_TOLERANCE = 0.05  # voxels between the corners of two contrasts of one subject
QUATERNION_TOLERANCE = 0.5  # voxels, where a quaternion of float32 alone says how a grid is turned
REGISTER = "register the contrasts to one grid with dsdiff prepare PATIENTS --register"
USUAL_SPACING = (0.05, 20.0)  # mm; a voxel of a brain scan beyond has a wrong unit or a wrong size
GEOMETRY_FIELDS = [
    "xyzt_units",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
]


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a file lie: what an output needs to take the place of its input.

    Args:
        shape: voxels along the stored axes.
        affine: (4, 4) stored voxel index to millimetres (RAS+ world), whatever unit the file has.
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
    def canonical_shape(self) -> tuple[int, ...]:
        """Voxels along the RAS+ axes."""
        return tuple(self.shape[i] for i in np.argsort(self.orientation[:, 0]))

    @property
    def canonical_affine(self) -> np.ndarray:
        """(4, 4) canonical voxel index to millimetres."""
        return self.affine @ inv_ornt_aff(self.orientation, self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Size of a voxel along the RAS+ axes, in mm."""
        return tuple(np.linalg.norm(self.canonical_affine[:3, :3], axis=0).tolist())

    @property
    def stated(self) -> dict[str, Any]:
        """Which form of the header is used, and how far from it the other one is, if it is."""
        form = "sform" if self.header["sform_code"] > 0 else "qform"
        gap = gap_of_forms(self.header, self.shape)
        return {"form": form} | ({"qform_apart": round(gap, 3)} if gap > FORM_TOLERANCE else {})

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """Flip and permute a stored array to RAS+; no interpolation."""
        return np.ascontiguousarray(apply_orientation(array, self.orientation))

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """Undo :meth:`to_canonical`, voxel for voxel."""
        back = ornt_transform(CANONICAL, io_orientation(self.affine))
        return np.ascontiguousarray(apply_orientation(array, back))

    @property
    def is_synthetic(self) -> bool:
        """Whether the file says that its volume was synthesised, not acquired."""
        return is_marked(self.header)

    @property
    def unusual_spacing(self) -> str:
        """What is wrong with the voxel sizes, or an empty text."""
        least, most = USUAL_SPACING
        if all(least <= size <= most for size in self.spacing):
            return ""
        sizes = " x ".join(f"{size:.3g}" for size in self.spacing)
        return f"voxels of {sizes} mm: expected {least:g} to {most:g}; check xyzt_units and pixdim"

    def require_same_grid(self, other: Geometry, names: tuple[str, str], case: str | None) -> None:
        """Refuse two contrasts that do not lie on one grid, in whatever order they are stored.

        Raises:
            DataError: DATA-SHAPE, or DATA-AFFINE when a corner is off by more than a few per cent
                of a voxel (half a voxel where one has a quaternion alone, which is that coarse).
        """
        own, others = self.canonical_shape, other.canonical_shape
        odd = ((name, g.unusual_spacing) for name, g in zip(names, (self, other), strict=True))
        cure = next((f"{name} has {what}" for name, what in odd if what), REGISTER)
        if own != others:
            raise DataError(
                "DATA-SHAPE",
                f"{names[0]} is {own} but {names[1]} is {others} (RAS axes); all contrasts of a "
                f"subject need one grid: {cure}",
                case,
            )
        forms = [geometry.header["sform_code"] for geometry in (self, other)]
        voxels = GRID_TOLERANCE if all(code > 0 for code in forms) else QUATERNION_TOLERANCE
        tolerance = voxels * min(self.spacing)
        distance = corner_distance(self.canonical_affine, other.canonical_affine, own)
        if distance > tolerance:
            raise DataError(
                "DATA-AFFINE",
                f"{names[1]} lies {distance:.3g} mm away from {names[0]} at a corner (at most "
                f"{tolerance:.3g}); {cure}",
                case,
            )


@dataclass(frozen=True)
class Volume:
    """A validated volume: ``array`` (X, Y, Z) float32 in RAS+, and where it came from."""

    array: np.ndarray
    geometry: Geometry


def volume_stem(name: str) -> str | None:
    """Return a file name less ``.nii.gz``, ``.nii``, ``.mha`` or ``.mhd``, in any case, or None."""
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), None)
    return name[: -len(suffix)] if suffix else None


def read_volume(
    path: Path, case: str | None = None, nonfinite: str = "refuse", channel: int | None = None
) -> Volume:
    """Read and validate one NIfTI-1/2 volume, or a MetaImage.

    Args:
        path: a ``.nii``, ``.nii.gz``, ``.mha`` or ``.mhd`` file.
        case: subject, for messages.
        nonfinite: ``refuse``, or ``zero`` to replace NaN and infinity.
        channel: which volume, along the fourth axis, of a file that holds several; the whole file
            is read and verified all the same.

    Raises:
        DataError: DATA-IO, DATA-FORMAT, DATA-HEADER, DATA-TOO-LARGE, DATA-CORRUPT, DATA-NDIM,
            DATA-SCALE, DATA-AFFINE or DATA-NONFINITE.
    """
    path = Path(path)
    with of_case(case):
        return _validated(*_read_bytes(path), path, nonfinite, channel)


def decode_volume(
    content: bytes, name: str, case: str | None = None, nonfinite: str = "refuse"
) -> Volume:
    """Validate an uncompressed NIfTI file in memory, as :func:`read_volume` does one on the disk.

    Args:
        name: of the volume, for messages.
    """
    with of_case(case):
        parsed = _parse(io.BytesIO(content), MAX_VOLUME_BYTES, Path(name))
        return _validated(*parsed, Path(name), nonfinite, None)


def _validated(
    header: nib.Nifti1Header,
    payload: bytes,
    path: Path,
    nonfinite: str,
    channel: int | None,
) -> Volume:
    shape = spatial_shape(header, path, channel)
    geometry = Geometry(shape, checked_affine(header, shape, path), header)
    voxels = np.frombuffer(payload, header.get_data_dtype()).reshape(*shape, -1, order="F")
    stored = voxels[..., channel or 0]
    values = finite_values(_scaled(stored, header, path), path.name, nonfinite)
    return Volume(geometry.to_canonical(values), geometry)


def encode_volume(
    array: np.ndarray,
    geometry: Geometry,
    compress: bool = True,
    synthetic: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the NIfTI file of a canonical array with the geometry of an input.

    Labels and masks (uint8, bool) are written as they are, all else as float32.

    The header is new: orientation, voxel sizes and units are the input's, nothing else is copied,
    so no name of a patient travels. Equal input gives equal bytes.

    Args:
        synthetic: what a synthetic volume says of itself, see
            :func:`ldm.data.synthetic.statement`.

    Raises:
        NonFiniteError: OUT-NONFINITE.
    """
    if bad := int(array.size - np.isfinite(array).sum()):
        raise NonFiniteError(
            "OUT-NONFINITE", f"{bad} of {array.size} voxels are NaN or Inf: nothing was written"
        )
    dtype = np.uint8 if array.dtype in (np.uint8, np.bool_) else np.float32
    data = np.asarray(geometry.from_canonical(array), dtype=dtype)
    header, source = nib.Nifti1Header(), geometry.header
    header.set_data_dtype(dtype)
    header.set_data_shape(data.shape)
    for name in GEOMETRY_FIELDS:
        header[name] = np.nan_to_num(source[name])  # a form whose code is 0 may hold anything
    header["pixdim"][:4] = source["pixdim"][:4]
    if synthetic:
        mark(header, synthetic)
    content = nib.Nifti1Image(data, None, header).to_bytes()
    return gzip.compress(content, compresslevel=6, mtime=0) if compress else content


def write_volume(path: Path, content: bytes) -> None:
    """Write what :func:`encode_volume` returned: atomically, after reading it back.

    Raises:
        OutputError: OUT-EXISTS or OUT-IO.
    """
    with atomic_path(path) as temporary:
        require_space(temporary, len(content))
        temporary.write_bytes(content)
        try:
            with quiet_header():  # what there is to say was said about the input
                read_volume(temporary)
        except DataError as error:
            raise OutputError(
                "OUT-IO", f"{path.name} cannot be read back ({error.code}): is the disk sound?"
            ) from error


def _read_bytes(path: Path) -> tuple[nib.Nifti1Header, bytes]:
    """Return the header and exactly the voxel bytes, reading on until the checksum is verified."""
    try:
        if metaimage.is_metaimage(path):
            return metaimage.read_metaimage(path)
        status = require_regular(path)
        with path.open("rb") as raw:
            if not (start := raw.read(1)):
                raise DataError("DATA-FORMAT", f"{path.name} is empty: copy it again")
            is_gzip = start == GZIP_START
            if is_gzip != path.name.lower().endswith(".gz"):
                kind = "gzip-compressed" if is_gzip else "not gzip-compressed"
                raise DataError("DATA-FORMAT", f"{path.name} is {kind}: rename or repack it")
            raw.seek(0)
            most = status.st_size * (MAX_DEFLATE_RATIO if is_gzip else 1)
            with gzip.GzipFile(fileobj=raw) if is_gzip else raw as stream:
                return _parse(stream, most, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            "DATA-CORRUPT", f"{path.name} is truncated or damaged ({error}): copy it again"
        ) from error
    except OSError as error:
        raise DataError(
            "DATA-IO", f"cannot read {path.name}: {error.strerror or error}; check the file"
        ) from error


def _parse(stream: BinaryIO, most: int, path: Path) -> tuple[nib.Nifti1Header, bytes]:
    try:
        header = read_header(stream, path)
        shape = header.get_data_shape()
        size = int(np.prod(shape, dtype=float)) * header.get_data_dtype().itemsize
        require_backed(path, shape, size, most)
    except DataError:  # a damaged stream explains a bad header: a failed checksum is raised instead
        for _ in range(UNBACKED_BYTES // CHUNK):
            if not stream.read(CHUNK):
                break
        raise
    beside = stream.read(int(header["vox_offset"]) - header.sizeof_hdr)
    if is_marked(header):
        read_statement(header, beside)
    payload = stream.read(size)
    if len(payload) < size or stream.read(1):
        state, cure = "ends too early", "copy it again"
        if len(payload) == size:
            state, cure = "goes on", "correct dim or datatype in its header, or save it anew"
        raise DataError(
            "DATA-CORRUPT",
            f"{path.name} {state}: its header states {size} voxel bytes; {cure}",
        )
    return header, payload


def _scaled(stored: np.ndarray, header: nib.Nifti1Header, path: Path) -> np.ndarray:
    """Return slope * stored + intercept in float32, computed in float64 as nibabel does."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):  # the standard: not scaled
        slope, intercept = 1.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        values = stored
        if (slope, intercept) != (1, 0):
            values = stored * np.float64(slope) + np.float64(intercept)
        scaled = values.astype(np.float32)
    if not np.isfinite(scaled).all() and (np.isfinite(stored) & ~np.isfinite(scaled)).any():
        raise DataError(
            "DATA-SCALE",
            f"{path.name} has slope {slope:g}, intercept {intercept:g}: expected finite float32 "
            "intensities; repair the header",
        )
    return scaled


def finite_values(array: np.ndarray, name: str, nonfinite: str) -> np.ndarray:
    """Return ``array``, its NaN and infinities refused or, with ``zero``, replaced.

    Raises:
        DataError: DATA-NONFINITE.
    """
    bad = ~np.isfinite(array)
    if not bad.any():
        return array
    if nonfinite == "zero":
        log.warning("%s: %d NaN or infinite voxels set to 0", name, bad.sum())
        return np.where(bad, np.float32(0), array)
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    raise DataError(
        "DATA-NONFINITE",
        f"{name} bad={int(bad.sum())}/{array.size} first={first}: voxels are NaN or Inf; "
        "fix the file; dsdiff sample sets them to 0 with --nonfinite zero",
    )
