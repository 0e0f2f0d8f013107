"""Which patients a model has seen: ``subjects.json`` of a run folder, and the guard against leaks.

A patient is known by its id and by the SHA-256 of its files, so that one who comes back under
another name is found too (as long as the files are the same bytes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ldm.data.layouts import Subject
from ldm.data.manifest import leaks, state
from ldm.errors import DataError
from ldm.storage import cache_root, read_json, write_json
from ldm.study import LABELS, MASK_FILE

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


def _digests(subject: Subject, folder: Path) -> Mapping[str, str]:
    kept = folder / f"{state(subject)}.json"
    if known := read_json(kept):
        return known
    digests = {contrast: file.sha256() for contrast, file in sorted(subject.files.items())}
    write_json(kept, digests)
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


def inherited(model: Mapping[str, Any]) -> Digests:
    """Return the patients that a model has seen through what it is built from.

    Args:
        model: the ``model`` section of a configuration: teacher, first stage and anchor count.
    """
    params = model.get("params") or {}
    parts = (params.get(name) or {} for name in ("first_stage_config", "anchor_config"))
    paths = [(part.get("params") or {}).get("path") for part in parts]
    seen: dict[str, Mapping[str, str]] = {}
    for path in (params.get("teacher"), *paths):
        if path:
            run = Path(path)
            seen |= read_seen(run if run.is_dir() else run.parent)
    return seen


def same_patient(subject: str, digests: Mapping[str, str], seen: Digests) -> str | None:
    """Return the id under which a model has seen a patient, or None."""
    found = leaks({i: _images(known) for i, known in seen.items()}, {subject: _images(digests)})
    return found[0].train if found else None


def refuse_leaks(held_out: Digests, seen: Digests, where: str) -> None:
    """Refuse to test a model on a patient that it was trained on.

    Raises:
        DataError: LEAK.
    """
    sides = ({i: _images(known) for i, known in side.items()} for side in (seen, held_out))
    for leak in leaks(*sides):
        named = "" if leak.train == leak.test else f", under the name {leak.train} ({leak.reason})"
        raise DataError(
            "LEAK", f"is tested, but '{where}' was trained on it{named}: leave it out", leak.test
        )


def _images(digests: Mapping[str, str]) -> set[str]:
    """Return the digests of the images: segmentations without a tumour are all alike."""
    return {digest for name, digest in digests.items() if name not in (LABELS, MASK_FILE)}
