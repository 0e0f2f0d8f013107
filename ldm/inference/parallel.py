"""Subjects shared by several processes, each with the model on a device of its own."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from ldm.data.layouts import Layout, Subject
from ldm.environment import pick_device
from ldm.errors import ConfigError, WorkerError
from ldm.inference.outputs import SyntheticVolume
from ldm.inference.request import Request
from ldm.inference.synthesis import Synthesiser

Made = tuple[SyntheticVolume, list[dict[str, Any]]]


class SharedSynthesis:
    """Writes volumes that several processes make, byte for byte those of one.

    Each process takes the next subject when it is done with one; this one alone writes. To be used
    as a context, at whose end the processes end too.

    Args:
        synthesiser: what is asked, and of which model.
        devices: number of processes: on a machine with CUDA each on a GPU, else all on the CPU.
        device, trust: see :meth:`Synthesiser.load`.

    Raises:
        ConfigError: CONFIG-VALUE for fewer than one process, or more than there are GPUs.
    """

    def __init__(
        self,
        synthesiser: Synthesiser,
        devices: int,
        device: str = "auto",
        trust: Collection[str] = (),
    ) -> None:
        self.synthesiser = synthesiser
        places = device_names(devices, device)
        context = multiprocessing.get_context("spawn")
        queue = context.SimpleQueue()
        for place in places:
            queue.put(place)
        given = (synthesiser.trained.path, tuple(trust), synthesiser.asked)
        options = (queue, torch.get_num_threads(), *given)
        self._others = multiprocessing.active_children()
        self._pool = ProcessPoolExecutor(devices, context, _begin, options)
        self._writing = threading.Lock()

    def __enter__(self) -> SharedSynthesis:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is not None:  # what is under way is of no use any more
            for process in multiprocessing.active_children():
                if process not in self._others:
                    process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def write(
        self,
        subject: Subject,
        layout: Layout,
        folder: Path,
        title: str,
        overwrite: bool = False,
        form: str = "nifti",
    ) -> bool:
        """Write a volume like :meth:`Synthesiser.write`; threads may call it at the same time.

        Raises:
            WorkerError: WORKER, a process was killed.
            DataError, NonFiniteError, OutputError: see there.
        """
        if self.synthesiser.is_written(subject, folder, overwrite, form):
            return False
        try:
            made, timings = self._pool.submit(_make, subject, layout, form).result()
        except BrokenProcessPool as error:
            raise WorkerError(
                "WORKER",
                "a process that samples was killed (no memory?): run the same command again, with "
                "fewer --devices",
            ) from error
        with self._writing:
            self.synthesiser.timings += timings
            made.save(folder, overwrite, form)
        return True


def device_names(devices: int, device: str = "auto") -> list[str]:
    """Return the device of each of several processes.

    Raises:
        ConfigError: CONFIG-VALUE.
    """
    kind = pick_device(device)
    most = torch.cuda.device_count() if kind == "cuda" else None
    if devices < 1 or (most is not None and devices > most):
        span = "1 or more" if most is None else f"1 to {most}, the number of GPUs"
        raise ConfigError("CONFIG-VALUE", f"--devices is {devices}: give {span}")
    return [kind if most is None else f"cuda:{number}" for number in range(devices)]


_synthesiser: Synthesiser  # of a process that samples


def _begin(places: Any, threads: int, path: Path, trust: Collection[str], request: Request) -> None:
    """Load the model, in a process that samples."""
    global _synthesiser
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    logging.basicConfig(format="dsdiff: %(levelname)s %(message)s", level=logging.WARNING)
    torch.set_num_threads(threads)  # as in one process: sums in another order are other bytes
    options = {name: getattr(request, name) for name in request.__dataclass_fields__}
    _synthesiser = Synthesiser.load(path, device=places.get(), trust=trust, **options)


def _make(subject: Subject, layout: Layout, form: str) -> Made:
    made = _synthesiser.synthesise(subject, layout)
    made.packed(form)  # here, not in the process that writes
    timings, _synthesiser.timings = _synthesiser.timings, []
    return made, timings
