"""Processes that train together: one that is gone, or stands still, ends all of them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ldm.callbacks.pulse import Pulse
from ldm.errors import WorkerError

log = logging.getLogger(__name__)

# environment: process that started this one to train with it, and a folder of both
PARENT, COMMON = "DSDIFF_MAIN_PROCESS", "DSDIFF_COMMON_FOLDER"
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
    One that stands still in Python is told from those that wait for it by where it stands, which
    each says, see :class:`ldm.callbacks.pulse.Pulse`. On other machines, what has started the
    processes there must look at them.

    Args:
        patience: seconds in which no process gets on, after which all end.
    """

    def __init__(self, patience: int = 30) -> None:
        self.patience = patience
        self.children: list[subprocess.Popen] = []  # that this process started
        self.parent: int | None = None  # that started this process
        self.common: tempfile.TemporaryDirectory | None = None  # of the process that started
        self._pulse: Pulse | None = None
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

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look from now on whether the processes get on; on one machine, where each can be seen."""
        if (self.children or self.parent) and trainer.num_nodes == 1:
            computes = trainer.strategy.root_device.type == "cpu"
            place = Path(os.environ[COMMON]), trainer.local_rank, trainer.world_size
            self._pulse = Pulse(*place, self.patience, computes)

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
        self._tidy()

    def _watch(self) -> None:
        while not self._ended.wait(TICK):
            if self._lost() and not self._ended.wait(self._grace) and (lost := self._lost()):
                self._leave(*lost)

    def _lost(self) -> tuple[str, int] | None:
        """Return which process is lost, and how, and the exit code that follows from it."""
        for rank, child in enumerate(self.children, 1):
            if code := child.poll():
                is_told = code in (TERMINATED, -signal.SIGTERM)
                follows = TERMINATED if is_told else WorkerError.exit_code
                return f"process {rank} of the training ended with exit code {code}", follows
        if self.parent and self.parent != os.getppid():
            return "process 0 of the training is gone", WorkerError.exit_code
        others = {rank: child.pid for rank, child in enumerate(self.children, 1)}
        others |= {0: self.parent} if self.parent else {}
        for rank, pid in others.items():
            self._stopped[rank] = self._stopped[rank] + 1 if _is_stopped(pid) else 0
            if self._stopped[rank] >= PATIENCE:
                return f"process {rank} of the training is stopped", WorkerError.exit_code
        if self._pulse and self._pulse.all_stand_still():
            told = "no process of the training got on for %d s (data.params.worker_timeout)"
            return told % self.patience, WorkerError.exit_code
        return None

    def _leave(self, how: str, code: int) -> None:
        """End this process, and see that those on this machine can end."""
        cure = "see what is said above, then train --resume RUN"
        log.error("%s", WorkerError("RANK", f"{how}: {cure}"))
        for child in self.children:
            child.kill()
        if self.parent and self.parent == os.getppid():
            os.kill(self.parent, signal.SIGCONT)  # if it was stopped, it now finds that we are gone
        self._tidy()
        os._exit(code)

    def _tidy(self) -> None:
        """Remove the common folder, where this process has made it."""
        if self.common:
            with suppress(OSError):
                self.common.cleanup()


class _Launcher(_SubprocessScriptLauncher):
    """Lightning's, but a lost child does not kill this process: the guard lets it say why."""

    def __init__(self, guard: RankGuard, *options: Any) -> None:
        super().__init__(*options)
        self.guard = guard

    def _call_children_scripts(self) -> None:
        self.guard.common = tempfile.TemporaryDirectory(prefix="dsdiff-")
        os.environ |= {PARENT: str(os.getpid()), COMMON: self.guard.common.name}
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
