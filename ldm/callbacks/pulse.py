"""Whether processes that train together get on, seen from a thread of each of them."""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from ldm.callbacks.run import RunCheckpoint

log = logging.getLogger(__name__)

COMPUTES = 0.05  # seconds of processor between two looks: less is what the looks themselves take
HELD_UP = (RunCheckpoint.save.__code__,)  # a slow disk may take its time


class Pulse:
    """Tells when all processes of a training stand still: one hangs, and the others wait for it.

    A process that waits is no different from one that hangs, and one may work alone for long while
    the others wait; so nothing is wrong before all of them stand still. Each touches a file when
    its thread that trains has moved: to another place in Python than at the look before or, on a
    CPU, by computing. In a save it always moves. Looks are counted, not seconds, so that all may be
    stopped and go on. A loop without end in Python is not seen.

    Made in the thread that trains; the other methods are called from another one.

    Args:
        folder: of all processes, for their files.
        rank: of this process on this machine.
        processes: how many there are; nothing is judged before all have begun.
        patience: looks without a move.
        computes: processor time is a move (not beside a GPU, whose driver waits by spinning).
    """

    def __init__(
        self, folder: Path, rank: int, processes: int, patience: int, computes: bool
    ) -> None:
        self.folder, self.rank, self.processes = folder, rank, processes
        self.patience, self.computes = patience, computes
        self.thread = threading.get_ident()
        self._place: Any = None
        self._processor = time.process_time()
        self._newest = self._still = 0

    def all_stand_still(self) -> bool:
        """Look; return whether no process has moved for so many looks. It then says where it is."""
        with suppress(OSError):  # the folder is gone: so is the process that has made it
            if self._has_moved():
                (self.folder / str(self.rank)).touch()
            times = [file.stat().st_mtime_ns for file in self.folder.iterdir()]
            moved = len(times) < self.processes or max(times) != self._newest
            self._newest, self._still = max(times, default=0), 0 if moved else self._still + 1
        if self._still == self.patience:
            log.warning("process %d stands still in %s", self.rank, self._where())
        return self._still >= self.patience

    def _has_moved(self) -> bool:
        frame, place = self._frame(), []
        while frame:
            if frame.f_code in HELD_UP:
                self._place = None
                return True
            place.append((id(frame.f_code), frame.f_lasti))
            frame = frame.f_back
        processor = time.process_time()
        used, self._processor = processor - self._processor, processor
        moved = place != self._place or (self.computes and used > COMPUTES)
        self._place = place
        return moved

    def _frame(self) -> FrameType | None:
        return sys._current_frames().get(self.thread)

    def _where(self) -> str:
        frame = self._frame()
        if frame is None:
            return "no thread"
        code = frame.f_code
        return f"{code.co_qualname if sys.version_info >= (3, 11) else code.co_name}, " + (
            f"{'/'.join(Path(code.co_filename).parts[-2:])} line {frame.f_lineno}"
        )
