"""Results for people: one self-contained HTML page, its figures, and tables as Markdown and CSV.

The page carries its style and its pictures, runs no script and reads nothing from the network, so
that it can be mailed, archived and printed. All text in it is escaped by the template engine: the
name of a patient or a backbone is never markup.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from ldm.storage import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

TEMPLATES = Path(__file__).parent / "templates"

# Okabe & Ito (2008), told apart with every common colour blindness; without yellow, pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"  # eight shapes against seven colours: no pair comes twice before 56 points
STRIP_CELL = 1.7  # inches, width of an image
STRIP_BACKGROUND = "#101114"  # dark like a viewing station, in a light and in a dark page
INK, GRID = "#2b2f36", "#e3e5e8"
ERROR_MAP = "magma"  # perceptually uniform, safe for colour-blind readers

NUMBER_LIKE = re.compile(r"[-+]?\d|n/a$|[-+]?inf$")

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table; numbers may be given as numbers, they are formatted alike everywhere."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def numeric_columns(self) -> list[bool]:
        """Which columns hold only numbers (or ``n/a``) and are aligned to the right."""
        texts = [[format_cell(cell) for cell in row] for row in self.rows]
        return [
            all(NUMBER_LIKE.match(row[index]) for row in texts)
            for index in range(len(self.columns))
        ]


@dataclass(frozen=True)
class Figure:
    """A picture: the bytes of a PNG or an SVG file, and its words."""

    title: str
    image: bytes
    caption: str
    alt: str

    def data_uri(self) -> str:
        """The picture as a ``data:`` address, so that the page needs no second file."""
        kind = "image/png" if self.image.startswith(b"\x89PNG") else "image/svg+xml"
        return f"data:{kind};base64,{base64.b64encode(self.image).decode()}"


@dataclass(frozen=True)
class Section:
    """Commands to copy, for example those that made the page or those to run next."""

    title: str
    commands: Sequence[str]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Content of a page, in the order it is read."""

    title: str
    lead: str
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    sections: Sequence[Section] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


def render(report: Report) -> str:
    """The report as one HTML document."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = format_cell
    return environment.get_template("report.html.j2").render(report=report)


def write_report(report: Report, path: Path | str) -> None:
    """Write the page atomically.

    Raises:
        OutputError: OUT-IO when the system refuses to write.
    """
    page = render(report)
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(page, encoding="utf-8")


def write_table(table: Table, folder: Path, stem: str) -> None:
    """Write ``STEM.csv``, at full precision, and ``STEM.md``, atomically.

    Raises:
        OutputError: OUT-IO when the system refuses to write.
    """
    with (
        atomic_path(folder / f"{stem}.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        csv.writer(file).writerows(csv_rows(table.columns, table.rows))
    with atomic_path(folder / f"{stem}.md") as temporary:
        temporary.write_text(markdown_table(table.columns, table.rows), encoding="utf-8")


def format_cell(value: Cell) -> str:
    """A cell as text: four significant digits, ``n/a`` for NaN and None, ``inf`` for infinity."""
    if value is None or value != value:
        return "n/a"
    if isinstance(value, float | np.floating):
        return f"{value:,.0f}" if 999.95 <= abs(value) < math.inf else f"{value:#.4g}"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A GitHub table; pipes, line breaks and HTML in the cells are escaped."""

    def line(cells: Sequence[Cell]) -> str:
        texts = (html.escape(" ".join(format_cell(c).split()), quote=False) for c in cells)
        return "| " + " | ".join(t.replace("\\", "\\\\").replace("|", "\\|") for t in texts) + " |"

    aligned = Table("", columns, rows).numeric_columns()
    rule = "| " + " | ".join("---:" if numeric else "---" for numeric in aligned) + " |"
    return "\n".join([line(columns), rule, *map(line, rows)]) + "\n"


