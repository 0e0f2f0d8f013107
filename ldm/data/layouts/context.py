"""What folders and ids say of a file beside its patient: whether an agent was given, what was done.

``P/post/T1``, ``KM/P_T1`` and ``P_gd_T1`` are T1ce of P where the rest of its files says that these
words are no visit and no part of its name; ``P/raw/T1`` and ``P/preproc/T1`` are one patient.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ldm.data.layouts.base import Entry
from ldm.data.layouts.series import agent_said, names_agent, says_native
from ldm.data.layouts.spelling import contrast_spelt, is_stage, less_spm
from ldm.letters import unaccented
from ldm.study import LABELS, MASKS, Contrasts

BEFORE = ("pre", "before", "vor", "avant", "prima")  # an agent, or an operation
AFTER = ("post", "after", "nach", "apres", "dopo")
SHELF = re.compile("anat|images?|mri?|nifti|nii|scans|structural")
MASK_FOLDER = re.compile("masks?|segs|segmentations|labelmaps?")
IN_A_TABLE = "name the files in a CSV (columns id,t1,t1ce,...)"

Key = tuple[str, tuple[str, ...]]  # an id, and the folders of whom it is


class Word(NamedTuple):
    """What one folder, or a part of an id, says; ``given``: whether an agent was."""

    given: bool | None = None
    is_time: bool = False  # pre and post may be said of an operation too
    is_stage: bool = False
    is_shelf: bool = False  # says no more than that images lie there
    is_masks: bool = False
    contrast: str | None = None

    @property
    def speaks(self) -> bool:
        """Whether it says anything: other names are of patients, visits and sites."""
        return self != Word()


@dataclass
class Part:
    """The files of one subject under the same words.

    Args:
        words: beside the subject, as they are written.
        said: what they mean.
        is_below: whether they stand below the folder of the subject, not above it.
    """

    words: tuple[str, ...] = ()
    said: tuple[Word, ...] = ()
    is_below: bool = False
    entries: list[Entry] = field(default_factory=list)

    def also(self, subject: str) -> Part:
        """Return a part without files under one more word, which an id begins or ends with."""
        plain, word = _without_words(subject)
        says = _said(word) if subject.startswith(plain) else Word(is_stage=True)
        return Part((*self.words, word), (*self.said, says), self.is_below)

    @property
    def images(self) -> set[str]:
        """The contrasts, less labels and mask."""
        return {e.contrast for e in self.entries} - {*MASKS}

    @property
    def given(self) -> bool:
        """Whether words say that an agent was given."""
        return any(word.given for word in self.said)

    @property
    def is_masks(self) -> bool:
        """Whether words say that these are label maps, whatever image one is called by."""
        return any(word.is_masks for word in self.said)

    @property
    def is_time(self) -> bool:
        """Whether words say before or after, and not what."""
        return any(word.is_time for word in self.said)

    @property
    def is_stage(self) -> bool:
        """Whether words tell one state of processing from another."""
        return any(word.is_stage for word in self.said)


def in_context(
    entries: Iterable[Entry], root: Path, contrasts: Contrasts
) -> tuple[list[Entry], list[str]]:
    """Return entries whose T1 is T1ce where folders or ids say so, and what the reader is told.

    Files of one subject that lie apart for their agent or their state have one owner, and where an
    id says it, one id. The subject is empty where it is the folder.

    Args:
        entries: the owner of each is its folder.
        root: of the patients.
    """
    entries, remarks = list(entries), Remarks()
    held: dict[Path, set[str]] = defaultdict(set)
    for entry in entries:
        held[entry.owner].add(entry.contrast)
    found = [(e, *_address(e, root, held[e.owner], contrasts)) for e in entries]
    namesakes: dict[Key, set[Key]] = defaultdict(set)
    for _, whole, _ in found:
        namesakes[_less_words(whole)].add(whole)
    groups: dict[Key, dict[tuple[str, ...], Part]] = defaultdict(dict)
    for entry, key, part in found:
        if len(namesakes[base := _less_words(key)]) > 1:
            key, part = base, part.also(_id(key)) if key != base else part
        if not any(key) and any(map(any, namesakes)):  # a patient called gd
            key, part = ("", part.words[-1:]), Part(part.words[:-1], part.said[:-1])
        groups[key].setdefault(part.words, part).entries.append(entry)
    resolved = [
        entry
        for key, parts in groups.items()
        for entry in _resolved(list(parts.values()), key, root, remarks)
    ]
    return list(by_sidecar(resolved, remarks, _denies_agent)), remarks.told(root)


class Remarks:
    """What is told of many files in one line a reason."""

    def __init__(self) -> None:
        self.files: dict[str, list[Path]] = defaultdict(list)

    def add(self, reason: str, *paths: Path) -> None:
        """Note why files are read otherwise than their names alone say."""
        self.files[reason] += paths

    def told(self, root: Path) -> list[str]:
        """Return a line a reason, with the first of its files."""
        lines = []
        for reason, paths in self.files.items():
            if paths:
                more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
                lines.append(f"{paths[0].relative_to(root)}{more} {reason}")
        return lines


def _address(entry: Entry, root: Path, held: set[str], contrasts: Contrasts) -> tuple[Key, Part]:
    """Return (id, folders) of whom a file is, less words on an agent or a state; and these."""
    above = _below(root, entry.owner)
    ids = {entry.subject, _without_words(entry.subject)[0]} - {""}  # such a folder says no more
    said = [Word() if name in ids else _of_folder(name, held, contrasts) for name in above]
    told = [(name, says) for name, says in zip(above, said, strict=True) if says.speaks]
    silent = [name for name, says in zip(above, said, strict=True) if not says.speaks]
    place = tuple(name for name in silent if name not in ids)
    is_below = bool(said) and said[-1].speaks and (not ids or bool(ids & set(above)))
    words, says = tuple(name for name, _ in told), tuple(says for _, says in told)
    return (entry.subject, place), Part(words, says, is_below)


def _id(key: Key) -> str:
    """Return the id: that of the file names, else the folder's name."""
    subject, place = key
    return subject or (place[-1] if place else "")


