"""What every layout shares: names of contrasts, subjects, and the listing of a folder.

Contrasts have one set of names inside: ``t1``, ``t1ce``, ``t2``, ``flair``, beside them ``seg`` and
``brain`` (a mask). A layout maps exact names to them; nothing is matched by substring.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ldm.data.nifti import SUFFIXES
from ldm.data.volume_file import VolumeFile
from ldm.errors import DataError

CONTRASTS = ("t1", "t1ce", "t2", "flair")
LABELS = "seg"
MASK_FILE = "brain"  # a mask of the brain that someone else made
MAX_ID_BYTES = 200  # leaves room for an ending within the 255 bytes of a file name
NAMED = {  # how the field calls them, in lower case and without - _ and space
    "t1": ("t1", "t1w", "t1n", "t1pre", "t1weighted"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1gad", "t1wgd", "t1wce", "t1post", "ce"),
    "t2": ("t2", "t2w", "t2weighted"),
    "flair": ("flair", "t2f", "t2flair", "fla"),
    LABELS: ("seg", "segmentation", "label", "labels"),
}
CONTRAST_OF = {name: contrast for contrast, names in NAMED.items() for name in names}


def contrast_named(text: str) -> str | None:
    """Return the contrast that a name of the field means, such as ``T1-Gd``, or None."""
    return CONTRAST_OF.get("".join(c for c in text.lower() if c not in "-_ "))


def volume_stem(name: str) -> str | None:
    """Return a file name less ``.nii.gz`` or ``.nii``, or None if it has neither."""
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return None


class Tree:
    """The files below a folder, listed once for all layouts.

    Links to folders are followed, each folder once; hidden files and folders are passed over.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.normpath(Path(root).expanduser().absolute()))
        self.files = sorted(self._walk())

    def _walk(self) -> Iterator[Path]:
        seen: set[str] = set()
        for folder, below, names in os.walk(self.root, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:
                below.clear()
                continue
            seen.add(real)
            below[:] = sorted(name for name in below if not name.startswith("."))
            # A folder with the name of a volume is listed too: reading it says why.
            named = (name for name in below if name.endswith(SUFFIXES))
            yield from (Path(folder, n) for n in (*names, *named) if not n.startswith("."))

    @cached_property
    def volumes(self) -> list[Path]:
        """The NIfTI files."""
        return [path for path in self.files if path.name.endswith(SUFFIXES)]

    @cached_property
    def folders(self) -> dict[Path, list[Path]]:
        """The files of each folder."""
        found = defaultdict(list)
        for path in self.files:
            found[path.parent].append(path)
        return dict(found)


@dataclass(frozen=True)
class Subject:
    """One patient, or one session of a patient: an id and where each contrast is stored.

    Args:
        id: unique among the subjects of a folder.
        files: contrast -> file.
        split: ``train``, ``val`` or ``test`` where a table says so.
        site: hospital or scanner where a table says so.
    """

    id: str
    files: Mapping[str, VolumeFile] = field(repr=False)
    split: str | None = None
    site: str | None = None

    def require(self, contrasts: Iterable[str], layout: Layout) -> None:
        """Raise DATA-MISSING, naming the file that was expected, unless every contrast exists."""
        for contrast in contrasts:
            if contrast not in self.files:
                expected = layout.file_name(self.id, contrast)
                raise DataError(
                    "DATA-MISSING", f"no {contrast}: expected {expected} ({layout.name})", self.id
                )


class Entry(NamedTuple):
    """One file that a layout recognises; ``owner`` is the one folder that may use the id."""

    subject: str
    contrast: str
    file: VolumeFile
    owner: Path


class Layout:
    """How files of subjects are named. A subclass says :meth:`parse`, or all of :meth:`find`."""

    name: str
    ambiguous = "remove one, or name the files in a CSV"  # what to do about two files

    def parse(self, path: Path) -> tuple[str, str] | None:
        """Return (subject id, contrast) of a NIfTI file, or None if it is not of this layout."""
        raise NotImplementedError

    def find(self, tree: Tree) -> Iterator[Entry]:
        """Yield what this layout recognises in a folder.

        Raises:
            DataError: the files are of this layout, but a fact that they need is missing.
        """
        for path in tree.volumes:
            if parsed := self.parse(path):
                yield Entry(*parsed, VolumeFile(path), path.parent)

    def file_name(self, subject: str, contrast: str) -> str:
        """Return the file that this layout expects, for messages."""
        return f"a file of {contrast}"

    def subjects(self, entries: Iterable[Entry]) -> dict[str, Subject]:
        """Return the subjects, sorted by id.

        Raises:
            DataError: DATA-AMBIGUOUS (two files for one contrast) or DATA-ID (two subjects whose
                ids are equal, or differ in case only; an id that cannot name an output).
        """
        found: dict[str, dict[str, VolumeFile]] = {}
        owners: dict[str, tuple[str, Path]] = {}
        for subject, contrast, file, owner in entries:
            first = owners.setdefault(folded_id(subject), (subject, owner))
            if first != (subject, owner):
                raise DataError(
                    "DATA-ID",
                    f"id found in {first[1].name} (as {first[0]}) and in {owner.name}: "
                    "every subject needs an id of its own; rename one",
                    subject,
                )
            other = found.setdefault(subject, {}).setdefault(contrast, file)
            if other != file:
                raise DataError(
                    "DATA-AMBIGUOUS",
                    f"{other.name} and {file.name} are both {contrast}: {self.ambiguous}",
                    subject,
                )
        return {i: Subject(i, found[i]) for i in sorted(found)}


def folded_id(subject: str) -> str:
    """Return an id as a file system that ignores case sees it.

    Raises:
        DataError: DATA-ID, it cannot name an output.
    """
    usable = subject.isprintable() and not set(subject) & set("/\\") and subject.strip(". ")
    if not usable or len(subject.encode(errors="replace")) > MAX_ID_BYTES:
        raise DataError(
            "DATA-ID",
            f"an id must be printable, without slashes, at most {MAX_ID_BYTES} bytes long: "
            "rename the files",
            subject[:32],
        )
    return unicodedata.normalize("NFC", subject).casefold()
