"""A lock that several processes of one benchmark wait for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ldm.claims import folder_lock
from ldm.errors import BusyError

POLL = 2.0  # seconds between two looks at a lock


@contextmanager
def waited_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder as soon as the process that has it lets it go."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(folder_lock(folder))
                break
            except BusyError:
                time.sleep(POLL)
        yield
