"""The table of a benchmark, quality and cost of each row, as files and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ldm.environment import environment
from ldm.evaluation.cost import peak_memory_label
from ldm.evaluation.pictures import spread_figure, strips_figure, viewer
from ldm.evaluation.report import (
    Figure,
    Report,
    Section,
    Table,
    loss_figure,
    scatter_figure,
    write_report,
    write_table,
)
from ldm.evaluation.result import COPY_T1, METRICS, Evaluation
from ldm.evaluation.result_tables import BETTER
from ldm.storage import write_json

GIB = 2**30
REGION = "brain"  # the region of the summary table
SUMMARY = ("psnr", "nrmse", "ssim", "ms_ssim")  # its metrics; the tables of regions hold all


@dataclass(frozen=True)
class RowCost:
    """What a row costs. None: not measured (a baseline without a network, or a failed row).

    Args:
        parameters: of the backbone.
        flops: of one network call at batch 1 and training size.
        calls: network calls a slice, or a window of a volume.
        train_steps, train_seconds: of the whole training, validation included.
        slice_seconds, volume_seconds: of sampling, at the stated batch size.
        train_memory, sample_memory: peak bytes of the process (VRAM on a GPU).
        device: where it ran.
        precision: of training / of sampling.
    """

    parameters: int | None = None
    flops: int | None = None
    calls: int | None = None
    train_steps: int | None = None
    train_seconds: float | None = None
    slice_seconds: float | None = None
    volume_seconds: float | None = None
    train_memory: int | None = None
    sample_memory: int | None = None
    device: str = "cpu"
    precision: str = ""


@dataclass(frozen=True)
class Benchmark:
    """Everything a benchmark found out.

    Args:
        title: name of the benchmark.
        result: scores of all rows and baselines.
        costs: row -> cost.
        curves: row -> (steps, training loss).
        failures: row -> reason.
        command: what the user typed.
        settings: what held for all rows.
    """

    title: str
    result: Evaluation
    costs: Mapping[str, RowCost]
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]
    failures: Mapping[str, str]
    command: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, output: Path) -> Path:
        """Write ``benchmark.csv``, ``.json``, ``.md``, ``.tex``, metrics and ``report.html``."""
        table = self.summary()
        write_table(table, output, "benchmark")
        described = {
            "columns": list(table.columns),
            "rows": [list(row) for row in table.rows],
            "costs": {row: asdict(cost) for row, cost in self.costs.items()},
            "failures": dict(self.failures),
            "command": self.command,
            "settings": dict(self.settings),
            "environment": environment(),
        }
        write_json(output / "benchmark.json", described)
        self.result.write(output)
        page = output / "report.html"
        write_report(self.report(), page)
        return page

    def summary(self) -> Table:
        """Return the table: brain-masked quality, then cost."""
        label = peak_memory_label(next((c.device for c in self.costs.values()), "cpu"))
        columns = [
            "backbone",
            *(METRICS[m] for m in SUMMARY),
            "n",
            "parameters M",
            "GFLOPs a call",
            "calls",
            "s a slice",
            "s a volume",
            "train steps",
            "train s",
            "train GiB",
            "sample GiB",
        ]
        rows: list[list[Any]] = []
        for row in (*self.result.scores, *self.failures):
            if row in self.failures:
                quality = [f"FAILED: {self.failures[row]}", *[None] * (len(SUMMARY) - 1), "0"]
            else:
                table = self.result.table(REGION)
                cells = next(cells for cells in table.rows if cells[0] == row)
                named = dict(zip(METRICS, cells[1:], strict=False))
                quality = [*(named[m] for m in SUMMARY), cells[-1]]
            rows.append([row, *quality, *_cost_cells(self.costs.get(row))])
        note = (
            "Mean ± standard deviation over patients, inside the brain. The reference sets the "
            "intensity bounds. FLOPs: a multiply-add counts as 2, attention as matrix products. "
            f"GiB: {label} of the process."
        )
        return Table("Summary", columns, rows, note, BETTER)

    def report(self) -> Report:
        """Return the page."""
        return Report(
            title=self.title,
            lead=(
                f"{len(self.result.scores)} rows on {len(self.result.subjects)} held-out patients: "
                f"{', '.join(self.result.subjects)}."
            ),
            tables=[self.summary(), *self.result.tables()],
            figures=self.figures(),
            sections=[Section("Command", [self.command])],
            protocol=self.result.protocol.to_dict(),
            environment=environment() | dict(self.settings),
            viewer=viewer(self.result),
        )

    def figures(self) -> list[Figure]:
        """Return quality against cost, loss curves, and the patients."""
        figures = spread_figure(self.result)
        for name, xlabel in (
            ("volume_seconds", "seconds a volume"),
            ("parameters", "parameters"),
            ("train_memory", "peak memory in training, bytes"),
        ):
            points = [
                (row, getattr(cost, name), self.result.mean(row, REGION, "psnr"))
                for row, cost in self.costs.items()
                if getattr(cost, name) is not None and row in self.result.scores
            ]
            if points:
                image = scatter_figure(points, xlabel, "PSNR in the brain, dB")
                baseline = self.result.mean(COPY_T1, REGION, "psnr")
                caption = f"Higher and further left is better. Copy T1: {baseline:.2f} dB."
                title = f"Quality against {xlabel.split(',')[0]}"
                figures.append(
                    Figure(title, image, caption, f"PSNR against {xlabel} by row", False)
                )
        if self.curves:
            image = loss_figure(self.curves)
            caption = "Losses of different targets (noise, v, image) have different scales."
            figures.append(
                Figure("Training loss", image, caption, "Training loss over steps", False)
            )
        return [*figures, *strips_figure(self.result)]


def _cost_cells(cost: RowCost | None) -> list[Any]:
    if cost is None:
        return [None] * 9
    return [
        cost.parameters / 1e6 if cost.parameters else None,
        cost.flops / 1e9 if cost.flops else None,
        cost.calls,
        cost.slice_seconds,
        cost.volume_seconds,
        cost.train_steps,
        cost.train_seconds,
        cost.train_memory / GIB if cost.train_memory else None,
        cost.sample_memory / GIB if cost.sample_memory else None,
    ]
