"""Subjects shared by several processes, each with the model on a device of its own."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ldm.data.layouts import Layout, Subject
from ldm.environment import pick_device
from ldm.errors import DsdiffError, WorkerError, bad_value
from ldm.inference.writing import Writer, Written, write_each


class SharedWriter:
    """Writes what several processes make, byte for byte what one makes.

    Each process takes the next subject when it is done with one; this one alone writes. To be used
    as a context, at whose end the processes end too.

    Args:
        writer: what is made, and how it is written.
        devices: number of processes: on a machine with CUDA each on a GPU, else all on the CPU.
        device: see :meth:`Synthesiser.load`.

    Raises:
        ConfigError: CONFIG-VALUE for fewer than one process, or more than there are GPUs.
    """

    def __init__(self, writer: Writer, devices: int, device: str = "auto") -> None:
        self.writer, self.devices = writer, devices
        places = device_names(devices, device)
        context = multiprocessing.get_context("spawn")
        queue = context.SimpleQueue()
        for place in places:
            queue.put(place)
        options = (queue, torch.get_num_threads(), writer.on_a_device())
        self._others = multiprocessing.active_children()
        self._pool = ProcessPoolExecutor(devices, context, _begin, options)
        self._writing = threading.Lock()

    def __enter__(self) -> SharedWriter:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is not None:  # what is under way is of no use any more
            for process in multiprocessing.active_children():
                if process not in self._others:
                    process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def write_all(
        self, subjects: Sequence[Subject], layout: Layout, report: Callable[[DsdiffError], None]
    ) -> Written:
        """Write the output of each, see :meth:`ldm.inference.writing.Writer.write_all`.

        Raises:
            OutputError. WorkerError: WORKER, a process was killed.
        """

        def write(subject: Subject, title: str) -> bool:
            if self.writer.is_written(subject):
                return False
            made = self._made(subject, layout, title)
            with self._writing:
                self.writer.keep(made)
            return True

        pool = ThreadPoolExecutor(self.devices)
        try:
            return write_each(subjects, write, report, pool.map)
        finally:  # after an error nothing more is begun
            pool.shutdown(wait=False, cancel_futures=True)

    def _made(self, subject: Subject, layout: Layout, title: str) -> Any:
        """Return what another process made."""
        try:
            return self._pool.submit(_make, subject, layout, title).result()
        except BrokenProcessPool as error:
            raise WorkerError(
                "WORKER",
                "a process that works on subjects was killed (no memory?), or could not start, as "
                "it says above: run the same command again, with fewer --devices",
            ) from error


def shared_among(
    writer: Writer, devices: int, device: str = "auto"
) -> AbstractContextManager[Writer | SharedWriter]:
    """Return what writes: the writer itself, or several processes; see :class:`SharedWriter`."""
    return nullcontext(writer) if devices == 1 else SharedWriter(writer, devices, device)


def device_names(devices: int, device: str = "auto") -> list[str]:
    """Return the device of each of several processes.

    Raises:
        ConfigError: CONFIG-VALUE.
    """
    kind = pick_device(device)
    most = torch.cuda.device_count() if kind == "cuda" else None
    if devices < 1 or (most is not None and devices > most):
        span = "1 or more" if most is None else f"1 to {most}, the number of GPUs"
        raise bad_value(f"--devices is {devices}: give {span}")
    return [kind if most is None else f"cuda:{number}" for number in range(devices)]


_writer: Writer  # of a process that makes


def _begin(places: Any, threads: int, load: Callable[[str], Writer]) -> None:
    """Load the model, in a process that makes."""
    global _writer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    logging.basicConfig(format="dsdiff: %(levelname)s %(message)s", level=logging.WARNING)
    torch.set_num_threads(threads)  # as in one process: sums in another order are other bytes
    _writer = load(places.get())


def _make(subject: Subject, layout: Layout, title: str) -> Any:
    return _writer.packed(_writer.make(_writer.read(subject, layout), title))
