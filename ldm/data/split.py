"""Splits by patient, never by slice."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldm.data.patients import folded_patient, patient_of
from ldm.errors import DataError, bad_value
from ldm.util import nearest

log = logging.getLogger(__name__)

Part = Sequence[str] | float | None


def split_subjects(
    ids: Sequence[str],
    train: Part = None,
    val: Part = None,
    test: Part = None,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 5,
    patients: Mapping[str, str] | None = None,
) -> dict[str, list[str]]:
    """Return the subjects of ``train``, ``val`` and ``test``; a patient's are all on one side.

    Args:
        ids: all subjects; several may be of one patient.
        train, val, test: a list of ids, or the fraction of the patients not listed elsewhere;
            ``train=None`` takes all that remain, ``val=None`` and ``test=None`` take none.
        seed: seed of the shuffle behind fractions and folds.
        fold, folds: k-fold: part ``fold`` (0-based) of ``folds`` becomes ``val``; the rest, less
            ``test``, ``train``.
        patients: subject -> patient; None: by :func:`ldm.data.patients.patient_of`.

    Raises:
        DataError: DATA-MISSING (an id that does not exist), LEAK (a subject in two parts),
            DATA-EMPTY (nothing to train on). ConfigError: CONFIG-VALUE.
    """
    parts = {"train": train, "val": val, "test": test}
    named = {part: list(value) for part, value in parts.items() if _is_list(value)}
    shares = {p: v for p, v in parts.items() if v is not None and p not in named}
    names = {i: (patients or {}).get(i) or patient_of(i) for i in sorted(ids)}
    owner = {i: folded_patient(name) for i, name in names.items()}
    _check_named(named, owner)
    if fold is not None:
        _check_fold(fold, folds, named)
        shares.pop("val", None)
    _check_shares(shares)
    listed = {owner[subject] for members in named.values() for subject in members}
    examinations = defaultdict(list)
    for subject in sorted(ids):
        examinations[owner[subject]].append(subject)
    everyone = sorted(examinations, key=lambda patient: names[examinations[patient][0]])
    order = np.random.default_rng(seed).permutation(len(everyone))
    free = [patient for patient in (everyone[i] for i in order) if patient not in listed]
    _warn_of_one_patient(names, everyone, any(shares.values()) or fold is not None)
    counts = _counts(shares, len(free), spare="train" not in named)
    result: dict[str, list[str]] = {part: [] for part in parts}
    for part in ("test", "val"):
        if part in counts:
            result[part], free = free[: counts[part]], free[counts[part] :]
    if fold is not None:
        result["val"] = free[fold::folds]
        free = [s for i, s in enumerate(free) if i % folds != fold]
    if "train" not in named:
        result["train"] = free[: counts.get("train", len(free))]
    result = {p: [s for i in members for s in examinations[i]] for p, members in result.items()}
    result |= named
    if not result["train"]:
        raise DataError(
            "DATA-EMPTY", f"no subject is left to train on, of {len(ids)}: see train, val and test"
        )
    return {part: sorted(set(members)) for part, members in result.items()}


def _warn_of_one_patient(names: Mapping[str, str], patients: Sequence[str], is_split: bool) -> None:
    """Say why nobody is held out where ids as ``glioma_scan_07`` read as scans of one patient."""
    if is_split and len(names) > len(patients) == 1:
        log.warning(
            "all %d subjects are taken for examinations of one patient, %s: nobody is held out; if "
            "each is a patient of their own, give data.params.patient='(.+)'",
            len(names),
            next(iter(names.values())),
        )


def _is_list(value: Any) -> bool:
    return value is not None and not isinstance(value, int | float)


def _counts(shares: Mapping[str, float], total: int, spare: bool) -> dict[str, int]:
    """Return the patients of each share; ``spare``: what is rounded up leaves one to train on."""
    counts = {part: _count(share, total) for part, share in shares.items()}
    held_out = [part for part in ("test", "val") if part in counts]
    leaves = spare and sum(shares[part] for part in held_out) < 1
    while leaves and sum(counts[p] for p in held_out) >= total > 0:
        largest = max(held_out, key=counts.__getitem__)
        if counts[largest] == 1:
            break
        counts[largest] -= 1
    return counts


def _count(share: float, total: int) -> int:
    """Return the subjects that a share means: at least one, unless there is only one in all."""
    return round(share * total) or int(share > 0 and total > 1)


def _check_shares(shares: dict[str, float]) -> None:
    for part, share in shares.items():
        if not 0 <= share <= 1:
            raise bad_value(f"data.params.{part} is {share}: give a fraction 0..1 or a list")
    if (total := sum(shares.values())) > 1 + 1e-9:
        raise bad_value(
            f"{', '.join(shares)} add up to {total:g} of the subjects: give fractions that make "
            "1 at most"
        )


def _check_fold(fold: int, folds: int, named: dict[str, list[str]]) -> None:
    if folds < 2 or not 0 <= fold < folds:
        raise bad_value(
            f"fold {fold} of {folds} folds: give 2 folds or more, and a fold from 0 to folds - 1"
        )
    if "val" in named:
        raise bad_value("a fold chooses val, which is a list too: give one")


def _check_named(named: dict[str, list[str]], owner: Mapping[str, str]) -> None:
    side: dict[str, str] = {}
    for part, members in named.items():
        for subject in members:
            if subject not in owner:
                raise DataError(
                    "DATA-MISSING",
                    f"data.params.{part} names a subject that is not in the folder"
                    f"{nearest(subject, owner)}",
                    subject,
                )
            if side.setdefault(owner[subject], part) != part:
                raise DataError(
                    "LEAK",
                    f"is in '{side[owner[subject]]}' and in '{part}': a patient has one side",
                    subject,
                )
