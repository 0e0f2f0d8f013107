"""Tables on the terminal, of every verb."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

BEYOND = 10_000  # characters; no terminal is that wide
NARROWEST = 8  # characters that a folded column of text keeps


def print_table(console: Any, table: Any, styles: Sequence[str] = ()) -> None:
    """Print a table and its note.

    Args:
        styles: of the rows, as rich names them; none: plain.
    """
    from rich.markup import escape

    for part in terminal_tables(console, table, styles):
        console.print(part, crop=False)
    if table.note:
        console.print(f"{escape(table.note)}\n", style="dim")


def terminal_tables(console: Any, table: Any, styles: Sequence[str] = ()) -> list[Any]:
    """Return a report table for the terminal: narrow, without columns that say nothing.

    One that is wider than the terminal comes in parts below each other, so that no column is lost;
    the columns of text at the left, which say what a row is, begin each of them where they leave
    room, else the first alone. Text is folded where a number needs the room; a number never is cut.
    """
    from ldm.report.tables import format_cell

    cells = [[format_cell(cell) for cell in row] for row in table.rows]
    kept = [i for i in range(len(table.columns)) if any(row[i] != "n/a" for row in cells)]
    kept = kept if len(kept) > len(table.columns) / 2 else list(range(len(table.columns)))
    numeric = table.numeric_columns()
    names = list(takewhile(lambda index: not numeric[index], kept)) or kept[:1]

    def fits(shown: Sequence[int]) -> bool:
        return _excess(console, _drawn(table, cells, shown)) <= 0

    if not all(fits([*names, index]) for index in kept[len(names) :]):
        names = names[:1]
    parts: list[list[int]] = [[]]
    for index in kept[len(names) :]:
        if parts[-1] and not fits([*names, *parts[-1], index]):
            parts.append([])
        parts[-1].append(index)
    drawn = [_drawn(table, cells, [*names, *part]) for part in parts]
    drawn[0].title = table.title
    for part in drawn:
        _fold(console, part)
        for row, style in zip(part.rows, styles, strict=False):
            row.style = style
    return drawn


def _excess(console: Any, drawn: Any, measured: str = "minimum") -> int:
    """Return how many characters a drawn table is wider than the terminal."""
    free = console.options.update(max_width=BEYOND)  # within less, no table measures more
    return int(getattr(console.measure(drawn, options=free), measured)) - int(console.width)


def _fold(console: Any, drawn: Any) -> None:
    """Fit a table into the terminal by its text; what is too wide still goes beyond its edge."""
    if _excess(console, drawn, "maximum") <= 0:
        return
    first, *others = drawn.columns
    for column in reversed(drawn.columns):
        if column.justify == "left" and (excess := _excess(console, drawn)) > 0:
            column.width = max(NARROWEST, column.min_width - excess)
    excess = _excess(console, drawn)
    drawn.width = console.width + excess if excess > 0 else None
    for column in drawn.columns:  # rich folds whatever has no width of its own
        if column is first or column.justify == "right":
            column.width = column.width or column.min_width
    if all(column.justify == "right" for column in others):
        first.width = min(first.max_width, first.width - min(0, excess))


def _drawn(table: Any, cells: Sequence[Sequence[str]], shown: Sequence[int]) -> Any:
    """Return some columns of a table; deviations and intervals stand below their means."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    numeric = table.numeric_columns()
    lines = [[cell.replace(" ± ", "\n±").replace(" [", "\n[") for cell in row] for row in cells]
    for index in shown:
        side, title = "right" if numeric[index] else "left", table.columns[index]
        texts = [title, *"\n".join(row[index] for row in lines).split("\n")]
        words = " ".join(texts if numeric[index] or not index else [title]).split()
        least, most = (max(map(len, part), default=0) for part in (words, texts))
        # no number is broken; a name is where it must be
        drawn.add_column(title, justify=side, min_width=least, max_width=most, overflow="fold")
    for row in lines:
        drawn.add_row(*(Text(row[i]) for i in shown))
    return drawn
