"""A CSV table of subjects: any files, wherever they lie."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ldm.data.layouts.base import Entry, Layout, Subject, usable_id
from ldm.data.layouts.dicom import DicomSeries
from ldm.data.layouts.hdf5 import ENDINGS, HDF5Stack
from ldm.data.nifti import volume_stem
from ldm.data.volume_file import RefusedVolume, VolumeFile
from ldm.errors import DataError
from ldm.label_scheme import NOT_TOLD, LabelScheme, read_scheme
from ldm.storage import require_regular
from ldm.study import MASKS, Contrasts
from ldm.util import user_path

log = logging.getLogger(__name__)

CELL = re.compile(r"(.+)#(\d+|mask)")
DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # or a share
ABSENT = (
    "nan",
    "nat",
    "none",
    "null",
    "na",
    "n/a",
    "<na>",
    "#n/a",
    "-",
)  # an empty cell, as pandas, R and people write it
PARTS = ("train", "val", "test")
FORMULA = ("=", "+", "-", "@")  # a spreadsheet runs a cell that starts so, unless a ' is before it


def volume_at(cell: str, folder: Path, contrast: str) -> VolumeFile:
    """Return the volume that a cell names: a path, relative to ``folder``, with ``#channel``.

    Raises:
        DataError: DATA-LAYOUT, the channel is missing or none of this kind of file.
    """
    marked = CELL.fullmatch(cell)
    text, channel = marked.groups() if marked else (cell, None)
    if "\\" in text and not (folder / text).exists():
        text = cell = text.replace("\\", "/")  # as Windows writes it
    path = folder / user_path(text)
    if text.lower().endswith(ENDINGS):
        channel = channel or ("mask" if contrast in MASKS else None)
        if channel is None:
            raise _bad_channel(cell, contrast, f"{text}#0 for the first channel of its image")
        return HDF5Stack(path, channel if channel == "mask" else int(channel))
    if volume_stem(text) is not None:
        if channel == "mask":
            raise _bad_channel(cell, contrast, f"{text}, or {text}#0 of a file of several volumes")
        return VolumeFile(path, int(channel) if channel else None)
    return DicomSeries(folder / user_path(cell))


def _bad_channel(cell: str, contrast: str, expected: str) -> DataError:
    return DataError("DATA-LAYOUT", f"column {contrast} has {cell}: expected {expected}")


class SubjectTable(Layout):
    """A CSV file with the columns ``id``, those of the contrasts (``t1``, ...), ``seg``, ``brain``.

    An empty cell (or ``NA``, ``nan``, ``-``, ...) says nothing: a contrast that does not exist, a
    patient, split or number that is not told. A path is relative to the CSV file;
    ``file.nii.gz#2`` is the third volume of a 4-D file, a folder is a DICOM series. ``split``
    (``train``, ``val``, ``test``), ``site`` and ``patient`` (of whom the subject is one
    examination) are optional; other columns are passed over. Commas,
    semicolons or tabs separate them.
    """

    name = "CSV"

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        return f"a path in column {contrast}"

    def read(self, path: Path) -> dict[str, Subject]:
        """Return the subjects of a CSV file.

        Raises:
            DataError: DATA-LAYOUT (no column ``id`` or no contrast, an unknown split), DATA-ID,
                DATA-FORMAT (not a text file), DATA-IO.
        """
        numbered = [(number, _told(row)) for number, row in numbered_rows(path)]
        rows = [row for _, row in numbered]
        columns = {text.lower(): name for text, name in self.contrasts.endings("csv").items()}
        if not rows or "id" not in rows[0] or not _images(columns, rows[0]):
            raise _no_table(rows, path, self.contrasts)
        subjects = self.subjects(_entries(numbered, path, columns))
        told = {usable_id(row["id"]): row for row in rows}
        if not subjects:
            raise DataError("DATA-MISSING", f"{path.name}: no row names a file", rows[0]["id"])
        if without := [i for i in told if i not in subjects]:
            log.warning("%s: %s named without a file, and left out", path.name, ", ".join(without))
        return {
            i: replace(
                s,
                split=_split(told[i], path),
                site=told[i].get("site") or None,
                columns=told[i],
                scheme=self._scheme(told[i]),
                examined=told[i].get("patient") or None,
            )
            for i, s in subjects.items()
        }

    def _scheme(self, row: Mapping[str, str]) -> LabelScheme:
        """Return what labels mean: by the configuration, else by a column ``scheme``."""
        text = row.get("scheme")
        if self.contrasts.scheme or not text:
            return self.scheme_of(row["id"])
        return NOT_TOLD if text == str(NOT_TOLD) else read_scheme(text, "column scheme")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, with column names in lower case.

    Raises:
        DataError: DATA-FORMAT, DATA-IO.
    """
    return [row for _, row in numbered_rows(path)]


