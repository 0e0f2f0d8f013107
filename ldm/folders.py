"""Folders that are never half-written: see :mod:`ldm.storage`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm.claims import Claim, permit, sweep_folder
from ldm.storage import flush, refused_write, remove_own, rename, temporary_path

ABANDONED_AFTER = 86400  # seconds; no folder takes a day to write

_swept: set[Path] = set()  # by this process


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``folder``, unless that exists by then.

    Raises:
        OSError: it cannot be written.
    """
    temporary = temporary_path(folder.parent)
    try:
        temporary.mkdir(parents=True)
        if folder.parent not in _swept:  # once: it may hold an entry of each of 10^5 patients
            sweep_folder(folder.parent, older_than=ABANDONED_AFTER)  # machines may share the parent
            _swept.add(folder.parent)
        mode = temporary.stat().st_mode
        temporary.chmod(0o700)
        yield temporary
        for path in temporary.iterdir():
            flush(path)
        temporary.chmod(mode)
        temporary.rename(folder)
        flush(folder.parent)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def written_together(own: Claim, last: str) -> Iterator[Path]:
    """Yield a temporary folder whose files replace all that the verb has written in its folder.

    ``last`` is the file without which the others are of no use: its old one goes first, its new one
    comes last. So a full disk leaves the old files, and a kill leaves them, or the new ones, or a
    folder without ``last``.

    Raises:
        OutputError: OUT-IO; OUT-EXISTS, OUT-INPUT or OUT-LINK before anything is replaced.
    """
    temporary = temporary_path(own.given)
    try:
        temporary.mkdir(mode=0o700)
        yield temporary
        names = sorted((path.name for path in temporary.iterdir()), key=lambda name: name == last)
        for name in names:
            permit(own.given / name, replace=False)
        remove_own(own.given / name for name in (last, *own.written() - {last}))
        for name in names:
            rename(temporary / name, own.given / name)
        flush(own.given)
    except OSError as error:
        raise refused_write(own.given, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder of ours as a whole: from one moment to the next, nobody finds it."""
    temporary = temporary_path(folder.parent)
    with suppress(FileNotFoundError):  # another process was first
        folder.rename(temporary)
    shutil.rmtree(temporary, ignore_errors=True)
