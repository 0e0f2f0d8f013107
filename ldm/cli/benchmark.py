"""``dsdiff benchmark``: rows x space x seed x sampler x steps on the same data and budget.

What is finished is not done again, so an interrupted benchmark goes on with the same command. How
a cell is run is in :mod:`ldm.benchmark.cells`, what the cells are in :mod:`ldm.benchmark.plan`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from ldm.benchmark.cells import Work, require_same_config, run_cells
from ldm.benchmark.kept_scores import combine
from ldm.benchmark.plan import OWN_KEYS, GridCell, Training, plan_cells, read_budget
from ldm.benchmark.results import Benchmark, RowCost, mean_cost
from ldm.callbacks.metrics_file import read_curves
from ldm.cli.arguments import add_trust_argument
from ldm.cli.evaluate import show_progress, terminal_table
from ldm.config import TOP_LEVEL, merge_config, save_config
from ldm.cost.network import count_flops, count_parameters, training_flops
from ldm.data.layouts import Subject
from ldm.data.seen import Digests, inherited, read_seen, refuse_leaks, subject_digests
from ldm.errors import ConfigError, DataError, PartialError
from ldm.evaluation.downstream import DownstreamScores, judge_once
from ldm.evaluation.folder import picture_folders
from ldm.evaluation.protocol import DEFAULT
from ldm.evaluation.scores import Evaluation
from ldm.report.tables import Table
from ldm.storage import folder_lock, read_json, write_json
from ldm.util import instantiate_from_config

TIMING = 3  # repeats
SPLIT_KEYS = ("root", "layout", "train", "val", "test", "fold", "folds", "seed")
SHORT = ("backbone", "PSNR dB", "SSIM", "n", "parameters M", "s a volume")
EPILOG = """\
rows x spaces x seeds are trainings; each is sampled with every sampler and number of steps: a cell.
Lists in `seeds` and `sampling` are axes of the grid. Without --plan, --cell or --collect, all cells
are run and the report is written; started again, the same command goes on. See docs/benchmark.md.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument(
        "config",
        nargs="+",
        metavar="CONFIG|KEY=VALUE",
        help="a benchmark YAML such as configs/benchmark.yaml, then overrides for all rows, as "
        "data.params.root=FOLDER seeds=[0,1,2] budget.steps=2000",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="cells at once, one GPU each (default: the number of GPUs; 1 on a CPU)",
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--plan", action="store_true", help="print the cells and their state; run nothing"
    )
    part.add_argument(
        "--cell", type=int, metavar="K", help="run this cell only, as a task of a SLURM array"
    )
    part.add_argument(
        "--collect", action="store_true", help="run nothing; evaluate and report what is there"
    )
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Plan, then run one cell or all that are missing, or only report."""
    files = [a for a in args.config if "=" not in a]
    if not files:
        raise ConfigError("USAGE", "give a benchmark YAML such as configs/benchmark.yaml")
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError("CONFIG-VALUE", f"--jobs is {args.jobs}: give 1 or more")
    overrides = [a for a in args.config if "=" in a]
    trust = [part for name in args.trust for part in ("--trust", name)]
    words = ["dsdiff", "benchmark", *args.config, "--output", str(args.output), *trust]
    task = Task.plan(files, overrides, args.output, shlex.join(words), args.trust)
    if args.plan:
        return task.show_plan()
    if args.cell is not None:
        return task.run_cell(args.cell)
    return task.collect() if args.collect else task.run_all(args.jobs)


def run_benchmark(files: list[str | Path], overrides: list[str], output: Path, command: str) -> int:
    """Train, sample and evaluate every cell of a benchmark and write its report.

    Args:
        files: the benchmark YAML (and others merged over it).
        overrides: ``key=value`` for all rows.
        output: folder of the benchmark.
        command: what the user typed, for the report.

    Returns:
        0, or 130 when interrupted.

    Raises:
        PartialError: PARTIAL when a cell failed; the report shows which and why.
    """
    return Task.plan(files, overrides, output, command).run_all()


@dataclass(frozen=True)
class Task:
    """A benchmark: its plan, its cells with their patients fixed, and the work on them."""

    described: Mapping[str, Any]
    cells: Sequence[GridCell]
    work: Work
    command: str
    trusted: Sequence[str] = ()

    @classmethod
    def plan(
        cls,
        files: Sequence[str | Path],
        overrides: Sequence[str],
        output: Path,
        command: str,
        trusted: Sequence[str] = (),
    ) -> Task:
        """Read the YAML, fix the patients of every training, and refuse leaks; nothing is run.

        Raises:
            ConfigError: what is wrong. DataError: LEAK; DATA-EMPTY when nobody is held out.
            UnsafeError: UNSAFE-TARGET, a run folder names a class outside ``trusted``.
        """
        plan = merge_config(files, overrides, (*TOP_LEVEL, *OWN_KEYS))
        timing = plan.get("timing", TIMING) or 0
        if type(timing) is not int or timing < 0:
            raise ConfigError("CONFIG-VALUE", f"timing is {timing}: give repeats, 0 for none")
        cells = plan_cells(plan, output, trusted)
        patients = Patients()
        fixed = {
            cell.training.folder: patients.fix(cell.training)
            for cell in cells
            if cell.training and not cell.training.is_given
        }
        first = next(iter(fixed.values())).config["data"] if fixed else _data_of_given(cells, plan)
        data = instantiate_from_config(first, where="data")
        subjects = data.find_subjects()
        ids = data.split["test"] or data.split["val"]
        if not ids:
            raise DataError("DATA-EMPTY", "no subject is held out: set data.params.test or val")
        held_out = subject_digests((subjects[i] for i in ids), data.cache)
        cells = [
            replace(c, training=fixed.get(c.training.folder, c.training)) if c.training else c
            for c in cells
        ]
        for training in _trainings(cells):
            is_given = training.is_given
            seen = read_seen(training.run) if is_given else patients.seen_by(training)
            refuse_leaks(held_out, seen, training.row)
            if not is_given:
                require_same_config(training)
        if plan.get("segmenter"):
            _check_segmenter(Path(plan["segmenter"]), held_out, trusted)
        train, layout = data.split["train"], data.layout_choice
        mask = data.preparation.mask
        work = Work(output, data.root, held_out, train, first, timing, layout, mask)
        return cls(plan, cells, work, command, trusted)

    def show_plan(self) -> int:
        """Print number, state and name of each cell, and how to run them as a job array."""
        from rich.console import Console

        numbered = sorted(self.cells, key=lambda cell: cell.number)
        states = [self.work.state(cell) for cell in numbered]
        listed = [
            {"cell": c.number, "name": c.name, "state": state, "reason": reason}
            for c, (state, reason) in zip(numbered, states, strict=True)
        ]
        write_json(self.work.output / "plan.json", {"command": self.command, "cells": listed})
        body = [[str(c["cell"]), c["state"], c["name"]] for c in listed]
        title = f"{len(self.cells)} cells of {len(_trainings(self.cells))} trainings"
        Console().print(terminal_table(Table(title, ["cell", "state", "name"], body)))
        for line in self._array_lines():
            print(line)
        return 0

    def run_cell(self, number: int) -> int:
        """Run one cell, waiting for a training of it that another process does.

        Raises:
            ConfigError: CONFIG-VALUE. PartialError: PARTIAL when it failed.
        """
        found = [cell for cell in self.cells if cell.number == number]
        if not found:
            raise ConfigError(
                "CONFIG-VALUE", f"--cell is {number}: give 0 to {len(self.cells) - 1}; see --plan"
            )
        self._save_plan()
        code = run_cells(self.work, found, 1, [])
        state, reason = self.work.state(found[0])
        if state in ("failed", "partial"):
            raise PartialError("PARTIAL", f"cell {number}, {found[0].name}: {reason}")
        print(f"cell {number}, {found[0].name}: {state}")
        return code

    def run_all(self, jobs: int | None = None) -> int:
        """Run what is missing, then report; see :func:`run_benchmark`."""
        gpus = visible_gpus()
        jobs = jobs or max(1, len(gpus))
        self.work.is_quiet = jobs > 1
        self._save_plan()
        code = run_cells(self.work, self.cells, jobs, gpus)
        if code:
            print("\nInterrupted; the same command goes on from here.")
            return code
        return self.collect()

    def collect(self) -> int:
        """Report the cells that are done; the others are failed rows.

        Raises:
            PartialError: PARTIAL when a cell failed or is missing.
        """
        from rich.console import Console

        with folder_lock(self.work.output / "locks" / "report"):
            problems, partial = {}, {}
            for cell in self.cells:
                state, reason = self.work.state(cell)
                if state == "partial":
                    partial[cell.number] = reason
                elif state != "done":
                    problems[cell.number] = reason if state == "failed" else f"not done ({state})"
            benchmark = self._benchmark(problems)
            page = benchmark.write(self.work.output)
        table = benchmark.summary()
        shown = [c for c in SHORT if c in table.columns]
        rows = [[row[table.columns.index(c)] for c in shown] for row in table.rows]
        Console().print(terminal_table(Table(benchmark.title, shown, rows)))
        print(f"Report: {page}  Tables: benchmark.csv, benchmark.md, cost.csv, metrics.csv")
        if lost := problems | partial:
            names = {c.number: c.name for c in self.cells}
            listed = "; ".join(f"{names[n]}: {reason}" for n, reason in lost.items())
            raise PartialError(
                "PARTIAL", f"{len(lost)} of {len(self.cells)} cells failed ({listed})"
            )
        return 0

    def _benchmark(self, problems: Mapping[int, str]) -> Benchmark:
        """Return the results of the cells without a problem, one row for all seeds."""
        rows: dict[str, list[GridCell]] = {}
        for cell in self.cells:
            rows.setdefault(cell.row, []).append(cell)
        done = {row: [c for c in cells if c.number not in problems] for row, cells in rows.items()}
        done = {row: cells for row, cells in done.items() if cells}
        result = Evaluation(DEFAULT, subjects=sorted(self.work.held_out))
        for row, cells in done.items():
            seeds = [f"seed {c.training.seed}" if c.training else "" for c in cells]
            runs = [self.work.scores(c, show_progress) for c in cells]
            combine(result, row, dict(zip(seeds, runs, strict=True)))
        pictures = {row: cells[0].prediction for row, cells in done.items()}
        work = self.work
        picture_folders(result, pictures, work.reference, work.layout, work.mask)
        segmenter = self.described.get("segmenter")
        folders = {row: [c.prediction for c in cells] for row, cells in done.items()}
        return Benchmark(
            title=str(self.described.get("name", "Benchmark")),
            result=result,
            downstream=self._downstream(Path(segmenter), folders) if segmenter else None,
            costs={
                row: mean_cost([cell_cost(cell) for cell in cells])
                for row, cells in done.items()
                if cells[0].training
            },
            curves={
                row: curve
                for row, cells in done.items()
                if cells[0].is_timed and (curve := loss_curve(cells[0].training))
            },
            failures={
                row: problems[cells[0].number] for row, cells in rows.items() if row not in done
            },
            command=self.command,
            settings=self._settings(),
            rows=list(rows),
            seeds={
                row: (len(done.get(row, [])), len(cells))
                for row, cells in rows.items()
                if cells[0].training
            },
        )

    def _downstream(
        self, segmenter: Path, folders: Mapping[str, Sequence[Path]]
    ) -> DownstreamScores:
        """Return what a segmenter finds on the synthetic T1ce of each row."""
        work = self.work
        path = work.output / "downstream_kept.json"
        told = (segmenter, folders, work.reference, work.held_out, path)
        options = {"layout": work.layout, "progress": show_progress}
        return judge_once(*told, trusted=self.trusted, **options)

    def _settings(self) -> dict[str, Any]:
        budget = read_budget(self.described)
        sampling = self.described.get("sampling") or {}
        return {
            "budget": str(budget) if budget else "as configured",
            "seeds": ", ".join(str(s) for s in sorted({t.seed for t in _trainings(self.cells)})),
            "training subjects": len(self.work.train),
            "sampling": ", ".join(f"{key} {value}" for key, value in sampling.items()),
        }

    def _save_plan(self) -> None:
        save_config(self.described, self.work.output / "benchmark.yaml")

    def _array_lines(self) -> list[str]:
        """Return the commands that run the cells as job arrays: trainings first, then the rest."""
        first, last = len(_trainings(self.cells)), len(self.cells) - 1
        wrapped = '--wrap "$job --cell \\$SLURM_ARRAY_TASK_ID"'
        lines = [
            "SLURM (add your partition, time and --gres=gpu:1):",
            f"  job={shlex.quote(self.command)}",
            f"  first=$(sbatch --parsable --array=0-{first - 1} {wrapped})",
        ]
        after = "first"
        if last >= first:
            lines.append(
                f"  rest=$(sbatch --parsable --array={first}-{last} --dependency=afterany:$first "
                f"{wrapped})"
            )
            after = "rest"
        lines.append(f'  sbatch --dependency=afterany:${after} --wrap "$job --collect"')
        return lines


def _check_segmenter(path: Path, held_out: Digests, trusted: Sequence[str]) -> None:
    """Refuse a segmenter that cannot judge, before hours of work."""
    from ldm.evaluation.downstream import require_target
    from ldm.inference.segmentation import NetworkSegmenter

    require_target(NetworkSegmenter(path, trusted))
    refuse_leaks(held_out, read_seen(path), "the segmenter")


def _trainings(cells: Sequence[GridCell]) -> list[Training]:
    return list({c.training.folder: c.training for c in cells if c.training}.values())


class Patients:
    """The patients of every training: found once a folder, the same for all seeds."""

    def __init__(self) -> None:
        self.splits: dict[str, dict[str, list[str]]] = {}
        self.subjects: dict[Path, tuple[Mapping[str, Subject], Path | None]] = {}
        self.places: dict[tuple[str, str], dict[str, list[str]]] = {}

    def fix(self, training: Training) -> Training:
        """Return a training that names its patients; those of its row's first seed."""
        place = (training.row, training.space)
        if place not in self.places:
            self.places[place] = self._split(training.config["data"])
        data = training.config["data"]
        params = {**data["params"], **self.places[place], "fold": None}
        return replace(training, config={**training.config, "data": {**data, "params": params}})

    def seen_by(self, training: Training) -> Digests:
        """Return the digests of the files of a training's patients, and of what it builds on."""
        params = training.config["data"]["params"]
        subjects, cache = self.subjects[Path(params["root"])]
        own = subject_digests((subjects[i] for i in params["train"]), cache)
        return {**inherited(training.config["model"]), **own}

    def _split(self, config: Mapping[str, Any]) -> dict[str, list[str]]:
        params = config.get("params") or {}
        key = json.dumps([params.get(name) for name in SPLIT_KEYS])
        if key not in self.splits:
            data = instantiate_from_config(config, where="data")
            subjects = data.find_subjects()
            self.subjects[data.root] = (subjects, data.cache)
            self.splits[key] = data.split
        return self.splits[key]


