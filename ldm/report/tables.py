"""Tables for people: formatted cells, and the same table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ldm.storage import atomic_path

NUMBER_LIKE = re.compile(r"[-+]?\d|n/a$|[-+]?inf$")
LEADING_NUMBER = re.compile(r"[-+]?(inf\b|[\d,]*\.?\d+(e[-+]?\d+)?)")

LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # after the \\ of the row above, a bracket would be its argument
    "]": "{]}",
    "*": "{*}",  # and a star its variant
    "±": r"$\pm$",
    "–": "--",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
}
ARROWS = {"higher": r" $\uparrow$", "lower": r" $\downarrow$"}

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table; numbers may be given as numbers, they are formatted alike everywhere.

    Args:
        better: column -> which values are better in it, where its rows compete with each other. The
            best is set in bold. Cells such as ``25.19 ± 1.04`` count as their first number.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    better: Mapping[str, Literal["higher", "lower"]] = field(default_factory=dict)

    def numeric_columns(self) -> list[bool]:
        """Which columns hold only numbers (or ``n/a``) and are aligned to the right."""
        texts = [[format_cell(cell) for cell in row] for row in self.rows]
        return [
            all(NUMBER_LIKE.match(row[index]) for row in texts)
            for index in range(len(self.columns))
        ]

    def best(self) -> set[tuple[int, int]]:
        """Return (row, column) of the best cells, as printed; none where all rows are equal."""
        found = set()
        for index, column in enumerate(self.columns):
            values = [leading_number(format_cell(row[index])) for row in self.rows]
            known = [v for v in values if v is not None]
            if column in self.better and len(set(known)) > 1:
                best = max(known) if self.better[column] == "higher" else min(known)
                found |= {(place, index) for place, v in enumerate(values) if v == best}
        return found


def leading_number(text: str) -> float | None:
    """The number a cell starts with (``25.19 ± 1.04``, ``1,000``, ``inf``), or None."""
    match = LEADING_NUMBER.match(text)
    return float(match[0].replace(",", "")) if match else None


def latex_table(table: Table) -> str:
    """A ``tabular`` with the rules of booktabs, to stand in a ``table`` of a paper.

    Text is escaped, the best values are bold, and an arrow in the head says which way is better.
    Needs ``\\usepackage{booktabs}`` and UTF-8 input, as LaTeX has by default since 2018.
    """
    best = table.best()
    head = [latex_text(c) + ARROWS.get(table.better.get(c, ""), "") for c in table.columns]
    body = [
        [
            rf"\textbf{{{latex_text(cell)}}}" if (place, index) in best else latex_text(cell)
            for index, cell in enumerate(row)
        ]
        for place, row in enumerate(table.rows)
    ]
    columns = "".join("r" if numeric else "l" for numeric in table.numeric_columns())
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *(" & ".join(cells) + r" \\" for cells in body),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def latex_text(value: Cell) -> str:
    """A cell as LaTeX text: special characters escaped, minus signs of numbers as such."""
    text = " ".join(format_cell(value).split())
    sign = "$-$" if re.match(r"-[\d.i]", text) else ""
    text = text[1:] if sign else text
    escaped = "".join(LATEX.get(c, c) for c in text if c.isprintable())
    return sign + escaped if sign else re.sub("-(?=-)", "-{}", escaped)


def write_table(table: Table, folder: Path, stem: str) -> None:
    """Write ``STEM.csv``, at full precision, ``STEM.md`` and ``STEM.tex``, atomically.

    Raises:
        OutputError: OUT-IO when the system refuses to write.
    """
    write_csv(folder / f"{stem}.csv", table.columns, table.rows)
    texts = {"md": markdown_table(table.columns, table.rows), "tex": latex_table(table)}
    for kind, text in texts.items():
        with atomic_path(folder / f"{stem}.{kind}") as temporary:
            temporary.write_text(text, encoding="utf-8")


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


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Write head and rows of :func:`csv_rows`, atomically.

    Raises:
        OutputError: OUT-IO when the system refuses to write.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        csv.writer(file).writerows(csv_rows(columns, rows))


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
