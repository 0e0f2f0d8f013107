"""Outputs, a subject at a time: a failure does not stop the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ldm.data.layouts import Layout, Subject
from ldm.data.layouts.table import read_rows
from ldm.errors import DsdiffError, OutputError, WorkerError, survived
from ldm.storage import remove, write_csv

FAILURES = "failures.csv"
COLUMNS = ("subject", "code", "message")  # of it


@dataclass
class Written:
    """How many outputs were written or were there already, and what went wrong."""

    new: int = 0
    old: int = 0
    failures: list[DsdiffError] = field(default_factory=list)
    tried: set[str] = field(default_factory=set, repr=False)  # ids

    def count(
        self, outcome: bool | DsdiffError | None, report: Callable[[DsdiffError], None]
    ) -> None:
        """Take in that an output was written (True), was there already, or what went wrong."""
        if isinstance(outcome, DsdiffError):
            report(outcome)
            self.failures.append(outcome)
        elif outcome:
            self.new += 1
        else:
            self.old += 1

    def write_failures(self, folder: Path) -> None:
        """Write ``failures.csv``, a line a subject that failed; remove it where none did.

        Of one that was not tried, what an earlier call wrote stays.

        Raises:
            OutputError: OUT-EXISTS for a stranger's file, OUT-IO.
        """
        path = folder / FAILURES
        before = read_rows(path) if path.is_file() else []
        rows = [tuple(row.values()) for row in before if row.get(COLUMNS[0]) not in self.tried]
        rows += [(error.case or "", error.code, error.message) for error in self.failures]
        if rows:
            write_csv(path, COLUMNS, rows)
        else:
            remove(path)


class Writer(ABC):
    """Writes the output of one subject after another: reads it, makes the output, keeps it."""

    @abstractmethod
    def is_written(self, subject: Subject) -> bool:
        """Return whether the output of a subject, as asked for, is there."""

    @abstractmethod
    def read(self, subject: Subject, layout: Layout) -> Any:
        """Return what the output of a subject is made of."""

    @abstractmethod
    def make(self, read: Any, title: str) -> Any:
        """Return the output of what was read: the part that a network works on."""

    def packed(self, made: Any) -> Any:
        """Return an output as it is sent to another process."""
        return made

    @abstractmethod
    def keep(self, made: Any) -> None:
        """Write an output."""

    @abstractmethod
    def on_a_device(self) -> Callable[[str], Writer]:
        """Return what makes this writer in another process, on a device."""

    def write(self, subject: Subject, layout: Layout, title: str) -> bool:
        """Write the output of a subject; return False where it is there already.

        Raises:
            DataError, NonFiniteError: nothing can be made of the subject.
            OutputError: OUT-EXISTS, OUT-IO.
        """
        if self.is_written(subject):
            return False
        self.keep(self.make(self.read(subject, layout), title))
        return True

    def write_all(
        self, subjects: Sequence[Subject], layout: Layout, report: Callable[[DsdiffError], None]
    ) -> Written:
        """Write the output of each that is not there; see :func:`write_overlapped`.

        Raises:
            OutputError: the outputs cannot be written, or exist.
        """

        def read(subject: Subject) -> Any:
            return None if self.is_written(subject) else self.read(subject, layout)

        return write_overlapped(subjects, read, self.make, self.keep, report)


def write_overlapped(
    subjects: Sequence[Subject],
    read: Callable[[Subject], Any],
    make: Callable[[Any, str], Any],
    keep: Callable[[Any], None],
    report: Callable[[DsdiffError], None],
) -> Written:
    """Call ``keep(make(read(subject), title))`` for each; one that fails is told to ``report``.

    While the network makes one, the next is read and the one before is kept.

    Args:
        read: returns None where there is nothing to do.

    Raises:
        OutputError: the outputs cannot be written, or exist.
    """
    done = Written(tried={subject.id for subject in subjects})

    def make_of(found: Any, title: str) -> Any:
        return found if _is_settled(found) else attempt(make, found, title)

    def keep_of(made: Any) -> Any:
        return made if _is_settled(made) else attempt(keep, made) or True  # None is "there already"

    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as behind:
        found = _ahead(ahead, partial(attempt, read), subjects)
        made = map(make_of, found, titles_of(subjects))
        for outcome in _behind(behind, keep_of, made):
            done.count(outcome, report)
    return done


def _is_settled(outcome: Any) -> bool:
    """Return whether a subject needs no more work: None where its output is there, or an error."""
    return outcome is None or isinstance(outcome, DsdiffError)


def _ahead(
    pool: ThreadPoolExecutor, do: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[Any]:
    """Yield ``do(item)`` of each; while one is worked on, the next is done in a thread."""
    before: Future[Any] | None = None
    for item in items:
        now = pool.submit(do, item)
        if before is not None:
            yield before.result()
        before = now
    if before is not None:
        yield before.result()


def _behind(
    pool: ThreadPoolExecutor, do: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[Any]:
    """Yield ``do(item)`` of each, done in a thread while the next item is made.

    After an error nothing more is begun.
    """
    before: Future[Any] | None = None
    for item in items:
        if before is not None:
            yield before.result()
        before = pool.submit(do, item)
    if before is not None:
        yield before.result()


def attempt(do: Callable[..., Any], *args: Any) -> Any:
    """Return what ``do(*args)`` returns, or the known error that only this subject has.

    Raises:
        OutputError: the outputs cannot be written, or exist. WorkerError: a process was killed.
    """
    try:
        return do(*args)
    except Exception as error:
        return survived(error, OutputError, WorkerError)


def titles_of(subjects: Sequence[Subject]) -> list[str]:
    """Return what the progress on each is called: its id, and its place among all."""
    return [f"{subject.id} ({n}/{len(subjects)})" for n, subject in enumerate(subjects, 1)]


def write_each(
    subjects: Sequence[Subject],
    write: Callable[[Subject, str], bool],
    report: Callable[[DsdiffError], None],
    mapped: Callable[..., Iterable[Any]] = map,
) -> Written:
    """Call ``write(subject, title)`` for each; one that fails is told to ``report``.

    Args:
        write: returns False where there was nothing to do.
        mapped: ``map``, or that of a pool whose threads call ``write``.

    Raises:
        OutputError: the outputs cannot be written, or exist. WorkerError: a process was killed.
    """
    done, tried = Written(tried={s.id for s in subjects}), partial(attempt, write)
    for outcome in mapped(tried, subjects, titles_of(subjects)):
        done.count(outcome, report)
    return done