def numbered_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a CSV file, see :func:`read_rows`, each with the number of its line."""
    try:
        require_regular(path)
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError("DATA-IO", f"cannot read {path.name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError("DATA-FORMAT", f"{path.name} is no UTF-8 text: save it as CSV") from error
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    lines = csv.reader(text.splitlines(), delimiter=separator)
    columns = [name.strip().lower() for name in next(lines, [])]
    if twice := [name for name, count in Counter(filter(None, columns)).items() if count > 1]:
        raise DataError("DATA-LAYOUT", f"{path.name} has two columns {twice[0]}: rename one")
    return [
        (
            lines.line_num,
            {
                name: _without_guard(cell.strip())
                for name, cell in zip(columns, [*line, *[""] * len(columns)], strict=False)
            },
        )
        for line in lines
        if any(cell.strip() for cell in line)
    ]


def guarded(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula; :func:`read_rows` undoes it."""
    return f"'{cell}" if cell.startswith((*FORMULA, "'")) else cell


def _without_guard(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith((*FORMULA, "'")) else cell


def _told(row: Mapping[str, str]) -> dict[str, str]:
    """Return a row of subjects in which every cell that says nothing is empty."""
    return {name: "" if cell.lower() in ABSENT else cell for name, cell in row.items()}


def _images(columns: Mapping[str, str], row: Mapping[str, str]) -> set[str]:
    return {columns[column] for column in row if column in columns} - {*MASKS}


def _no_table(rows: list[dict[str, str]], path: Path, contrasts: Contrasts) -> DataError:
    return DataError(
        "DATA-LAYOUT",
        f"{path.name} has {'the columns ' + ', '.join(rows[0]) if rows else 'no rows'}: expected "
        f"id, {', '.join(contrasts.names)}, seg, and a row a subject",
    )


def _entries(
    rows: list[tuple[int, dict[str, str]]], path: Path, columns: Mapping[str, str]
) -> Iterator[Entry]:
    for number, row in rows:
        owner = path.with_name(f"line {number}")
        if not row["id"]:
            raise DataError(
                "DATA-ID", f"{path.name} line {number} has no id: every row needs one of its own"
            )
        for column, contrast in columns.items():
            if cell := row.get(column):
                yield Entry(row["id"], contrast, _volume(cell, contrast, number, path), owner)


def _volume(cell: str, contrast: str, number: int, table: Path) -> VolumeFile:
    """Return the volume of a cell; of one that names none, what says so when it is read."""
    try:
        _refuse_drive(cell, number, table)
        return volume_at(cell, table.parent, contrast)
    except DataError as error:
        return RefusedVolume(table.parent / cell, None, error.code, error.args[1])


def _refuse_drive(cell: str, number: int, path: Path) -> None:
    if DRIVE.match(cell) and os.name != "nt":
        raise DataError(
            "DATA-MISSING",
            f"{path.name} line {number}: {cell} is a path of Windows, which does not exist here: "
            "give it relative to the CSV file",
        )


def _split(row: Mapping[str, str], path: Path) -> str | None:
    if (part := row.get("split") or None) and part not in PARTS:
        raise DataError(
            "DATA-LAYOUT", f"{path.name} has split '{part}': give {', '.join(PARTS)}", row["id"]
        )
    return part
