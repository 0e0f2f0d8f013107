"""``dsdiff benchmark``: rows x space x seed x sampler x steps on the same data and budget.

The engine is :class:`ldm.benchmark.run.Benchmark`; the command line parses, calls and prints.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.arguments import add_output_argument, add_trust_argument, split_words
from ldm.cli.evaluate import add_columns_argument
from ldm.cli.terminal import show_progress
from ldm.errors import ConfigError, PartialError
from ldm.util import trusting

if TYPE_CHECKING:
    from ldm.benchmark.results import BenchmarkResult
    from ldm.benchmark.run import Benchmark

SHOWN = {"say": partial(print, flush=True), "progress": show_progress}
SHORT = ("row", "PSNR dB", "Recovery", "AUC tumour", "SSIM", "n")
SHOWS = "every region, quality against enhancement and cost, seeds, the patients worst first"
EPILOG = """\
rows x spaces x seeds are trainings; each is sampled with every sampler and number of steps: a \
cell. Lists in `seeds` and `sampling` are axes of the grid. Without --plan, --cell or --collect, \
all cells are run and the report is written; started again, the same command goes on. See \
docs/run-a-benchmark.md."""
EXAMPLES = ("dsdiff benchmark configs/benchmark.yaml data.params.root=PATIENTS --output out",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument(
        "config",
        nargs="+",
        metavar="CONFIG|KEY=VALUE",
        help="a benchmark YAML such as configs/benchmark.yaml, then overrides for all rows, as "
        "data.params.root=PATIENTS seeds=[0,1,2] budget.steps=2000",
    )
    add_output_argument(parser, "of runs, report and tables")
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
    add_columns_argument(parser)
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Plan, then run one cell or all that are missing, or only report."""
    from ldm.benchmark.run import Benchmark

    files, overrides = split_words(args.config)
    if not files:
        raise ConfigError("USAGE", "give a benchmark YAML such as configs/benchmark.yaml")
    words = ["dsdiff", "benchmark", *args.config, "--output", str(args.output)]
    words += trusting(args.trust)
    benchmark = Benchmark(
        files,
        overrides,
        args.output,
        trust=args.trust,
        command=shlex.join(words),
        columns=args.columns,
        **SHOWN,
    )
    if args.plan:
        return show_plan(benchmark)
    if args.collect:
        return show_result(benchmark.collect(), args.output)
    if args.cell is not None:
        return unless_stopped(lambda: run_cell(benchmark, args.cell))
    return run_all(benchmark, args.jobs)


def unless_stopped(work: Callable[[], int]) -> int:
    """Return the exit code of what is run; where a signal stops it, say how to go on."""
    from ldm.benchmark.cells import Stopped

    try:
        return work()
    except Stopped as stopped:
        print("\nInterrupted; the same command goes on from here.")
        return stopped.code


def run_all(benchmark: Benchmark, jobs: int | None = None) -> int:
    """Run what is missing, then report."""
    output = benchmark.work.output
    return unless_stopped(lambda: show_result(benchmark.run(jobs), output))


def show_plan(benchmark: Benchmark) -> int:
    """Print number, state and name of each cell, and how to run them as a job array."""
    from rich.console import Console

    from ldm.cli.tables import print_table
    from ldm.report.tables import Table
    from ldm.storage import write_json

    listed = [
        {"cell": number, "name": benchmark.cell(number).name, "state": state, "reason": reason}
        for number, (state, reason) in benchmark.states().items()
    ]
    described = {"command": benchmark.command, "cells": listed}
    with benchmark.claim():
        write_json(benchmark.work.output / "plan.json", described)
    body = [[str(c["cell"]), c["state"], c["name"]] for c in listed]
    print(benchmark.overview())
    print_table(Console(), Table("", ["cell", "state", "name"], body))
    for line in array_lines(benchmark):
        print(line)
    return 0


def run_cell(benchmark: Benchmark, number: int) -> int:
    """Run one cell; say its state.

    Raises:
        PartialError: PARTIAL when it failed.
    """
    state, reason = benchmark.run_cell(number)
    name = benchmark.cell(number).name
    if state in ("failed", "partial"):
        raise PartialError("PARTIAL", f"cell {number}, {name}: {reason}")
    print(f"cell {number}, {name}: {state}")
    return 0


def show_result(result: BenchmarkResult, output: Path) -> int:
    """Print the table and where the report is.

    Raises:
        PartialError: PARTIAL when a cell failed or is missing.
    """
    from rich.console import Console

    from ldm.cli.evaluate import report_paths
    from ldm.cli.tables import print_table
    from ldm.report.score_tables import enhances_nothing
    from ldm.report.tables import Table

    table = result.summary()
    shown = [c for c in SHORT if c in table.columns]
    rows = [[row[table.columns.index(c)] for c in shown] for row in table.rows]
    print_table(Console(), Table(result.title, shown, rows))
    if nothing := enhances_nothing(result.result):
        print(nothing)
    report_paths(output, SHOWS)
    result.require_complete()
    return 0


def array_lines(benchmark: Benchmark) -> list[str]:
    """Return the commands that run the cells as job arrays: trainings first, then the rest."""
    first, last = len(benchmark.trainings), len(benchmark.cells) - 1
    wrapped = '--wrap "$job --cell \\$SLURM_ARRAY_TASK_ID"'
    lines = [
        "SLURM (add your partition, time and --gres=gpu:1):",
        f"  job={shlex.quote(benchmark.command)}",
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
