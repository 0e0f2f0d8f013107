"""Which layout a folder has: the one that recognises most files."""

from __future__ import annotations

import json
import logging
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ldm.data.layouts.base import Entry, Layout, Subject, Tree
from ldm.data.layouts.bids import BIDS
from ldm.data.layouts.brats import BraTS2013, BraTS2021, BraTS2023
from ldm.data.layouts.dataset_json import Decathlon, NnUNet, label_scheme
from ldm.data.layouts.dicom import Dicom
from ldm.data.layouts.flat import Flat
from ldm.data.layouts.folders import ContrastFolders
from ldm.data.layouts.hdf5 import HDF5
from ldm.data.layouts.table import PARTS, SubjectTable
from ldm.data.nifti import volume_stem
from ldm.data.patients import patient_of, patient_pattern
from ldm.data.volume_file import VolumeFile, is_drawn
from ldm.errors import ConfigError, DataError, bad_value, calling, to_the_reader
from ldm.label_scheme import LabelScheme
from ldm.storage import require_subjects
from ldm.study import BRATS, KNOWN, LABELS, MASKS, Contrasts
from ldm.util import get_obj_from_str, how_many, instantiate_from_config, nearest

SHOWN_FILES = 3  # of a folder in which nothing is recognised

log = logging.getLogger(__name__)

# Of equally many files, the first wins.
LAYOUTS: Mapping[str, type[Layout]] = {
    "brats2021": BraTS2021,
    "brats2023": BraTS2023,
    "brats2013": BraTS2013,
    "bids": BIDS,
    "nnunet": NnUNet,
    "flat": Flat,
    "folders": ContrastFolders,
    "decathlon": Decathlon,
    "hdf5": HDF5,
    "dicom": Dicom,
}
Choice = str | Mapping[str, Any] | Layout | None


def build_layout(choice: Choice) -> Layout | None:
    """Return the layout that a name, ``module.Class`` or ``{target, params}``, also as JSON, means.

    Raises:
        ConfigError: CONFIG-VALUE (no such name), CONFIG-TARGET (no such class, or no layout).
    """
    if choice is None or isinstance(choice, Layout):
        return choice
    if isinstance(choice, str) and choice.startswith("{"):
        choice = _read_choice(choice)
    if isinstance(choice, str) and "." not in choice:
        if cls := LAYOUTS.get(choice.lower()):
            return cls()
        raise bad_value(
            f"layout is {choice}{nearest(choice, LAYOUTS)}: give {', '.join(LAYOUTS)}, or "
            "my_module.MyLayout"
        )
    config = {"target": choice} if isinstance(choice, str) else choice
    cls = get_obj_from_str(config.get("target", ""))
    if not (isinstance(cls, type) and issubclass(cls, Layout)):
        raise ConfigError(
            "CONFIG-TARGET",
            f"layout {config.get('target')} is no subclass of ldm.data.layouts.Layout: see "
            "docs/data.md",
        )
    return _whole(instantiate_from_config(config, where="data.params.layout"))


def _whole(layout: Layout) -> Layout:
    """Return a layout of one's own; one that lacks what is asked of it is refused."""
    cls, wrong = type(layout), ""
    if cls.parse is Layout.parse and cls.find is Layout.find:
        wrong = " has no method parse(path): let it return (subject id, contrast), or None"
    for name, kind in (("scheme", LabelScheme), ("examined", Mapping), ("name", str)):
        if not isinstance(getattr(layout, name), kind):
            wrong = f".{name} is {getattr(layout, name)!r}: give a {kind.__name__}, or leave it out"
    if wrong:
        raise ConfigError("CONFIG-TARGET", f"layout {cls.__name__}{wrong} (docs/data.md)")
    return layout


def _entries(layout: Layout, tree: Tree) -> list[Entry]:
    """Return what a layout, which anyone may have written, recognises in a folder.

    Raises:
        ConfigError: CONFIG-TARGET for an error of the class, or what it should not return.
    """
    with calling(layout):
        found = list(layout.find(tree))
    for entry in found:
        kinds = (str, str, VolumeFile, Path)
        if not (isinstance(entry, Entry) and all(map(isinstance, entry, kinds))):
            raise ConfigError(
                "CONFIG-TARGET",
                f"{type(layout).__name__}.find gave {reprlib.repr(entry)}: expected an "
                "ldm.data.layouts.base.Entry (subject id, contrast, VolumeFile, folder)",
            )
    return found


