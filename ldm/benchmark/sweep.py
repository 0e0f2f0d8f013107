"""Quality and cost of one model against sampling steps: table, plot and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.evaluation.measures import LEAST_SPANS, MEASURES
from ldm.evaluation.scores import FORMAT, Evaluation, SummaryRow
from ldm.plots.figures import lines_figure
from ldm.report.environment import environment
from ldm.report.page import Figure, Report, shareable, write_report
from ldm.report.score_tables import counted, mean_cell
from ldm.report.tables import Cell as TableCell
from ldm.report.tables import Table, write_table
from ldm.storage import strict_json, write_json
from ldm.util import how_many

# What the table shows of each region, and what the plot shows.
SHOWN = (
    *(("brain", measure) for measure in ("psnr", "nrmse", "ssim", "ms_ssim")),
    *(("tumour", measure) for measure in ("psnr", "nrmse", "ssim", "auc_tumour")),
    ("enhancing", "recovery"),
)
PANELS = (("brain", "psnr"), ("tumour", "psnr"), ("enhancing", "recovery"), ("brain", "ms_ssim"))


@dataclass(frozen=True)
class Quality:
    """Scores of one row: (region, measure) -> statistics over patients."""

    row: str
    found: Mapping[tuple[str, str], SummaryRow] = field(repr=False)
    counted: TableCell = field(repr=False)

    @classmethod
    def of(cls, result: Evaluation) -> Quality:
        """Take the only row of an evaluation."""
        (row,) = result.rows
        found = result.summary(row)
        return cls(row, found, counted(result, found, "brain"))

    def mean(self, region: str, measure: str) -> float:
        """Return what is typical of patients; NaN where there is none."""
        found = self.found.get((region, measure))
        return getattr(found, MEASURES[measure].typical) if found else float("nan")

    def cells(self) -> list[TableCell]:
        """Return the cells of the table."""
        return [mean_cell(self.found.get(key)) for key in SHOWN]

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the statistics in plain types."""
        return [summary._asdict() for summary in self.found.values()]


@dataclass(frozen=True)
class Cell:
    """One sampler at one number of steps."""

    # what was asked for
    sampler: str
    steps: int
    calls: int | None = None  # network calls a slice
    problem: str = ""  # why there is no quality: `refused: ...` or `FAILED: ...`
    quality: Quality | None = None  # of the volumes; None with a problem
    # medians over the patients
    slice_seconds: float | None = None
    volume_seconds: float | None = None

    def row(self) -> list[Any]:
        """Return the row of the table."""
        quality = [self.problem, *[None] * (len(SHOWN) - 1), 0]
        if self.quality:
            quality = [*self.quality.cells(), self.quality.counted]
        seconds = self.slice_seconds, self.volume_seconds
        return [self.sampler, self.steps, self.calls, *quality, *seconds]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in plain types."""
        numbers = {name: value for name, value in vars(self).items() if name != "quality"}
        return {**numbers, "quality": self.quality.to_dict() if self.quality else None}


@dataclass(frozen=True)
class Sweep:
    """Everything a sweep found out."""

    title: str  # name of the model
    cells: Sequence[Cell]  # one a sampler and number of steps
    baseline: Quality = field(repr=False)  # the source contrast copied as the target
    subjects: Sequence[str] = field(repr=False)  # patients
    protocol: Mapping[str, Any] = field(repr=False)  # of the metrics
    command: str = field(repr=False)  # what the user typed
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)  # held for all cells

    @property
    def done(self) -> list[Cell]:
        """The cells that have a quality."""
        return [cell for cell in self.cells if cell.quality]

    def write(self, output: Path) -> Path:
        """Write ``sweep.csv``, ``.md``, ``.json``, ``.svg``, ``.png`` and ``report.html``."""
        table = self.table()
        write_table(table, output, "sweep")
        described = {
            "format": FORMAT,
            "cells": [cell.to_dict() for cell in self.cells],
            "baseline": self.baseline.to_dict(),
            "subjects": list(self.subjects),
            "protocol": dict(self.protocol),
            "command": shareable(self.command),
            "settings": dict(self.settings),
            "environment": environment(),
        }
        write_json(output / "sweep.json", strict_json(described))
        for figure in self.figures():
            figure.write(output, "sweep")
        write_report(self.report(), output / "report.html")
        return output / "report.html"

    def table(self) -> Table:
        """Return the table: quality in brain and tumour, then cost."""
        quality = [f"{region} {MEASURES[m].title}" for region, m in SHOWN]
        columns = ["sampler", "steps", "calls", *quality, "n", "s a slice", "s a volume"]
        copied = self.baseline
        baseline = [copied.row, None, 0, *copied.cells(), copied.counted, None, None]
        note = (
            "Mean ± standard deviation over patients. Calls: of the network, a slice. Seconds: "
            "medians over patients, of sampling alone."
        )
        return Table("Steps", columns, [*(cell.row() for cell in self.cells), baseline], note)

    def summary(self) -> Table:
        """Return the means of the plot alone, a table that fits a terminal."""
        columns = ["sampler", "steps", "calls"]
        columns += [f"{MEASURES[measure].title} {region}" for region, measure in PANELS]
        rows: list[list[Any]] = []
        for cell in self.cells:
            quality = [cell.problem.partition(":")[0], *[None] * (len(PANELS) - 1)]
            if cell.quality:
                quality = [cell.quality.mean(*panel) for panel in PANELS]
            rows.append([cell.sampler, cell.steps, cell.calls, *quality, cell.volume_seconds])
        copied = [self.baseline.mean(*panel) for panel in PANELS]
        rows.append([self.baseline.row, None, 0, *copied, None])
        return Table("Steps", [*columns, "s a volume"], rows)

    def figures(self) -> list[Figure]:
        """Return quality against network calls, one line a sampler; none where all failed."""
        if not (done := self.done):
            return []
        measured = [p for p in PANELS if any(p in cell.quality.found for cell in done)]
        panels = {
            f"{MEASURES[measure].title.replace(' dB', ', dB')} ({region})": {
                name: [
                    (c.calls, c.quality.mean(region, measure)) for c in done if c.sampler == name
                ]
                for name in dict.fromkeys(cell.sampler for cell in done)
            }
            for region, measure in measured
        }
        least = [LEAST_SPANS[measure] for _, measure in measured]
        image = lines_figure(panels, "network calls a slice", least)
        psnr = self.baseline.mean("brain", "psnr")
        caption = f"In the brain, {self.baseline.row} has {psnr:.2f} dB."
        title = "Quality against network calls"
        return [Figure(title, image, caption, f"{title}, one line a sampler")]

    def report(self) -> Report:
        """Return the page."""
        return Report(
            title=f"{self.title}: quality against sampling steps",
            lead=f"{how_many(len(self.subjects), 'patient')}: {', '.join(self.subjects)}.",
            tables=[self.table()],
            figures=self.figures(),
            command=self.command,
            protocol=dict(self.protocol),
            environment=environment() | dict(self.settings),
        )
