"""A cache of prepared subjects: a ``.nii.gz`` is decoded once, then slices come from a memory map.

An entry is a folder named by the digest of what it depends on (files by path, size and times of
change; contrasts; preparation). It is complete or absent: written beside, then renamed. It is made
again if it is no longer what was written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ldm.data.contrasts import scheme_of
from ldm.data.layouts import Layout, Subject
from ldm.data.prepare import Preparation, aspect_of, prepare_subject
from ldm.errors import DataError, OutputError
from ldm.folders import atomic_folder, remove_folder
from ldm.storage import (
    cache_root,
    read_json,
    sha256,
    write_json,
)
from ldm.study import LABELS, MASKS
from ldm.util import plain_value

log = logging.getLogger(__name__)

FORMAT = 5
ENTRY = "entry.json"  # array -> digest and state of its file
REQUIRED = {"slices", "brain", "brain_share", "spacing"}

# NumPy parses a header with `ast`, which fails at random in CPython 3.11 when two threads do so at
# once (python/cpython#106905), and subjects are decoded in threads.
_parsing = threading.Lock()


def _load(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    with _parsing:
        return np.load(path, mmap_mode=mmap_mode)


@dataclass(frozen=True)
class CachedSubject:
    """A prepared subject on disk. Arrays are memory maps of (S, ...), opened by each process.

    Args:
        id: subject.
        folder: the cache entry.
        brain_share: (S,) share of each (cropped) slice that is brain.
        has_seg: whether a segmentation exists.
        spacing: distance of slices, of rows and of columns, in mm.
    """

    id: str
    folder: Path
    brain_share: np.ndarray
    has_seg: bool
    spacing: tuple[float, ...]

    @property
    def aspect(self) -> float:
        """See :func:`ldm.data.prepare.aspect_of`."""
        return aspect_of(self.spacing)

    def open(self, name: str) -> np.ndarray:
        """Open ``slices`` (S, M, H, W) float16, ``brain`` (S, H, W) bool or ``seg`` (S, H, W)."""
        return _load(self.folder / f"{name}.npy", mmap_mode="r")


def cached_subject(
    subject: Subject,
    layout: Layout,
    conditions: list[str],
    target: str | None,
    preparation: Preparation,
    root: Path | None = None,
    truth: Sequence[str] = (),
) -> CachedSubject:
    """Return the cache entry of a subject, preparing it if there is none.

    Args:
        truth: see :func:`ldm.data.prepare.load_subject`.

    Raises:
        DataError: the subject cannot be read. OutputError: OUT-IO, the cache cannot be written.
    """
    root = root or cache_root()
    key = _entry_key(subject, conditions, target, preparation, truth)
    folder = root / f"{subject.id[:32]}-{key}"  # the id is for people, and may be long
    if folder.is_dir() and not _is_whole(folder):
        log.warning("the cache entry %s is damaged: it is made again", folder.name)
        remove_folder(folder)
    if not folder.is_dir():
        prepared = prepare_subject(
            subject, layout, conditions, target, preparation, with_labels=True, truth=truth
        )
        arrays: dict[str, np.ndarray] = {
            "slices": prepared.slices.astype(np.float16),
            "brain": prepared.brain,
            "brain_share": prepared.brain.mean(axis=(1, 2)),
            "spacing": np.array(prepared.spacing),
        }
        if prepared.seg is not None:
            arrays["seg"] = prepared.seg
        _publish(folder, arrays)
    share, spacing = (_load(folder / f"{name}.npy") for name in ("brain_share", "spacing"))
    has_seg = "seg" in read_json(folder / ENTRY)
    return CachedSubject(subject.id, folder, share, has_seg, tuple(spacing.tolist()))


def _entry_key(
    subject: Subject,
    conditions: list[str],
    target: str | None,
    preparation: Preparation,
    truth: Sequence[str],
) -> str:
    used = [c for c in (*conditions, target, *MASKS) if c in subject.files]
    described: dict[str, Any] = {
        "format": FORMAT,
        "files": {c: subject.files[c].state(subject.id) for c in used},
        "conditions": conditions,
        "target": target,
        "acquired": sorted(truth),
        "preparation": preparation.to_dict(),
        "labels": str(scheme_of(subject)) if LABELS in subject.files else None,
    }
    return hashlib.sha256(
        json.dumps(described, sort_keys=True, default=plain_value).encode()
    ).hexdigest()[:16]


def _publish(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an entry beside its place, then rename it: it is complete or absent."""
    try:
        with atomic_folder(folder) as temporary:
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array)
            write_json(temporary / ENTRY, {n: _described(temporary, n) for n in arrays})
    except OSError as error:
        raise OutputError(
            "OUT-IO",
            f"cannot write the cache in {folder.parent}: {error.strerror}; "
            "set DSDIFF_CACHE to a folder with free space",
        ) from error


def _described(folder: Path, name: str) -> dict[str, Any]:
    """Return the digest of an array of an entry, and what tells without reading that it changed."""
    path = folder / f"{name}.npy"
    return {"sha256": sha256(path), "state": _state(path)}


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _is_whole(folder: Path) -> bool:
    """Return whether an entry is as it was written; what seems changed is read to know."""
    known = read_json(folder / ENTRY, torn=True)
    try:
        changed = [n for n, d in known.items() if d["state"] != _state(folder / f"{n}.npy")]
        now = {name: _described(folder, name) for name in changed}
    except (DataError, OSError, LookupError, TypeError):  # DataError: a pipe, a folder
        return False
    if not known.keys() >= REQUIRED or any(
        now[name]["sha256"] != known[name]["sha256"] for name in changed
    ):
        return False
    if changed:  # copied or restored, but the same
        write_json(folder / ENTRY, {**known, **now}, replace=True)
    return True
