"""The metrics of a run as ``metrics.csv``: one line a value, only ever appended."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from ldm.storage import appending, atomic_path

METRICS_FILE = "metrics.csv"
COLUMNS = ("step", "metric", "value")


class MetricsFile(Logger):
    """A Lightning logger that appends ``step,metric,value`` lines to ``metrics.csv`` of a run.

    A resumed run writes again what a killed one wrote after its last checkpoint: from the first
    step that it logs on, older lines are dropped.

    Args:
        run: the run folder.
    """

    name = "metrics"
    version = ""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.path = run / METRICS_FILE
        self.is_begun = False
        self._newest: list[tuple[int | None, str, str]] = []  # rows that were written last

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line for each metric, but for those that were written just now."""
        rows = [(step, name, f"{value:.9g}") for name, value in metrics.items() if name != "epoch"]
        rows = [row for row in rows if row not in self._newest]
        if not rows:
            return
        if not self.is_begun:
            self._begin(step, is_validation=all(name.startswith("val/") for _, name, _ in rows))
        with appending(self.path) as file:
            csv.writer(file).writerows(rows)
        self._newest = rows

    def _begin(self, step: int, is_validation: bool) -> None:
        """Drop the rows that are written again: from this step on.

        A run that begins with a validation does not train its step again, whose rows stay.
        """
        kept = [
            row
            for row in _rows(self.path)
            if row[0] < step or (is_validation and row[0] == step and not row[1].startswith("val/"))
        ]
        with (
            atomic_path(self.path) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            csv.writer(file).writerows([COLUMNS, *kept])
        self.is_begun = True

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: ``config.yaml`` holds the hyper-parameters."""


def read_curves(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return (steps, values) of each metric in a run's ``metrics.csv``."""
    curves: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for step, metric, value in _rows(run / METRICS_FILE):
        curves[metric][0].append(step)
        curves[metric][1].append(float(value))
    return dict(curves)


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield step, metric and value of each whole line: a kill may have torn one."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for line in file:
            with suppress(ValueError, csv.Error):
                step, metric, value = next(csv.reader([line]), ())
                float(value)
                yield int(step), metric, value
