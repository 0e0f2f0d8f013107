"""Whose a folder is: a verb claims what it writes, and nothing else is ever replaced.

The lock of a folder lists what was written there: ``dsdiff VERB``, then a line a file, ``+NAME``,
or ``-NAME`` where it could not be written after all. So a file that stands in the way is known to
be the verb's own, or a stranger's. Inputs are never an output, and no link is followed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

from ldm.errors import BusyError, OutputError

TEMPORARY = ".tmp-"
OWN_TEMPORARY = re.compile(r"\.tmp-(\d+)-[0-9a-f]{8}(\..*)?")
LOCK = ".lock"
OLD_RUN_FILES = ("model.safetensors", "checkpoints/last.ckpt")  # of a version that kept no list
RUN_OWNERS = ("train", "import")
SYNTHETIC = ("sample", "brasyn", "segment", "sweep")  # verbs whose files are no patients
NOTES = (".txt", ".md", ".log", ".json", ".csv", ".html", ".pdf", ".png", ".svg")  # hold no volume
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
BEYOND = 1 << 30  # no list is that long


class Inputs:
    """Files that are never an output, by identity and by name, and folders whose files are not.

    Args:
        paths: files; in a folder, every file that the verb did not write itself.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.names, self.identities, self.folders, parents = set(), set(), [], set()
        for path in paths:
            real = Path(path).resolve()
            if real.is_dir():
                self.folders.append(real)
                continue
            parents.add(Path(path).parent)
            self.names.add(str(real).casefold())
            with suppress(OSError):
                self.identities.add(_identity(real))
        self.parents = {parent.resolve() for parent in parents}

    def refuse_within(self, folder: Path) -> None:
        """Refuse to write into a folder of the inputs, unless all of them lie beside each other.

        Read again, what is written there would be further subjects, or further images of one.

        Raises:
            OutputError: OUT-INPUT.
        """
        real = folder.resolve()
        is_read = real in {*self.folders, *self.parents} or any(
            _is_of_others(real, read) for read in self.folders
        )
        if is_read and self.parents != {real}:
            raise OutputError(
                "OUT-INPUT",
                f"{folder} holds what is read, and files beside that would be read as further "
                "subjects: choose another --output",
            )

    def hold(self, path: Path, is_own: bool) -> bool:
        """Return whether ``path`` is an input."""
        real = path.parent.resolve() / path.name
        if str(real).casefold() in self.names:
            return True
        with suppress(OSError):
            if _identity(path) in self.identities:
                return True
        inside = any(real.is_relative_to(folder) for folder in self.folders)
        return inside and not is_own and os.path.lexists(path)


def _is_of_others(folder: Path, read: Path) -> bool:
    """Return whether a folder below one that is read holds volumes, and no verb has written it."""
    if not folder.is_relative_to(read) or not folder.is_dir() or (folder / LOCK).exists():
        return False
    return any(True for _ in _shown(folder, folder.iterdir()))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