def _less_words(key: Key) -> Key:
    """Return id and folders less what the id says of an agent or a state."""
    subject, place = key
    plain = _without_words(_id(key))[0]
    return (plain, place) if subject else (subject, (*place[:-1], plain) if place else ())


def _below(root: Path, folder: Path) -> tuple[str, ...]:
    return folder.relative_to(root).parts if folder.is_relative_to(root) else ()


@cache
def _said(name: str) -> Word:
    """Return what a name of such words alone says; nothing where it holds any other."""
    plain = unaccented(name)
    if plain in (*BEFORE, *AFTER):
        return Word(given=plain in AFTER, is_time=True)
    return Word(
        given=agent_said(name), is_stage=is_stage(name), is_shelf=SHELF.fullmatch(plain) is not None
    )


def _of_folder(name: str, held: set[str], contrasts: Contrasts) -> Word:
    """Return what a name says of a folder in which there are these contrasts.

    One named as a contrast, ``T1`` or ``T1_post``, is of it where there is no other: T1 may be a
    time point. ``tumor`` is of masks, but says nothing at the end of an id.
    """
    contrast = contrast_spelt(name, contrasts)
    if contrast == LABELS or MASK_FOLDER.fullmatch(name.lower()):
        return Word(is_masks=True)
    images = held - {*MASKS}
    is_own = images == {contrast} or (contrast == "t1ce" and images == {"t1"})
    return Word(given=contrast == "t1ce", contrast=contrast) if is_own else _said(name)


@cache
def _without_words(subject: str) -> tuple[str, str]:
    """Return an id less what its end, or SPM before it, says of an agent or a state, and that."""
    for place in (match.start() for match in re.finditer("[-_. ]", subject)):
        start, end = subject[:place], subject[place + 1 :]
        if _said(end).speaks:
            return start, end
    plain = less_spm(subject)
    return plain, subject.removesuffix(plain)


def _resolved(parts: list[Part], key: Key, root: Path, remarks: Remarks) -> Iterator[Entry]:
    """Yield the files of one subject: those of parts that are of one examination together."""
    together = _of_one_examination(parts)
    subject, place = key
    end = _without_words(_id(key))[1]
    for part in parts:
        if part not in together:
            said = [w for w, says in zip(part.words, part.said, strict=True) if says.given]
            said += [end] if end and _said(end).given else []
            if said and "t1ce" not in part.images:
                native = (e.file.path for e in part.entries if e.contrast == "t1")
                remarks.add(_doubt(said[0]), *native)
            yield from part.entries
    yield from _joined(together, subject, root.joinpath(*place), remarks)


def _doubt(word: str) -> str:
    return (
        f"is read as t1, before an agent, but '{word}' may say that it is after one: if so, "
        f"{IN_A_TABLE}"
    )


def doubts(entries: Iterable[Entry], root: Path) -> list[str]:
    """Return a line on each T1 of patients without T1ce whose folders may say after an agent."""
    entries, remarks = list(entries), Remarks()
    complete = {entry.owner for entry in entries if entry.contrast == "t1ce"}
    for entry in entries:
        said = [name for name in _below(root, entry.owner) if _said(name).given]
        if said and entry.contrast == "t1" and entry.owner not in complete:
            remarks.add(_doubt(said[-1]), entry.file.path)
    return remarks.told(root)


