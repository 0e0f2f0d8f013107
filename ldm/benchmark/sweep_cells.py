"""The cells of a sweep: each, a sampler at a number of steps, in a folder of its own.

What is finished is not done again, so that an interrupted sweep goes on with the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ldm.benchmark.kept_scores import evaluate_once
from ldm.benchmark.sweep import Cell, Quality
from ldm.data.layouts import Layout, Subject
from ldm.errors import CheckpointError, ConfigError, DsdiffError, OutputError, survived
from ldm.inference.synthesis import Synthesiser
from ldm.inference.volume_writer import VolumeWriter
from ldm.storage import read_json, run_folder, write_json
from ldm.study import Study


def held_out(model: Path, ids: Sequence[str]) -> list[str]:
    """Return the subjects to sweep on: those that the run never saw, else its validation's.

    Empty where the run folder does not tell, or knows them all.
    """
    cost = read_json(run_folder(model) / "cost.json")
    train, val = (set(cost.get(f"{part}_subjects") or ()) for part in ("train", "val"))
    unseen = [i for i in ids if i not in train | val] or [i for i in ids if i in val - train]
    return unseen if cost else []


@dataclass(frozen=True)
class SweepCells:
    """A model, patients, and the folder in which each cell leaves its volumes and scores."""

    synthesiser: Synthesiser
    reference: Path
    layout: Layout
    subjects: Sequence[Subject]
    output: Path
    references: Mapping[str, Mapping[str, str]]  # digests of all files of each patient
    report: Callable[[DsdiffError], None]  # told of a cell that fails, while the others go on

    @property
    def study(self) -> Study:
        """What is scored: of one contrast."""
        return self.synthesiser.study.making(self.synthesiser.request.target)

    def refuse_models_without_steps(self) -> None:
        """Refuse a one-step regression, and a model of any contrast that is not told which.

        Raises:
            CheckpointError: CKPT-MISMATCH. ConfigError: CONFIG-VALUE.
        """
        self.study  # noqa: B018
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
        timings = read_json(folder / "cost.json").get("subjects") or []
        return Cell(
            name,
            steps,
            synthesiser.calls,
            quality=quality,
            slice_seconds=_median(t["seconds"] / t["slices"] for t in timings),
            volume_seconds=_median(t["seconds"] for t in timings),
        )

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
        }

    def _sample(self, synthesiser: Synthesiser, folder: Path, title: str) -> None:
        writer = VolumeWriter(synthesiser, folder)
        try:
            for subject in self.subjects:
                writer.write(subject, self.layout, f"{title}: {subject.id}")
        finally:
            if writer.timings:
                write_json(folder / "cost.json", synthesiser.cost(writer.timings))

    def _quality(self, path: Path, volumes: Path | None) -> Quality:
        told = (volumes, self.reference, self.references, path, self.study)
        result = evaluate_once(*told, layout=self.layout)
        result.require_complete()
        return Quality.of(result)


def _median(values: Any) -> float | None:
    listed = list(values)
    return median(listed) if listed else None
