"""Outputs, a subject at a time: a failure does not stop the others, nothing is overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.cli.main import report_error
from ldm.data.layouts import Layout, Subject
from ldm.errors import DsdiffError, OutputError, PartialError, as_known_error


@dataclass
class Written:
    """How many outputs were written or were there already, and what went wrong."""

    new: int = 0
    old: int = 0
    failures: list[DsdiffError] = field(default_factory=list)


def write_each(
    subjects: Sequence[Subject],
    layout: Layout,
    write: Callable[[Subject, Layout, str], bool],
    verb: str,
) -> Written:
    """Call ``write(subject, layout, title)`` for each; one that fails does not stop the others.

    Raises:
        OutputError: the outputs cannot be written, or exist.
    """
    done = Written()
    for number, subject in enumerate(subjects, 1):
        try:
            new = write(subject, layout, f"{subject.id} ({number}/{len(subjects)})")
            done.new, done.old = done.new + new, done.old + (not new)
        except Exception as error:
            known = as_known_error(error)
            if known is None or isinstance(known, OutputError):
                raise
            report_error(verb, known)
            done.failures.append(known)
    return done


def report_written(done: Written, output: Path) -> int:
    """Print what was written; return the exit code.

    Raises:
        PartialError: some subjects failed, the others did not.
    """
    failed = len(done.failures)
    print(f"written={done.new} failed={failed} skipped={done.old}: {output}")  # noqa: T201
    if failed and done.new + done.old:
        total = failed + done.new + done.old
        raise PartialError("PARTIAL", f"{failed} of {total} subjects failed")
    return done.failures[0].exit_code if failed else 0


def earlier_output(
    path: Path, sidecar: Path, described: Mapping[str, Any], overwrite: bool
) -> dict[str, Any] | None:
    """Return the sidecar of an earlier run with the same request, or None where there is none.

    Raises:
        OutputError: OUT-EXISTS for any other output, unless it may be overwritten.
    """
    if not path.exists() and not sidecar.exists():
        return None
    try:
        before = json.loads(sidecar.read_text(encoding="utf-8"))
        same = all(before[key] == described[key] for key in described) and before["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if same:
        return before
    if overwrite:
        return None
    raise OutputError(
        "OUT-EXISTS",
        f"{path.name} exists and is not of this model, input and settings: choose another "
        "--output, or give --overwrite",
    )