def _read_choice(text: str) -> Mapping[str, Any]:
    try:
        return {**json.loads(text)}
    except (ValueError, TypeError, RecursionError) as error:
        raise bad_value(
            f'layout is {text}: give {{"target": "module.Class", "params": {{...}}}} ({error})'
        ) from error


def detect_layout(
    root: Path, layout: Choice = None, contrasts: Contrasts = KNOWN
) -> tuple[Layout, dict[str, Subject]]:
    """Return the layout of a folder or CSV file and its subjects.

    Args:
        root: a folder, or a CSV file (see :class:`ldm.data.layouts.table.SubjectTable`).
        layout: choice instead of detection, see :func:`build_layout`.
        contrasts: what is looked for; those of a study may have names of their own.

    Raises:
        DataError: DATA-MISSING (no such folder), DATA-LAYOUT (no file is recognised), or what
            :meth:`Layout.subjects` raises.
    """
    root = require_subjects(Path(root))
    if root.is_file():
        if root.suffix.lower() != ".csv":
            raise DataError("DATA-LAYOUT", f"{root.name} is a file: give a folder, or a .csv file")
        table = _told(SubjectTable(), contrasts)
        return table, table.read(root)
    chosen = _told(build_layout(layout), contrasts)

    def recognised(tree: Tree) -> dict[Layout, list[Entry]]:
        return {chosen: _entries(chosen, tree)} if chosen else _candidates(tree, contrasts)

    tree = Tree(root, synthetic=False)  # predictions among the patients are none of them
    found = recognised(tree)
    if not any(found.values()) and tree.passed_over:
        found = recognised(tree := Tree(root))
    if not any(found.values()):
        raise _nothing_found(tree, chosen)
    best = max(found, key=lambda candidate: _weight(found[candidate]))
    for remark in (*_of_others(found, best), *best.remarks):
        _tell(tree.root, remark)
    return best, best.subjects(found[best])


@lru_cache(maxsize=1024)
def _tell(root: Path, remark: str) -> None:
    """Say something of a folder, once: an evaluation lists it again for its pictures."""
    log.warning("%s", remark)


def _nothing_found(tree: Tree, chosen: Layout | None) -> DataError:
    """Return an error that names what lies in a folder, and the ways out."""
    names = [path.name for path in tree.volumes or tree.files]
    few = ", ".join(names[:SHOWN_FILES]) + (", ..." if len(names) > SHOWN_FILES else "")
    shown = [chosen] if chosen else [c() for c in (BraTS2021, BraTS2023, Flat, ContrastFolders)]
    expected = ", ".join(candidate.told_file("ID", "t1") for candidate in shown)
    return DataError(
        "DATA-LAYOUT",
        f"no subject found: {few or 'no file'}; give, in place of the folder, a CSV with columns "
        "id,t1,t1ce,t2,flair and a row a subject, paths relative to it (docs/data.md); expected "
        f"files like {expected}; looked in {tree.root}",
    )


def find_predictions(
    root: Path, reference: Mapping[str, Subject], contrast: str, contrasts: Contrasts = KNOWN
) -> tuple[Layout, dict[str, Subject]]:
    """Return what a folder holds of the patients of a reference.

    ``ID.nii.gz`` with the id of a patient is the prediction of that patient, as segmenters write
    it; its labels mean what those of the patient mean. Else the folder is in any known layout; an
    id that is not of the reference gives way to the one that the sidecar states, because the labels
    of BIDS cannot hold every id.

    Args:
        root: folder of predictions.
        reference: the real patients.
        contrast: what was predicted, ``seg`` or an image.
        contrasts: see :func:`detect_layout`.

    Raises:
        DataError: see :func:`detect_layout`.
    """
    layout = _told(PerPatient(reference, contrast), contrasts)
    entries = list(layout.find(Tree(root))) if Path(root).is_dir() else []
    if entries:
        return layout, layout.subjects(entries)
    layout, found = detect_layout(root, None, contrasts)
    return layout, {s.id: s for s in (_as_stated(s, contrast, reference) for s in found.values())}


def _as_stated(subject: Subject, contrast: str, reference: Mapping[str, Subject]) -> Subject:
    """Return a prediction under the id of the reference that its sidecar states."""
    if subject.id in reference or contrast not in subject.files:
        return subject
    stated = subject.files[contrast].described().get("subject")
    return replace(subject, id=stated) if stated in reference else subject


