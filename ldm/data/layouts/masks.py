"""Label maps of other names beside the images of a patient: ``t1ce-label``, ``ID_mask``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from ldm.data.layouts.base import Entry, Tree
from ldm.data.layouts.context import Remarks
from ldm.data.layouts.spelling import contrast_spelt
from ldm.data.nifti import volume_stem
from ldm.data.volume_file import VolumeFile
from ldm.study import LABELS, MASK_FILE, MASKS, Contrasts

MASK = ("mask", "msk")  # of the tumour, or of the brain
BY_PROGRAMS = ("seg", "segm", "segmentation", *MASK)  # of tissue or of the brain too
ANATOMY = re.compile(
    r"brain|skull|head|bet|hdbet|csf|[gw]m|tissue|parenchyma|ventricles?|atlas|pve|fast|(?:synth|a)seg|"
    r"aparc|cortex|hippocamp\w*|bias|air|eyes?"
)
BY_HAND = re.compile("manual(ly)?|hand|expert")
IF_SO = "if it is of the tumour, name it in a CSV (columns id,t1,t1ce,...,seg)"


def labels_beside(
    entries: Iterable[Entry], tree: Tree, contrasts: Contrasts
) -> tuple[list[Entry], list[str]]:
    """Return the label maps of patients that have none by name, and what the reader is told.

    One is read where a folder is of one patient and its name is of the patient, of a contrast that
    tumours are drawn on, and of labels. Where it may be of tissue or of the brain, a line names it.
    """
    entries = list(entries)
    owners: dict[Path, set[tuple[str, Path]]] = defaultdict(set)
    for entry in entries:
        if entry.contrast not in MASKS:
            owners[entry.file.path.parent].add((entry.subject, entry.owner))
    brains = {(e.subject, e.owner) for e in entries if e.contrast == MASK_FILE}
    labelled = {(e.subject, e.owner) for e in entries if e.contrast == LABELS}
    read = {path for entry in entries for path in entry.file.paths}
    remarks, found = Remarks(), defaultdict(list)
    for path in tree.volumes:
        of = owners.get(path.parent, set())
        if path in read or len({subject for subject, _ in of}) != 1 or of & labelled:
            continue
        subject, owner = max(of, key=lambda told: len(told[1].parts))  # above T1/ID_T1.nii.gz
        has_brain = (subject, owner) in brains
        is_sure = _is_of_tumour(path, subject, has_brain, contrasts)
        if is_sure:
            found[subject, owner].append(Entry(subject, LABELS, VolumeFile(path), owner))
        elif is_sure is False:
            remarks.add(f"may be of tumour, brain or tissue, and is not read: {IF_SO}", path)
    for several in found.values():
        if len(several) > 1:
            paths = [entry.file.path for entry in several]
            remarks.add(f"is not read as labels, because its patient has several: {IF_SO}", *paths)
    return [several[0] for several in found.values() if len(several) == 1], remarks.told(tree.root)


def _is_of_tumour(path: Path, subject: str, has_brain: bool, contrasts: Contrasts) -> bool | None:
    """Return whether a name is one of labels; False: it may be; None: it is of something else."""
    stem = (volume_stem(path.name) or "").lower()
    known = (name.lower() for name in (subject, path.parent.name))
    own = next((name for name in known if stem.startswith(name)), "")
    words = [word for word in re.split("[-_. ]+", stem.removeprefix(own)) if word]
    maps = [w for w in words if w in MASK or contrasts.named(w) == LABELS]
    if not maps or not {words[0], words[-1]} & {*maps} or any(map(ANATOMY.fullmatch, words)):
        return None
    others = [w for w in words if w not in maps and not BY_HAND.fullmatch(w)]
    drawn_on = contrast_spelt("_".join(others), contrasts)
    if others and drawn_on in (None, *MASKS):
        return False
    if words[-1] not in maps and not re.match("label|seg", maps[0]):
        return False  # tumor_t1 may be an image
    if set(maps) - {*BY_PROGRAMS}:
        return True
    if set(maps) <= {*MASK}:
        return has_brain and not others
    return not others or drawn_on in ("t1ce", "flair")
