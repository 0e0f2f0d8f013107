"""Charts and strips of slices as PNG and SVG bytes: the same for the same content.

How a row is drawn, the same in every figure of a page, is in :mod:`ldm.plots.axes`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ldm.plots.axes import (
    INK,
    Style,
    as_written,
    far_apart,
    legend_beside,
    legend_entries,
    logarithmic,
    row_styles,
    span_at_least,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SHARED_WINDOW = ("T1", "synthetic", "real")  # labels of images in one grey window
STRIP_CELL = 1.7  # inches, width of an image
KEY = 1.85  # inches, width of a name in a legend
WIDEST_TITLE = 24  # letters of 9 points above a cell
STRIP_BACKGROUND = "#101114"  # dark like a viewing station, in a light and in a dark page
COLOUR_MAPS = {"error": "magma", "spread": "cividis"}  # perceptually uniform, rising in lightness


def strip_figure(
    rows: Sequence[Mapping[str, NDArray]],
    row_titles: Sequence[str],
    legend: Mapping[str, str] | None = None,
) -> Picture:
    """Rows of labelled slices side by side, as PNG.

    Args:
        rows: a row a slice: ``{label: image (H, W)}``, first axis downwards, in display order. A
            label that only some rows have leaves an empty field in the others. Those labelled
            ``SHARED_WINDOW`` have one grey window, set by the last of them in the row, every other
            image its own; ``error`` is shown in colour, with one scale for all rows.
        row_titles: one a row, for example subject and slice.
        legend: what is drawn in colour over the images -> its colour, in a line below.
    """
    labels = list(dict.fromkeys(label for row in rows for label in row))
    errors = [row["error"].ravel() for row in rows if "error" in row]
    limits = {"error": float(np.nanpercentile(np.concatenate(errors), 99.5))} if errors else {}
    lines: list[list[Pane | None]] = []
    untitled = set(labels)
    for row in rows:
        titles = {label: label if label in untitled else "" for label in row}
        untitled -= set(row)
        lines.append([_pane(row, n, titles[n]) if n in row else None for n in labels])
    return panes_figure(lines, limits, row_titles=row_titles, legend=legend or {})


def _pane(row: Mapping[str, NDArray], label: str, title: str) -> Pane:
    """Return an image of a strip in its grey window; an error, and what has colours, as it is."""
    image = row[label]
    if label == "error" or image.ndim > 2:
        return Pane(title, image, "error" if label == "error" else "grey")
    if label in SHARED_WINDOW:
        label = next(name for name in reversed(SHARED_WINDOW) if name in row)
    low, high = float(np.nanmin(row[label])), float(np.nanpercentile(row[label], 99.8))
    return Pane(title, (image - low) / ((high - low) or 1))


def _colour_key(canvas: Canvas, legend: Mapping[str, str], across: int) -> None:
    """Name colours at the bottom, so many in a line."""
    from matplotlib.patches import Patch

    canvas.legend(
        handles=[Patch(color=colour, label=name) for name, colour in legend.items()],
        loc="lower center",
        ncols=across,
        frameon=False,
        fontsize=9,
        labelcolor="white",
        borderaxespad=0.2,
    )


@dataclass(frozen=True)
class Pane:
    """An image in a strip of a patient."""

    title: str  # written above, as large as the longest line of all in the figure allows
    image: NDArray  # (H, W), first axis downwards; of kind `grey` from 0, 1 is white
    kind: str = "grey"  # `grey`, or one of `COLOUR_MAPS`


def panes_figure(
    lines: Sequence[Sequence[Pane | None]],
    limits: Mapping[str, float],
    aspect: float = 1.0,
    row_titles: Sequence[str] = (),
    legend: Mapping[str, str] = MappingProxyType({}),
) -> Picture:
    """Lines of panes under each other, as PNG; a line with a colour map has its bar at the right.

    Args:
        lines: of equal length; None leaves a field empty.
        limits: kind -> value at the upper end of its colour map.
        aspect: height of a voxel over its width.
        row_titles: one a line, at its left; or none.
        legend: name of a colour -> the colour, in a line below.
    """
    from matplotlib.figure import Figure as Canvas

    shown = [pane for line in lines for pane in line if pane]
    size = aspect * STRIP_CELL * shown[0].image.shape[0] / shown[0].image.shape[1]
    letters = max(len(text) for pane in shown for text in pane.title.split("\n"))
    font = 9 * min(1, WIDEST_TITLE / max(1, letters))
    gap, margin = 0.05, 0.32 if row_titles else 0.05
    width = margin + STRIP_CELL * len(lines[0]) + (0.55 if limits else 0)
    across = max(1, int(width / KEY))
    titles = [[pane.title for pane in line if pane and pane.title] for line in lines]
    lengths = [max((1 + title.count("\n") for title in line), default=0) for line in titles]
    heights = [size + (0.13 + 0.14 * n if n else gap) for n in lengths]
    height = sum(heights) + gap + 0.22 * -(-len(legend) // across)
    canvas = Canvas(figsize=(width, height), facecolor=STRIP_BACKGROUND)
    if legend:
        _colour_key(canvas, legend, across)
    for number, line in enumerate(lines, start=1):
        bottom = height - sum(heights[:number])
        if row_titles:
            place = (margin / 2 / width, (bottom + size / 2) / height)
            look = {"color": "white", "fontsize": 8, "rotation": 90, "ha": "center", "va": "center"}
            canvas.text(*place, row_titles[number - 1], parse_math=False, **look)
        for column, pane in enumerate(line):
            if pane is None:
                continue
            left = margin + STRIP_CELL * column
            box = (left / width, bottom / height, (STRIP_CELL - gap) / width, size / height)
            drawn = _draw_pane(canvas, pane, box, limits, aspect, font)
            if pane.kind in limits and not any(line[column + 1 :]):
                beside = (left + STRIP_CELL) / width
                bar = canvas.add_axes((beside, bottom / height, 0.1 / width, size / height))
                canvas.colorbar(drawn, cax=bar).outline.set_visible(False)
                bar.tick_params(colors="white", labelsize=7, width=0.5)
    return figure_bytes(canvas, "png")


def _draw_pane(
    canvas: Canvas,
    pane: Pane,
    place: Sequence[float],
    limits: Mapping[str, float],
    aspect: float,
    font: float,
) -> Any:
    """Draw into ``place`` of the canvas; 0 in a colour map, outside the brain, stays dark."""
    ax = canvas.add_axes(place)
    ax.set_axis_off()
    ax.set_title(pane.title, color="white", fontsize=font, pad=4, parse_math=False)
    coloured = pane.kind in limits
    image = np.ma.masked_equal(pane.image, 0) if coloured else pane.image
    colours = COLOUR_MAPS[pane.kind] if coloured else "gray"
    white = limits.get(pane.kind) or 1
    return ax.imshow(image, cmap=colours, vmin=0, vmax=white, aspect=aspect)


def loss_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    styles: Mapping[str, Style] | None = None,
) -> Picture:
    """Loss against training step on a logarithmic scale, raw and smoothed, as SVG.

    Args:
        curves: ``{name: (steps, values)}``. Values that are not positive and finite are left out.
        styles: name -> how it is drawn; None: by their order.
    """
    canvas, ax = _chart("training step", "loss")
    styles = styles or row_styles(curves)
    for name, (steps, values) in curves.items():
        colour, _, dashes = styles[name]
        steps, values = np.asarray(steps, float), np.asarray(values, float)
        valid = np.isfinite(values) & (values > 0)
        steps, values = steps[valid], values[valid]
        sparse = len(values) < 30
        if not sparse:
            ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8, rasterized=True)
            values = _smooth(values, window=len(values) / 30)
        marker = "o" if sparse else ""
        ax.plot(steps, values, marker + dashes, color=colour, markersize=4, label=name)
    logarithmic(ax, "y")
    legend_beside(ax)
    return figure_bytes(canvas, "svg")


def _smooth(values: NDArray, window: float) -> NDArray:
    """Exponential moving average over about ``window`` values, without bias at the start."""
    from scipy.signal import lfilter

    keep = 1 - 1 / max(window, 2)
    total, weight = (lfilter([1], [1, -keep], v) for v in (values, np.ones_like(values)))
    return total / weight


def scatter_figure(
    points: Sequence[tuple[str, float, float]],
    xlabel: str,
    ylabel: str,
    ideal: float | None = None,
    styles: Mapping[str, Style] | None = None,
    least: float = 0.0,
) -> Picture:
    """Quality against cost, a point a backbone, named beside it or in the legend, as SVG.

    A grey line joins the points that no other beats in both (the Pareto front).

    Args:
        points: (label, x, y). A point that is not finite is named as such instead of drawn.
        xlabel: the cost; its axis is logarithmic if the values span a factor of 20.
        ylabel: the quality.
        ideal: of a second quality in place of a cost, its best value: a dotted line.
        styles: label -> how it is drawn; None: by their order.
        least: what the axis of the quality spans at least; far smaller differences mean nothing.
    """
    canvas, ax = _chart(xlabel, ylabel)
    styles = styles or row_styles(label for label, *_ in points)
    shown = [point for point in points if np.isfinite(point[1:]).all()]
    for label, x, y in shown:
        colour, marker, _ = styles[label]
        ax.plot(x, y, marker, color=colour, markersize=9, alpha=0.9, label=label)
    for label, *_ in (point for point in points if point not in shown):
        ax.plot([], [], " ", label=f"{label}: n/a")
    costs = [x if ideal is None else abs(x - ideal) for _, x, _ in shown]
    front = pareto_front([(cost, y) for cost, (*_, y) in zip(costs, shown, strict=True)])
    line = {"color": "#9aa1ad", "linewidth": 1, "zorder": 0}
    if ideal is not None:
        ax.axvline(ideal, linestyle=":", color=INK, linewidth=1.5)
        best = [(x, y) for cost, (_, x, y) in zip(costs, shown, strict=True) if (cost, y) in front]
        ax.plot(*zip(*sorted(best), strict=True), **line)
    elif len(front) > 1:
        ax.step(*zip(*front, strict=True), where="post", **line)
    if ideal is None and costs and min(costs) > 0 and max(costs) / min(costs) >= 20:
        logarithmic(ax, "x")
    ax.margins(0.12)
    span_at_least(ax, least)
    legend_beside(ax)  # of all, so that what is written fits beside it; then of what is not
    legend_beside(ax, without=_name_points(canvas, ax, shown))
    return figure_bytes(canvas, "svg")


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (cost, quality) that no other point matches at less cost, from cheap to dear."""
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or quality > front[-1][1]:
            front.append((cost, quality))
    return front


