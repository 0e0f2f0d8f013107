"""Errors that a user can act on: a stable code, one line, a fixed exit status.

Every error of this project carries what was seen, what was expected and what to do next, in one
line. The command line prints that line and exits with ``exit_code``; a program that uses the
library catches :class:`DsdiffError`. Options are named as the reader gives them: messages are
written with ``--allow-missing`` or ``--nonfinite=zero``, which a Python program is shown as
``allow_missing`` and ``nonfinite='zero'``.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_LINE, CUT = 360, " ... "
NO_MEMORY = ("DefaultCPUAllocator", "can't start new thread", "std::bad_alloc")
FAMILIES = ("guided_diffusion", "UNet_DS_Diff")  # packages of this project beside ``ldm``
OWN = ("ldm", *FAMILIES, "scripts")
CALL = r"TypeError: \w+\.forward\(\) (takes|missing|got)"
DIVISOR = (
    "where a number must divide the size of images, a network says so by its attribute "
    "size_divisor, ForeignBackbone is told by its argument"
)
HINTS = {  # what an error of a class of the user is often of
    CALL: "a backbone is called as forward(x, timesteps, context=None, y=None), all else as "
    "docs/add-a-backbone.md says",
    r"to have \d+ channels, but got": "a constructor is told in_channels by this name, or "
    "by one that its attribute interface gives",
    r"[Ss]izes? of tensor": DIVISOR,
}
PEERS = ("gloo", "NCCL", "onnection closed by peer", "onnection reset by peer")

# a whole command, which is typed in either case, or an option: --a, --a=b, --a FILE, --a my.Net
OPTION = re.compile(
    r"\b(?:dsdiff|pip) [^:;,]*"
    r"|(?<!\S)(\(?)--([a-z][a-z-]*)(?:=(\S*?)| ([A-Z]+\b|\w+(?:\.\w+)+))?(?=[\s:;,)]|$)"
)
RENAMED = {  # in Python
    **{"from": "start", "against": "reference_row", "segmenter-command": "command"},
    **{"cell": "number", "plan": "states()", "protocol": "protocols"},
    **{"bids": "form", "dicom": "form"},
}
LISTS = ("trust", "allow_missing", "protocols")
REPEATED = re.compile(r"\b(\w+)=\[([^\]]*)\] \1=\[")  # an option given twice is one list
_is_command_line = False


@contextmanager
def on_the_command_line() -> Iterator[None]:
    """In the block the reader of errors types commands."""
    global _is_command_line
    before, _is_command_line = _is_command_line, True
    try:
        yield
    finally:
        _is_command_line = before


def to_the_reader(text: str) -> str:
    """Return ``text`` with its options, such as ``--steps=4``, named as the reader gives them."""
    if _is_command_line:
        return text
    text, found = OPTION.sub(_in_python, text), 1
    while found:
        text, found = REPEATED.subn(r"\1=[\2, ", text)
    return text


def _in_python(found: re.Match[str]) -> str:
    """Return an option as the argument of a call; a command as it is."""
    before, option, joined, apart = found.groups()
    value = joined or apart
    if option is None:
        return found[0]
    name = RENAMED.get(option, option.replace("-", "_"))
    if not value:
        return before + name
    value = value if value[:1] in "'\"" or value.isupper() else f"'{value}'"
    return f"{before}{name}={f'[{value}]' if name in LISTS else value}"


class InstanceProperty(property):
    """A property that the class itself has not.

    torch passes the error of a data worker on as ``type(error)(message=...)`` where the class has
    ``message``; ours need a code too.
    """

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return None if instance is None else super().__get__(instance, owner)


class DsdiffError(Exception):
    """Base of all errors with a stable code.

    Args:
        code: stable upper-case identifier, for example ``DATA-SHAPE``.
        message: what was seen; what was expected; what to do next.
        case: subject (patient) the error belongs to, if any.
    """

    exit_code = 70

    def __init__(self, code: str, message: str, case: str | None = None) -> None:
        super().__init__(code, message, case)
        self.code, self.case = code, case

    @InstanceProperty
    def message(self) -> str:
        """What was seen, what was expected and what to do next."""
        return to_the_reader(self.args[1])

    @property
    def reason(self) -> str:
        """Code and message in one line, where the patient is named beside it."""
        return one_line(f"{self.code}: {self.message}")

    def __str__(self) -> str:
        subject = f" case={self.case}" if self.case else ""
        return one_line(f"{self.code}{subject}: {self.message}")


class ConfigError(DsdiffError):
    """Wrong usage or configuration."""

    exit_code = 2


class DataError(DsdiffError):
    """Input data that cannot be used as it is."""

    exit_code = 3


class CheckpointError(DsdiffError):
    """A checkpoint that is missing, damaged or does not fit."""

    exit_code = 4


class OutputError(DsdiffError):
    """An output that cannot be written, or that must not be overwritten."""

    exit_code = 5


class NonFiniteError(DsdiffError):
    """NaN or infinity in a loss, a gradient or a sample."""

    exit_code = 6


class OutOfMemory(DsdiffError):  # noqa: N818 - the state is the name
    """Host or device memory is exhausted."""

    exit_code = 7


class WorkerError(DsdiffError):
    """A data worker or another rank died."""

    exit_code = 8


class PartialError(DsdiffError):
    """Some cases failed, the others were completed."""

    exit_code = 9


class UnsafeError(DsdiffError):
    """Refused because it would run or load something that is not trusted."""

    exit_code = 10


class BusyError(DsdiffError):
    """The run folder is in use by another process."""

    exit_code = 11


def as_known_error(error: BaseException) -> DsdiffError | None:
    """Return the error with a stable code that ``error`` means, if there is one."""
    text, torch = str(error), sys.modules.get("torch")  # if not loaded, it has raised nothing
    if isinstance(error, DsdiffError):
        return error
    out_of_memory = (MemoryError, torch.OutOfMemoryError) if torch else MemoryError
    if isinstance(error, out_of_memory) or any(words in text for words in NO_MEMORY):
        return OutOfMemory(
            "MEMORY", "out of memory; lower the batch size, data.params.image_size or the network"
        )
    if type(error).__name__ == "UnpicklingError":  # of torch.load with weights_only
        return UnsafeError("UNSAFE-PICKLE", "a file holds more than tensors and plain values")
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return ConfigError(
            "CONFIG-COMPILE",
            f"torch cannot compile this network ({' '.join(text.split())[:200]}): leave out "
            "--runtime compile, or lightning.compile",
        )
    if isinstance(error, RuntimeError) and "loading state_dict" in text:
        return CheckpointError("CKPT-MISMATCH", " ".join(text.split()))
    if isinstance(error, RuntimeError) and any(name in text for name in PEERS):
        return WorkerError(
            "RANK", "another process of the training is gone: look at its output, then --resume"
        )
    if "DataLoader worker" in text or "DataLoader timed out" in text:
        return _worker_error(text)
    if isinstance(error, OSError):
        return OutputError("OUT-IO", f"{error.strerror or error} ({error.filename or ''})")
    return None


def of_foreign_code(error: Exception, *called: Any) -> ConfigError | None:
    """Return what is wrong with a class that is not of this project; None: that is not known.

    Args:
        called: objects or classes that ran, and may be those of a library: a class of the user is
            known by its file.
    """
    seen = f"{type(error).__name__}: {error}"
    said = seen + next((f"; {hint}" for words, hint in HINTS.items() if re.search(words, seen)), "")
    root, libraries = Path(__file__).parents[1], sysconfig.get_paths()
    own = [root / name for name in OWN]
    own += [Path(libraries[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        is_readable = os.access(path, os.R_OK)  # nor is a name as <string> a file
        if is_readable and not any(path.is_relative_to(folder) for folder in own):
            where = f"{path.name} line {frame.lineno}, which is not of this project"
            told = seen if re.match(CALL, seen) else said  # it called a module of its own wrongly
            return ConfigError("CONFIG-TARGET", f"in {where}: {told}")
    if re.match(CALL, seen):
        return ConfigError("CONFIG-TARGET", said)
    classes = [each if isinstance(each, type) else type(each) for each in called]
    foreign = [cls.__name__ for cls in classes if cls.__module__.partition(".")[0] not in OWN]
    return ConfigError("CONFIG-TARGET", f"in {foreign[0]}: {said}") if foreign else None


@contextmanager
def calling(*called: Any) -> Iterator[None]:
    """In the block classes run that a configuration names, which anyone may have written.

    Raises:
        ConfigError: CONFIG-TARGET for what such a class raises, also where it reads files; an error
            that means the same whoever raises it, such as too little memory, stays as it is.
    """
    try:
        yield
    except Exception as error:
        is_known = as_known_error(error) and not isinstance(error, OSError)
        if is_known or not (wrong := of_foreign_code(error, *called)):
            raise
        raise wrong from error


@contextmanager
def of_case(case: str | None) -> Iterator[None]:
    """In the block an error of data that names no subject is one of this subject."""
    try:
        yield
    except DataError as error:
        error.case = error.case or case
        error.args = (*error.args[:2], error.case)
        raise


def survived(error: Exception, *fatal: type[DsdiffError]) -> DsdiffError:
    """Return the known error that ``error`` means, for a job that goes on with the next patient.

    Raises:
        Exception: ``error`` itself where it is not known, or is one of ``fatal``.
    """
    known = as_known_error(error)
    if known is None or isinstance(known, fatal):
        raise error
    return known


def _worker_error(text: str) -> WorkerError:
    """Return what a loading process did: the last line of its traceback, if it has sent one."""
    lines = text.strip().splitlines()
    said = lines[-1] if "Traceback" in text else lines[0]
    return WorkerError(
        "WORKER",
        f"{said.removeprefix('ldm.errors.')}; --resume goes on, data.params.worker_timeout=SECONDS "
        "waits longer, data.params.num_workers=0 needs no process",
    )


def bad_value(message: str) -> ConfigError:
    """Return the refusal of a value: ``CONFIG-VALUE``, the most common error."""
    return ConfigError("CONFIG-VALUE", message)


def nearest(name: str, known: Collection[str]) -> str:
    """Return `` (nearest: 'x')`` for the known name most like ``name``, or an empty string."""
    match = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" (nearest: '{match[0]}')" if match else ""


def one_of(key: str, value: Any, known: Collection[Any]) -> Any:
    """Return ``value``, which must be one of ``known``.

    Args:
        key: what the user typed before the value, such as ``data.params.axis`` or ``--noise``.

    Raises:
        ConfigError: CONFIG-VALUE with what is known, and the nearest of it.
    """
    if value not in known:
        names = ", ".join(map(str, known))
        raise bad_value(f"{key} is '{value}': give one of {names}{nearest(value, known)}")
    return value


def one_line(text: str) -> str:
    """Return ``text`` on one line of at most MAX_LINE characters, control characters escaped.

    What is too long loses its middle: what was seen comes first, and what to do next last.
    """
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(escaped) <= MAX_LINE:
        return escaped
    end = MAX_LINE // 3
    return escaped[: MAX_LINE - end - len(CUT)] + CUT + escaped[-end:]