def _data_of_given(cells: Sequence[GridCell], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``data`` section of a benchmark of runs that were all trained before."""
    config = next(cell.training.config for cell in cells if cell.training)
    changed = {key: plan[key] for key in ("data",) if key in plan}
    return merge_config([{"data": config["data"]}, changed])["data"]


def visible_gpus() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES may name here, one GPU each."""
    import torch

    if listed := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [name.strip() for name in listed.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def cell_cost(cell: GridCell) -> RowCost:
    """Return what a finished cell cost, from what its processes wrote and from its network."""
    training, run = cell.training, read_json(cell.training.run / "cost.json")
    network = network_cost(training)
    sampling = read_json(cell.folder / "timing" / "cost.json")
    sampling = sampling or read_json(cell.prediction / "cost.json")
    timings = sampling.get("subjects") or []
    options = (training.config.get("lightning") or {}).get("trainer") or {}
    images = (run.get("batch_size") or 0) * (options.get("accumulate_grad_batches") or 1)
    steps = run.get("steps")
    return RowCost(
        parameters=network["parameters"],
        flops=network["flops"],
        calls=sampling.get("calls"),
        train_steps=steps,
        train_seconds=run.get("seconds"),
        train_flops=steps and training_flops(network["flops"], images, steps),
        slice_seconds=median(t["seconds"] / t["slices"] for t in timings) if timings else None,
        volume_seconds=median(t["seconds"] for t in timings) if timings else None,
        train_memory=run.get("peak_memory_bytes"),
        sample_memory=sampling.get("peak_memory_bytes"),
        train_batch=images or None,
        sample_batch=sampling.get("batch_size"),
        train_joules=run.get("energy_joules"),
        volume_joules=sampling.get("energy_joules"),
        no_joules=run.get("energy_reason") or sampling.get("energy_reason") or "",
        device=run.get("device") or sampling.get("device", "cpu"),
        precision=f"{run.get('precision', 'n/a')} / {sampling.get('precision', 'n/a')}",
    )


def network_cost(training: Training) -> dict[str, int]:
    """Return parameters and FLOPs of a training's network, counted once."""
    path = training.folder / "network.json"
    if not (known := read_json(path)):
        data = instantiate_from_config(training.config["data"], where="data")
        model = instantiate_from_config(training.config["model"], where="model")
        inputs = model.network_inputs(data)
        known = {
            "parameters": count_parameters(model.network),
            "flops": count_flops(model.network, *inputs),
        }
        write_json(path, known)
    return known


def loss_curve(training: Training) -> tuple[list[int], list[float]] | None:
    """Return the training loss of a run, if any was logged."""
    return read_curves(training.run).get("train/loss")
