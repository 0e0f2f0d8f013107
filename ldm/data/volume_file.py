"""Where one contrast of one subject is stored: a file, or one volume in a file of several."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.data.metaimage import files_of
from ldm.data.nifti import Volume, read_volume, volume_stem
from ldm.errors import DataError, of_case
from ldm.storage import read_json, require_regular, sha256


@dataclass(frozen=True)
class VolumeFile:
    """One volume in a NIfTI or MetaImage file. A subclass reads another kind of file.

    Args:
        path: the file.
        channel: which volume along the fourth axis, counted from 0; None: the file holds one.
    """

    path: Path
    channel: int | str | None = None

    @property
    def name(self) -> str:
        """Name for messages."""
        return self.cell(self.path.parent)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that hold a part of the volume."""
        return files_of(self.path)

    def read(self, case: str | None = None, nonfinite: str = "refuse") -> Volume:
        """Read and validate the volume, see :func:`ldm.data.nifti.read_volume`.

        Raises:
            DataError: the file cannot be used.
        """
        return read_volume(self.path, case, nonfinite, self.channel)

    def sha256(self, case: str | None = None) -> str:
        """Return the SHA-256 of the file, followed by ``#channel`` where it holds several volumes.

        Raises:
            DataError: DATA-IO, or DATA-FORMAT where it is no regular file.
        """
        with self._opened(case):
            return f"{self._digest()}{self._mark()}"

    def state(self, case: str | None = None) -> list[Any]:
        """Return place, size and times of change: what tells, without reading, that a file is new.

        Raises:
            DataError: DATA-IO, the file vanished or is a link to nothing; DATA-FORMAT, it is no
                regular file.
        """
        with self._opened(case):
            status = [require_regular(path) for path in self.paths]
        size, changed = sum(s.st_size for s in status), max(s.st_mtime_ns for s in status)
        replaced = max(s.st_ctime_ns for s in status)  # nobody can set it, as `cp -p` the other
        place = [str(self.path.resolve()), size, changed, replaced]
        return place if self.channel is None else [*place, self.channel]

    def cell(self, folder: Path) -> str:
        """Return the text that names this volume in a CSV file that lies in ``folder``."""
        return Path(os.path.relpath(self.path, folder)).as_posix() + self._mark()

    @property
    def sidecar(self) -> Path:
        """The JSON file beside the volume, where something was said about it."""
        return self.path.with_name(f"{volume_stem(self.path.name) or self.path.name}.json")

    def described(self) -> dict[str, Any]:
        """Return what the sidecar says; empty without one, or for one that cannot be read."""
        try:
            return read_json(self.sidecar, torn=True)
        except OSError:
            return {}

    @contextmanager
    def _opened(self, case: str | None) -> Iterator[None]:
        with of_case(case):
            try:
                yield
            except OSError as error:
                told = f"cannot read {self.path.name}: {error.strerror}; restore the file"
                raise DataError("DATA-IO", told) from error

    def _mark(self) -> str:
        return "" if self.channel is None else f"#{self.channel}"

    def _digest(self) -> str:
        """Return the digest of the file, or that of the digests of several."""
        digests = sorted(sha256(path) for path in self.paths)
        only, *others = digests
        return hashlib.sha256("".join(digests).encode()).hexdigest() if others else only


@dataclass(frozen=True)
class RefusedVolume(VolumeFile):
    """A volume of which it cannot be told where it is: whoever reads it is told why.

    So it is the fault of one subject, and of those verbs that need this volume.

    Args:
        code, why: of the error, see :class:`ldm.errors.DataError`.
        claimants: the files that it could be.
    """

    code: str = "DATA-AMBIGUOUS"
    why: str = ""
    claimants: tuple[VolumeFile, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:  # noqa: D102
        return tuple(path for file in self.claimants for path in file.paths)

    def refusal(self, case: str | None = None) -> DataError:
        """Return why it cannot be read."""
        return DataError(self.code, self.why, case)

    def read(self, case: str | None = None, nonfinite: str = "refuse") -> Volume:  # noqa: D102
        raise self.refusal(case)

    def sha256(self, case: str | None = None) -> str:  # noqa: D102
        raise self.refusal(case)

    def state(self, case: str | None = None) -> list[Any]:  # noqa: D102
        raise self.refusal(case)


def is_drawn(labels: VolumeFile) -> bool:
    """Return whether a network of this project drew a label map, as its sidecar says."""
    return labels.described().get("Segmentation") is True
