"""What a training has logged: ``metrics.csv`` of its run, one line a value."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

METRICS_FILE = "metrics.csv"
COLUMNS = ("step", "metric", "value")
PLACES = ("encoder_first", "encoder_last", "decoder_first", "output")  # of gradient/PLACE
BUCKETS = 4  # of the timesteps: train/loss_t0 is of those with least noise


def read_curves(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return (steps, values) of each metric in a run's ``metrics.csv``."""
    curves: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for step, metric, value in rows(run / METRICS_FILE):
        curves[metric][0].append(step)
        curves[metric][1].append(float(value))
    return dict(curves)


def rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield step, metric and value of each whole line: a kill may have torn one."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for line in file:
            with suppress(ValueError, csv.Error):
                step, metric, value = next(csv.reader([line]), ())
                float(value)
                yield int(step), metric, value
