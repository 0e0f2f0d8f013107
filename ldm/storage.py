"""Files that are never half-written: all writing goes through here.

A file is temporary in the same folder, readable by its owner only, flushed, and then gets its name;
what stands there already is replaced only where :mod:`ldm.claims` permits it.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ldm.claims import NO_FOLLOW, TEMPORARY, Claim, open_own, owner_of, permit, refuse_existing
from ldm.errors import CheckpointError, DataError, OutputError
from ldm.util import user_path

CHUNK = 1 << 20
MODEL_FILE, CONFIG_FILE = "model.safetensors", "config.yaml"  # of a run
MODEL_VERBS = ("export", "ensemble", "import")  # which write a model as a whole
COST_FILE = "cost.json"  # what a training, or a sampling, took
ERROR_MODEL = "error_model"  # beside weights and in sidecars: ldm.models.diffusion.error_model
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems without hard links


def cache_root() -> Path:
    """Return the cache folder: ``$DSDIFF_CACHE``, or ``dsdiff`` in the user's cache folder."""
    if folder := os.environ.get("DSDIFF_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsdiff"


def refused_write(path: Path, error: Exception) -> OutputError:
    """Return why a library could not write a file, which has words of its own for a full disk."""
    return OutputError(
        "OUT-IO",
        f"cannot write {path.name}, as on a full disk ({error}): free space, then give the same "
        "command again",
    )


def temporary_path(folder: Path, suffix: str = "") -> Path:
    """Return a new name in a folder for what is swept away if this process dies."""
    return folder / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}{suffix}"


@contextmanager
def atomic_path(path: Path, replace: bool = False, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends without an error.

    The temporary file stands in the same folder, can be read by its owner only, is flushed to the
    disk before it gets its name, and is removed if anything fails; an old ``path`` stays as it was
    until then.

    Args:
        path: where the file will be.
        replace: also if a file stands there that is not known to be our own.
        private: only its owner can read the file, also when it is complete.

    Raises:
        OutputError: OUT-IO when the system refuses to write; OUT-EXISTS, OUT-INPUT, OUT-LINK.
    """
    path = Path(path)
    suffix = "".join(path.suffixes[-2:])  # writers choose the format by the ending
    temporary = temporary_path(path.parent, suffix)
    permitted = permit(path, replace)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _make_private(temporary)
        yield temporary
        if not temporary.stat().st_size:
            raise OSError(errno.ENODATA, "nothing was written")
        if not private:
            temporary.chmod(mode)
        flush(temporary)
        _publish(temporary, path, *permitted)
        flush(path.parent)
    except OSError as error:
        raise OutputError(
            "OUT-IO", f"cannot write {path.name}: {error.strerror or error}; free space or rights?"
        ) from error
    finally:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)


def _make_private(path: Path) -> int:
    """Make an empty file that only its owner can read; return the mode that a new file has."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666)
    mode = os.fstat(descriptor).st_mode
    os.close(descriptor)
    path.chmod(0o600)
    return mode


def _publish(
    temporary: Path, path: Path, owner: Claim | None, name: str, may_replace: bool
) -> None:
    """Give a complete file its name."""
    is_new = owner is not None and not owner.owns(name)
    if is_new:
        owner.record(name)
    try:
        if may_replace:
            temporary.replace(path)
        else:
            _link(temporary, path)
    except FileExistsError:  # it came while we wrote
        if is_new:
            owner.record(name, done=False)
        refuse_existing(path)


def _link(temporary: Path, path: Path) -> None:
    """Move a file to a name that must be free, in one step."""
    if sys.platform == "win32":
        temporary.rename(path)  # which never replaces there
        return
    try:
        os.link(temporary, path, follow_symlinks=False)
        temporary.unlink()
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno not in NO_LINKS:
            raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW))
        temporary.replace(path)


def rename(path: Path, new: Path) -> None:
    """Give a file of ours another name, whose file is replaced: the generation before."""
    owner, name, _ = permit(new, replace=True)
    if owner is not None and not owner.owns(name):
        owner.record(name)
    path.replace(new)


def remove(path: Path, replace: bool = False) -> None:
    """Remove a file as it may be replaced: see :func:`atomic_path`."""
    if os.path.lexists(path):
        permit(path, replace)
        path.unlink()