class PerPatient(Layout):
    """``ID.nii.gz``: a file a patient, in a folder of one contrast."""

    name = "a file per patient"

    def __init__(self, reference: Mapping[str, Subject], contrast: str) -> None:
        self.reference, self.contrast = reference, contrast

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        return f"{subject}.nii.gz"

    def parse(self, path: Path) -> tuple[str, str] | None:  # noqa: D102
        stem = volume_stem(path.name)
        return (stem, self.contrast) if stem in self.reference else None

    def find(self, tree: Tree) -> Iterator[Entry]:  # noqa: D102
        self.written = label_scheme(tree.root)  # nnU-Net writes its dataset.json there
        yield from super().find(tree)

    def scheme_of(self, subject: str) -> LabelScheme:  # noqa: D102
        return self.contrasts.scheme or self.written or self.reference[subject].scheme


def name_patients(subjects: Mapping[str, Subject], pattern: str) -> dict[str, Subject]:
    """Return the subjects, each with the patient that ``data.params.patient`` finds in its id.

    Raises:
        ConfigError: CONFIG-VALUE, the pattern is wrong, or fits no id.
    """
    if not any(patient_pattern(pattern).fullmatch(i) for i in subjects):
        raise bad_value(
            f"data.params.patient is {pattern!r}, which fits no id, such as {next(iter(subjects))}",
        )
    named = {i: patient_of(i, pattern) for i in subjects}
    return {i: replace(subject, examined=named[i]) for i, subject in subjects.items()}


def summary(layout: Layout, subjects: Mapping[str, Subject]) -> str:
    """Return in one line what was found: layout, subjects, and how many have each contrast."""
    counts = Counter(contrast for s in subjects.values() for contrast in s.files)
    parts = Counter(s.split for s in subjects.values() if s.split)
    shown = [c for c in layout.contrasts.names if c in BRATS or counts[c]]
    found = [f"{contrast} {counts[contrast]}" for contrast in (*shown, LABELS)]
    if drawn := sum(is_drawn(s.files[LABELS]) for s in subjects.values() if LABELS in s.files):
        found[-1] += f" ({drawn} of them drawn by dsdiff segment predict)"
    split = [f"{part} {parts[part]}" for part in PARTS if parts[part]]
    number = how_many(len(subjects), "subject")
    return f"{layout.name}: {', '.join([number, *found, *split])}"


def select_subjects(subjects: Mapping[str, Subject], ids: Iterable[str] | None) -> list[Subject]:
    """Return the named subjects (all if ``ids`` is None) in sorted order.

    Raises:
        DataError: DATA-MISSING for an id that does not exist.
    """
    if ids is None:
        return list(subjects.values())
    ids = [ids] if isinstance(ids, str) else list(ids)
    for subject in ids:
        if subject not in subjects:
            raise DataError("DATA-MISSING", f"no such subject{nearest(subject, subjects)}", subject)
    return [subjects[i] for i in sorted(set(ids))]


def _told(layout: Layout | None, contrasts: Contrasts) -> Layout | None:
    """Tell a layout what to look for."""
    if layout is not None and contrasts is not KNOWN:
        layout.contrasts = contrasts
    return layout


def _candidates(tree: Tree, contrasts: Contrasts) -> dict[Layout, list[Entry]]:
    """Return what each layout recognises; a refusal counts where no other recognises anything.

    Raises:
        DataError: the refusal.
    """
    found: dict[Layout, list[Entry]] = {}
    refusals = []
    for cls in LAYOUTS.values():
        layout = _told(cls(), contrasts)
        try:
            if entries := list(layout.find(tree)):
                found[layout] = entries
        except DataError as refusal:
            refusals.append(refusal)
    if not found and refusals:
        raise refusals[0]
    return found


def _paths(entries: Iterable[Entry]) -> set[Path]:
    return {path for entry in entries for path in entry.file.paths}


def _weight(entries: Iterable[Entry]) -> tuple[int, int]:
    """Files of the contrasts that every naming has, then all: ``_dwi`` is of BIDS and of BraTS."""
    entries = list(entries)
    usual = [e for e in entries if e.contrast in (*BRATS, *MASKS)]
    return len(_paths(usual)), len(_paths(entries))


def _of_others(found: Mapping[Layout, list[Entry]], best: Layout) -> Iterator[str]:
    """Yield, a line each, which files other layouts recognise."""
    own = _paths(found[best])
    for layout, entries in found.items():
        if layout is best or all(entry.contrast == LABELS for entry in entries):
            continue
        other = _paths(entries)
        if shared := len(other & own):
            yield to_the_reader(
                f"files that {layout.name} recognises too: {shared}; read as {best.name}. To "
                "choose: --layout or data.params.layout"
            )
        if left := len(other - own):
            yield f"files left out, because they are of {layout.name}: {left}"