def csv_rows(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[list[str]]:
    """Head and rows for ``csv.writer``, at full precision; no cell starts a spreadsheet formula."""
    return [[_csv_cell(cell) for cell in row] for row in (columns, *rows)]


def _csv_cell(value: Cell) -> str:
    if not isinstance(value, str):
        return "n/a" if value is None or value != value else str(value)
    try:
        float(value)
    except ValueError:
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return value


def strip_figure(
    rows: Sequence[Mapping[str, NDArray]],
    row_titles: Sequence[str],
    shared_window: Sequence[str] = ("T1", "synthetic", "real"),
    error: str = "error",
) -> bytes:
    """Rows of labelled slices side by side, as PNG.

    Args:
        rows: a row a slice: ``{label: image (H, W)}``, first axis downwards, in display order. A
            label that only some rows have leaves an empty field in the others.
        row_titles: one a row, for example subject and slice.
        shared_window: labels shown with one grey window, set by the last of them in the row. Every
            other image has its own window.
        error: label of the error map, shown in colour with one scale for all rows.
    """
    labels = list(dict.fromkeys(label for row in rows for label in row))
    shape = next(iter(rows[0].values())).shape
    canvas, grid = _strip_grid(labels, row_titles, shape, bar=0.75 if error in labels else 0.05)
    errors = [row[error].ravel() for row in rows if error in row]
    error_limit = float(np.nanpercentile(np.concatenate(errors), 99.5)) if errors else 0
    for axes, row in zip(grid, rows, strict=True):
        for ax, label in zip(axes, labels, strict=True):
            if label == error and label in row:
                colours = ax.imshow(row[label], cmap=ERROR_MAP, vmin=0, vmax=error_limit or 1)
            elif label in row:
                low, high = _grey_window(row, label, shared_window)
                ax.imshow(row[label], cmap="gray", vmin=low, vmax=high)
    if errors:
        _colour_bar(canvas, colours, grid[:, labels.index(error)])
    return figure_bytes(canvas, "png")


def _strip_grid(
    labels: Sequence[str], row_titles: Sequence[str], shape: tuple[int, int], bar: float
) -> tuple[Canvas, NDArray]:
    """Canvas and empty axes (rows, labels) with their titles; ``bar`` inches stay free at right."""
    from matplotlib.figure import Figure as Canvas

    margin, rows = 0.32, len(row_titles)
    width = margin + STRIP_CELL * len(labels) + bar
    height = margin + STRIP_CELL * shape[0] / shape[1] * rows + 0.05
    canvas = Canvas(figsize=(width, height), facecolor=STRIP_BACKGROUND)
    edges = {"left": margin / width, "right": 1 - bar / width, "bottom": 0.05 / height}
    edges |= {"top": 1 - margin / height, "wspace": 0.03, "hspace": 0.03}
    grid = canvas.subplots(rows, len(labels), squeeze=False, gridspec_kw=edges)
    for ax in grid.flat:
        ax.set(xticks=[], yticks=[], facecolor=STRIP_BACKGROUND)
        ax.spines[:].set_visible(False)
    for ax, label in zip(grid[0], labels, strict=True):
        ax.set_title(label, color="white", fontsize=10, pad=5, parse_math=False)
    for ax, title in zip(grid[:, 0], row_titles, strict=True):
        ax.set_ylabel(title, color="white", fontsize=8, parse_math=False)
    return canvas, grid


def _grey_window(
    row: Mapping[str, NDArray], label: str, shared_window: Sequence[str]
) -> tuple[float, float]:
    if label in shared_window:
        label = next(name for name in reversed(shared_window) if name in row)
    return float(np.nanmin(row[label])), float(np.nanpercentile(row[label], 99.8))


def _colour_bar(canvas: Canvas, colours: Any, column: NDArray) -> None:
    width = canvas.get_figwidth()
    top, bottom = column[0].get_position(), column[-1].get_position()
    place = [top.x1 + 0.09 / width, bottom.y0, 0.1 / width, top.y1 - bottom.y0]
    bar = canvas.colorbar(colours, cax=canvas.add_axes(place))
    bar.ax.tick_params(colors="white", labelsize=7, width=0.5)
    bar.outline.set_visible(False)


def loss_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], ylabel: str = "loss"
) -> bytes:
    """Loss against training step on a logarithmic scale, raw and smoothed, as SVG.

    Args:
        curves: ``{name: (steps, values)}``. Values that are not positive and finite are left out.
        ylabel: name of the quantity.
    """
    canvas, ax = _chart("training step", ylabel)
    for place, (name, (steps, values)) in enumerate(curves.items()):
        colour = COLOURS[place % len(COLOURS)]
        steps, values = np.asarray(steps, float), np.asarray(values, float)
        valid = np.isfinite(values) & (values > 0)
        steps, values = steps[valid], values[valid]
        sparse = len(values) < 30
        if not sparse:
            ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8, rasterized=True)
            values = _smooth(values, window=len(values) / 30)
        ax.plot(steps, values, "o-" if sparse else "-", color=colour, markersize=4, label=name)
    ax.set_yscale("log")
    _legend(ax)
    return figure_bytes(canvas, "svg")


def _smooth(values: NDArray, window: float) -> NDArray:
    """Exponential moving average over about ``window`` values, without bias at the start."""
    keep = 1 - 1 / max(window, 2)
    smoothed, total, weight = np.empty_like(values), 0.0, 0.0
    for index, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1
        smoothed[index] = total / weight
    return smoothed


