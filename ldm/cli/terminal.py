"""What several verbs show on the terminal."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.main import report_error
from ldm.errors import DsdiffError, PartialError
from ldm.progress import is_part
from ldm.util import trusting

if TYPE_CHECKING:
    from ldm.inference.writing import Written
    from ldm.progress import Item


HOLD_OUT = "data.params.test=0.2"  # a fifth of the patients, which no training sees


def show_progress(items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """Wrap what is worked through in a progress bar, see :class:`ldm.progress.Progress`.

    In a file or a pipe nothing is shown: there a bar is only fragments.
    """
    from rich.progress import Progress

    hidden = not sys.stdout.isatty()
    bar = Progress(transient=True, disable=hidden, redirect_stderr=sys.stderr.isatty())
    with bar:
        yield from bar.track(items, total, description=title)


def print_found(text: str) -> None:
    """Say which subjects were found, beside what a pipe takes; in a benchmark its trainings do."""
    if not is_part():
        print(text, file=sys.stderr)


def print_next(command: str) -> None:
    """Say what to do next; of what a benchmark runs, it says that itself."""
    if not is_part():
        print(f"  next: {command}")


def training_command(root: str | Path, config: Sequence[str] = ()) -> str:
    """Return a training that suits this machine: on a CPU a small network, and so fewer steps.

    Args:
        config: YAML files and overrides that it takes instead.
    """
    from ldm.environment import pick_device

    network = "unet_tiny" if pick_device() == "cpu" else "unet"
    files = [a for a in config if "=" not in a] or [f"configs/backbone/{network}.yaml"]
    overrides = [f"data.params.root={root}", *(a for a in config if "=" in a)]
    return shlex.join(["dsdiff", "train", *files, *overrides, "name=mine"])


def sampling_command(model: str | Path, trust: Collection[str] = ()) -> str:
    """Return what samples from a model, whose folder may name the classes of ``trust``."""
    words = ["dsdiff", "sample", str(model), "--input", "PATIENTS", "--output", "predictions"]
    return shlex.join([*words, *trusting(trust)])


def reporter(verb: str) -> Callable[[DsdiffError], None]:
    """Return what prints the error of one subject on stderr, while the others go on."""
    return lambda error: report_error(verb, error)


def report_written(done: Written, output: Path) -> int:
    """Print what was written; return the exit code.

    Raises:
        PartialError: some subjects failed, the others did not.
    """
    failed, there = len(done.failures), " (there already, and the same)" if done.old else ""
    print(f"written={done.new} failed={failed} skipped={done.old}{there}: {output}")
    if failed and done.new + done.old:
        total = failed + done.new + done.old
        raise PartialError("PARTIAL", f"{failed} of {total} subjects failed")
    return done.failures[0].exit_code if failed else 0
