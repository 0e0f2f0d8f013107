"""Verbs in processes of their own, which can be killed; forked: nothing is imported anew."""

import multiprocessing.util
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ldm.cli.main import main

LIMIT = 120  # seconds; a verb that takes longer hangs


class Verb:
    """A ``dsdiff`` verb that runs in a forked process, in a group of its own.

    Args:
        *arguments: of ``dsdiff``.
        log: file for what it prints.
        before: called in the process before the verb, to arrange a fault.
    """

    def __init__(self, *arguments: object, log: Path, before: Callable[[], None] = lambda: None):
        self.log = log
        self.code: int | None = None  # how it ended; negative for a signal
        self.pid = os.fork()
        if not self.pid:
            self._run([str(a) for a in arguments], before)

    def _run(self, arguments: list[str], before: Callable[[], None]) -> None:
        code = 99
        try:
            os.setpgid(0, 0)
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(descriptor, number)
            import sys

            sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
            before()
            code = main(arguments)
            multiprocessing.util._exit_function()  # a process waits for its workers at its end
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def wait(self, limit: float = LIMIT) -> int:
        """Return its exit code, negative for a signal; one that hangs is a failure."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if not self.is_running():
                return self.code
            time.sleep(0.02)
        self.kill()
        raise AssertionError(f"it hangs: {self.text[-2000:]}")

    def kill(self) -> int:
        """End it and all that it has started at once; return how it ended."""
        os.killpg(self.pid, signal.SIGKILL)
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def is_running(self) -> bool:
        """Return whether it has not ended yet."""
        pid, status = os.waitpid(self.pid, os.WNOHANG) if self.code is None else (0, 0)
        if pid:
            self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def await_word(self, word: str, limit: float = LIMIT) -> None:
        """Wait until it has printed a word."""
        end = time.monotonic() + limit
        while word not in self.text:
            assert time.monotonic() < end, self.text[-2000:]
            time.sleep(0.01)

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def error(self) -> str:
        """The line of its error."""
        return next((n for n in self.text.splitlines() if ": error " in n), "")

    def has_processes(self) -> bool:
        """Return whether anything of its group is left."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True