def scatter_figure(points: Sequence[tuple[str, float, float]], xlabel: str, ylabel: str) -> bytes:
    """Quality against cost, a point a backbone, named from the highest to the lowest, as SVG.

    Args:
        points: (label, x, y). A point that is not finite is named as such instead of drawn.
        xlabel: the cost; its axis is logarithmic if the values span a factor of 20.
        ylabel: the quality.
    """
    canvas, ax = _chart(xlabel, ylabel)
    shown = [point for point in points if np.isfinite(point[1:]).all()]
    for place, (label, x, y) in enumerate(sorted(shown, key=lambda point: -point[2])):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        ax.plot(x, y, marker, color=colour, markersize=9, alpha=0.9, label=label)
    for label, *_ in (point for point in points if point not in shown):
        ax.plot([], [], " ", label=f"{label}: n/a")
    costs = [x for _, x, _ in shown]
    if costs and min(costs) > 0 and max(costs) / min(costs) >= 20:
        ax.set_xscale("log")
    ax.margins(0.08)
    _legend(ax, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure_bytes(canvas, "svg")


def reliability_figure(
    curves: Mapping[str, Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]],
) -> bytes:
    """Observed error over predicted spread with the diagonal of a calibrated one, as SVG.

    Args:
        curves: ``{name: [(spread, error), ...]}``, a pair of arrays of one length for each patient.
            Beside each of them the root mean square over patients is drawn.
    """
    canvas, ax = _chart("predicted spread", "observed error")
    for place, (name, patients) in enumerate(curves.items()):
        colour = COLOURS[place % len(COLOURS)]
        for spread, error in patients:
            ax.plot(spread, error, color=colour, alpha=0.3, linewidth=0.8)
        together = np.sqrt(np.mean(np.square(patients), axis=0))
        ax.plot(*together, "o-", color=colour, markersize=4, linewidth=2, label=name)
    limit = max((np.nanmax(p, initial=0) for ps in curves.values() for p in ps), default=0) or 1
    ax.plot([0, limit], [0, limit], "--", color=INK, linewidth=1, label="calibrated")
    ax.set(xlim=(0, None), ylim=(0, None))
    _legend(ax, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure_bytes(canvas, "svg")


def lines_figure(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], xlabel: str, kind: str
) -> bytes:
    """Charts side by side, two a row, that share a logarithmic cost axis and one legend.

    Args:
        panels: ``{name of the quantity: {line: [(cost, quality), ...]}}``. Points that are not
            finite are left out.
        xlabel: the cost.
        kind: ``svg`` or ``png``.
    """
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(
        figsize=(9.6, 3.1 * -(-len(panels) // 2) + 0.5), layout="constrained", facecolor="white"
    )
    canvas.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    grid = canvas.subplots(-(-len(panels) // 2), min(2, len(panels)), squeeze=False)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for ax, (quantity, lines) in zip(grid.flat, panels.items(), strict=False):
        _style(ax, xlabel, quantity)
        costs = {x for line in lines.values() for x, _ in line}
        for name, line in lines.items():
            place = names.index(name)
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            shown = [point for point in sorted(line) if np.isfinite(point).all()]
            xs, ys = zip(*shown, strict=True) if shown else ((), ())
            ax.plot(xs, ys, f"{marker}-", color=colour, markersize=5, alpha=0.85, label=name)
        ax.set_xscale("log", base=2)
        ax.set_xticks(_far_apart(sorted(costs)), minor=False)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    for ax in grid.flat[len(panels) :]:
        ax.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    legend = canvas.legend(
        handles, labels, loc="outside lower center", ncols=5, frameon=False, labelcolor=INK
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure_bytes(canvas, kind)


def _far_apart(values: Sequence[float], ratio: float = 1.35) -> list[float]:
    """Those of rising values that can be written on a logarithmic axis without touching."""
    kept: list[float] = []
    for value in values:
        if not kept or value >= ratio * kept[-1]:
            kept.append(value)
    return kept


def _legend(ax: Axes, **place: Any) -> None:
    if ax.get_legend_handles_labels()[1]:
        for text in ax.legend(frameon=False, labelcolor=INK, **place).get_texts():
            text.set_parse_math(False)


def _chart(xlabel: str, ylabel: str) -> tuple[Canvas, Axes]:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7, 3.9), layout="constrained", facecolor="white")
    canvas.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    ax = canvas.add_subplot()
    _style(ax, xlabel, ylabel)
    return canvas, ax


def _style(ax: Axes, xlabel: str, ylabel: str) -> None:
    ax.set_xlabel(xlabel, color=INK)
    ax.set_ylabel(ylabel, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color=GRID, linewidth=0.8)
    ax.tick_params(colors=INK)
    ax.set_axisbelow(True)


def figure_bytes(canvas: Canvas, kind: str, style: Mapping[str, Any] | None = None) -> bytes:
    """A matplotlib figure as PNG or SVG, with further rcParams; the same for the same content."""
    import matplotlib as mpl

    stream = io.BytesIO()
    undated = {"Date": None, "Creator": None} if kind == "svg" else {}
    with mpl.rc_context({"svg.hashsalt": "dsdiff", **(style or {})}):
        canvas.savefig(stream, format=kind, dpi=160, metadata=undated)
    return stream.getvalue()
