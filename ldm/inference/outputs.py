"""Outputs, a subject at a time: a failure does not stop the others, nothing is overwritten.

The sidecar of a volume is written before it: it says what the volume will be, so that a run that
was killed between the two knows its own work from a stranger's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ldm.claims import claimed, permit
from ldm.data.layouts import Layout, Subject
from ldm.data.nifti import Geometry, encode_volume, write_volume
from ldm.data.synthetic import statement
from ldm.errors import DsdiffError, OutputError, WorkerError, as_known_error
from ldm.storage import read_json, remove, sha256, write_csv, write_json

FAILURES = "failures.csv"
DECISIVE = ("Synthetic", "inputs", "request", "covariates")  # of a sidecar: what decides the voxels


@dataclass
class Written:
    """How many outputs were written or were there already, and what went wrong."""

    new: int = 0
    old: int = 0
    failures: list[DsdiffError] = field(default_factory=list)

    def write_failures(self, folder: Path) -> None:
        """Write ``failures.csv``, a line a subject that failed; remove it where none did.

        Raises:
            OutputError: OUT-EXISTS for a stranger's file, OUT-IO.
        """
        path = folder / FAILURES
        if self.failures:
            rows = [(error.case, error.code, error.message) for error in self.failures]
            write_csv(path, ("subject", "code", "message"), rows)
        else:
            remove(path)


def write_each(
    subjects: Sequence[Subject],
    layout: Layout,
    write: Callable[[Subject, Layout, str], bool],
    report: Callable[[DsdiffError], None],
    at_once: int = 1,
) -> Written:
    """Call ``write(subject, layout, title)`` for each; one that fails is told to ``report``.

    Args:
        at_once: threads that call ``write``.

    Raises:
        OutputError: the outputs cannot be written, or exist. WorkerError: a process was killed.
    """

    def attempt(numbered: tuple[int, Subject]) -> bool | DsdiffError:
        number, subject = numbered
        try:
            return write(subject, layout, f"{subject.id} ({number}/{len(subjects)})")
        except Exception as error:
            known = as_known_error(error)
            if known is None or isinstance(known, OutputError | WorkerError):
                raise
            return known

    done = Written()
    with _mapping(at_once) as mapped:
        for outcome in mapped(attempt, enumerate(subjects, 1)):
            if isinstance(outcome, DsdiffError):
                report(outcome)
                done.failures.append(outcome)
            else:
                done.new, done.old = done.new + outcome, done.old + (not outcome)
    return done


@contextmanager
def _mapping(threads: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yield ``map``, or one that works in threads; after an error nothing more is begun."""
    if threads == 1:
        yield map
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool.map
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class SyntheticVolume:
    """A synthetic volume of one subject and how it was made.

    Args:
        id: subject.
        target: the contrast that was synthesised.
        geometry: where the voxels of the input lie; the output takes their place.
        volume: (X, Y, Z) float32 in RAS+, in the units of the first input contrast.
        spread: (X, Y, Z) standard deviation over the samples, None of a single one.
        described: what decides the voxels, and their units.
    """

    id: str
    target: str
    geometry: Geometry = field(repr=False)
    volume: np.ndarray = field(repr=False)
    spread: np.ndarray | None = field(repr=False)
    described: Mapping[str, Any] = field(repr=False)

    @property
    def image(self) -> nib.Nifti1Image:
        """The volume in memory, with the orientation and affine of the input."""
        return as_image(self.volume, self.geometry, synthetic=self._said)

    @property
    def std(self) -> nib.Nifti1Image | None:
        """The standard deviation over the samples, None of a single one."""
        said = self._said
        return None if self.spread is None else as_image(self.spread, self.geometry, synthetic=said)

    @cached_property
    def content(self) -> bytes:
        """The volume as a ``.nii.gz`` file."""
        return encode_volume(self.volume, self.geometry, synthetic=self._said)

    @cached_property
    def spread_content(self) -> bytes | None:
        """The standard deviation as a ``.nii.gz`` file, None of a single sample."""
        if self.spread is None:
            return None
        return encode_volume(self.spread, self.geometry, synthetic=self._said)

    @property
    def _said(self) -> dict[str, Any]:
        return statement({**self.described, "target": self.target})

    @property
    def sidecar(self) -> dict[str, Any]:
        """What is written beside the volume: model, request, inputs, units, digests."""
        contents = {"sha256": self.content, "std_sha256": self.spread_content}
        digests = {n: hashlib.sha256(c).hexdigest() for n, c in contents.items() if c}
        return {**self.described, "target": self.target, **digests}

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write ``ID_TARGET.nii.gz``, ``.json`` and, of several samples, ``_std.nii.gz``.

        The same volume that is there already stays as it is.

        Returns:
            The path of the volume.

        Raises:
            OutputError: OUT-EXISTS for another volume of that name, unless it may be overwritten;
                OUT-IO.
        """
        path, sidecar = volume_paths(Path(folder), self.id, self.target)
        same = {key: self.described[key] for key in DECISIVE if key in self.described}
        with claimed(Path(folder), "sample", replace=overwrite):
            if is_written(path, sidecar, same, overwrite):
                return path
            if not overwrite:
                require_remade(path, sidecar, self.sidecar["sha256"])
            return self.write(Path(folder))

    def write(self, folder: Path) -> Path:
        """Write the files, also in place of those of another request; see :meth:`save`.

        Raises:
            OutputError: OUT-IO; OUT-EXISTS for a stranger's file.
        """
        path, sidecar = volume_paths(folder, self.id, self.target)
        with claimed(folder, "sample"):
            write_json(sidecar, self.sidecar)
            try:
                remove(spread_path(path))  # of another request
                if self.spread_content:
                    write_volume(spread_path(path), self.spread_content)
                write_volume(path, self.content)
            except OutputError:  # a stranger's file came in between
                if not path.is_file() or sha256(path) != self.sidecar["sha256"]:
                    remove(sidecar)
                raise
        return path


def as_image(volume: np.ndarray, geometry: Geometry, **options: Any) -> nib.Nifti1Image:
    """Return a canonical array as the image that :func:`encode_volume` writes, in memory."""
    content = encode_volume(volume, geometry, compress=False, **options)
    image = nib.Nifti1Image.from_bytes(content)
    return nib.Nifti1Image(np.array(image.dataobj), image.affine, image.header)


def volume_paths(folder: Path, subject: str, name: str) -> tuple[Path, Path]:
    """Return where a volume called ``name`` and its sidecar lie."""
    return folder / f"{subject}_{name}.nii.gz", folder / f"{subject}_{name}.json"


def spread_path(path: Path) -> Path:
    """Return where the standard deviation of the volume at ``path`` lies."""
    return path.with_name(f"{path.name.removesuffix('.nii.gz')}_std.nii.gz")


def is_written(path: Path, sidecar: Path, described: Mapping[str, Any], overwrite: bool) -> bool:
    """Return whether a volume is there, whole and as ``described``; False where it is to be made.

    Raises:
        OutputError: OUT-EXISTS for any other output, unless it may be overwritten; OUT-INPUT.
    """
    if _is_whole(path, sidecar, described, overwrite):
        return True
    for output in (path, sidecar, spread_path(path)):  # refused before any work
        permit(output, overwrite)
    return False


def _is_whole(path: Path, sidecar: Path, described: Mapping[str, Any], overwrite: bool) -> bool:
    before = read_json(sidecar, torn=True)
    if before.get("sha256") and all(before.get(key) == described[key] for key in described):
        files = {"sha256": path, "std_sha256": spread_path(path)}
        kept = {name: file for name, file in files.items() if name in before}
        return all(f.is_file() and sha256(f) == before[name] for name, f in kept.items())
    if overwrite or not before:  # without a sidecar: see require_remade
        return False
    raise _another(path, "is not of this model, input and settings" + _settings(before, described))


def _settings(before: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    """Return in words which settings two sidecars state differently."""
    there, here = before.get("request"), described.get("request")
    if not isinstance(there, Mapping) or not isinstance(here, Mapping):
        return ""
    names = [n for n in here if n != "model_digest" and there.get(n) != here[n]]
    words = [f"{name} {there.get(name)} there, {here[name]} here" for name in names]
    return f" ({'; '.join(words)})" if words else ""


def require_remade(path: Path, sidecar: Path, digest: str) -> None:
    """Refuse to replace a volume whose sidecar is torn or lost, unless it was made again.

    Args:
        digest: of what was made.

    Raises:
        OutputError: OUT-EXISTS.
    """
    if path.is_file() and not read_json(sidecar, torn=True) and sha256(path) != digest:
        raise _another(path, "has no sidecar, and this command makes another volume")


def _another(path: Path, why: str) -> OutputError:
    return OutputError(
        "OUT-EXISTS",
        f"{path.name} exists and {why}: choose another --output, or give --overwrite",
    )
