"""Synthetic volumes of a synthesiser as files, a subject at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from ldm.data.layouts import Layout, Subject
from ldm.inference.outputs import SyntheticVolume, is_written, volume_paths
from ldm.inference.request import Request
from ldm.inference.synthesis import Synthesiser
from ldm.inference.trained import Read, load_for_inference
from ldm.inference.writing import Writer
from ldm.storage import COST_FILE, read_json, write_json

ALIKE = ("device", "precision", "batch_size", "steps", "calls")  # of seconds that are compared
Made = tuple[SyntheticVolume, list[dict[str, Any]]]  # and what it cost


class VolumeWriter(Writer):
    """Writes the volume and the sidecar of one subject after another.

    Args:
        synthesiser: what makes them.
        output: folder.
        overwrite: replace what is not of this model, input and request.
        form: see :meth:`ldm.inference.outputs.SyntheticVolume.save`.

    Attributes:
        timings: what the written volumes cost, see :meth:`Synthesiser.cost`.
    """

    def __init__(
        self, synthesiser: Synthesiser, output: Path, overwrite: bool = False, form: str = "nifti"
    ) -> None:
        self.synthesiser, self.output = synthesiser, output
        self.overwrite, self.form = overwrite, form
        self.timings: list[dict[str, Any]] = []

    def on_a_device(self) -> Callable[[str], VolumeWriter]:
        """Return what makes this writer in another process, on a device."""
        trained, asked = self.synthesiser.trained, self.synthesiser.asked
        told = (self.output, self.overwrite, self.form)
        return partial(_load, trained.path, trained.trust, asked, told)

    def is_written(self, subject: Subject) -> bool:
        """Return whether the volume of a subject, as asked for, is in the folder.

        Raises:
            DataError: DATA-IO. OutputError: OUT-EXISTS for another one, OUT-INPUT.
        """
        subject, target = self.synthesiser.inputs_of(subject)
        places = volume_paths(self.output, subject.id, target, self.form)
        return is_written(*places, self.synthesiser.described(subject), self.overwrite)

    def read(self, subject: Subject, layout: Layout) -> Read:
        """Return a subject as the network is shown it; raises DataError."""
        return self.synthesiser.read(subject, layout)

    def make(self, read: Read, title: str) -> Made:
        """Return the volume, and what it cost.

        Raises:
            NonFiniteError: the network returned NaN.
        """
        made = self.synthesiser.of(read, title)
        timings, self.synthesiser.timings = self.synthesiser.timings, []
        return made, timings

    def packed(self, made: Made) -> Made:
        """Return it with the file that it will be, which is not for the process that writes."""
        made[0].packed(self.form)
        return made

    def keep(self, made: Made) -> None:
        """Write the files.

        Raises:
            OutputError: OUT-EXISTS, OUT-IO.
        """
        volume, timings = made
        self.timings += timings
        volume.save(self.output, self.overwrite, self.form)

    def write_cost(self) -> None:
        """Write ``cost.json`` of the volumes in the folder, if this writer has made any.

        Those of an earlier start stay in it, unless they were sampled in another way.

        Raises:
            OutputError: OUT-IO.
        """
        if not self.timings:
            return
        path, cost = self.output / COST_FILE, self.synthesiser.cost(self.timings)
        before = read_json(path, torn=True)
        # one of a repeated timing has other keys
        if before.keys() == cost.keys() and all(before[name] == cost[name] for name in ALIKE):
            timings = [*before["subjects"], *self.timings]
            cost["subjects"] = list({timing["subject"]: timing for timing in timings}.values())
            peaks = (before["peak_memory_bytes"], cost["peak_memory_bytes"])
            cost["peak_memory_bytes"] = max(filter(None, peaks), default=None)
        write_json(path, cost)


def _load(
    path: Path, trust: Collection[str], asked: Request, told: tuple[Path, bool, str], device: str
) -> VolumeWriter:
    return VolumeWriter(Synthesiser(load_for_inference(path, trust, device), asked), *told)