def _name_points(canvas: Canvas, ax: Axes, points: Sequence[tuple[str, float, float]]) -> list[str]:
    """Write each label where it covers no marker and no other label; return those written."""
    from matplotlib.transforms import Bbox

    canvas.draw_without_rendering()
    frame = ax.get_window_extent()
    centres = [ax.transData.transform(point[1:]) for point in points]
    scale = canvas.dpi / 72
    named = []
    taken = [
        Bbox.from_bounds(x - 6 * scale, y - 6 * scale, 12 * scale, 12 * scale) for x, y in centres
    ]
    for (label, x, y), marker in zip(points, list(taken), strict=True):
        for across, up, side in (
            (9, 0, "left"),
            (-9, 0, "right"),
            (0, 12, "center"),
            (0, -12, "center"),
        ):
            text = ax.annotate(
                label,
                (x, y),
                (across, up),
                textcoords="offset points",
                fontsize=8,
                color=INK,
                ha=side,
                va="center",
                annotation_clip=False,
                parse_math=False,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
            box = text.get_window_extent()
            free = not any(box.overlaps(other) for other in taken if other is not marker)
            if (
                free
                and frame.x0 <= box.x0
                and box.x1 <= frame.x1
                and frame.y0 <= box.y0
                and box.y1 <= frame.y1
            ):
                taken.append(box)
                named.append(label)
                break
            text.remove()
    return named


def reliability_figure(
    curves: Mapping[str, Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]],
    styles: Mapping[str, Style] | None = None,
) -> Picture:
    """Observed error over predicted spread with the diagonal of a calibrated one, as SVG.

    Args:
        curves: ``{name: [(spread, error), ...]}``, a pair of arrays of one length for each patient.
            Beside each of them the root mean square over patients is drawn.
        styles: name -> how it is drawn; None: by their order.
    """
    canvas, ax = _chart("predicted spread", "observed error")
    styles = styles or row_styles(curves)
    for name, patients in curves.items():
        colour, marker, dashes = styles[name]
        for spread, error in patients:
            ax.plot(spread, error, color=colour, alpha=0.3, linewidth=0.8)
        together = np.sqrt(np.mean(np.square(patients), axis=0))
        ax.plot(*together, marker + dashes, color=colour, markersize=4, linewidth=2, label=name)
    limit = max((np.nanmax(p, initial=0) for ps in curves.values() for p in ps), default=0) or 1
    ax.plot([0, limit], [0, limit], "--", color=INK, linewidth=1, label="calibrated")
    ax.set(xlim=(0, None), ylim=(0, None))
    legend_beside(ax)
    return figure_bytes(canvas, "svg")


