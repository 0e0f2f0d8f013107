"""A cache of prepared subjects: a ``.nii.gz`` is decoded once, then slices come from a memory map.

An entry is a folder named by the digest of what it depends on (files by path, size and time of
change; contrasts; preparation). It is complete or absent: written beside, then renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ldm.data.contrasts import scheme_of
from ldm.data.layouts import Layout, Subject
from ldm.data.prepare import Preparation, prepare_subject
from ldm.errors import OutputError
from ldm.storage import TEMPORARY, cache_root, flush
from ldm.study import LABELS, MASK_FILE

FORMAT = 3
ABANDONED_AFTER = 86400  # seconds; no entry takes a day to write

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
    """

    id: str
    folder: Path
    brain_share: np.ndarray
    has_seg: bool

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
) -> CachedSubject:
    """Return the cache entry of a subject, preparing it if there is none.

    Raises:
        DataError: the subject cannot be read. OutputError: OUT-IO, the cache cannot be written.
    """
    root = root or cache_root()
    key = _entry_key(subject, conditions, target, preparation)
    folder = root / f"{subject.id[:32]}-{key}"  # the id is for people, and may be long
    if not folder.is_dir():
        prepared = prepare_subject(
            subject, layout, conditions, target, preparation, with_labels=True
        )
        arrays: dict[str, np.ndarray] = {
            "slices": prepared.slices.astype(np.float16),
            "brain": prepared.brain,
            "brain_share": prepared.brain.mean(axis=(1, 2)),
        }
        if prepared.seg is not None:
            arrays["seg"] = prepared.seg
        _publish(folder, arrays)
    share = _load(folder / "brain_share.npy")
    return CachedSubject(subject.id, folder, share, (folder / "seg.npy").exists())


def _entry_key(
    subject: Subject, conditions: list[str], target: str | None, preparation: Preparation
) -> str:
    used = [c for c in (*conditions, target, LABELS, MASK_FILE) if c in subject.files]
    described: dict[str, Any] = {
        "format": FORMAT,
        "files": {c: subject.files[c].state(subject.id) for c in used},
        "conditions": conditions,
        "target": target,
        "preparation": preparation.to_dict(),
        "labels": str(scheme_of(subject)) if LABELS in subject.files else None,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _publish(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an entry beside its place, then rename it: it is complete or absent."""
    temporary = folder.parent / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        _sweep(folder.parent)
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
            flush(temporary / f"{name}.npy")
        temporary.rename(folder)
    except OSError as error:
        if folder.is_dir():  # another process published the same entry first
            return
        raise OutputError(
            "OUT-IO",
            f"cannot write the cache in {folder.parent}: {error.strerror}; "
            "set DSDIFF_CACHE to a folder with free space",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove what killed processes left."""
    for leftover in root.glob(f"{TEMPORARY}*"):
        with suppress(FileNotFoundError):  # renamed by its owner in the meantime
            if leftover.stat().st_mtime < time.time() - ABANDONED_AFTER:
                shutil.rmtree(leftover, ignore_errors=True)
