"""Where the files of a subject lie: one small class a layout, found by file names alone.

Contrasts have one set of names inside: ``t1``, ``t1ce``, ``t2``, ``flair`` (and ``seg``). A layout
maps exact file-name endings to them; nothing is matched by substring. A further layout is a
subclass in :data:`LAYOUTS`.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ldm.data.nifti import SUFFIXES
from ldm.errors import DataError
from ldm.util import nearest

CONTRASTS = ("t1", "t1ce", "t2", "flair")
MAX_ID_BYTES = 200  # leaves room for an ending within the 255 bytes of a file name


@dataclass(frozen=True)
class Subject:
    """One patient: an id and the file of each contrast that exists."""

    id: str
    files: Mapping[str, Path] = field(repr=False)

    def require(self, contrasts: Iterable[str], layout: Layout) -> None:
        """Raise DATA-MISSING, naming the file that was expected, unless every contrast exists."""
        for contrast in contrasts:
            if contrast not in self.files:
                expected = layout.file_name(self.id, contrast)
                raise DataError(
                    "DATA-MISSING", f"no {contrast}: expected {expected} ({layout.name})", self.id
                )


class Layout:
    """Files named ID, separator, contrast, ``.nii.gz`` or ``.nii``, in any folder below a root."""

    name: str
    separator: str
    names: Mapping[str, str]  # contrast -> its name in this layout

    def file_name(self, subject: str, contrast: str) -> str:
        """Return the file name this layout expects."""
        return f"{subject}{self.separator}{self.names.get(contrast, contrast)}.nii.gz"

    def parse(self, file_name: str) -> tuple[str, str] | None:
        """Return (subject id, contrast) of a file name, or None if it is not of this layout."""
        stem = next((file_name.removesuffix(s) for s in SUFFIXES if file_name.endswith(s)), None)
        if stem is None:
            return None
        subject, separator, ending = stem.rpartition(self.separator)
        contrast = {name: contrast for contrast, name in self.names.items()}.get(ending)
        return (subject, contrast) if separator and subject and contrast else None

    def subjects(self, root: Path) -> dict[str, Subject]:
        """Return the subjects below ``root``, sorted by id.

        Raises:
            DataError: DATA-AMBIGUOUS (two files for one contrast) or DATA-ID (two subjects whose
                ids are equal, or differ in case only; an id that cannot name an output).
        """
        found: dict[str, dict[str, Path]] = {}
        owners: dict[str, tuple[str, Path]] = {}
        for path in sorted(volume_files(root)):
            parsed = self.parse(path.name)
            if parsed is None:
                continue
            subject, contrast = parsed
            owner = owners.setdefault(_folded(subject), (subject, path.parent))
            if owner != (subject, path.parent):
                raise DataError(
                    "DATA-ID",
                    f"id found in {owner[1].name} (as {owner[0]}) and in {path.parent.name}: "
                    "every subject needs an id of its own; rename one",
                    subject,
                )
            other = found.setdefault(subject, {}).setdefault(contrast, path)
            if other != path:
                raise DataError(
                    "DATA-AMBIGUOUS",
                    f"{other.name} and {path.name} are both {contrast}: remove one",
                    subject,
                )
        return {i: Subject(i, found[i]) for i in sorted(found)}


def volume_files(root: Path) -> Iterator[Path]:
    """Yield the NIfTI files below ``root``, following links to folders, each folder once."""
    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()
        # A folder or a dangling link with the name of a volume is listed too: reading it says why.
        yield from (
            Path(folder, name)
            for name in (*names, *below)
            if name.endswith(SUFFIXES) and not name.startswith(".")
        )


def _folded(subject: str) -> str:
    """Return ``subject`` as a file system that ignores case sees it, or raise DATA-ID."""
    if not subject.isprintable() or len(subject.encode(errors="replace")) > MAX_ID_BYTES:
        raise DataError(
            "DATA-ID",
            f"an id must be printable and at most {MAX_ID_BYTES} bytes long: rename the files",
            subject[:32],
        )
    return unicodedata.normalize("NFC", subject).casefold()


class BraTS2021(Layout):
    """BraTS 2017-2021: ``ID_t1.nii.gz``, ``ID_t1ce``, ``ID_t2``, ``ID_flair``, ``ID_seg``."""

    name = "BraTS 2017-2021"
    separator = "_"
    names = {"t1": "t1", "t1ce": "t1ce", "t2": "t2", "flair": "flair", "seg": "seg"}  # noqa: RUF012


class BraTS2023(Layout):
    """BraTS 2023 and later: ``ID-t1n.nii.gz``, ``ID-t1c``, ``ID-t2w``, ``ID-t2f``, ``ID-seg``."""

    name = "BraTS 2023+"
    separator = "-"
    names = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f", "seg": "seg"}  # noqa: RUF012


LAYOUTS: tuple[type[Layout], ...] = (BraTS2021, BraTS2023)


def detect_layout(root: Path) -> tuple[Layout, dict[str, Subject]]:
    """Return the layout of a folder and its subjects: the layout that recognises most files.

    Raises:
        DataError: DATA-MISSING (no such folder) or DATA-LAYOUT (no file is recognised).
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError("DATA-MISSING", f"there is no folder {root}: give the folder of subjects")
    candidates = [(layout, layout.subjects(root)) for layout in (cls() for cls in LAYOUTS)]
    layout, subjects = max(candidates, key=lambda c: sum(len(s.files) for s in c[1].values()))
    if not subjects:
        expected = " or ".join(layout.file_name("ID", "t1") for layout, _ in candidates)
        raise DataError(
            "DATA-LAYOUT", f"no subject found in {root}: expected files like {expected}"
        )
    return layout, subjects


def select_subjects(subjects: Mapping[str, Subject], ids: Iterable[str] | None) -> list[Subject]:
    """Return the named subjects (all if ``ids`` is None) in sorted order.

    Raises:
        DataError: DATA-MISSING for an id that does not exist.
    """
    if ids is None:
        return list(subjects.values())
    for subject in ids:
        if subject not in subjects:
            raise DataError("DATA-MISSING", f"no such subject{nearest(subject, subjects)}", subject)
    return [subjects[i] for i in sorted(set(ids))]