def _of_one_examination(parts: list[Part]) -> list[Part]:
    """Return the parts whose words tell images of one examination apart; others are left alone."""
    joined = [part for part in parts if part.images]
    if _are_visits(joined):
        joined = [part for part in joined if not part.is_time]
    for part in [part for part in joined if part.is_masks]:
        if not any(part.images & other.images for other in joined if not other.is_masks):
            joined.remove(part)
    native = {part.words for part in joined if not part.given and "t1" in part.images}
    for part in [part for part in joined if part.given]:
        is_named = any(word.contrast for word in part.said)
        is_complete = "t1ce" in part.images and not is_named  # a patient, or a visit, of this name
        if is_complete or not (part.is_below or native or part.is_time):
            joined.remove(part)
    return joined if len(joined) > 1 or any(part.given for part in joined) else []


def _are_visits(parts: list[Part]) -> bool:
    """Whether pre and post are examinations: more than a T1 is after, or all is there again."""
    after = [part for part in parts if part.is_time and part.given]
    rest = [part for part in parts if part not in after]
    if after:
        is_whole = not rest or any("t1ce" in part.images for part in rest)
        return is_whole or any(part.images - {"t1"} for part in after)
    native = [part for part in parts if not (part.is_time or part.given)]
    others: set[str] = set().union(*(part.images for part in native))
    return any(part.images & others for part in parts if part.is_time)


def _joined(parts: list[Part], subject: str, place: Path, remarks: Remarks) -> Iterator[Entry]:
    """Yield the files of one examination under one id and owner.

    Of two files of a contrast that without words on a state, or on an agent, goes first. FLAIR
    after an agent is another image than FLAIR.
    """
    owner = min((e.owner for part in parts if not part.words for e in part.entries), default=place)
    told = [(part, e._replace(contrast=_read_as(part, e))) for part in parts for e in part.entries]
    first: dict[str, bool] = {}
    for part, entry in told:
        first[entry.contrast] = _is_second(part, entry) and first.get(entry.contrast, True)
    kept: list[tuple[Part, Entry]] = []
    for part, entry in told:
        if part.is_masks and len(part.images) > 1:
            why = f"is passed over: it lies among masks; to read it, {IN_A_TABLE}"
            remarks.add(why, entry.file.path)
        elif part.given and entry.contrast == "flair":
            why = f"is passed over: FLAIR after an agent; to read it, {IN_A_TABLE}"
            remarks.add(why, entry.file.path)
        elif _is_second(part, entry) and not first[entry.contrast]:
            remarks.add(
                f"is passed over: its patient has this contrast without such a folder or word; to "
                f"read it, {IN_A_TABLE}",
                entry.file.path,
            )
        else:
            kept.append((part, entry))
    is_mixed = len({part.is_stage for part, entry in kept if entry.contrast not in MASKS}) > 1
    for part, entry in kept:
        if part.is_time and entry.contrast == "t1ce":
            remarks.add(
                f"is read as t1ce: '{part.words[-1]}' is taken for after an agent, as there is no "
                f"other image beside it; if it is a visit, {IN_A_TABLE}",
                entry.file.path,
            )
        if is_mixed and part.is_stage:
            remarks.add(
                "is read beside images without such a folder or word: look whether all are "
                f"processed alike; else {IN_A_TABLE}",
                entry.file.path,
            )
        own = owner if part.words else entry.owner
        yield entry._replace(subject=subject, owner=own)


def by_sidecar(
    entries: list[Entry], remarks: Remarks, denies: Callable[[Path], bool]
) -> Iterator[Entry]:
    """Yield entries of which a T1 is T1ce where its JSON names an agent, and no name denies it.

    Only of a patient without T1ce: the tag often stands beside each file of an examination.
    """
    complete = {(e.subject, e.owner) for e in entries if e.contrast == "t1ce"}
    for entry in entries:
        is_open = entry.contrast == "t1" and (entry.subject, entry.owner) not in complete
        if is_open and not denies(entry.file.path) and names_agent(entry.file.described()):
            remarks.add("is read as t1ce: its JSON names an agent", entry.file.path)
            entry = entry._replace(contrast="t1ce")
        yield entry


def _denies_agent(path: Path) -> bool:
    return says_native(path.name) or says_native(path.parent.name)


def _read_as(part: Part, entry: Entry) -> str:
    """Return the contrast of a file under the words of its part."""
    if part.is_masks:
        return LABELS
    return "t1ce" if part.given and entry.contrast == "t1" else entry.contrast


def _is_second(part: Part, entry: Entry) -> bool:
    """Whether a file is read only where its patient has no other of its contrast."""
    return part.is_stage or part.is_masks or (part.given and entry.contrast != "t1ce")
