"""The table of a benchmark, quality and cost of each row, as files and as a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from statistics import median, median_low
from typing import Any

from ldm.benchmark.plan import SEPARATOR
from ldm.cost.network import peak_memory_label
from ldm.errors import PartialError
from ldm.evaluation.measures import LEAST_SPANS, MEASURES
from ldm.evaluation.scores import FORMAT, Evaluation, Score, SummaryRow
from ldm.plots.axes import row_styles
from ldm.plots.figures import loss_figure, scatter_figure
from ldm.regions import region_title, spelled_out
from ldm.report.charts import charts
from ldm.report.environment import environment
from ldm.report.gallery import Gallery
from ldm.report.page import Figure, Report, shareable, write_all
from ldm.report.score_tables import (
    BETTER,
    HEADLINE,
    best_cells,
    counted,
    enhances_nothing,
    evaluation_tables,
    mean_cell,
    paper_table,
    segmentation_tables,
)
from ldm.report.tables import Cell, Number, Table, write_table
from ldm.storage import strict_json, write_json

GIB = 2**30
# What the summary shows of each row; the other tables hold all.
SUMMARY = (
    ("brain", "psnr"),
    *HEADLINE,
    *(("brain", "nrmse"), ("brain", "ssim"), ("brain", "ms_ssim")),
)
SEED_SPREAD, SEEDS = "sd over seeds dB", "seeds"


def _scaled(name: str, unit: float) -> Callable[[RowCost], float | None]:
    def read(cost: RowCost) -> float | None:
        value = getattr(cost, name)
        return None if value is None else value / unit

    return read


SUMMARY_COSTS = {
    "parameters M": _scaled("parameters", 1e6),
    "GFLOPs a call": _scaled("flops", 1e9),
    "calls": attrgetter("calls"),
    "s a slice": attrgetter("slice_seconds"),
    "s a volume": attrgetter("volume_seconds"),
    "train steps": attrgetter("train_steps"),
    "train s": attrgetter("train_seconds"),
    "train GiB": _scaled("train_memory", GIB),
    "sample GiB": _scaled("sample_memory", GIB),
}
ALL_COSTS = {
    "device": attrgetter("device"),
    "precision train / sample": attrgetter("precision"),
    **SUMMARY_COSTS,
    "train batch": attrgetter("train_batch"),
    "sample batch": attrgetter("sample_batch"),
    "train TFLOPs": _scaled("train_flops", 1e12),
    "train Wh": _scaled("train_joules", 3600),
    "J a volume": attrgetter("volume_joules"),
}


@dataclass(frozen=True)
class RowCost:
    """What a row costs. None: not measured (a baseline without a network, or a failed row)."""

    parameters: int | None = None  # of the backbone
    flops: int | None = None  # of one network call at batch 1 and training size
    calls: int | None = None  # network calls a slice, or a window of a volume
    # of the whole training, validation included
    train_steps: int | None = None
    train_seconds: float | None = None
    train_flops: float | None = None  # 3 x `flops` x images, see ldm.cost.network.training_flops
    # of sampling, at the stated batch size
    slice_seconds: float | None = None
    volume_seconds: float | None = None
    # peak bytes of the process (VRAM on a GPU)
    train_memory: int | None = None
    sample_memory: int | None = None
    # images at once
    train_batch: int | None = None
    sample_batch: int | None = None
    # of the whole GPU
    train_joules: float | None = None
    volume_joules: float | None = None
    no_joules: str = ""  # why there are none
    device: str = "cpu"  # where it ran
    precision: str = ""  # of training / of sampling


NO_NETWORK = RowCost(device="")


def mean_cost(seeds: Sequence[RowCost]) -> RowCost:
    """Return the cost of a row: medians of times and work over its seeds, the largest memory."""

    def over(name: str, reduce: Any) -> Any:
        found = [value for cost in seeds if (value := getattr(cost, name)) is not None]
        return reduce(found) if found else None

    medians = ("train_seconds", "train_flops", "train_joules")
    medians += ("slice_seconds", "volume_seconds", "volume_joules")
    changed = {name: over(name, median) for name in medians}
    changed |= {name: over(name, max) for name in ("train_memory", "sample_memory")}
    changed["train_steps"] = over("train_steps", median_low)  # a whole number
    return replace(seeds[0], **changed)


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything a benchmark found out.

    Args:
        title: name of the benchmark.
        result: scores of all rows and baselines, averaged over seeds patient by patient.
        costs: row -> cost.
        curves: training -> (steps, training loss), of the first seed.
        failures: row -> reason, of rows without any score.
        command: what the user typed.
        settings: what held for all rows.
        rows: all of them, in the order of the table.
        seeds: row -> seeds that are done, of how many.
        downstream: what a segmenter finds on the synthetic volumes.
        gallery: pictures of the patients.
        problems: cell -> why it failed or is not done, also of rows that have a score.
        cells: how many there are.
    """

    title: str
    result: Evaluation = field(repr=False)
    costs: Mapping[str, RowCost] = field(repr=False)
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]] = field(repr=False)
    failures: Mapping[str, str]
    command: str = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    rows: Sequence[str] = ()
    seeds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    downstream: Evaluation | None = field(default=None, repr=False)
    gallery: Gallery = field(default_factory=Gallery, repr=False)
    problems: Mapping[str, str] = field(default_factory=dict)
    cells: int = 0

    @property
    def scores(self) -> list[Score]:
        """The long table of all numbers; ``pandas.DataFrame`` takes it as it is."""
        return self.result.scores

    def require_complete(self) -> None:
        """Refuse a benchmark in which a cell failed or is missing.

        Raises:
            PartialError: PARTIAL, with why.
        """
        if self.problems:
            listed = "; ".join(f"{name}: {reason}" for name, reason in self.problems.items())
            raise PartialError(
                "PARTIAL", f"{len(self.problems)} of {self.cells} cells failed ({listed})"
            )

    def write(self, output: Path, columns: Sequence[str] = ()) -> Path:
        """Write tables, metrics, figures and ``report.html``.

        Args:
            columns: of ``table.tex``, ``.md`` and ``.csv``, see
                :func:`ldm.report.score_tables.paper_table`.
        """
        write_table(paper_table(self.result, columns), output, "table")
        write_table(self.summary(), output, "benchmark")
        write_table(self.cost_table(), output, "cost")
        described = {
            "format": FORMAT,
            "quality": {row: self._quality(row) for row in self.result.rows},
            "costs": {row: asdict(cost) for row, cost in self.costs.items()},
            "seeds": {row: list(counts) for row, counts in self.seeds.items()},
            "failures": dict(self.failures),
            "command": shareable(self.command),
            "labels": self.result.labels,
            "settings": dict(self.settings),
            "environment": environment(),
        }
        write_json(output / "benchmark.json", strict_json(described))
        self.result.write(output)
        if self.downstream:
            self.downstream.write(output, "downstream")
        write_all(self.report(), output)
        return output / "report.html"

    def summary(self) -> Table:
        """Return the table: quality, then cost."""
        further = self._further_columns()
        titles = [MEASURES[measure].title for _, measure in self._shown]
        rows: list[list[Cell]] = []
        for row in self.rows:
            cost = self.costs.get(row)
            costs = [read(cost) if cost else None for read in SUMMARY_COSTS.values()]
            more = [of(row) for of in further.values()]
            rows.append([row, *self._quality_cells(row), *more, *costs])
        best = best_cells(self.result, self.rows, self._shown)
        dice = [(region, "dice") for region in self.downstream.regions()] if self.downstream else []
        if self.downstream:
            best |= best_cells(self.downstream, self.rows, dice, first=len(titles) + 2)
        return Table(
            "Summary",
            ["row", *titles, "n", *further, *SUMMARY_COSTS],
            rows,
            self._note(further),
            BETTER | dict.fromkeys(list(further)[: len(dice)], "higher"),
            best,
        )

    @property
    def _shown(self) -> list[tuple[str, str]]:
        """The regions and measures of the summary: of enhancement where the target enhances."""
        has_native = self.result.study.native is not None
        return [k for k in SUMMARY if has_native or MEASURES[k[1]].level != "enhancement"]

    def _quality_cells(self, row: str) -> list[Cell]:
        """Return what the summary shows of a row, or why there is nothing."""
        found = _scored(self.result, row)
        cells = [mean_cell(found.get(key)) for key in self._shown]
        if not found:
            cells[0] = f"FAILED: {self.failures.get(row, 'no score')}"
        return [*cells, counted(self.result, found, "brain")]

    def _note(self, further: Mapping[str, Any]) -> str:
        label = peak_memory_label(next((c.device for c in self.costs.values()), "cpu"))
        note = (
            "Mean ± standard deviation over patients, inside the brain. The reference sets the "
            "intensity bounds. FLOPs: a multiply-add counts as 2, attention as matrix products. "
            f"GiB: {label} of the process."
        )
        if self.result.study.native:
            note += " Recovery (median) and AUC: of the enhancement of the tumour, n/a without one."
        if nothing := enhances_nothing(self.result):
            note += f" {nothing}"
        if SEED_SPREAD in further:
            note += (
                " A patient's score is its mean over the training seeds; the spread over seeds is "
                "the standard deviation of the mean over patients."
            )
        if self.downstream:
            note += " Dice: what a segmenter finds with the synthetic volumes, against the labels."
            note += f" {spelled_out(self.downstream.regions())}".rstrip()
        return note

    def _further_columns(self) -> dict[str, Callable[[str], Cell]]:
        """Return the columns that only some benchmarks have: their cell in a row."""
        columns: dict[str, Callable[[str], Cell]] = {}
        for region in self.downstream.regions() if self.downstream else ():
            columns[f"{region_title(region)} Dice"] = partial(self._dice, region)
        if any(counts[1] > 1 for counts in self.seeds.values()):
            columns[SEED_SPREAD] = self.seed_spread
            columns[SEEDS] = self._seeds
        return columns

    def _dice(self, region: str, row: str) -> Cell:
        return mean_cell(_scored(self.downstream, row).get((region, "dice")))

    def _quality(self, row: str) -> list[dict[str, Any]]:
        """Return the summary of a row in numbers, with the spread over its seeds."""
        several = len(self.result.seeds(row)) > 1
        return [
            s._asdict() | ({"seed_sd": self.result.over_seeds(row, *key).sd} if several else {})
            for key, s in _scored(self.result, row).items()
        ]

    def cost_table(self) -> Table:
        """Return what each row cost, with batch sizes, precision and where it ran."""
        rows = [
            [row, *(read(self.costs.get(row, NO_NETWORK)) for read in ALL_COSTS.values())]
            for row in self.rows
        ]
        note = (
            "Each row was trained, sampled and timed in processes of its own. Time of a volume: "
            "median of repeats after a warm-up, the device synchronised. Training FLOPs: 3 forward "
            "passes an image."
        )
        reasons = sorted({c.no_joules for c in self.costs.values() if c.no_joules})
        if reasons:
            note += f" No energy: {'; '.join(reasons)}."
        return Table("Cost", ["row", *ALL_COSTS], rows, note)

    def seed_spread(self, row: str) -> float | None:
        """Return the standard deviation over seeds of the mean PSNR in the brain."""
        several = len(self.result.seeds(row)) > 1
        return self.result.over_seeds(row, "brain", "psnr").sd if several else None

    def _seeds(self, row: str) -> Cell:
        done, wanted = self.seeds.get(row, (0, 0))
        return Number.of(done, wanted) if wanted else None

    def report(self) -> Report:
        """Return the page."""
        return Report(
            title=self.title,
            lead=(
                f"{len(self.result.rows)} rows on {len(self.result.subjects)} held-out patients: "
                f"{', '.join(self.result.subjects)}. {' '.join(self.result.remarks())}"
            ).rstrip(),
            tables=[
                self.summary(),
                *evaluation_tables(self.result),
                *(segmentation_tables(self.downstream) if self.downstream else []),
                self.cost_table(),
            ],
            figures=self.figures(),
            command=self.command,
            protocol=self.result.protocol.to_dict(),
            environment=environment() | dict(self.settings),
            viewer=self.gallery.viewer(self.result),
        )

    def figures(self) -> list[Figure]:
        """Return the charts of the scores, quality against cost, loss curves, and the patients."""
        figures = charts(self.result)
        styles = row_styles([*self.result.rows, *self.curves])
        for column, xlabel in (
            ("s a volume", "seconds a volume"),
            ("parameters M", "parameters, millions"),
            ("train GiB", "peak memory in training, GiB"),
        ):
            costs = {row: SUMMARY_COSTS[column](cost) for row, cost in self.costs.items()}
            points = [
                (row, cost, self.result.mean(row, "brain", "psnr"))
                for row, cost in costs.items()
                if cost is not None and row in self.result.rows
            ]
            if points:
                told = (points, xlabel, "PSNR in the brain, dB")
                image = scatter_figure(*told, styles=styles, least=LEAST_SPANS["psnr"])
                caption = "Higher and further left is better."
                if (copied := self.result.copied) in self.result.rows:
                    psnr = self.result.mean(copied, "brain", "psnr")
                    caption += f" {copied[0].upper()}{copied[1:]}: {psnr:.2f} dB."
                title = f"Quality against {xlabel.split(',')[0]}"
                figures.append(
                    Figure(title, image, caption, f"PSNR against {xlabel} by row", False)
                )
        if self.curves:
            own = {name: styles[self._first_row(name)] for name in self.curves}
            image = loss_figure(self.curves, own)
            caption = "Losses of different targets (noise, v, image) have different scales."
            figures.append(
                Figure("Training loss", image, caption, "Training loss over steps", False)
            )
        return [*figures, *self.gallery.figures(self.result)]

    def _first_row(self, training: str) -> str:
        """Return the row in whose colour the curve of a training is drawn: the first of its own."""
        start = training + SEPARATOR
        return next((r for r in self.result.rows if f"{r}{SEPARATOR}".startswith(start)), training)


def _scored(result: Evaluation, row: str) -> Mapping[tuple[str, str], SummaryRow]:
    """Return the statistics of a row, none of one that failed."""
    return result.summary(row) if row in result.rows else {}