@contextmanager
def appending(path: Path) -> Iterator[IO[str]]:
    """Open a text file of ours to add lines; it grows in place, so a kill may tear the last one.

    Raises:
        OutputError: OUT-EXISTS, OUT-INPUT, OUT-LINK or OUT-IO.
    """
    owner, name, _ = permit(path, replace=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_own(path)
        if owner is not None and not owner.owns(name):
            owner.record(name)
        with os.fdopen(descriptor, "a", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise OutputError("OUT-IO", f"cannot write {path.name}: {error.strerror}") from error


def remove_own(paths: Iterable[Path]) -> None:
    """Remove files that the verb has written; those of others stay."""
    for path in paths:
        with suppress(OutputError):
            owner, name, _ = permit(path, replace=False)
            path.unlink(missing_ok=True)
            if owner:
                owner.record(name, done=False)


def leave(path: Path) -> None:
    """Take a file for somebody else's from now on, who has changed what the verb wrote."""
    owner, name, _ = permit(path, replace=True)
    if owner and owner.owns(name):
        owner.record(name, done=False)


def flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # names are flushed by the system
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: str | bytes, replace: bool = False) -> None:
    """Write bytes, or text in UTF-8, see :func:`atomic_path`."""
    with atomic_path(path, replace) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write each content under its name in a folder, see :func:`atomic_path`."""
    for name, content in files.items():
        write_file(folder / name, content)


def write_json(path: Path, value: Any, replace: bool = False) -> None:
    """Write ``value`` as indented JSON with sorted keys, see :func:`atomic_path`."""
    write_file(path, json.dumps(value, indent=1, sort_keys=True) + "\n", replace)


def strict_json(value: Any) -> Any:
    """Return ``value`` in types of strict JSON: null for NaN, ``inf`` and ``-inf`` as text."""
    if isinstance(value, Mapping):
        return {str(key): strict_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(inner) for inner in value]
    if hasattr(value, "tolist"):  # of numpy
        return strict_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write head and rows of :func:`csv_rows`, atomically.

    Raises:
        OutputError: OUT-IO when the system refuses to write.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        csv.writer(file).writerows(csv_rows(columns, rows))


def csv_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[list[str]]:
    """Head and rows for ``csv.writer``, at full precision; no cell starts a spreadsheet formula."""
    return [[_csv_cell(cell) for cell in row] for row in (columns, *rows)]


def _csv_cell(value: Any) -> str:
    if not isinstance(value, str):
        return "n/a" if value is None or value != value else str(value)
    try:
        float(value)
    except ValueError:
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return value


def read_json(path: Path, torn: bool = False) -> dict[str, Any]:
    """Return the mapping in a JSON file, empty where there is no such file.

    Args:
        torn: a damaged file counts as none; it can be made again.

    Raises:
        DataError: DATA-CORRUPT.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except (ValueError, RecursionError):
        pass
    if torn:
        return {}
    raise DataError("DATA-CORRUPT", f"{path} is torn: restore it, or remove it")


def kept(
    path: Path, described: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what a JSON file keeps if it is of the same ``described``, else make and keep it.

    Args:
        path: the file; it holds ``described`` and what was made, side by side.
        described: what the result depends on, in plain types.
        make: returns the result, in plain types.
    """
    known = read_json(path, torn=True)
    if not all(known.get(key) == value for key, value in described.items()):
        is_ours = described.keys() <= known.keys()
        known = {**described, **make()}
        write_json(path, known, replace=is_ours)
    return known


def run_folder(model: Path) -> Path:
    """Return the run folder of a model: itself, or that of its model file or checkpoint.

    What is not there is taken for a folder unless it has the name of such a file.
    """
    model = user_path(model)
    if model.is_dir():
        return model
    if model.suffix == ".ckpt":
        return model.parent.parent
    return model.parent if model.is_file() or model.suffix == ".safetensors" else model


def require_run(model: Path) -> Path:
    """Return the run folder of a model, see :func:`run_folder`.

    Raises:
        CheckpointError: CKPT-MISSING.
    """
    folder = run_folder(model)
    require_part(folder / CONFIG_FILE, f"{folder} is no run folder (no {CONFIG_FILE})")
    return folder


def require_part(path: Path, otherwise: str) -> None:
    """Refuse a model folder without one of its files, for which an interruption may be the reason.

    Args:
        otherwise: the refusal where none is known of.

    Raises:
        CheckpointError: CKPT-MISSING.
    """
    if path.is_file():
        return
    if (verb := owner_of(path.parent)) in MODEL_VERBS:
        otherwise = (
            f"{path.parent} holds no whole model: dsdiff {verb} was interrupted there, or is still "
            "at work; the same command makes it anew"
        )
    raise CheckpointError("CKPT-MISSING", otherwise)


def require_subjects(root: str | Path, told: str = "give the folder of subjects") -> Path:
    """Return the folder of subjects, or the table of them, as a path without ``~``.

    Args:
        told: what is expected where there is none.

    Raises:
        DataError: DATA-MISSING.
    """
    root = user_path(root)
    if not (root.is_dir() or root.is_file()):
        raise DataError("DATA-MISSING", f"there is no folder {root}: {told}")
    return root


def volume_digests(folder: Path) -> dict[str, str]:
    """Return file name -> SHA-256 of the volumes of a folder."""
    return {path.name: sha256(path) for path in sorted(folder.glob("*.nii*"))}


def free_space(folder: Path) -> int:
    """Return the bytes that the user may still write on the disk of a folder."""
    return shutil.disk_usage(folder).free


def require_space(path: Path, size: int) -> None:
    """Refuse to begin what does not fit on the disk.

    Raises:
        OSError: with the bytes that are needed, and free.
    """
    free = free_space(path.parent)
    if free < size:
        raise OSError(errno.ENOSPC, f"{size} bytes are needed, {free} are free")


def require_regular(path: Path) -> os.stat_result:
    """Return the status of a regular file; opening a pipe waits for ever, a device has no end.

    Raises:
        DataError: DATA-FORMAT. OSError: there is no such file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise DataError("DATA-FORMAT", f"{path.name} is {kind}: expected a regular file")
    return status


def head_of(path: Path) -> bytes:
    """Return the first 64 bytes of a file, by which its kind is known."""
    with path.open("rb") as stream:
        return stream.read(64)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits.

    Raises:
        DataError: DATA-FORMAT, see :func:`require_regular`. OSError.
    """
    require_regular(path)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def stable_seed(*parts: Any) -> int:
    """Return a 63-bit seed that depends on ``parts`` only (``hash`` is salted per process)."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
