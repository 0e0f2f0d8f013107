"""Processes that train together: one that is gone, or stands still, ends all of them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ldm.errors import WorkerError

log = logging.getLogger(__name__)

PARENT = "DSDIFF_MAIN_PROCESS"  # environment: process that started this one to train with it
TICK = 1.0  # seconds between looks at the others
PATIENCE = 8  # looks at one that is stopped: counted, so that all may be stopped and go on
GRACE = 5.0  # seconds in which the training may end by itself, with an error that says more
GRACE_OF_ERROR = 10.0  # the same where an error is on its way
TERMINATED = 143


def is_main_process() -> bool:
    """Return whether this is the first, or the only, process of a training."""
    return getattr(rank_zero_only, "rank", 0) == 0


class RankGuard(Callback):
    """Ends this process with exit code 8 when another one on this machine is lost.

    A process that waits for the others in a collective operation cannot be interrupted from
    Python, and would wait for half an hour; so a thread looks at the others, of which the first has
    started the rest, and ends this one. A process that ended by SIGTERM ends the others with 143.
    On other machines, what has started the processes there must look at them.
    """

    def __init__(self) -> None:
        self.children: list[subprocess.Popen] = []  # that this process started
        self.parent: int | None = None  # that started this process
        self._ended = threading.Event()
        self._grace = GRACE
        self._thread: threading.Thread | None = None
        self._stopped: dict[int, int] = defaultdict(int)  # looks in which a rank was stopped

    def attach(self, trainer: pl.Trainer) -> None:
        """Guard a training from before its processes are connected."""
        if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
            launcher = trainer.strategy.launcher
            options = launcher.cluster_environment, launcher.num_processes, launcher.num_nodes
            trainer.strategy._launcher = _Launcher(self, *options)
        if os.environ.get(PARENT) == str(os.getppid()):  # a process that was started has one too
            self.parent = os.getppid()
            self.start()

    def start(self) -> None:
        """Start to look at the others."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the end to the error, which may wait for the others and never get there."""
        self._grace = GRACE_OF_ERROR

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look no longer: the others may end before this one."""
        self._ended.set()
        if self._thread:
            self._thread.join(TICK)

    def _watch(self) -> None:
        while not self._ended.wait(TICK):
            lost = self._lost()
            if lost and not self._ended.wait(self._grace):
                self._leave(*lost)

    def _lost(self) -> tuple[int, str, int] | None:
        """Return a process that is lost, how, and the exit code that follows from it."""
        for rank, child in enumerate(self.children, 1):
            if code := child.poll():
                is_told = code in (TERMINATED, -signal.SIGTERM)
                follows = TERMINATED if is_told else WorkerError.exit_code
                return rank, f"ended with exit code {code}", follows
        if self.parent and self.parent != os.getppid():
            return 0, "is gone", WorkerError.exit_code
        others = {rank: child.pid for rank, child in enumerate(self.children, 1)}
        others |= {0: self.parent} if self.parent else {}
        for rank, pid in others.items():
            self._stopped[rank] = self._stopped[rank] + 1 if _is_stopped(pid) else 0
            if self._stopped[rank] >= PATIENCE:
                return rank, "is stopped", WorkerError.exit_code
        return None

    def _leave(self, rank: int, how: str, code: int) -> None:
        """End this process, and see that those on this machine can end."""
        cure = "look at its output, then train --resume RUN"
        log.error("%s", WorkerError("RANK", f"process {rank} of the training {how}: {cure}"))
        for child in self.children:
            child.kill()
        if rank == 0 and self.parent and self.parent == os.getppid():
            os.kill(self.parent, signal.SIGCONT)  # if it was stopped, it now finds that we are gone
        os._exit(code)


class _Launcher(_SubprocessScriptLauncher):
    """Lightning's, but a lost child does not kill this process: the guard lets it say why."""

    def __init__(self, guard: RankGuard, *options: Any) -> None:
        super().__init__(*options)
        self.guard = guard

    def _call_children_scripts(self) -> None:
        os.environ[PARENT] = str(os.getpid())
        super()._call_children_scripts()
        self.guard.children, self.procs = self.procs, []  # Lightning's observer sees none
        self.guard.start()

    def kill(self, signum: Any) -> None:
        """Pass a signal on."""
        for child in self.guard.children:
            child.send_signal(signum)


def _is_stopped(pid: int) -> bool:
    """Return whether a process is, by a signal; never where the system does not tell in /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
