"""Which patients a model has seen: ``subjects.json`` of a run folder, and the guard against leaks.

A patient is known by its id, by whom it is an examination of, by the SHA-256 of its files and of
their voxels, and by its anatomy: a file that is packed anew, saved anew, resampled or renamed is
still the same patient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldm.binding import PARTS
from ldm.data.fingerprint import alike, fingerprint
from ldm.data.layouts import Subject
from ldm.data.manifest import state
from ldm.data.patients import folded_patient, patient_of
from ldm.data.volume_file import VolumeFile
from ldm.errors import CheckpointError, DataError
from ldm.progress import in_threads
from ldm.storage import COST_FILE, cache_root, read_json, run_folder, write_json
from ldm.study import KNOWN, MASKS, Study
from ldm.util import listed, params_of

SUBJECTS_FILE = "subjects.json"
FORMAT = 3  # of a kept digest
UNSEEN = "unseen"  # in place of ids: the subjects that a run has not seen
UNTOLD = "untold"  # in subjects.json: what the weights are built from and does not say whom it saw
VOXELS, ANATOMY, PATIENT, SPACING = "voxels_", "anatomy", "patient", "spacing"
ALIKE_SPACING = 1.1  # ratio of voxel sizes that make no difference
# subject -> what it is known by: contrast -> SHA-256 of its file; voxels_CONTRAST -> that of its
# voxels; anatomy -> contrast and fingerprint; patient; spacing. Older runs know files only.
Digests = Mapping[str, Mapping[str, str]]


class Leak(NamedTuple):
    """A subject to train on and a subject to test on that are one patient, and how it shows."""

    train: str
    test: str
    reason: str


def subject_digests(subjects: Iterable[Subject], cache: Path | None = None) -> Digests:
    """Return what each subject is known by.

    Digests are kept in the cache folder until a file changes its size or time.

    Raises:
        DataError: DATA-IO when a file cannot be read.
    """
    subjects = list(subjects)
    folder = (cache or cache_root()) / "digests"
    found = in_threads(lambda subject: _kept_identity(subject, folder), subjects)
    return {s.id: digests for s, digests in zip(subjects, found, strict=True)}


def _kept_identity(subject: Subject, folder: Path) -> Mapping[str, str]:
    kept = folder / f"{state(subject)}-{FORMAT}.json"
    known = read_json(kept, torn=True)
    is_text = all(isinstance(value, str) for value in known.values())
    if not (is_text and subject.files.keys() <= known.keys()):
        known = identity(subject)
        write_json(kept, known, replace=True)
    subject.require_digests(known)
    return {**known, PATIENT: subject.patient}


def identity(subject: Subject) -> dict[str, str]:
    """Return what one subject is known by; of a volume that cannot be decoded, the file alone.

    Raises:
        DataError: DATA-IO.
    """
    known = {name: subject.sha256(name) for name in sorted(subject.files)}
    for name in subject.images:
        try:
            read = subject.files[name].read(subject.id, nonfinite="zero")
        except DataError:
            continue
        volume = read.array
        content = str(volume.shape).encode() + np.ascontiguousarray(volume).tobytes()
        known[VOXELS + name] = hashlib.sha256(content).hexdigest()
        known.setdefault(SPACING, spacing_text(read.geometry.spacing))
        if ANATOMY not in known and (anatomy := fingerprint(volume)):
            known[ANATOMY] = f"{name}:{anatomy}"
    return {**known, PATIENT: subject.patient}


def as_read(subject: Subject, study: Study) -> Subject:
    """Return a subject with the files that a model reads, as the patient that it takes it for."""
    read = {c: subject.files[c] for c in study.conditions if c in subject.files}
    patient = subject.examined or patient_of(subject.id, study.data.get("patient"))
    return replace(subject, files=read, examined=patient)


def write_seen(run: Path, parts: Mapping[str, Digests], built_from: Iterable[Path] = ()) -> None:
    """Write ``subjects.json``: part (``train``, ``val``) -> subject -> contrast -> digest.

    The patients of what the weights are built from count as trained on; so do those that the file
    names already, because a resumed run has no teacher any more.

    Args:
        built_from: runs that gave weights, see :func:`origins`.
    """
    runs = [*built_from, run]
    before = {subject: known for each in runs for subject, known in read_seen(each).items()}
    untold = {str(each) for each in runs[:-1] if not tells_all(each)}
    untold |= {*read_json(run / SUBJECTS_FILE).get(UNTOLD, ())}
    own: dict[str, Any] = {f"{part}_own": sorted(digests) for part, digests in parts.items()}
    told = {**parts, "train": {**before, **parts["train"]}, **own, UNTOLD: sorted(untold)}
    write_json(run / SUBJECTS_FILE, told)


def require_same_patients(kept: Mapping[str, Any], now: Mapping[str, Digests]) -> None:
    """Refuse to go on with other patients, or other files, than a run was begun with.

    Args:
        kept: ``subjects.json`` of the run; one of an earlier version tells less.
        now: part -> subject -> contrast -> digest.

    Raises:
        CheckpointError: CKPT-DATA.
    """
    cure = "restore the data, or give --allow-data-change"
    for part, digests in now.items():
        before, own = kept.get(part, {}), kept.get(f"{part}_own")
        if own is not None and (changed := {*own} ^ {*digests}):
            subject = min(changed)
            what = "is new among" if subject in digests else "is missing among"
            raise CheckpointError("CKPT-DATA", f"{what} the patients of {part}: {cure}", subject)
        for subject, files in digests.items():
            told = before.get(subject, {})
            for name in sorted((told.keys() & files.keys()) - {ANATOMY, PATIENT}):
                if told[name] != files[name]:
                    raise CheckpointError(
                        "CKPT-DATA", f"{name} is not the file that was trained on: {cure}", subject
                    )


def read_seen(run: Path, part: str = "train") -> Digests:
    """Return the patients that a run was trained on (or ``val``); empty where it does not tell."""
    found = read_json(run / SUBJECTS_FILE).get(part)
    if found is not None:
        return found
    return {subject: {} for subject in read_json(run / COST_FILE).get(f"{part}_subjects") or ()}


def spacing_text(spacing: Sequence[float]) -> str:
    """Return voxel sizes in words, such as ``1 x 1 x 5``."""
    return " x ".join(f"{mm:.4g}" for mm in spacing)


def other_spacing(spacing: Sequence[float], seen: Digests) -> str:
    """Return the voxel sizes that a model has seen, if these are none of them; else nothing."""
    told = {known[SPACING] for known in seen.values() if SPACING in known}
    sizes = np.array([[float(mm) for mm in text.split(" x ")] for text in sorted(told)])
    if not told:
        return ""
    low, high = sizes.min(axis=0), sizes.max(axis=0)
    inside = (low / ALIKE_SPACING <= spacing) & (np.asarray(spacing) <= high * ALIKE_SPACING)
    span = "" if len(told) == 1 else f" to {spacing_text(high)}"
    return "" if inside.all() else f"{spacing_text(low)}{span} mm"


def tells_all(run: Path) -> bool:
    """Return whether a run says of every patient that its weights have seen."""
    told = read_json(run / SUBJECTS_FILE)
    return bool(read_seen(run)) and not told.get(UNTOLD)


def origins(model: Mapping[str, Any]) -> list[Path]:
    """Return the runs that a model is built from: teacher, first stage and anchor.

    Args:
        model: the ``model`` section of a configuration.
    """
    params = params_of(model)
    parts = (params.get(name) or {} for name in PARTS)
    paths = [params_of(part).get("path") for part in parts]
    return [run_folder(Path(path)) for path in (params.get("teacher"), *paths) if path]


def inherited(model: Mapping[str, Any]) -> Digests:
    """Return the patients that a model has seen through what it is built from."""
    seen: dict[str, Mapping[str, str]] = {}
    for run in origins(model):
        seen |= read_seen(run)
    return seen


def leaks(train: Digests, test: Digests) -> list[Leak]:
    """Return the pairs of subjects, one of each side, that are the same patient.

    They are where the ids are those of one patient, or a file or the voxels of an image are equal,
    or the anatomy is alike (see :mod:`ldm.data.fingerprint`). Of a subject the fingerprint of one
    contrast is kept: four would make ``subjects.json`` three times as long and the comparison four
    times, and how far two patients differ was measured on T1. So a side without T1 is compared with
    none that has it.
    """
    patients, owners = {}, {}
    for subject in sorted(train):
        patients.setdefault(_patient(subject, train[subject]), subject)
        owners.update(dict.fromkeys(_images(train[subject]), subject))
    similar = _alike(train, test)
    found = []
    for subject in sorted(test):
        same = patients.get(_patient(subject, test[subject]))
        equal = sorted({owners[digest] for digest in _images(test[subject]) if digest in owners})
        if same:
            found.append(Leak(same, subject, "same id" if same == subject else "same patient"))
        elif equal:
            found.append(Leak(equal[0], subject, "same image"))
        elif subject in similar:
            found.append(Leak(similar[subject], subject, "same anatomy"))
    return found


def seen_among(model: Path, subjects: Iterable[Subject], study: Study, part: str) -> set[str]:
    """Return the ids of those who are patients of a run's ``train`` or ``val``, by any evidence.

    Raises:
        DataError: DATA-IO when a file cannot be read.
    """
    if not (seen := read_seen(run_folder(model), part)):
        return set()
    known = subject_digests(as_read(subject, study) for subject in subjects)
    return {leak.test for leak in leaks(seen, known)}


def held_out(model: Path, subjects: Collection[Subject], study: Study) -> list[str]:
    """Return the ids of those whom a run has not seen, or else only in validation.

    Empty where the run folder does not tell, or was trained on all.

    Raises:
        DataError: DATA-IO when a file cannot be read.
    """
    if not read_seen(run_folder(model)):
        return []
    train, val = (seen_among(model, subjects, study, part) for part in ("train", "val"))
    untrained = sorted({subject.id for subject in subjects} - train)
    return [i for i in untrained if i not in val] or untrained


def named_subjects(
    named: str | Sequence[str] | None, model: Path, subjects: Mapping[str, Subject], study: Study
) -> str | Sequence[str] | None:
    """Return the ids that a user names; :data:`UNSEEN` names those of :func:`held_out`.

    Raises:
        DataError: DATA-EMPTY where nobody is known to be unseen.
    """
    if listed(named) != [UNSEEN] or UNSEEN in subjects:
        return named
    if ids := held_out(model, subjects.values(), study):
        return ids
    raise DataError(
        "DATA-EMPTY",
        f"no subject is known to be unseen by {model}: keep some out of a training with "
        "data.params.test=0.2, or name them",
    )


def refuse_seen(file: VolumeFile, subject: str) -> None:
    """Refuse a prediction whose sidecar says that its model was trained on the patient.

    Raises:
        DataError: LEAK.
    """
    if (told := file.described()).get("seen") is True:
        named = f" (as {told['seen_as']})" if "seen_as" in told else ""
        raise DataError(
            "LEAK",
            f"the model was trained on this patient{named}: judge others, or --allow-seen",
            subject,
        )


def refuse_leaks(held_out: Digests, seen: Digests, where: str) -> None:
    """Refuse to test a model on a patient that it was trained on.

    Raises:
        DataError: LEAK.
    """
    for leak in leaks(seen, held_out):
        named = "" if leak.train == leak.test else f", under the name {leak.train} ({leak.reason})"
        raise DataError(
            "LEAK", f"is tested, but '{where}' was trained on it{named}: leave it out", leak.test
        )


def refuse_split(train: Digests, val: Digests) -> None:
    """Refuse a split that has a patient on both sides.

    Raises:
        DataError: LEAK.
    """
    for leak in leaks(train, val):
        raise DataError(
            "LEAK",
            f"is held out, but {leak.train} in 'train' is the same patient ({leak.reason}): leave "
            "one out, or give both one name in a column 'patient' of a CSV",
            leak.test,
        )


def _patient(subject: str, known: Mapping[str, str]) -> str:
    return folded_patient(known.get(PATIENT) or patient_of(subject))


def _images(known: Mapping[str, str]) -> set[str]:
    """Return the digests of the images: segmentations without a tumour are all alike."""
    others = (*MASKS, ANATOMY, PATIENT, SPACING)
    return {digest for name, digest in known.items() if name not in others}


def _alike(train: Digests, test: Digests) -> dict[str, str]:
    """Return {subject to test: subject to train on} of equal anatomy, in one contrast."""
    found = {}
    for contrast in KNOWN.names:
        sides = [_anatomies(side, f"{contrast}:") for side in (train, test)]
        found |= {second: first for first, second, _ in alike(*sides)}
    return found


def _anatomies(side: Digests, start: str) -> dict[str, str]:
    told = {subject: known.get(ANATOMY, "") for subject, known in side.items()}
    return {i: text.removeprefix(start) for i, text in told.items() if text.startswith(start)}