class Claim:
    """A folder that one verb writes, and what it has written there; made by :func:`claim`.

    Args:
        folder: the folder.
        verb: its owner.
        descriptor: the open lock.
        inputs: files that are never an output.
        replace: the user asks for what stands there to be replaced.
        adopt: what stands there is the verb's, from before it kept a list.
    """

    def __init__(
        self,
        folder: Path,
        verb: str,
        descriptor: int,
        inputs: Inputs,
        replace: bool = False,
        adopt: bool = False,
    ) -> None:
        self.given, self.folder = Path(os.path.abspath(folder)), folder.resolve()  # noqa: PTH100
        self.verb, self.descriptor, self.inputs, self.replace = verb, descriptor, inputs, replace
        self._path, self._size = self.folder / LOCK, -1
        self._signs: dict[str, str] = {}
        first = next(iter(_read_lines(self._path)), "")
        self.is_new = not first
        if self.is_new:
            self._begin(adopt)
        elif not first.startswith("dsdiff "):
            raise OutputError("OUT-LINK", f"{folder}/{LOCK} is no lock of dsdiff: choose another")
        elif first != f"dsdiff {verb}":
            self._refuse_owner(first.removeprefix("dsdiff "))

    def _begin(self, adopt: bool) -> None:
        is_run = any((self.folder / name).exists() for name in OLD_RUN_FILES)
        if is_run and self.verb not in RUN_OWNERS:
            self._refuse_owner(RUN_OWNERS[0])
        self._append(f"dsdiff {self.verb}")
        found = (p for p in self.folder.rglob("*") if p.is_file() and p.name != LOCK)
        self.record(*(p.relative_to(self.folder).as_posix() for p in found if adopt))

    def _refuse_owner(self, owner: str) -> None:
        raise OutputError(
            "OUT-OWNER",
            f"{self.given} was written by dsdiff {owner}, and dsdiff {self.verb} would mix its "
            "files with those: choose another --output",
        )

    def _append(self, *lines: str) -> None:
        os.write(self.descriptor, "".join(f"{line}\n" for line in lines).encode())
        os.fsync(self.descriptor)

    def written(self) -> set[str]:
        """Return the names, relative to the folder, of what the verb has written."""
        return {name for name, sign in self._listed().items() if sign == "+"}

    def _listed(self) -> dict[str, str]:
        size = self._path.stat().st_size
        if size != self._size:  # by us, or by another process of a shared claim
            self._signs, self._size = _signs(_read_lines(self._path)[1:]), size
        return self._signs

    def owns(self, name: str) -> bool:
        """Return whether the verb has written the file of this name."""
        return name in self.written()

    def record(self, *names: str, done: bool = True) -> None:
        """Note that files are the verb's own, or that they were not written after all."""
        self._append(*(f"{'+' if done else '-'}{json.dumps(name)}" for name in names))

    def name_of(self, path: Path) -> str | None:
        """Return the name of ``path`` relative to the folder, None for a path outside it.

        What lies in a temporary folder is outside: it gets its name when all of it is there.

        Raises:
            OutputError: OUT-LINK where a folder on the way is a link.
        """
        place = Path(os.path.abspath(path))  # noqa: PTH100 - resolves no link
        root = next((r for r in (self.given, self.folder) if place.is_relative_to(r)), None)
        if root is None:
            return None
        name = place.relative_to(root)
        if any(part.startswith(TEMPORARY) for part in name.parts[:-1]):
            return None
        if (place.parent.resolve() / place.name) != self.folder / name:
            raise OutputError(
                "OUT-LINK", f"{name.parent} in {self.given} is a link: remove it, none is followed"
            )
        return name.as_posix()

    def withdraw(self, made: bool) -> None:
        """Leave a folder as it was found, if nothing was written there and nobody shares it.

        Args:
            made: there was no folder.
        """
        with suppress(OSError):
            if self.is_new and not self._listed() and _lock(self.descriptor, shared=False):
                self._path.unlink()
                if made:
                    self.folder.rmdir()  # which it refuses if there is anything in it

    def sweep(self) -> None:
        """Remove what dead processes left in the folder and in those that the verb writes."""
        parents = {(self.folder / name).parent for name in self.written()}
        for folder in {self.folder, *parents}:
            if folder.resolve() == folder:  # no link leads out
                sweep_folder(folder)


def _read_lines(lock: Path) -> list[str]:
    return lock.read_text(encoding="utf-8", errors="replace").splitlines()


def _signs(lines: Iterable[str]) -> dict[str, str]:
    """Return name -> ``+`` or ``-``, the last sign that the lines of a lock give it."""
    signs = {}
    for line in lines:
        with suppress(ValueError, RecursionError):  # torn by a kill, or by somebody
            name = json.loads(line[1:])
            if isinstance(name, str):
                signs[name] = line[0]
    return signs


_claims: list[Claim] = []  # of this process, in all its threads; the innermost comes last


def owner_of(folder: Path) -> str | None:
    """Return the verb that writes a folder; None where the folder has no lock."""
    lock = folder / LOCK
    first = next(iter(_read_lines(lock)), "") if lock.is_file() else ""
    return first.removeprefix("dsdiff ") or None


def is_synthetic(folder: Path) -> bool:
    """Return whether a verb of :data:`SYNTHETIC` has written every file of a folder.

    What is hidden does not count, nor what holds no volume.
    """
    if owner_of(folder) not in SYNTHETIC:
        return False
    signs = _signs(_read_lines(folder / LOCK)[1:])
    own = {name for name, sign in signs.items() if sign == "+"}
    return all(name.as_posix() in own for name in _shown(folder, folder.rglob("*")))


