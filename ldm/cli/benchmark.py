"""``dsdiff benchmark``: the same data, steps and seed for every backbone; one row each.

Every row is trained and sampled in processes of its own (so that its peak memory is its own) by the
verbs ``train`` and ``sample``. What is finished is not done again, so an interrupted benchmark goes
on with the same command.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ldm.callbacks.metrics_file import read_curves
from ldm.cli.evaluate import show_progress
from ldm.config import TOP_LEVEL, load_config, merge_config, save_config
from ldm.errors import BusyError, ConfigError, DataError, PartialError
from ldm.evaluation.benchmark import Benchmark, RowCost
from ldm.evaluation.cost import count_flops, count_parameters
from ldm.evaluation.folder import evaluate_folders
from ldm.storage import folder_lock, read_json
from ldm.util import instantiate_from_config, targets_in

OWN_KEYS = ("rows", "regression_of", "sampling")
SHARED_KEYS = ("seed", "model", "data", "lightning")
REGRESSION = "configs/regression.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "config",
        nargs="+",
        metavar="CONFIG|KEY=VALUE",
        help="a benchmark YAML such as configs/benchmark.yaml, then overrides for all rows, as "
        "data.params.root=FOLDER lightning.trainer.max_steps=2000",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")


def run(args: argparse.Namespace) -> int:
    """Run what is missing, then evaluate and report."""
    files = [a for a in args.config if "=" not in a]
    if not files:
        raise ConfigError("USAGE", "give a benchmark YAML such as configs/benchmark.yaml")
    overrides = [a for a in args.config if "=" in a]
    command = " ".join(["dsdiff benchmark", *args.config, "--output", str(args.output)])
    return run_benchmark(files, overrides, args.output, command)


@dataclass(frozen=True)
class Row:
    """One row of the table: a resolved configuration and where its work lies."""

    name: str
    config: Mapping[str, Any]
    folder: Path

    @property
    def training(self) -> Path:
        """The run folder."""
        return self.folder / "run"

    @property
    def prediction(self) -> Path:
        """The folder of synthetic volumes."""
        return self.folder / "prediction"


def run_benchmark(files: list[str | Path], overrides: list[str], output: Path, command: str) -> int:
    """Train, sample and evaluate every row of a benchmark and write its report.

    Args:
        files: the benchmark YAML (and others merged over it).
        overrides: ``key=value`` for all rows.
        output: folder of the benchmark.
        command: what the user typed, for the report.

    Returns:
        0, or 130 when interrupted.

    Raises:
        PartialError: PARTIAL when a row failed; the report shows which and why.
    """
    plan = merge_config(files, overrides, (*TOP_LEVEL, *OWN_KEYS))
    rows = plan_rows(plan, output)
    data = instantiate_from_config(rows[0].config["data"], where="data")
    data.find_subjects()
    held_out = data.split["test"] or data.split["val"]
    if not held_out:
        raise DataError("DATA-EMPTY", "no subject is held out: set data.params.test or val")
    sampling = plan.get("sampling") or {}
    failures: dict[str, str] = {}
    with folder_lock(output):
        save_config(plan, output / "benchmark.yaml")
        for row in rows:
            code, reason = run_row(row, sampling, data.root, held_out)
            if code in (130, 143):
                print(f"\nInterrupted in row '{row.name}'; the same command goes on from here.")
                return code
            if code:
                failures[row.name] = reason
        done = {row.name: row.prediction for row in rows if row.name not in failures}
        result = evaluate_folders(
            done,
            data.root,
            held_out,
            progress=show_progress,
            layout=data.layout,
            mask=data.preparation.mask,
        )
        page = Benchmark(
            title=str(plan.get("name", "Benchmark")),
            result=result,
            costs={row.name: row_cost(row) for row in rows if row.name in done},
            curves={row.name: c for row in rows if (c := loss_curve(row))},
            failures=failures,
            command=command,
            settings={
                "seed": rows[0].config.get("seed"),
                "training subjects": len(data.split["train"]),
                "sampling": ", ".join(f"{k} {v}" for k, v in sampling.items()),
            },
        ).write(output)
    print(f"\nReport: {page}")
    if failures:
        names = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise PartialError("PARTIAL", f"{len(failures)} of {len(rows)} rows failed ({names})")
    return 0


def plan_rows(plan: Mapping[str, Any], output: Path) -> list[Row]:
    """Return the rows of a benchmark with their resolved, checked configurations.

    Raises:
        ConfigError: what is wrong in a row, before anything runs.
    """
    described = plan.get("rows")
    if not isinstance(described, Mapping) or not described:
        raise ConfigError("CONFIG-MISSING", "rows: name at least one, as {name: {config: YAML}}")
    shared = {key: plan[key] for key in SHARED_KEYS if key in plan}
    rows = []
    for name, row in described.items():
        if row is None:  # turned off, as rows.NAME=null does
            continue
        if (
            not isinstance(row, Mapping)
            or "config" not in row
            or set(row) - {"config", "overrides"}
        ):
            raise ConfigError("CONFIG-UNKNOWN", f"rows.{name} is {row}: give config and overrides")
        parts = [row["config"]] if isinstance(row["config"], str) else list(row["config"])
        own = list(row.get("overrides") or [])
        rows.append(Row(name, load_config([*parts, shared], own), output / "rows" / name))
        if plan.get("regression_of") == name:
            baseline = f"{name}-one-step"
            config = load_config([*parts, REGRESSION, shared], own)
            rows.append(Row(baseline, config, output / "rows" / baseline))
    if not rows:
        raise ConfigError("CONFIG-MISSING", "rows: all are null: leave at least one")
    return rows


def run_row(
    row: Row, sampling: Mapping[str, Any], root: Path, held_out: list[str]
) -> tuple[int, str]:
    """Train and sample one row, as far as that is not done; return exit code and reason."""
    cost = read_json(row.training / "cost.json")
    trust = [part for t in sorted(set(targets_in(row.config))) for part in ("--trust", t)]
    if not cost.get("finished"):
        config = row.folder / "config.yaml"
        save_config(row.config, config)
        begun = any(row.training.glob("checkpoints/*.ckpt"))
        start = ["--resume", row.training] if begun else [config, "--output", row.training]
        print(f"\n{row.name}: {'resuming' if begun else 'training'}")
        code, reason = _dsdiff("train", *start, *trust)
        if code:
            return code, reason
    options = [part for key, value in sampling.items() for part in (_flag(key), value)]
    print(f"\n{row.name}: sampling {len(held_out)} subjects")
    return _dsdiff(
        "sample",
        row.training,
        *("--input", root, "--output", row.prediction, "--subjects", *held_out),
        *options,
        *trust,
    )


def row_cost(row: Row) -> RowCost:
    """Return what a finished row cost, from what its processes wrote and from its network."""
    training = read_json(row.training / "cost.json")
    sampling = read_json(row.prediction / "cost.json")
    data = instantiate_from_config(row.config["data"], where="data")
    model = instantiate_from_config(row.config["model"], where="model")
    timings = sampling.get("subjects") or []
    seconds = [t["seconds"] for t in timings]
    return RowCost(
        parameters=count_parameters(model.network),
        flops=count_flops(model.network, *model.network_inputs(data)),
        calls=sampling.get("calls"),
        train_steps=training.get("steps"),
        train_seconds=training.get("seconds"),
        slice_seconds=median(t["seconds"] / t["slices"] for t in timings) if timings else None,
        volume_seconds=median(seconds) if seconds else None,
        train_memory=training.get("peak_memory_bytes"),
        sample_memory=sampling.get("peak_memory_bytes"),
        device=training.get("device", "cpu"),
        precision=f"{training.get('precision')} / {sampling.get('precision')}",
    )


def loss_curve(row: Row) -> tuple[list[int], list[float]] | None:
    """Return the training loss of a row, if any was logged."""
    return read_curves(row.training).get("train/loss")


def _dsdiff(*arguments: Any) -> tuple[int, str]:
    """Run a verb in a process of its own; return its exit code and last line of stderr."""
    command = [sys.executable, "-m", "ldm.cli.main", *map(str, arguments)]
    # as a console script runs: nothing in the working directory takes the place of a library
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    )
    last = ""
    while True:
        try:
            for line in process.stderr:
                sys.stderr.write(line)
                last = line.strip() or last
            code = process.wait()
            break
        except KeyboardInterrupt:  # the child got it too, and saves
            continue
    if code == BusyError.exit_code:
        raise BusyError("RUN-BUSY", last)
    return (128 - code, last) if code < 0 else (code, last)


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")
