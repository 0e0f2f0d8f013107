"""What every layout shares: names of contrasts, subjects, and the listing of a folder.

Contrasts have one set of names inside, and their spellings stand in one table (:mod:`ldm.study`). A
layout maps exact names to them; nothing is matched by substring.
"""

from __future__ import annotations

import logging
import os
import reprlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ldm.claims import LOCK, is_synthetic
from ldm.data.nifti import volume_stem
from ldm.data.patients import is_examination, patient_of
from ldm.data.volume_file import RefusedVolume, VolumeFile
from ldm.errors import ConfigError, DataError, calling
from ldm.label_scheme import USUAL, LabelScheme
from ldm.study import KNOWN, MASK_FILE, MASKS, Contrasts
from ldm.util import nearest, user_path

log = logging.getLogger(__name__)

DIGEST = "sha256_"  # and a contrast: column of a table that states the digest of the file
CURE = "add it, or leave the subject out; dsdiff diagnose data lists whatever is missing"
MAX_ID_BYTES = 200  # leaves room for an ending within the 255 bytes of a file name
SHOWN_ID = 32  # characters of an id that is no use


class Tree:
    """The files below a folder, listed once for all layouts.

    Links to folders are followed, each folder once; hidden files and folders are passed over.

    Args:
        root: the folder.
        synthetic: list the folders below it too in which all was written by a verb that makes
            synthetic volumes, such as predictions among the patients.
    """

    def __init__(self, root: Path, synthetic: bool = True) -> None:
        self.root = Path(os.path.normpath(user_path(root).absolute()))
        self.passed_over = 0  # folders of synthetic volumes
        self.files = sorted(self._walk(synthetic))

    def _walk(self, synthetic: bool) -> Iterator[Path]:
        seen: set[str] = set()
        for folder, below, names in os.walk(self.root, onerror=_left_out, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:
                below.clear()
                continue
            seen.add(real)
            is_other = LOCK in names and Path(folder) != self.root
            if not synthetic and is_other and is_synthetic(Path(folder)):
                self.passed_over += 1
                below.clear()
                continue
            below[:] = sorted(name for name in below if not name.startswith("."))
            # A folder with the name of a volume is listed too: reading it says why.
            named = (name for name in below if volume_stem(name) is not None)
            yield from (Path(folder, n) for n in (*names, *named) if not n.startswith("."))

    @cached_property
    def volumes(self) -> list[Path]:
        """The NIfTI files, less diffusion series: their ``.bval`` lies beside them."""
        directions = {path.with_suffix("") for path in self.files if path.suffix == ".bval"}
        volumes = [path for path in self.files if volume_stem(path.name) is not None]
        return [p for p in volumes if p.with_name(volume_stem(p.name) or "") not in directions]

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
        columns: the whole row of the table.
        scheme: what its labels mean.
        examined: the patient where a table or a pattern says so, see :attr:`patient`.
    """

    id: str
    files: Mapping[str, VolumeFile] = field(repr=False)
    split: str | None = None
    site: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict, repr=False)
    examined: str | None = None
    scheme: LabelScheme = USUAL

    def numbers(self, names: Iterable[str]) -> tuple[float, ...]:
        """Return columns of the table as numbers; an empty cell is NaN, not known.

        Raises:
            DataError: DATA-MISSING without such a column, DATA-FORMAT for a cell of text.
        """
        return tuple(self._number(name.lower(), self.columns) for name in names)

    def _number(self, name: str, row: Mapping[str, str]) -> float:
        if name not in row:
            raise DataError(
                "DATA-MISSING",
                f"no {name}{nearest(name, row)}: data.params.covariates are columns of a CSV of "
                "subjects; give one that has it in place of the folder",
                self.id,
            )
        try:
            return float(row[name] or "nan")
        except ValueError as error:
            raise DataError(
                "DATA-FORMAT", f"{name} is '{row[name]}': give a number, or leave it empty", self.id
            ) from error

    def sha256(self, contrast: str) -> str:
        """Return the digest of a file, which must be that of its table, if that has one.

        Raises:
            DataError: DATA-IO, DATA-FORMAT, DATA-DIGEST.
        """
        digest = self.files[contrast].sha256(self.id)
        self.require_digests({contrast: digest})
        return digest

    def require_digests(self, digests: Mapping[str, str]) -> None:
        """Refuse files that are not those of the table that names them.

        Args:
            digests: contrast -> digest; others are passed over.

        Raises:
            DataError: DATA-DIGEST.
        """
        for contrast, digest in digests.items():
            told = self.columns.get(f"{DIGEST}{contrast}")
            if told and contrast in self.files and told != digest:
                raise DataError(
                    "DATA-DIGEST",
                    f"{contrast} is not the file of the manifest: {self.files[contrast].name} "
                    "changed; restore it, or run dsdiff prepare again",
                    self.id,
                )

    @property
    def patient(self) -> str:
        """Whose examination this is: what is told, else what the conventions of the field say."""
        return self.examined or patient_of(self.id)

    def paths(self, contrasts: Iterable[str]) -> tuple[Path, ...]:
        """Return the files of those of some contrasts that exist."""
        found = (self.files[name] for name in contrasts if name in self.files)
        return tuple(path for file in found for path in file.paths)

    def require(self, contrasts: Iterable[str], layout: Layout) -> None:
        """Refuse a subject that lacks a contrast.

        Raises:
            DataError: DATA-MISSING, naming the file that was expected; or what is unclear about
                others of its files, which may be why.
        """
        for contrast in contrasts:
            if contrast in self.files:
                continue
            for file in self.files.values():
                if isinstance(file, RefusedVolume):
                    raise file.refusal(self.id)
            if contrast in layout.contrasts.known:
                expected = f"expected {layout.told_file(self.id, contrast)} ({layout.name})"
                beside = self._beside()
                cure = f"not recognised there: {beside}; name the file in a CSV" if beside else CURE
                expected += f"; {cure}"
            else:
                known = ", ".join(layout.contrasts.names)
                expected = f"it is none of the known contrasts, {known}; name it in data.params"
            misspelt = "" if contrast in KNOWN.known else nearest(contrast, KNOWN.names)
            raise DataError("DATA-MISSING", f"no {contrast}{misspelt}: {expected}", self.id)

    def _beside(self) -> str:
        """Return the volumes that lie among the images of the subject and are not read."""
        read = {path for file in self.files.values() for path in file.paths}
        places = {self.files[name].path.parent for name in self.images}
        if len(places) != 1:
            return ""
        (place,) = places
        there = sorted(place.iterdir()) if place.is_dir() else []
        own = [p.name for p in there if volume_stem(p.name) and p not in read]
        others = [name for name in own if place.name == self.id or name.startswith(self.id)]
        return ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")

    @property
    def images(self) -> list[str]:
        """The contrasts that exist: all but labels and mask."""
        return [name for name in self.files if name not in MASKS]


def stored_files(subjects: Iterable[Subject]) -> set[Path]:
    """Return every file that a volume of these subjects is read from."""
    return {path for s in subjects for file in s.files.values() for path in file.paths}


class Entry(NamedTuple):
    """One file that a layout recognises; ``owner`` is the one folder that may use the id."""

    subject: str
    contrast: str
    file: VolumeFile
    owner: Path


def _left_out(error: OSError) -> None:
    log.warning("what lies in %s is left out: %s", error.filename, error.strerror)


def named_folders(folders: Iterable[Path], root: Path) -> dict[Path, str]:
    """Return the id of the subject of each folder: its name.

    Where the name comes again, or is one of an examination (``week-044``), the name of the folder
    above goes before it, and before those of all others that lie there.
    """
    places = set(folders)
    names = Counter(place.name for place in places)
    unclear = (p for p in places if names[p.name] > 1 or is_examination(p.name))
    above = {place.parent for place in unclear} - {root, root.parent}
    return {p: f"{p.parent.name}_{p.name}" if p.parent in above else p.name for p in places}


class Layout:
    """How files of subjects are named. A subclass says :meth:`parse`, or all of :meth:`find`.

    Attributes:
        contrasts: what is known; a configuration may add to it before anything is found.
        scheme: what labels mean in this naming, unless a configuration says it.
        examined: subject -> whose examination it is, of those whose files say so.
        remarks: on files that are read otherwise than their names alone say, a line each.
    """

    name: str = "a layout without a name"
    contrasts: Contrasts = KNOWN
    scheme: LabelScheme = USUAL
    examined: Mapping[str, str] = MappingProxyType({})
    remarks: Sequence[str] = ()
    ambiguous = "remove one, or name the files in a CSV"  # what to do about two files

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

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
                if not (isinstance(parsed, tuple) and [*map(type, parsed)] == [str, str]):
                    raise ConfigError(
                        "CONFIG-TARGET",
                        f"{type(self).__name__}.parse returned {reprlib.repr(parsed)} for "
                        f"{path.name}: expected (subject id, contrast), two texts, or None "
                        "(docs/data.md)",
                    )
                yield Entry(*parsed, VolumeFile(path), path.parent)

    def file_name(self, subject: str, contrast: str) -> str:
        """Return the file that this layout expects, for messages."""
        return f"a file of {contrast}"

    def told_file(self, subject: str, contrast: str) -> str:
        """Return :meth:`file_name` of a class that anyone may have written."""
        with calling(self):
            return self.file_name(subject, contrast)

    def subjects(self, entries: Iterable[Entry]) -> dict[str, Subject]:
        """Return the subjects, sorted by id.

        Where two files are one contrast (DATA-AMBIGUOUS), or an id cannot name an output, is that
        of another subject, or differs from it in case only (DATA-ID), that is the fault of these:
        reading their files is refused.
        """
        found: dict[str, dict[str, VolumeFile]] = {}
        owners: dict[str, tuple[str, Path]] = {}
        unnamed: dict[str, str] = {}
        namesakes: dict[str, str] = {}
        for written, contrast, file, owner in entries:
            subject = usable_id(written)
            if subject != written:
                unnamed[subject] = (
                    f"the id {written[:SHOWN_ID]!r} cannot name an output: rename it, so that it "
                    f"is printable, without slashes, at most {MAX_ID_BYTES} bytes long"
                )
            first = owners.setdefault(_folded_id(subject), (subject, owner))
            if first != (subject, owner):
                places = _told_apart(first[1], owner)
                why = (
                    f"id found in {places[0]} (as {first[0]}) and in {places[1]}: every subject "
                    "needs an id of its own; rename one, or name the files in a CSV"
                )
                namesakes |= {first[0]: why, subject: why}
            files = found.setdefault(subject, {})
            if (other := files.setdefault(contrast, file)) != file:
                files[contrast] = self._both(other, file, contrast)
        for subject, why in (namesakes | unnamed).items():
            found[subject] = {
                contrast: RefusedVolume(file.path, file.channel, "DATA-ID", why, (file,))
                for contrast, file in found[subject].items()
            }
        images = {i: files for i, files in found.items() if set(files) != {MASK_FILE}}
        found = images or found  # a mask of the brain alone is a file of some program
        places = {name: place for place, name in enumerate(self.contrasts.known)}
        last = len(places)
        ordered = {i: sorted(found[i], key=lambda c: places.get(c, last)) for i in sorted(found)}
        return {
            i: Subject(
                i,
                {c: found[i][c] for c in names},
                examined=self.examined.get(i),
                scheme=self.scheme_of(i),
            )
            for i, names in ordered.items()
        }

    def _both(self, one: VolumeFile, other: VolumeFile, contrast: str) -> RefusedVolume:
        """Return the volume that two files claim to be."""
        why = f"{' and '.join(_told_apart(one, other))} are both {contrast}: {self.ambiguous}"
        return RefusedVolume(one.path, one.channel, "DATA-AMBIGUOUS", why, (one, other))

    def scheme_of(self, subject: str) -> LabelScheme:
        """Return what the labels of a subject mean."""
        return self.contrasts.scheme or self.scheme


def _told_apart(one: VolumeFile | Path, other: VolumeFile | Path) -> list[str]:
    """Return the names of two files or folders, in full where they are equal."""
    paths = [place.path if isinstance(place, VolumeFile) else place for place in (one, other)]
    return [str(paths[n]) if one.name == other.name else p.name for n, p in enumerate((one, other))]


def usable_id(subject: str) -> str:
    """Return an id that can name an output: itself, or with \ufffd for what stands in the way."""
    if len(subject.encode(errors="replace")) > MAX_ID_BYTES:
        subject = f"{subject[:SHOWN_ID]}\ufffd"
    usable = "".join(c if c.isprintable() and c not in "/\\" else "\ufffd" for c in subject)
    return usable if usable.strip(". ") else "\ufffd" * max(len(usable), 1)


def _folded_id(subject: str) -> str:
    """Return an id as a file system that ignores case sees it."""
    return unicodedata.normalize("NFC", subject).casefold()