def _shown(folder: Path, paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the names in a folder of files that are not hidden and may hold a volume."""
    for path in paths:
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix.lower() not in NOTES and not path.is_dir() and not is_hidden:
            yield name


@contextmanager
def claim(
    folder: Path,
    verb: str,
    *,
    inputs: Iterable[Path] = (),
    writes: Iterable[str] = (),
    replace: bool = False,
    adopt: bool = False,
    shared: bool = False,
) -> Iterator[Claim]:
    """Own ``folder`` for one verb: what is written in the block is checked against the claim.

    Args:
        folder: made if it does not exist.
        verb: the owner; a folder that another verb wrote is refused.
        inputs: files and folders that the verb reads, see :class:`Inputs`.
        writes: names that will be written: a stranger's file of that name is refused at once.
        replace: the user asks for what stands there to be replaced (``--overwrite``).
        adopt: the files are the verb's own, from a version that kept no list.
        shared: several processes write different files of the folder at the same time.

    Raises:
        OutputError: OUT-IO, OUT-LINK, OUT-OWNER, OUT-INPUT or OUT-EXISTS.
        BusyError: RUN-BUSY when another live process holds the folder.
    """
    folder, read = Path(folder), Inputs(inputs)
    read.refuse_within(folder)
    made = not folder.exists()
    with _locked(folder, shared) as descriptor:
        own = Claim(folder, verb, descriptor, read, replace, adopt)
        if not shared:
            own.sweep()
        _claims.append(own)
        try:
            for name in writes:
                permit(folder / name, replace)
            yield own
        finally:
            _claims.remove(own)
            own.withdraw(made)


def claimed(folder: Path, verb: str, **options: Any) -> AbstractContextManager[Any]:
    """Return :func:`claim`, or nothing to do where this process has claimed the folder already."""
    is_ours = any(c.name_of(folder / LOCK) for c in _claims)
    return nullcontext() if is_ours else claim(folder, verb, **options)


def permit(path: Path, replace: bool) -> tuple[Claim | None, str, bool]:
    """Return the claim on ``path``, its name there, and whether it may replace what stands there.

    Raises:
        OutputError: OUT-INPUT, OUT-LINK or OUT-EXISTS.
    """
    owner, name = None, path.name
    for candidate in reversed(_claims):
        if found := candidate.name_of(path):
            owner, name = candidate, found
            break
    is_own = owner is not None and owner.owns(name)
    if any(c.inputs.hold(path, is_own) for c in _claims):
        raise OutputError(
            "OUT-INPUT",
            f"{path} is an input: no input is ever written, with or without --overwrite; choose "
            "another --output",
        )
    may_replace = replace or is_own or (owner is not None and owner.replace)
    if not may_replace and os.path.lexists(path):
        refuse_existing(path)
    return owner, name, may_replace


def refuse_existing(path: Path) -> NoReturn:
    """Refuse to replace a stranger's file."""
    raise OutputError(
        "OUT-EXISTS",
        f"{path} exists and was not written by this command: choose another --output or, where "
        "the verb has it, give --overwrite",
    )


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, which writes nothing there: see :func:`claim`.

    Raises:
        BusyError: RUN-BUSY when another live process holds it.
    """
    with _locked(Path(folder)):
        sweep_folder(Path(folder))
        yield


@contextmanager
def _locked(folder: Path, shared: bool = False) -> Iterator[int]:
    """Yield the descriptor of the locked lock file of a folder."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = open_own(folder / LOCK)
        except OSError as error:
            raise OutputError(
                "OUT-IO", f"cannot use folder {folder.name}: {error.strerror}; choose another"
            ) from error
        try:
            if not _lock(descriptor, shared):
                raise BusyError(
                    "RUN-BUSY",
                    f"{folder.name} is in use by another process: wait or choose another",
                )
            if _is_at(descriptor, folder / LOCK):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, lock: Path) -> bool:
    """Return whether an open lock is still that of the folder: its owner may have withdrawn."""
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, shared: bool) -> bool:
    """Lock an open file until it is closed, or its process ends; False if another one holds it."""
    try:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        elif not shared:
            import msvcrt

            os.lseek(descriptor, BEYOND, os.SEEK_SET)  # the lines stay readable for others
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True


def open_own(path: Path) -> int:
    """Open a file to read and append, made if there is none; no link, no pipe, nothing emptied."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | NO_FOLLOW, 0o666)
    except OSError as error:
        if path.is_symlink():
            _refuse_link(path)
        raise error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        _refuse_link(path)
    return descriptor


def _refuse_link(path: Path) -> NoReturn:
    raise OutputError(
        "OUT-LINK", f"{path} is a link, or no file: nothing is written through it; remove it"
    )


def sweep_folder(folder: Path, older_than: float = 0) -> None:
    """Remove the temporary files and folders that dead processes of this project left there."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        name = OWN_TEMPORARY.fullmatch(leftover.name)
        with suppress(FileNotFoundError):  # its owner gave it its name in the meantime
            status = leftover.lstat()
            if not name or _is_alive(int(name[1])) or status.st_mtime > time.time() - older_than:
                continue
            if stat.S_ISREG(status.st_mode):
                leftover.unlink()
            elif stat.S_ISDIR(status.st_mode):
                shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(process: int) -> bool:
    """Return whether a process exists; on Windows, which cannot be asked, it always does."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
