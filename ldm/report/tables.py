"""Tables for people: formatted cells, and the same table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ldm.storage import write_csv, write_file

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
PLAIN_NUMBER = re.compile(
    r"(?P<sign>-?)\+?(?P<whole>[\d,]+)(\.(?P<fraction>\d*))?( ± (?P<deviation>\d+(\.\d+)?))?"
)
BOLD = (
    "Bold: the best of a column, and what a paired test does not tell from it (Wilcoxon, p < 0.05 "
    "after Holm)."
)
ARROWS = {"higher": r" $\uparrow$", "lower": r" $\downarrow$"}


class Number(NamedTuple):
    """A number that is written in its own way, such as ``25.19 ± 1.04`` or ``3/4``."""

    value: float  # what tables compare
    text: str
    more: tuple[tuple[str, float], ...] = ()  # what else the text tells: columns of a CSV

    @classmethod
    def mean(cls, mean: float, sd: float, digits: int | None = None) -> Number | float:
        """Mean ± standard deviation; the mean alone, at full precision, where there is none."""
        if math.isnan(sd) or not math.isfinite(mean):
            return mean
        digits = digits or (2 if abs(mean) >= 10 else 4)
        return cls(mean, f"{mean:.{digits}f} ± {sd:.{digits}f}", (("sd", sd),))

    @classmethod
    def of(cls, count: int, whole: int) -> Number:
        """How many of how many."""
        return cls(count, f"{count}/{whole}", (("of", whole),))


Cell = str | int | float | Number | None


@dataclass(frozen=True)
class Table:
    """A table; numbers may be given as numbers, they are formatted alike everywhere.

    Args:
        better: column -> which values are better in it, where its rows compete with each other.
        best: (row, column) of what is set in bold: what leads a column, by :data:`BOLD`.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    better: Mapping[str, Literal["higher", "lower"]] = field(default_factory=dict)
    best: Collection[tuple[int, int]] = ()

    def numeric_columns(self) -> list[bool]:
        """Which columns hold only numbers (or ``n/a``) and are aligned to the right."""
        places = range(len(self.columns))
        return [not any(isinstance(row[place], str) for row in self.rows) for place in places]

    @property
    def told(self) -> str:
        """The note, with what bold means where anything is."""
        return " ".join(filter(None, [self.note, BOLD if self.best else ""]))


def _value(cell: Cell) -> float | None:
    """The number that a cell holds; None for text and what is not available."""
    number = cell.value if isinstance(cell, Number) else cell
    return None if isinstance(number, str) or number is None or number != number else number


