"""What the header of a NIfTI file states, checked before anything of the file is believed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from ldm.errors import DataError

log = logging.getLogger(__name__)
_unheard = threading.local()  # another thread may read a file of which there is something to say
log.addFilter(lambda record: not getattr(_unheard, "here", False))

MAX_VOLUME_BYTES = 2 << 30  # stored bytes of one volume; 512^3 float64 is 1 GiB
UNBACKED_BYTES = 128 << 20  # above this, a claim must be possible for a file of that length
MAX_DEFLATE_RATIO = 1032  # no deflate stream expands further
MAX_OFFSET = 1 << 20  # header extensions are smaller
READABLE = {np.dtype(t) for t in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")}
FORM_TOLERANCE = 0.5  # mm between sform and qform
UNITS = {1: 1000.0, 3: 0.001}  # code of xyzt_units -> mm (metres, micrometres); else mm, as in ITK
SPATIAL_UNIT = 0x07  # bits of xyzt_units


@contextmanager
def quiet_header() -> Iterator[None]:
    """Keep back what there is to say of the headers that this thread reads."""
    _unheard.here = True
    try:
        yield
    finally:
        _unheard.here = False


def read_header(stream: BinaryIO, path: Path) -> nib.Nifti1Header:
    """Return the header at the start of a NIfTI-1 or NIfTI-2 stream.

    Raises:
        DataError: DATA-FORMAT, DATA-HEADER.
    """
    head = stream.read(nib.Nifti1Header.sizeof_hdr)
    if nib.Nifti1Header.may_contain_header(head):
        header = nib.Nifti1Header(head, check=False)
    else:
        head += stream.read(nib.Nifti2Header.sizeof_hdr - len(head))
        if not nib.Nifti2Header.may_contain_header(head):
            raise DataError("DATA-FORMAT", f"{path.name} has no NIfTI header: convert it to NIfTI")
        header = nib.Nifti2Header(head, check=False)
    _check_header(header, path)
    pixdim = header["pixdim"]  # as the standard reads them: sizes are positive, qfac is 1 or -1
    pixdim[0] = -1 if pixdim[0] == -1 else 1
    pixdim[1:4] = np.abs(pixdim[1:4])
    return header


def require_backed(
    path: Path, shape: Sequence[int], size: int, most: int = MAX_VOLUME_BYTES
) -> None:
    """Refuse a claim of ``size`` bytes where a volume may not have, or its file not hold, so many.

    Raises:
        DataError: DATA-TOO-LARGE.
    """
    limit = min(MAX_VOLUME_BYTES, max(UNBACKED_BYTES, most))
    if size > limit:
        raise DataError(
            "DATA-TOO-LARGE",
            f"{path.name} claims shape {tuple(shape)}, {size} bytes; this file may hold {limit} at "
            "most: resample it, or repair its header",
        )


def _check_header(header: nib.Nifti1Header, path: Path) -> None:
    def refuse(what: str, code: str = "DATA-HEADER") -> None:
        raise DataError(code, f"{path.name} {what}")

    if header["magic"].item().startswith(b"ni"):
        refuse("is half of a .hdr/.img pair: convert the pair to .nii", "DATA-FORMAT")
    dim = [int(d) for d in header["dim"]]
    if not 1 <= dim[0] <= 7 or any(d < 1 for d in dim[1 : dim[0] + 1]):
        refuse(f"has dimensions {dim}: expected 3, then three sizes; repair the header")
    try:
        known = header.get_data_dtype().newbyteorder("=") in READABLE
    except (KeyError, nib.spatialimages.HeaderDataError):
        known = False
    if not known:
        refuse(f"has data type {int(header['datatype'])}: convert to a real number type")
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr <= offset <= MAX_OFFSET:  # also refuses NaN
        least = header.single_vox_offset
        refuse(f"has vox_offset {offset}: expected {least} or a little more; repair the header")


def spatial_shape(
    header: nib.Nifti1Header, path: Path, channel: int | None
) -> tuple[int, int, int]:
    """Return the shape of one volume; without ``channel`` it must be the only one in the file.

    Raises:
        DataError: DATA-NDIM.
    """
    shape = header.get_data_shape()
    while len(shape) > 3 and shape[-1] == 1:
        log.info("%s: trailing axis of length 1 dropped", path.name)
        shape = shape[:-1]
    if channel is None and len(shape) != 3:
        raise DataError(
            "DATA-NDIM", f"{path.name} has shape {shape}: expected three axes; split it"
        )
    volumes = 1 if len(shape) == 3 else shape[3] if len(shape) == 4 else 0
    if channel is not None and not 0 <= channel < volumes:
        raise DataError(
            "DATA-NDIM",
            f"{path.name} has shape {shape}: expected four axes, the fourth with volume {channel}, "
            "counted from 0; check the file, and dataset.json if there is one",
        )
    return tuple(int(n) for n in shape[:3])


def checked_affine(header: nib.Nifti1Header, shape: tuple[int, int, int], path: Path) -> np.ndarray:
    """Return the affine in mm: the sform if there is one, else the qform.

    Raises:
        DataError: DATA-AFFINE.
    """
    forms = [("sform", header.get_sform), ("qform", header.get_qform)]
    stated = [(name, get) for name, get in forms if header[f"{name}_code"] > 0]
    if not stated:
        raise DataError(
            "DATA-AFFINE",
            f"{path.name} states no orientation (sform and qform codes are 0): set one of them",
        )
    affines = [_valid_form(get, name, header, path) for name, get in stated]
    if (gap := gap_of_forms(header, shape)) > FORM_TOLERANCE:
        log.warning("%s: sform and qform lie %.3g mm apart; sform is used", path.name, gap)
    cosines = affines[0][:3, :3] / np.linalg.norm(affines[0][:3, :3], axis=0)
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > 1e-3:
        log.warning("%s: the axes are not at right angles; ITK refuses such files", path.name)
    unit = unit_of(header)
    return np.diag([unit, unit, unit, 1.0]) @ affines[0]


def gap_of_forms(header: nib.Nifti1Header, shape: Sequence[int]) -> float:
    """Return how far apart, in mm, sform and qform put a corner; 0 of one form."""
    if min(header["sform_code"], header["qform_code"]) <= 0:
        return 0.0
    return unit_of(header) * corner_distance(header.get_sform(), header.get_qform(), shape)


def unit_of(header: nib.Nifti1Header) -> float:
    """Return the mm of a unit of the header."""
    return UNITS.get(int(header["xyzt_units"]) & SPATIAL_UNIT, 1.0)


def _valid_form(
    get: Callable[[], np.ndarray],
    name: str,
    header: nib.Nifti1Header,
    path: Path,
) -> np.ndarray:
    try:
        affine = np.asarray(get(), dtype=np.float64)
    except (ValueError, nib.spatialimages.HeaderDataError):  # a quaternion longer than 1
        affine = np.full((4, 4), np.nan)
    zooms = header["pixdim"][1:4]
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    usable = np.isfinite(affine).all() and np.isfinite(zooms).all() and lengths.all() and all(zooms)
    if not usable or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise DataError(
            "DATA-AFFINE",
            f"{path.name} has a degenerate {name} (voxel sizes {zooms.tolist()}): expected three "
            "independent axes; repair the header",
        )
    return affine


def corner_distance(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> float:
    """Return the largest distance, in mm, between the corners that two affines give a grid."""
    indices = np.stack([*np.meshgrid(*[(0, n - 1) for n in shape]), np.ones((2, 2, 2))])
    offsets = ((first - second) @ indices.reshape(4, -1))[:3]
    return float(np.linalg.norm(offsets, axis=0).max())
