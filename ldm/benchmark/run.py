"""A benchmark: rows x space x seed x sampler x steps on the same data and budget.

What is finished is not done again, so an interrupted benchmark goes on when it is run again. How a
cell is run is in :mod:`ldm.benchmark.cells`, what the cells are in :mod:`ldm.benchmark.plan`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldm.benchmark.cells import (
    Stopped,
    Work,
    has_begun,
    is_trained,
    require_same_config,
    run_cells,
)
from ldm.benchmark.checks import of_row, require_startable
from ldm.benchmark.costs import cell_cost
from ldm.benchmark.kept_scores import judge_once
from ldm.benchmark.plan import OWN_KEYS, GridCell, Training, plan_cells, read_budget
from ldm.benchmark.results import BenchmarkResult, mean_cost
from ldm.benchmark.tally import planned, tally, to_train, trainings_of
from ldm.benchmark.waiting import waited_lock
from ldm.claims import Claim, claim
from ldm.config import TOP_LEVEL, Overrides, foreign_targets, merge_config, save_config
from ldm.curves import read_curves
from ldm.data.datamodule import ContrastDataModule
from ldm.data.layouts import Layout, Subject
from ldm.data.seen import (
    Digests,
    inherited,
    read_seen,
    refuse_leaks,
    subject_digests,
    tells_all,
)
from ldm.errors import DataError, OutputError, bad_value
from ldm.evaluation.downstream import require_target
from ldm.evaluation.protocol import DEFAULT
from ldm.evaluation.scores import Evaluation
from ldm.inference.segmentation import NetworkSegmenter
from ldm.model_file import read_model
from ldm.progress import Progress, silent
from ldm.report.evaluation import check_columns
from ldm.report.gallery import Gallery
from ldm.storage import MODEL_FILE, read_json
from ldm.study import read_study
from ldm.typed import typed
from ldm.util import instantiate_from_config, listed, params_of, user_path, with_params

log = logging.getLogger(__name__)

TIMING = 3  # repeats
SPLIT_KEYS = ("root", "layout", "train", "val", "test", "fold", "folds", "seed", "patient")


class Benchmark:
    """A benchmark: its plan, its cells with their patients fixed, and the work on them.

    ``Benchmark("configs/benchmark.yaml", ["data.params.root=PATIENTS"], output="out").run()``
    trains, samples and evaluates every cell and returns the numbers. Nothing is run by the
    constructor, which reads the plan, fixes the patients of every training and refuses leaks.

    Args:
        plan: the benchmark YAML, or several that are merged left to right.
        overrides: of all rows: ``key=value``, or ``{key: value}``.
        output: folder of the benchmark.
        trust: classes accepted in a run folder beside those that the shipped YAMLs name.
        command: what the user typed, for the report.
        columns: of the table for a paper, see :func:`ldm.report.score_tables.paper_table`.
        say: told what begins; by default nothing is said, and what the cells say goes to files.
        progress: wraps the patients that are evaluated.

    Raises:
        ConfigError: what is wrong. DataError: LEAK; DATA-EMPTY when nobody is held out.
        UnsafeError: UNSAFE-TARGET, a run folder names a class outside ``trust``.
        OutputError: OUT-EXISTS, ``output`` holds the work of another configuration.
    """

    @typed
    def __init__(
        self,
        plan: str | Path | Sequence[str | Path],
        overrides: Overrides = (),
        output: str | Path = "benchmark",
        *,
        trust: Sequence[str] = (),
        command: str = "Benchmark(...).run()",
        columns: Sequence[str] = (),
        say: Callable[[str], None] | None = None,
        progress: Progress = silent,
    ) -> None:
        self.described = merge_config(listed(plan), overrides, (*TOP_LEVEL, *OWN_KEYS))
        self.command, self.trusted, self.columns = command, trust, columns
        check_columns(DEFAULT, columns)
        place = user_path(output)
        cells = plan_cells(self.described, place, trust)
        patients = self.patients = Patients()
        fixed = {t.folder: patients.fix(t) for t in trainings_of(cells) if not t.is_given}
        self.cells: Sequence[GridCell] = [
            replace(c, training=fixed.get(c.training.folder, c.training)) if c.training else c
            for c in cells
        ]
        self.work = self._work(place, fixed, say, progress)
        self._refuse_leaks()

    def __repr__(self) -> str:
        return f"Benchmark({str(self.work.output)!r}: {planned(self.cells)})"

    def _work(
        self,
        output: Path,
        fixed: Mapping[Path, Training],
        say: Callable[[str], None] | None,
        progress: Progress,
    ) -> Work:
        """Return what the cells share: the held-out patients are those of the first training."""
        timing = self.described.get("timing", TIMING) or 0
        if type(timing) is not int or timing < 0:
            raise bad_value(f"timing is {timing}: give repeats, 0 for none")
        first = next(iter(fixed.values()), None)
        config = first.config["data"] if first else _data_of_given(self.cells, self.described)
        data = instantiate_from_config(config, where="data")
        data.study.making(None)  # refuses a target that varies
        subjects = data.find_subjects()
        ids = data.split["test"] or data.split["val"]
        if not ids:
            raise DataError("DATA-EMPTY", "no subject is held out: set data.params.test or val")
        for i in ids:  # else a prediction of theirs could not be judged
            subjects[i].require([data.target], data.layout)
        return Work(
            output=output,
            reference=data.root,
            cells=self.cells,
            held_out=subject_digests((subjects[i] for i in ids), data.cache),
            train=data.split["train"],
            data=config,
            timing=timing,
            layout=data.layout_choice,
            mask=data.preparation.mask,
            is_quiet=say is None,
            say=say,
            progress=progress,
        )

    def _refuse_leaks(self) -> None:
        held_out, target = self.work.held_out, self.work.study.target
        for training in self.trainings:
            if (own := read_study(training.config).target) != target:
                raise bad_value(
                    f"{training.row} synthesises {own}, other rows {target}: what is compared has "
                    "one target, so give each a benchmark"
                )
            given = training.is_given
            seen = read_seen(training.run) if given else self.patients.seen_by(training)
            refuse_leaks(held_out, seen, training.row)
            if not given:
                require_same_config(training)
            elif not tells_all(training.run):
                log.warning(
                    "%s: does not say whom it was trained on, so it may know tested patients",
                    training.row,
                )
        for cell in self.cells:  # what was sampled of a run that has other weights by now
            sampled = read_json(cell.folder / "cell.json").get("request", {}).get("model")
            if sampled and sampled != self.work.request(cell).get("model"):
                place = self.work.output
                raise OutputError(
                    "OUT-EXISTS",
                    f"{cell.row}: {place} has the scores of another model: choose another --output",
                )
        if self.described.get("segmenter"):
            folder = user_path(self.described["segmenter"])
            _check_segmenter(folder, self.work, self.trusted)

    @property
    def trainings(self) -> list[Training]:
        """Each training once."""
        return trainings_of(self.cells)

    def states(self) -> dict[int, tuple[str, str]]:
        """Return number of a cell -> its state, and the reason of a failure; by number."""
        numbered = sorted(self.cells, key=lambda cell: cell.number)
        return {cell.number: self.work.state(cell) for cell in numbered}

    def overview(self) -> str:
        """Return what the plan holds and how much of it is done, in a line each."""
        trainings = to_train(self.cells)
        done = tally([state for state, _ in self.states().values()])
        if trainings:
            done = f"{sum(map(is_trained, trainings))} of {len(trainings)} trainings, {done}"
        return f"{planned(self.cells)}\n{done}"

    @typed
    def cell(self, number: int) -> GridCell:
        """Return the cell of a number.

        Raises:
            ConfigError: CONFIG-VALUE when there is none.
        """
        for cell in self.cells:
            if cell.number == number:
                return cell
        raise bad_value(f"--cell is {number}: give 0 to {len(self.cells) - 1}; see --plan")

    @typed
    def run_cell(self, number: int) -> tuple[str, str]:
        """Run one cell, waiting for a training of it that another process does.

        Returns:
            Its state, and the reason of a failure.

        Raises:
            ConfigError: CONFIG-VALUE. Stopped: it was interrupted.
        """
        cell = self.cell(number)
        self._run([cell], 1, [])
        return self.work.state(cell)

    @typed
    def run(self, jobs: int | None = None) -> BenchmarkResult:
        """Run every cell that is not done, then report.

        Args:
            jobs: cells at once, one GPU each; None: the number of GPUs, 1 on a CPU.

        Raises:
            ConfigError: CONFIG-VALUE. Stopped: it was interrupted; run again, it goes on.
        """
        if jobs is not None and jobs < 1:
            raise bad_value(f"jobs is {jobs!r}: give 1 or more")
        gpus = visible_gpus()
        jobs = jobs or max(1, len(gpus))
        self.work.is_quiet |= jobs > 1
        if self.work.say:
            self.work.say(self.overview())
        self._try_rows()
        self._run(self.cells, jobs, gpus)
        return self.collect()

    def _try_rows(self) -> None:
        """Refuse a row that could not be trained before the others are, which takes days.

        Raises:
            ConfigError, DataError: see :func:`ldm.benchmark.checks.require_startable`; CONFIG-VALUE
                for classes of one's own that fail in a first step on noise.
            CheckpointError: a run that was given is damaged.
        """
        several, tried = len(trainings_of(self.cells)) > 1, set()
        for training in self.trainings if several else ():
            if training.is_given:
                with of_row(training.row):
                    read_model(training.run / MODEL_FILE)
                continue
            if (training.row, training.space) in tried or has_begun(training):
                continue
            tried.add((training.row, training.space))
            require_startable(training, *self.patients.of(training))
            if foreign_targets(training.config):
                with self.claim():
                    self.work.rehearse(training)

    def _run(self, cells: Sequence[GridCell], jobs: int, gpus: Sequence[str]) -> None:
        with self.claim():
            save_config(self.described, self.work.output / "benchmark.yaml")
            code = run_cells(self.work, cells, jobs, gpus)
        if code:
            raise Stopped(code)

    def claim(self) -> AbstractContextManager[Claim]:
        """Own the folder, as several processes of this benchmark may do at once."""
        output, known = self.work.output, (self.work.output / "locks").is_dir()
        inputs = [self.work.reference]
        return claim(output, "benchmark", inputs=inputs, shared=True, adopt=known)

    def collect(self) -> BenchmarkResult:
        """Return the results of the cells that are done, and write the report of all.

        A cell that failed, or is not done, is a failed row, and named in ``problems``.
        """
        with waited_lock(self.work.output / "locks" / "report"), self.claim():
            missing, partial = {}, {}
            for cell in self.cells:
                state, reason = self.work.state(cell)
                if state == "partial":
                    partial[cell.number] = reason
                elif state != "done":
                    missing[cell.number] = reason if state == "failed" else f"not done ({state})"
            result = self._result(missing, partial)
            result.write(self.work.output, self.columns)
        return result

    def _result(self, missing: Mapping[int, str], partial: Mapping[int, str]) -> BenchmarkResult:
        """Return the results of the cells that are not missing, one row for all seeds."""
        rows: dict[str, list[GridCell]] = {}
        for cell in self.cells:
            rows.setdefault(cell.row, []).append(cell)
        names = {cell.number: cell.name for cell in self.cells}
        done = {row: [c for c in cells if c.number not in missing] for row, cells in rows.items()}
        done = {row: cells for row, cells in done.items() if cells}
        result = self._scores(done)
        timed = {row: c[0].training for row, c in done.items() if c[0].is_timed}
        several = len(self.described.get("spaces") or {}) > 1
        curves = {
            t.label(several): read_curves(t.run).get("train/loss") for t in timed.values() if t
        }
        return BenchmarkResult(
            title=str(self.described.get("name", "Benchmark")),
            result=result,
            gallery=self._gallery(result, done),
            downstream=self._downstream(done),
            costs={
                row: mean_cost([cell_cost(cell) for cell in cells])
                for row, cells in done.items()
                if cells[0].training
            },
            curves={name: curve for name, curve in curves.items() if curve},
            failures={
                row: missing[cells[0].number] for row, cells in rows.items() if row not in done
            },
            command=self.command,
            settings=self._settings(),
            rows=list(rows),
            seeds={
                row: (len(done.get(row, [])), len(cells))
                for row, cells in rows.items()
                if cells[0].training
            },
            problems={names[number]: why for number, why in {**missing, **partial}.items()},
            cells=len(self.cells),
        )

    def _scores(self, done: Mapping[str, Sequence[GridCell]]) -> Evaluation:
        """Return the scores of each row, of all its seeds."""
        result = Evaluation(DEFAULT, subjects=sorted(self.work.held_out), study=self.work.study)
        for row, cells in done.items():
            for cell in cells:
                seed = cell.training.seed if cell.training else 0
                told = f"seed {seed}: " if len(cells) > 1 else ""
                result.take(row, seed, self.work.scores(cell), told)
        return result

    def _gallery(self, result: Evaluation, done: Mapping[str, Sequence[GridCell]]) -> Gallery:
        """Return the pictures of the first seed of each row."""
        work, gallery = self.work, Gallery()
        pictures = {row: cells[0].prediction for row, cells in done.items()}
        named = [t for training in self.trainings for t in training.targets]
        gallery.read(result, pictures, work.reference, work.layout, work.mask, named)
        return gallery

    def _downstream(self, done: Mapping[str, Sequence[GridCell]]) -> Evaluation | None:
        """Return what a segmenter finds on the synthetic volumes of each row, if one is named."""
        if not (segmenter := self.described.get("segmenter")):
            return None
        work = self.work
        folders = {row: [c.prediction for c in cells] for row, cells in done.items()}
        path = work.output / "downstream_kept.json"
        return judge_once(
            user_path(segmenter),
            folders,
            work.reference,
            work.held_out,
            path,
            work.study,
            trusted=self.trusted,
            layout=work.layout,
            progress=work.patients,
        )

    def _settings(self) -> dict[str, Any]:
        budget = read_budget(self.described)
        sampling = self.described.get("sampling") or {}
        return {
            "budget": str(budget) if budget else "as configured",
            "seeds": ", ".join(str(s) for s in sorted({t.seed for t in self.trainings})),
            "training subjects": len(self.work.train),
            "sampling": ", ".join(f"{key} {value}" for key, value in sampling.items()),
        }


def _check_segmenter(path: Path, work: Work, trusted: Sequence[str]) -> None:
    """Refuse a segmenter that cannot judge, before hours of work."""
    segmenter = NetworkSegmenter(path, trusted)
    require_target(segmenter, work.study)
    refuse_leaks(work.held_out, segmenter.trained.seen, "the segmenter")


class Patients:
    """The patients of every training: found once a folder, the same for all seeds."""

    def __init__(self) -> None:
        self.splits: dict[str, dict[str, list[str]]] = {}
        self.data: dict[Path, ContrastDataModule] = {}
        self.places: dict[tuple[str, str], dict[str, list[str]]] = {}

    def fix(self, training: Training) -> Training:
        """Return a training that names its patients; those of its row's first seed."""
        place = (training.row, training.space)
        if place not in self.places:
            self.places[place] = self._split(training.config["data"])
        data = with_params(training.config["data"], {**self.places[place], "fold": None})
        return replace(training, config={**training.config, "data": data})

    def seen_by(self, training: Training) -> Digests:
        """Return the digests of the files of a training's patients, and of what it builds on."""
        params = training.config["data"]["params"]
        data = self.data[Path(params["root"])]
        own = subject_digests((data.subjects[i] for i in params["train"]), data.cache)
        return {**inherited(training.config["model"]), **own}

    def of(self, training: Training) -> tuple[Mapping[str, Subject], Layout]:
        """Return the patients below the root of a training, and how their files are named."""
        data = self.data[Path(training.config["data"]["params"]["root"])]
        return data.subjects, data.layout

    def _split(self, config: Mapping[str, Any]) -> dict[str, list[str]]:
        key = json.dumps([params_of(config).get(name) for name in SPLIT_KEYS])
        if key not in self.splits:
            data = instantiate_from_config(config, where="data")
            data.find_subjects()
            self.data[data.root] = data
            self.splits[key] = data.split
        return self.splits[key]


def _data_of_given(cells: Sequence[GridCell], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``data`` section of a benchmark of runs that were all trained before."""
    config = next(cell.training.config for cell in cells if cell.training)
    changed = {key: plan[key] for key in ("data",) if key in plan}
    return merge_config([{"data": config["data"]}, changed])["data"]


def visible_gpus() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES may name here, one GPU each."""
    if listed := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [name.strip() for name in listed.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]