def latex_table(table: Table) -> str:
    """A ``table`` of a paper with its caption: booktabs, numbers aligned by siunitx.

    Text is escaped, what leads is bold, and an arrow in the head says which way is better.
    Needs ``\\usepackage{booktabs,siunitx}`` and UTF-8 input, as LaTeX has by default since 2018.
    """
    formats = [_number_format([row[i] for row in table.rows]) for i in range(len(table.columns))]
    numeric = table.numeric_columns()
    head = [latex_text(c) + ARROWS.get(table.better.get(c, ""), "") for c in table.columns]
    body = [
        [
            _latex_cell(cell, bool(formats[index]), (place, index) in table.best)
            for index, cell in enumerate(row)
        ]
        for place, row in enumerate(table.rows)
    ]
    columns = [
        f or ("r" if is_number else "l") for f, is_number in zip(formats, numeric, strict=True)
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\sisetup{separate-uncertainty=true, table-align-uncertainty=false, "
            r"detect-weight=true}",
            rf"\caption{{{latex_text('. '.join(filter(None, [table.title, table.told])))}}}",
            rf"\label{{tab:{slug(table.title)}}}",
            rf"\begin{{tabular}}{{{' '.join(columns)}}}",
            r"\toprule",
            " & ".join(f"{{{c}}}" if f else c for c, f in zip(head, formats, strict=True)) + r" \\",
            r"\midrule",
            *(" & ".join(cells) + r" \\" for cells in body),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _number_format(cells: Sequence[Cell]) -> str:
    """Return the ``S`` column of siunitx for numbers, with or without ±; empty for other cells."""
    found = [PLAIN_NUMBER.fullmatch(format_cell(c)) for c in cells if _value(c) is not None]
    if not found or not all(found) or any(isinstance(c, str) for c in cells):
        return ""
    parts = [match.groupdict("") for match in found if match]
    whole, fraction, deviation = (
        max(len(part[name].replace(",", "").replace(".", "")) for part in parts)
        for name in ("whole", "fraction", "deviation")
    )
    sign = "-" if any(part["sign"] for part in parts) else ""
    return f"S[table-format={sign}{whole}.{fraction}{f'({deviation})' if deviation else ''}]"


def _latex_cell(cell: Cell, is_aligned: bool, is_best: bool) -> str:
    if not is_aligned:
        return rf"\textbf{{{latex_text(cell)}}}" if is_best else latex_text(cell)
    if _value(cell) is None:
        return "{--}"
    text = format_cell(cell).replace(",", "").replace(" ± ", " +- ")
    return rf"\bfseries {text}" if is_best else text


def slug(title: str) -> str:
    """A title as the stem of a file: ``Paired comparison`` is ``paired-comparison``."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def stems(titles: Iterable[str]) -> list[str]:
    """Return the stem of a file for each title, no two alike: ``p-01`` and ``p-01-2``."""
    found: dict[str, None] = {}
    for title in titles:
        own = slug(title)
        numbered = (f"{own}-{number}" for number in count(2))
        found[next(stem for stem in chain([own], numbered) if stem not in found)] = None
    return list(found)


def latex_text(value: Cell) -> str:
    """A cell as LaTeX text: special characters escaped, minus signs of numbers as such."""
    text = " ".join(format_cell(value).split())
    sign = "$-$" if re.match(r"-[\d.i]", text) else ""
    text = text[1:] if sign else text
    escaped = "".join(LATEX.get(c, c) for c in text if c.isprintable())
    return sign + escaped if sign else re.sub("-(?=-)", "-{}", escaped)


def write_table(table: Table, folder: Path, stem: str) -> list[Path]:
    """Write ``STEM.csv`` of :func:`csv_table`, ``STEM.md`` and ``STEM.tex``; return the files.

    Raises:
        OutputError: OUT-IO when the system refuses to write.
    """
    written = [folder / f"{stem}.{kind}" for kind in ("csv", "md", "tex")]
    write_csv(written[0], *csv_table(table))
    texts = (markdown_table(table.columns, table.rows), latex_table(table))
    for path, text in zip(written[1:], texts, strict=True):
        write_file(path, text)
    return written


def csv_table(table: Table) -> tuple[list[str], list[list[Cell]]]:
    """Return head and rows for programs: one number a cell, at full precision.

    ``25.19 ± 1.04`` under ``PSNR dB`` are the columns ``PSNR dB`` and ``PSNR dB sd``.
    """
    head: list[str] = []
    columns: list[list[Cell]] = []
    for title, *cells in zip(table.columns, *table.rows, strict=True):
        numbers = [cell for cell in cells if isinstance(cell, Number)]
        head.append(title or "row")
        columns.append([cell.value if isinstance(cell, Number) else cell for cell in cells])
        for name in dict.fromkeys(name for number in numbers for name, _ in number.more):
            head.append(f"{title} {name}")
            more = (dict(cell.more) if isinstance(cell, Number) else {} for cell in cells)
            columns.append([found.get(name) for found in more])
    return head, [list(row) for row in zip(*columns, strict=True)]


def format_cell(value: Cell) -> str:
    """A cell as text: four significant digits, ``n/a`` for NaN and None, ``inf`` for infinity."""
    if isinstance(value, Number):
        return value.text
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
