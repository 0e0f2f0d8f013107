"""A subject that Python hands over: its contrasts as paths, nibabel images or arrays."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np

from ldm.data.layouts import Layout, Subject
from ldm.data.nifti import Volume, decode_volume
from ldm.data.volume_file import VolumeFile
from ldm.errors import ConfigError, DataError, nearest
from ldm.study import MASK_FILE, Study
from ldm.util import user_path

# a path, a nibabel image, or (array, affine)
VolumeLike: TypeAlias = str | Path | nib.spatialimages.SpatialImage | tuple[Any, Any]


@dataclass(frozen=True)
class VolumeInMemory(VolumeFile):
    """A volume that lies in memory as an uncompressed NIfTI file; ``path`` is its name."""

    content: bytes = field(default=b"", repr=False)

    @property
    def paths(self) -> tuple[Path, ...]:  # noqa: D102
        return ()

    def read(self, case: str | None = None, nonfinite: str = "refuse") -> Volume:  # noqa: D102
        return decode_volume(self.content, self.path.name, case, nonfinite)

    def _digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class GivenLayout(Layout):
    """The files are named one by one."""

    name = "given in Python"


def given_subject(
    subject: str,
    given: Mapping[str, VolumeLike | float],
    study: Study,
    allow_missing: Sequence[str] = (),
) -> Subject:
    """Return a subject whose volumes, and numbers if the model takes any, are given.

    Args:
        subject: its id.
        given: contrast, or ``brain`` for a mask, -> volume; covariate -> number; None: not there.
        study: what the model takes.
        allow_missing: contrasts that may be absent.

    Raises:
        ConfigError: CONFIG-UNKNOWN for a name that the model does not take.
        DataError: DATA-MISSING, DATA-FORMAT.
    """
    known = (*study.conditions, *study.covariates)
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in (*known, MASK_FILE):
            raise ConfigError(
                "CONFIG-UNKNOWN",
                f"'{name}' is neither a contrast of this model nor an option"
                f"{nearest(name, known)}: it takes {', '.join(known)}",
            )
    for name in known:
        is_hidden = name in study.covariates and study.data.get("covariate_dropout")
        if name not in given and name not in allow_missing and not is_hidden:
            kind = "NUMBER" if name in study.covariates else "FILE"
            raise DataError(
                "DATA-MISSING",
                f"no {name}: this model takes {', '.join(known)}; give {name}={kind}",
                subject,
            )
    volumes = {name: value for name, value in given.items() if name not in study.covariates}
    columns = {name.lower(): str(given.get(name, "")) for name in study.covariates}
    files = {name: as_file(name, value, subject) for name, value in volumes.items()}
    return Subject(subject, files, columns=columns)


def as_file(name: str, volume: VolumeLike | float, case: str | None = None) -> VolumeFile:
    """Return a path, a nibabel image or ``(array, affine)`` as what the readers take.

    Raises:
        DataError: DATA-FORMAT for anything else, DATA-CORRUPT for an image that cannot be read.
    """
    if isinstance(volume, str | Path):
        return VolumeFile(user_path(volume))
    try:
        return VolumeInMemory(Path(name), content=_encoded(volume, name, case))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            "DATA-CORRUPT", f"{name} cannot be read ({error}): copy its file again", case
        ) from error
    except (ValueError, nib.spatialimages.HeaderDataError) as error:
        raise DataError("DATA-FORMAT", f"{name} is no volume: {error}", case) from error


def _encoded(volume: Any, name: str, case: str | None) -> bytes:
    """Return a nibabel image or ``(array, affine)`` as a NIfTI file."""
    if isinstance(volume, nib.spatialimages.SpatialImage):
        array, affine = _storable(np.asarray(volume.dataobj)), volume.affine
        header = nib.Nifti1Header.from_header(volume.header)
    elif isinstance(volume, tuple) and len(volume) == 2:
        array, affine = _storable(np.asarray(volume[0])), np.asarray(volume[1], dtype=float)
        header = nib.Nifti1Header()
    else:
        raise DataError(
            "DATA-FORMAT",
            f"{name} is a {type(volume).__name__}: give a path, a nibabel image or (array, affine)",
            case,
        )
    header.set_data_dtype(array.dtype)
    image = nib.Nifti1Image(array, affine, header)
    if not isinstance(volume, nib.Nifti1Pair):  # no header of NIfTI says which form holds
        image.set_sform(affine, code=2)
    return image.to_bytes()


def _storable(array: np.ndarray) -> np.ndarray:
    """Return an array of a number type that NIfTI has."""
    small = {np.dtype(bool): np.uint8, np.dtype(np.float16): np.float32}
    return array.astype(small.get(array.dtype, array.dtype), copy=False)
