"""Which patients a model has seen: ``subjects.json`` of a run folder, and the guard against leaks.

A patient is known by its id and by the SHA-256 of its files, so that one who comes back under
another name is found too (as long as the files are the same bytes).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ldm.data.cache import cache_root
from ldm.data.layouts import Subject
from ldm.errors import DataError
from ldm.storage import read_json, sha256, write_json

SUBJECTS_FILE = "subjects.json"
Digests = Mapping[str, Mapping[str, str]]  # subject -> contrast -> SHA-256 of its file


def subject_digests(subjects: Iterable[Subject], cache: Path | None = None) -> Digests:
    """Return the digest of every file of each subject.

    A digest is kept in the cache folder until the file changes its size or time.

    Raises:
        DataError: DATA-IO when a file cannot be read.
    """
    subjects = list(subjects)
    folder = (cache or cache_root()) / "digests"
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = pool.map(lambda subject: _digests(subject, folder), subjects)
        return {s.id: digests for s, digests in zip(subjects, found, strict=True)}


def _digests(subject: Subject, folder: Path) -> dict[str, str]:
    try:
        states = {
            contrast: [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
            for contrast, path in sorted(subject.files.items())
        }
        key = hashlib.sha256(json.dumps(states).encode()).hexdigest()[:24]
        if known := read_json(folder / f"{key}.json"):
            return known
        digests = {contrast: sha256(subject.files[contrast]) for contrast in states}
    except OSError as error:
        raise DataError("DATA-IO", f"cannot read a file: {error.strerror}", subject.id) from error
    write_json(folder / f"{key}.json", digests)
    return digests


def write_seen(run: Path, parts: Mapping[str, Digests]) -> None:
    """Write ``subjects.json``: part (``train``, ``val``) -> subject -> contrast -> digest."""
    write_json(run / SUBJECTS_FILE, parts)


def read_seen(run: Path) -> Digests:
    """Return the patients that a run was trained on; empty where it does not tell."""
    found = read_json(run / SUBJECTS_FILE).get("train")
    if found is not None:
        return found
    return {subject: {} for subject in read_json(run / "cost.json").get("train_subjects") or ()}


def same_patient(subject: str, digests: Mapping[str, str], seen: Digests) -> str | None:
    """Return the id under which a model has seen a patient, or None."""
    if subject in seen:
        return subject
    own = {d for contrast, d in digests.items() if contrast != "seg"}  # empty ones are all alike
    for other, known in seen.items():
        if own & {d for contrast, d in known.items() if contrast != "seg"}:
            return other
    return None


def refuse_leaks(held_out: Digests, seen: Digests, where: str) -> None:
    """Refuse to test a model on a patient that it was trained on.

    Raises:
        DataError: LEAK.
    """
    for subject, digests in held_out.items():
        other = same_patient(subject, digests, seen)
        if other == subject:
            raise DataError(
                "LEAK", f"is tested, but '{where}' was trained on it: leave it out of one", subject
            )
        if other:
            raise DataError(
                "LEAK",
                f"is tested, but '{where}' was trained on the same files under the name {other}: "
                "leave it out of one",
                subject,
            )