def lines_figure(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    xlabel: str,
    least: Sequence[float] = (),
) -> Picture:
    """Charts side by side, two a row, that share a logarithmic cost axis and one legend, as SVG.

    Args:
        panels: ``{name of the quantity: {line: [(cost, quality), ...]}}``. Points that are not
            finite are left out.
        xlabel: the cost.
        least: what the quality axis of each panel spans at least.
    """
    from matplotlib.figure import Figure as Canvas

    size = (9.6, 3.1 * -(-len(panels) // 2) + 0.5)
    canvas = Canvas(figsize=size, layout="constrained", facecolor="white")
    canvas.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    grid = canvas.subplots(-(-len(panels) // 2), min(2, len(panels)), squeeze=False)
    styles = row_styles(name for lines in panels.values() for name in lines)
    for ax, (quantity, lines) in zip(grid.flat, panels.items(), strict=False):
        style_axes(ax, xlabel, quantity)
        costs = {x for line in lines.values() for x, _ in line}
        for name, line in lines.items():
            colour, marker, dashes = styles[name]
            shown = [point for point in sorted(line) if np.isfinite(point).all()]
            xs, ys = zip(*shown, strict=True) if shown else ((), ())
            ax.plot(xs, ys, marker + dashes, color=colour, markersize=5, alpha=0.85, label=name)
        ax.set_xscale("log", base=2)
        ax.set_xticks(far_apart(sorted(costs)), minor=False)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    for ax, span in zip(grid.flat, least, strict=False):
        span_at_least(ax, span)
    for ax in grid.flat[len(panels) :]:
        ax.set_visible(False)
    drawn = legend_entries(grid.flat)
    place = {"loc": "outside lower center", "ncols": 5}
    as_written(canvas.legend(drawn.values(), drawn, frameon=False, labelcolor=INK, **place))
    return figure_bytes(canvas, "svg")


def _chart(xlabel: str, ylabel: str) -> tuple[Canvas, Axes]:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7, 3.9), layout="constrained", facecolor="white")
    canvas.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    ax = canvas.add_subplot()
    style_axes(ax, xlabel, ylabel)
    return canvas, ax


class Picture(bytes):
    """A drawn figure as the bytes of its file, which can be had in another format too."""

    canvas: Canvas
    style: Mapping[str, Any]

    def to(self, kind: str) -> Picture:
        """Return it as ``png`` or ``svg``."""
        return figure_bytes(self.canvas, kind, self.style)


def figure_bytes(canvas: Canvas, kind: str, style: Mapping[str, Any] | None = None) -> Picture:
    """A matplotlib figure as PNG or SVG, with further rcParams; the same for the same content."""
    import matplotlib as mpl

    stream, style = io.BytesIO(), style or {}
    undated = {"Date": None, "Creator": None} if kind == "svg" else {}
    with mpl.rc_context({"svg.hashsalt": "dsdiff", **style}):
        canvas.savefig(stream, format=kind, dpi=160, metadata=undated)
    picture = Picture(stream.getvalue())
    picture.canvas, picture.style = canvas, style
    return picture
