"""The cells of a sweep: each, a sampler at a number of steps, in a folder of its own.

What is finished is not done again, so that an interrupted sweep goes on with the same call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.benchmark.costs import median_seconds
from ldm.benchmark.kept_scores import evaluate_once
from ldm.benchmark.sweep import Cell, Quality, Sweep
from ldm.checkpoint import study_of
from ldm.claims import claim
from ldm.data.layouts import (
    Choice,
    Layout,
    Subject,
    detect_layout,
    select_subjects,
    summary,
)
from ldm.data.layouts.base import stored_files
from ldm.data.seen import Digests, held_out, named_subjects, seen_among, subject_digests
from ldm.errors import (
    CheckpointError,
    ConfigError,
    DsdiffError,
    OutputError,
    survived,
    to_the_reader,
)
from ldm.evaluation.protocol import DEFAULT
from ldm.hub import local_folder
from ldm.inference.request import SWEPT_SAMPLERS, SWEPT_STEPS, Request
from ldm.inference.synthesis import Synthesiser
from ldm.inference.trained import load_for_inference
from ldm.inference.volume_writer import VolumeWriter
from ldm.models.diffusion.samplers import SAMPLERS, get_sampler
from ldm.progress import Progress, silent, unheard
from ldm.storage import COST_FILE, read_json
from ldm.study import Study
from ldm.typed import typed
from ldm.util import listed, user_path

log = logging.getLogger(__name__)

SEEN = (
    "No subject is known to be held out: sweeping on all, the training's too; name others with "
    "--subjects"
)


@dataclass(frozen=True)
class SweepCells:
    """A model, patients, and the folder in which each cell leaves its volumes and scores."""

    synthesiser: Synthesiser
    reference: Path
    layout: Layout
    subjects: Sequence[Subject]
    output: Path
    references: Digests  # digests of all files of each patient
    seen: Sequence[str]  # ids of the training, which are judged all the same
    report: Callable[[DsdiffError], None]  # told of a cell that fails, while the others go on

    @property
    def study(self) -> Study:
        """What is scored: of one contrast."""
        return self.synthesiser.study.making(self.synthesiser.request.target)

    def check(self) -> None:
        """Refuse a one-step regression, a model of any contrast that is not told which, and a
        subject without the real contrast.

        Raises:
            CheckpointError: CKPT-MISMATCH. ConfigError: CONFIG-VALUE. DataError: DATA-MISSING.
        """
        for subject in self.subjects:
            subject.require([str(self.study.target)], self.layout)
        path, model = self.synthesiser.trained.path, self.synthesiser.model
        if not model.has_reverse_steps:
            raise CheckpointError(
                "CKPT-MISMATCH",
                f"{path} holds a {type(model).__name__}, which is called once whatever the "
                "sampler: give a diffusion model",
            )

    def cell(self, name: str, steps: int, place: str) -> Cell:
        """Return one cell, from its folder if it is finished; one that fails stops no other."""
        folder = self.output / "cells" / f"{name}-{steps}"
        try:
            synthesiser = self.synthesiser.at(sampler=name, steps=steps)
        except ConfigError as error:
            return Cell(name, steps, problem=f"refused: {error.message}")
        try:
            self._sample(synthesiser, folder, f"{name} {steps} steps ({place})")
            quality = self._quality(folder / "scores.json", folder)
        except Exception as error:
            known = survived(error, OutputError)
            self.report(known)
            return Cell(name, steps, synthesiser.calls, problem=f"FAILED: {known}")
        seconds = median_seconds(read_json(folder / COST_FILE))
        return Cell(name, steps, synthesiser.calls, "", quality, *seconds)

    def baseline(self) -> Quality:
        """Return the scores of the source contrast copied as the target."""
        return self._quality(self.output / "copied.json", None)

    def settings(self) -> dict[str, Any]:
        """Return what held for all cells."""
        trained, request = self.synthesiser.trained, self.synthesiser.request
        return {
            "model digest": trained.digest,
            "seed": request.seed,
            "temperature": request.temperature,
            "samples": request.samples,
            "precision": request.precision,
            "device": trained.device.type,
            "batch size": request.batch_size,
            **request.options,
            **({"trained on": ", ".join(self.seen)} if self.seen else {}),
        }

    def _sample(self, synthesiser: Synthesiser, folder: Path, title: str) -> None:
        writer = VolumeWriter(synthesiser, folder)
        try:
            for subject in self.subjects:
                writer.write(subject, self.layout, f"{title}: {subject.id}")
        finally:
            writer.write_cost()

    def _quality(self, path: Path, volumes: Path | None) -> Quality:
        told = (volumes, self.reference, self.references, path, self.study)
        trust = self.synthesiser.trained.trust
        result = evaluate_once(*told, allow_seen=bool(self.seen), layout=self.layout, trust=trust)
        result.require_complete()
        return Quality.of(result)


@typed
def sweep(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    samplers: str | Sequence[str] = SWEPT_SAMPLERS,
    steps: int | Sequence[int] = SWEPT_STEPS,
    *,
    subjects: str | Sequence[str] | None = None,
    layout: Choice = None,
    device: str = "auto",
    trust: Collection[str] = (),
    command: str = "sweep(...)",
    say: Callable[[str], None] | None = None,
    report: Callable[[DsdiffError], None] | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Sweep:
    """Sample and judge a model by several samplers and steps; go on where it was interrupted.

    Args:
        model, source: run folder, and folder of the real subjects, or a CSV.
        output: folder for ``report.html``, ``sweep.json``, the plot and the volumes.
        samplers, steps: names, or ``all``, each in so many steps.
        subjects: ids; None: those that the run has not seen, or all where there are none. Named
            ones of the training are judged too, with a warning.
        layout, device, trust, progress: see :meth:`Synthesiser.load` and its ``volumes``.
        command: what made it, for the page.
        say: told in a line what was found.
        report: told of each cell that fails.
        **options: of :class:`ldm.inference.request.Request`; the temperature is 1 unless told.

    Raises:
        ConfigError, CheckpointError (a model without reverse steps), DataError, OutputError.
    """
    model, source = local_folder(model), user_path(source)
    output = user_path(output)
    pairs = _pairs(samplers, steps)
    study = study_of(model, trust)
    own_layout, found = detect_layout(source, layout, study.contrasts)
    if say:
        say(summary(own_layout, found))
    chosen, seen = _chosen(model, found, study, subjects)
    inputs = [source, model, *stored_files(found.values())]
    with claim(output, "sweep", inputs=inputs, writes=["sweep.json", "report.html"]):
        request = Request().changed(**{"temperature": 1.0, **options})
        synthesiser = Synthesiser(load_for_inference(model, trust, device), request, progress)
        told = (source, own_layout, chosen, output, subject_digests(chosen), seen)
        work = SweepCells(synthesiser, *told, report or unheard)
        work.check()
        done = Sweep(
            title=synthesiser.trained.folder.resolve().name,
            cells=[work.cell(*pair, f"{n}/{len(pairs)}") for n, pair in enumerate(pairs, 1)],
            baseline=work.baseline(),
            subjects=[s.id for s in chosen],
            protocol=DEFAULT.to_dict(),
            command=command,
            settings=work.settings(),
        )
        done.write(output)
    return done


def _chosen(
    model: Path, found: Mapping[str, Subject], study: Study, named: str | Sequence[str] | None
) -> tuple[list[Subject], list[str]]:
    """Return the subjects to sweep on, and the ids of those whom the training has seen."""
    named = named_subjects(named, model, found, study)
    ids = named or held_out(model, found.values(), study)
    if not ids:
        log.warning("%s", to_the_reader(SEEN))
    chosen = select_subjects(found, ids or None)
    if seen := sorted(seen_among(model, chosen, study, "train")):
        log.warning("trained on, so their scores are no test of the model: %s", ", ".join(seen))
    return chosen, seen


def _pairs(samplers: str | Sequence[str], steps: int | Sequence[int]) -> list[tuple[str, int]]:
    """Return sampler and steps of each cell; raises ConfigError for a wrong one."""
    named = listed(samplers)
    names = dict.fromkeys(SAMPLERS if named == ["all"] else named)
    for name in names:
        get_sampler(name)
    numbers = dict.fromkeys(listed(steps))
    for number in numbers:
        Request().changed(steps=number)
    return [(name, number) for name in names for number in numbers]
