"""``dsdiff sweep``: quality and cost of one trained model against the number of sampling steps.

Each cell, a sampler at a number of steps, is sampled and evaluated in a folder of its own. What is
finished is not done again, so that an interrupted sweep goes on with the same command.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ldm.benchmark.sweep import Cell, Quality, Sweep
from ldm.cli.evaluate import terminal_table
from ldm.cli.main import report_error
from ldm.cli.sample import VolumeSampler, add_volume_arguments, check_counts
from ldm.data.layouts import Layout, Subject, detect_layout, select_subjects
from ldm.errors import CheckpointError, ConfigError, OutputError, PartialError, as_known_error
from ldm.evaluation.case import TARGET
from ldm.evaluation.folder import evaluate_folders
from ldm.evaluation.protocol import DEFAULT
from ldm.evaluation.scores import COPY_T1
from ldm.models.diffusion.samplers import SAMPLERS, get_sampler
from ldm.storage import folder_lock, kept, read_json, sha256

STEPS = (1, 2, 4, 8, 16, 32)
USUAL = ("ddim", "dpmpp_2m", "unipc_3", "heun")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_volume_arguments(parser)
    parser.add_argument(
        "--steps",
        type=_numbers,
        default=STEPS,
        metavar="N,N,...",
        help=f"of the samplers (default: {','.join(map(str, STEPS))})",
    )
    parser.add_argument(
        "--sampler",
        type=_names,
        default=USUAL,
        metavar="NAME,NAME,...",
        help=f"any of {', '.join(SAMPLERS)}, or all (default: {','.join(USUAL)})",
    )


def run(args: argparse.Namespace) -> int:
    """Sample and evaluate what is missing, then write the table, the plot and the page."""
    from rich.console import Console

    for name in args.sampler:
        get_sampler(name)
    wanted = [(name, steps) for name in args.sampler for steps in args.steps]
    layout, found = detect_layout(args.input, args.layout)
    subjects = select_subjects(found, args.subjects or held_out(args.model, sorted(found)))
    with folder_lock(args.output):
        one = {"sampler": None, "steps": None, "eta": None, "overwrite": False}
        args = argparse.Namespace(**{**vars(args), **one})
        check_counts(args)
        files = {s.id: {c: file.sha256() for c, file in s.files.items()} for s in subjects}
        work = Work(VolumeSampler(args), args.input, layout, subjects, args.output, files)
        work.refuse_models_without_steps()
        cells = [work.cell(*pair, f"{n}/{len(wanted)}") for n, pair in enumerate(wanted, 1)]
        sweep = Sweep(
            title=str(work.sampler.config.get("name", "model")),
            cells=cells,
            baseline=work.baseline(),
            subjects=[subject.id for subject in subjects],
            protocol=DEFAULT.to_dict(),
            command=shlex.join(["dsdiff", *sys.argv[1:]]),
            settings=work.settings(),
        )
        page = sweep.write(args.output)
    Console().print(terminal_table(sweep.summary()))
    for cell in cells:
        if cell.problem:
            print(f"{cell.sampler} {cell.steps}: {cell.problem}")
    print(f"Report: {page}  Plot: {args.output}/sweep.svg, sweep.png")
    failed = [f"{c.sampler}-{c.steps}" for c in cells if c.problem.startswith("FAILED")]
    if failed:
        raise PartialError("PARTIAL", f"{len(failed)} of {len(cells)} failed: {', '.join(failed)}")
    return 0


def held_out(model: Path, ids: Sequence[str]) -> list[str]:
    """Return the subjects to sweep on: those that the run never saw, else its validation's.

    All of them, with a word on it, where the run folder does not tell or knows them all.
    """
    folder = model if model.is_dir() else model.parent
    cost = read_json(folder / "cost.json")
    train, val = (set(cost.get(f"{part}_subjects") or ()) for part in ("train", "val"))
    unseen = [i for i in ids if i not in train | val] or [i for i in ids if i in val - train]
    if not cost or not unseen:
        print(
            "No subject is known to be held out: sweeping on all, the training's too; "
            "name others with --subjects",
            file=sys.stderr,
        )
    return unseen or list(ids)


@dataclass(frozen=True)
class Work:
    """A model, patients, and the folder in which each cell leaves its volumes and scores."""

    sampler: VolumeSampler
    reference: Path
    layout: Layout
    subjects: Sequence[Subject]
    output: Path
    references: Mapping[str, Mapping[str, str]]  # digests of all files of each patient

    def refuse_models_without_steps(self) -> None:
        """Refuse a one-step regression.

        Raises:
            CheckpointError: CKPT-MISMATCH.
        """
        if not self.sampler.model.has_reverse_steps:
            raise CheckpointError(
                "CKPT-MISMATCH",
                f"{self.sampler.args.model} holds a {type(self.sampler.model).__name__}, which is "
                "called once whatever the sampler: give a diffusion model",
            )

    def cell(self, name: str, steps: int, place: str) -> Cell:
        """Return one cell, from its folder if it is finished; one that fails stops no other."""
        folder = self.output / "cells" / f"{name}-{steps}"
        try:
            sampler = self.sampler.at(folder, name, steps)
        except ConfigError as error:
            return Cell(name, steps, problem=f"refused: {error.message}")
        try:
            self._sample(sampler, f"{name} {steps} steps ({place})")
            scores = self._scores(sampler)
        except Exception as error:
            known = as_known_error(error)
            if known is None or isinstance(known, OutputError):
                raise
            report_error("sweep", known)
            return Cell(name, steps, sampler.calls, problem=f"FAILED: {known}")
        timings = read_json(folder / "cost.json").get("subjects") or []
        return Cell(
            name,
            steps,
            sampler.calls,
            quality=Quality(**scores),
            slice_seconds=_median(t["seconds"] / t["slices"] for t in timings),
            volume_seconds=_median(t["seconds"] for t in timings),
        )

    def baseline(self) -> Quality:
        """Return the scores of T1 copied as T1ce."""
        path = self.output / "copy_t1.json"
        return Quality(**self._once(path, {"references": self.references}, {}, COPY_T1))

    def settings(self) -> dict[str, Any]:
        """Return what held for all cells."""
        request = self.sampler.request
        return {
            "model digest": request.model_digest,
            "seed": request.seed,
            "temperature": request.temperature,
            "samples": request.samples,
            "precision": request.precision,
            "device": self.sampler.device.type,
            "batch size": self.sampler.args.batch_size,
            **request.options,
        }

    def _sample(self, sampler: VolumeSampler, title: str) -> None:
        try:
            for subject in self.subjects:
                sampler.write(subject, self.layout, f"{title}: {subject.id}")
        finally:
            sampler.write_cost()

    def _scores(self, sampler: VolumeSampler) -> dict[str, Any]:
        folder = sampler.args.output
        volumes = {s.id: sha256(folder / f"{s.id}_{TARGET}.nii.gz") for s in self.subjects}
        described = {"volumes": volumes, "references": self.references}
        return self._once(folder / "scores.json", described, {"cell": folder}, "cell")

    def _once(
        self, path: Path, files: Mapping[str, Any], predictions: Mapping[str, Path], row: str
    ) -> dict[str, Any]:
        """Return the scores in a file if they are of the same files, else evaluate."""

        def evaluate() -> dict[str, Any]:
            ids = [subject.id for subject in self.subjects]
            told = {"baseline": not predictions, "layout": self.layout}
            result = evaluate_folders(predictions, self.reference, ids, **told)
            result.require_complete()
            return {"quality": asdict(Quality.of(result, row))}

        return kept(path, {**files, "protocol": DEFAULT.to_dict()}, evaluate)["quality"]


def _median(values: Any) -> float | None:
    listed = list(values)
    return median(listed) if listed else None


def _numbers(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no list of numbers as 1,2,4") from None


def _names(text: str) -> list[str]:
    return list(SAMPLERS) if text == "all" else list(dict.fromkeys(text.split(",")))
