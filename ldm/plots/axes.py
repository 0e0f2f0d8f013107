"""How axes and rows look: ink, ticks, and one colour, marker and dash for a row of a page.

Colours are told apart with every common colour blindness, and never carry a meaning alone: lines
and points differ in their marker, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.legend import Legend

# Okabe & Ito (2008), without yellow, pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")  # of the next seven lines
MARKERS = "osD^vPX*"  # eight shapes against seven colours: no pair comes twice before 56 points
INK, GRID = "#2b2f36", "#e3e5e8"
LEGEND_LINE = 0.21  # inches, height of a name in a legend


class Style(NamedTuple):
    """How a row is drawn."""

    colour: str
    marker: str
    dashes: str


def row_styles(rows: Iterable[str]) -> dict[str, Style]:
    """Return row -> how every figure of a page draws it, by its place among all rows there."""
    return {
        row: Style(
            COLOURS[place % len(COLOURS)],
            MARKERS[place % len(MARKERS)],
            DASHES[place // len(COLOURS) % len(DASHES)],
        )
        for place, row in enumerate(dict.fromkeys(rows))
    }


def style_axes(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Label axes and set their ink; their ticks are plain numbers with equally many decimals."""
    ax.set_xlabel(xlabel, color=INK)
    ax.set_ylabel(ylabel, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color=GRID, linewidth=0.8)
    ax.tick_params(colors=INK)
    ax.ticklabel_format(style="plain", useOffset=False)  # 20.516, not 0.006 + 2.051e1
    ax.set_axisbelow(True)


def span_at_least(ax: Axes, least: float) -> None:
    """Widen the vertical axis about its middle: noise shall not fill a figure."""
    low, high = ax.get_ylim()
    if high - low < least:
        middle = (low + high) / 2
        ax.set_ylim(middle - least / 2, middle + least / 2)


def logarithmic(ax: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis, whose values are drawn, logarithmic, its ticks plain numbers: 0.2, 0.5, 1."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    limits = ax.dataLim.intervalx if which == "x" else ax.dataLim.intervaly
    ratio = limits[1] / limits[0] if limits[0] > 0 else 1.0
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_minor_formatter(NullFormatter())
    if ratio < 10:  # less than a decade: the ticks of a linear axis
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(ScalarFormatter(useOffset=False))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 1e3 else (1,)))
        axis.set_major_formatter("{x:g}")


def far_apart(values: Sequence[float]) -> list[float]:
    """Those of rising values that can be written on a logarithmic axis without touching."""
    kept: list[float] = []
    for value in values:
        if not kept or value >= 1.35 * kept[-1]:
            kept.append(value)
    return kept


def legend_entries(axes: Iterable[Axes]) -> dict[str, Any]:
    """Return name -> what is drawn under it, once for all axes."""
    drawn = (zip(*ax.get_legend_handles_labels(), strict=True) for ax in axes)
    return {name: handle for entries in drawn for handle, name in entries}


def legend_beside(ax: Axes, without: Collection[str] = ()) -> None:
    """Name what is drawn at its right, in a picture as high as its names need.

    Args:
        without: what has its name elsewhere.
    """
    if (before := ax.get_legend()) is not None:
        before.remove()
    drawn = {name: line for name, line in legend_entries([ax]).items() if name not in without}
    if not drawn:
        return
    needed = LEGEND_LINE * (len(drawn) + 1.5)
    ax.figure.set_figheight(max(ax.figure.get_figheight(), needed))
    place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    as_written(ax.legend(drawn.values(), drawn, frameon=False, labelcolor=INK, **place))


def as_written(legend: Legend) -> None:
    """Show names as they are: a ``$`` in one begins no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)
