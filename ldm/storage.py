"""Files that are never half-written: temporary in the same folder, verified, then renamed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ldm.errors import BusyError, OutputError

TEMPORARY = ".tmp-"
CHUNK = 1 << 20


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends without an error.

    The temporary file stands in the same folder, is flushed to the disk before the rename, and is
    removed if anything fails; an old ``path`` stays as it was until then.

    Raises:
        OutputError: OUT-IO when the system refuses to write.
    """
    path = Path(path)
    suffix = "".join(path.suffixes[-2:])  # writers choose the format by the ending
    temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}{suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _mode_of_new_file(temporary)
        yield temporary
        temporary.chmod(mode)  # some writers make files that only their owner can read
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    except OSError as error:
        raise OutputError(
            "OUT-IO", f"cannot write {path.name}: {error.strerror or error}; free space or rights?"
        ) from error
    finally:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)


def _mode_of_new_file(path: Path) -> int:
    path.touch()
    mode = path.stat().st_mode
    path.unlink()
    return mode


def flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file, empty where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def kept(
    path: Path, described: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what a JSON file keeps if it is of the same ``described``, else make and keep it.

    Args:
        path: the file; it holds ``described`` and what was made, side by side.
        described: what the result depends on, in plain types.
        make: returns the result, in plain types.
    """
    known = read_json(path)
    if not all(known.get(key) == value for key, value in described.items()):
        known = {**described, **make()}
        write_json(path, known)
    return known


def volume_digests(folder: Path) -> dict[str, str]:
    """Return file name -> SHA-256 of the volumes of a folder."""
    return {path.name: sha256(path) for path in sorted(folder.glob("*.nii*"))}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def stable_seed(*parts: Any) -> int:
    """Return a 63-bit seed that depends on ``parts`` only (``hash`` is salted per process)."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; sweep the temporary files a dead owner left.

    Raises:
        BusyError: RUN-BUSY when another live process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise OutputError(
            "OUT-IO", f"cannot use folder {folder.name}: {error.strerror}; choose another"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(
                "RUN-BUSY", f"{folder.name} is in use by another process: wait or choose another"
            ) from error
        for leftover in folder.rglob(f"{TEMPORARY}*"):
            leftover.unlink(missing_ok=True)
        yield
