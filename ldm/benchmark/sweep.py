"""Quality and cost of one model against sampling steps: table, plot and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ldm.environment import environment
from ldm.evaluation.scores import COPY_T1, METRICS, Evaluation
from ldm.plots.figures import lines_figure
from ldm.report.page import Figure, Report, Section, write_report
from ldm.report.tables import Table, write_table
from ldm.storage import atomic_path, write_json

# What the table shows of each region, and what the plot shows.
SHOWN = {"brain": ("psnr", "nrmse", "ssim", "ms_ssim"), "tumour": ("psnr", "nrmse", "ssim")}
PANELS = (("brain", "psnr"), ("tumour", "psnr"), ("brain", "nrmse"), ("brain", "ms_ssim"))


@dataclass(frozen=True)
class Quality:
    """Scores of one row: region -> metric -> value, as numbers and as ``mean ± sd``."""

    means: Mapping[str, Mapping[str, float | None]]
    texts: Mapping[str, Mapping[str, str | float | None]]
    counted: str

    @classmethod
    def of(cls, result: Evaluation, row: str) -> Quality:
        """Take one row of an evaluation."""
        means, texts, counted = {}, {}, "0"
        for region in result.regions():
            _, *cells, count = next(c for c in result.table(region).rows if c[0] == row)
            texts[region] = {m: _plain(cell) for m, cell in zip(METRICS, cells, strict=True)}
            means[region] = {m: _plain(result.mean(row, region, m)) for m in METRICS}
            counted = count if region == "brain" else counted
        return cls(means, texts, counted)

    def mean(self, region: str, metric: str) -> float:
        """Return the mean over patients; NaN where there is none."""
        value = self.means.get(region, {}).get(metric)
        return float("nan") if value is None else value

    def cells(self) -> list[str | float | None]:
        """Return the cells of the table."""
        return [self.texts.get(r, {}).get(m) for r, metrics in SHOWN.items() for m in metrics]


@dataclass(frozen=True)
class Cell:
    """One sampler at one number of steps.

    Args:
        sampler, steps: what was asked for.
        calls: network calls a slice.
        problem: why there is no quality: ``refused: ...`` or ``FAILED: ...``.
        quality: of the volumes; None with a problem.
        slice_seconds, volume_seconds: medians over the patients.
    """

    sampler: str
    steps: int
    calls: int | None = None
    problem: str = ""
    quality: Quality | None = None
    slice_seconds: float | None = None
    volume_seconds: float | None = None

    def row(self) -> list[Any]:
        """Return the row of the table."""
        empty = sum(map(len, SHOWN.values())) - 1
        quality = self.quality.cells() if self.quality else [self.problem, *[None] * empty]
        counted = self.quality.counted if self.quality else "0"
        seconds = self.slice_seconds, self.volume_seconds
        return [self.sampler, self.steps, self.calls, *quality, counted, *seconds]


@dataclass(frozen=True)
class Sweep:
    """Everything a sweep found out.

    Args:
        title: name of the model.
        cells: one a sampler and number of steps.
        baseline: T1 copied as T1ce.
        subjects: patients.
        protocol: of the metrics.
        command: what the user typed.
        settings: what held for all cells.
    """

    title: str
    cells: Sequence[Cell]
    baseline: Quality
    subjects: Sequence[str]
    protocol: Mapping[str, Any]
    command: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> list[Cell]:
        """The cells that have a quality."""
        return [cell for cell in self.cells if cell.quality]

    def write(self, output: Path) -> Path:
        """Write ``sweep.csv``, ``.md``, ``.json``, ``.svg``, ``.png`` and ``report.html``."""
        table = self.table()
        write_table(table, output, "sweep")
        described = {
            "cells": [asdict(cell) for cell in self.cells],
            "copy_t1": asdict(self.baseline),
            "subjects": list(self.subjects),
            "protocol": dict(self.protocol),
            "command": self.command,
            "settings": dict(self.settings),
            "environment": environment(),
        }
        write_json(output / "sweep.json", described)
        for kind in ("svg", "png") if self.done else ():
            with atomic_path(output / f"sweep.{kind}") as temporary:
                temporary.write_bytes(self.plot(kind))
        write_report(self.report(), output / "report.html")
        return output / "report.html"

    def table(self) -> Table:
        """Return the table: quality in brain and tumour, then cost."""
        quality = [f"{region} {METRICS[m]}" for region, names in SHOWN.items() for m in names]
        columns = ["sampler", "steps", "calls", *quality, "n", "s a slice", "s a volume"]
        baseline = [COPY_T1, None, 0, *self.baseline.cells(), self.baseline.counted, None, None]
        note = (
            "Mean ± standard deviation over patients. Calls: of the network, a slice. Seconds: "
            "medians over patients, of sampling alone."
        )
        return Table("Steps", columns, [*(cell.row() for cell in self.cells), baseline], note)

    def summary(self) -> Table:
        """Return the means of the plot alone, a table that fits a terminal."""
        columns = ["sampler", "steps", "calls"]
        columns += [f"{METRICS[metric]} {region}" for region, metric in PANELS]
        rows: list[list[Any]] = []
        for cell in self.cells:
            quality = [cell.problem.partition(":")[0], *[None] * (len(PANELS) - 1)]
            if cell.quality:
                quality = [cell.quality.mean(*panel) for panel in PANELS]
            rows.append([cell.sampler, cell.steps, cell.calls, *quality, cell.volume_seconds])
        rows.append([COPY_T1, None, 0, *(self.baseline.mean(*panel) for panel in PANELS), None])
        return Table("Steps", [*columns, "s a volume"], rows)

    def plot(self, kind: str) -> bytes:
        """Return quality against network calls as ``svg`` or ``png``, one line a sampler."""
        done = self.done
        panels = {
            f"{METRICS[metric].replace(' dB', ', dB')} ({region})": {
                name: [(c.calls, c.quality.mean(region, metric)) for c in done if c.sampler == name]
                for name in dict.fromkeys(cell.sampler for cell in done)
            }
            for region, metric in PANELS
            if any(region in cell.quality.means for cell in done)
        }
        return lines_figure(panels, "network calls a slice", kind)

    def report(self) -> Report:
        """Return the page."""
        caption = f"Copy T1: {self.baseline.mean('brain', 'psnr'):.2f} dB in the brain."
        title = "Quality against network calls"
        alt = f"{title}, one line a sampler"
        figures = [Figure(title, self.plot("svg"), caption, alt)] if self.done else []
        return Report(
            title=f"{self.title}: quality against sampling steps",
            lead=f"{len(self.subjects)} patients: {', '.join(self.subjects)}.",
            tables=[self.table()],
            figures=figures,
            sections=[Section("Command", [self.command])],
            protocol=dict(self.protocol),
            environment=environment() | dict(self.settings),
        )


def _plain(value: Any) -> Any:
    """A number as JSON knows it; None for NaN."""
    if isinstance(value, str) or value is None:
        return value
    return None if value != value else float(value)
