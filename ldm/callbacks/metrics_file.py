"""The metrics of a run as ``metrics.csv``: one line a value, only ever appended."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from ldm.curves import COLUMNS, METRICS_FILE, rows
from ldm.storage import appending, atomic_path


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
        new = [(step, name, f"{value:.9g}") for name, value in metrics.items() if name != "epoch"]
        new = [row for row in new if row not in self._newest]
        if not new:
            return
        if not self.is_begun:
            self._begin(step, is_validation=all(name.startswith("val/") for _, name, _ in new))
        with appending(self.path) as file:
            csv.writer(file).writerows(new)
        self._newest = new

    def _begin(self, step: int, is_validation: bool) -> None:
        """Drop the rows that are written again: from this step on.

        A run that begins with a validation does not train its step again, whose rows stay.
        """
        kept = [
            row
            for row in rows(self.path)
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
