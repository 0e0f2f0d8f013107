"""Results for people: one self-contained HTML page.

The page carries its style, its pictures and two small scripts (sorting and copying of tables, the
slice viewer), and reads nothing from the network, so that it can be mailed, archived and printed.
Its policy lets the browser run these two scripts and no other, by their hashes; without them all
tables and pictures are still there. All text is escaped by the template engine: the name of a
patient or a backbone is never markup.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ldm.plots.figures import Picture
from ldm.report.tables import (
    Table,
    format_cell,
    latex_table,
    markdown_table,
    stems,
    write_table,
)
from ldm.report.viewer import Viewer
from ldm.storage import remove_own, write_file

KINDS = ("png", "svg")
FOLDERS = re.compile(r"(^|[=,\[])/(?:[^/]*/)+")  # that an absolute path leads through
TEMPLATES = Path(__file__).parent / "templates"


def shareable(command: str) -> str:
    """Return a command line in which an absolute path is its end alone: folders name people."""
    words = [FOLDERS.sub(r"\1…/", word) for word in shlex.split(command)]
    return " ".join(shlex.quote(word) if "…" not in word else word for word in words)


@dataclass(frozen=True)
class Figure:
    """A picture, and its words.

    ``wide`` pictures have a line of the page to themselves; two others share one.
    """

    title: str
    image: Picture
    caption: str
    alt: str
    wide: bool = True

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write it as PNG and SVG; return the files."""
        written = [folder / f"{stem}.{kind}" for kind in KINDS]
        for path, kind in zip(written, KINDS, strict=True):
            write_file(path, self.image.to(kind))
        return written

    def data_uri(self) -> str:
        """The picture as a ``data:`` address, so that the page needs no second file."""
        kind = "png" if self.image.startswith(b"\x89PNG") else "svg+xml"
        return f"data:image/{kind};base64,{base64.b64encode(self.image).decode()}"


@dataclass(frozen=True)
class Report:
    """Content of a page, in the order it is read; ``command`` is what made it, to copy."""

    title: str
    lead: str
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    command: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    viewer: Viewer | None = None


def render(report: Report) -> str:
    """The report as one HTML document."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": format_cell,
        "latex": latex_table,
        "shareable": shareable,
        "markdown": lambda table: markdown_table(table.columns, table.rows),
    }
    names = ["report.js", *(["viewer.js"] if report.viewer else [])]
    scripts = [(TEMPLATES / name).read_text(encoding="utf-8") for name in names]
    return environment.get_template("report.html.j2").render(
        report=report,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        hashes=[script_hash(script) for script in scripts],
    )


def script_hash(script: str) -> str:
    """The source of an inline script in a Content-Security-Policy (CSP level 2)."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def write_report(report: Report, path: Path) -> None:
    """Write the page atomically.

    Raises:
        OutputError: OUT-IO when the system refuses to write.
    """
    write_file(path, render(report))


def write_all(report: Report, folder: Path) -> None:
    """Write ``report.html``, and its parts as ``tables/*.csv, .md, .tex``, ``figures/*.png, .svg``.

    What an earlier report left there is removed, so that all files are of one report.

    Raises:
        OutputError: OUT-IO when the system refuses to write.
    """
    write_report(report, folder / "report.html")
    written: list[Path] = []
    for table, stem in zip(report.tables, stems(t.title for t in report.tables), strict=True):
        written += write_table(table, folder / "tables", stem)
    for figure, stem in zip(report.figures, stems(f.title for f in report.figures), strict=True):
        written += figure.write(folder / "figures", stem)
    found = [path for part in ("tables", "figures") for path in (folder / part).glob("*")]
    remove_own(path for path in found if path not in written)
