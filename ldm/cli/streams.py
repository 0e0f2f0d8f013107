"""Output that ends no work: where nobody takes the text any more, only the text ends.

``dsdiff train ... | head`` trains to the end, and no verb answers 0 with its work half done. In a
file or a pipe each line is there when it is said, in the order of the processes that say it.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO


class SteadyStream:
    """A stream that goes quiet when its text can no longer be written; else the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):  # closed, or full
                stream.reconfigure(line_buffering=True)

    def write(self, text: str) -> int:
        """Write text, if anybody takes it."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # ValueError: the file is closed
            self._go_quiet()
            return len(text)

    def flush(self) -> None:
        """Flush, if anybody takes the text."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._go_quiet()

    def _go_quiet(self) -> None:
        with suppress(OSError, ValueError):  # what is still in the buffer is written to nowhere
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def steady_streams() -> Iterator[None]:
    """Make ``sys.stdout`` and ``sys.stderr`` steady in the block; a closed one takes text too."""
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        sys.stdout, sys.stderr = (SteadyStream(stream or nowhere) for stream in before)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before
