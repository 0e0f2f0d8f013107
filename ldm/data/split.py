"""Splits by patient, never by slice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm.errors import ConfigError, DataError
from ldm.util import nearest

Part = Sequence[str] | float | None


def split_subjects(
    ids: Sequence[str],
    train: Part = None,
    val: Part = None,
    test: Part = None,
    seed: int = 0,
    fold: int | None = None,
    folds: int = 5,
) -> dict[str, list[str]]:
    """Return the subjects of ``train``, ``val`` and ``test``.

    Args:
        ids: all subjects.
        train, val, test: a list of ids, or the fraction of the subjects not listed elsewhere;
            ``train=None`` takes all that remain, ``val=None`` and ``test=None`` take none.
        seed: seed of the shuffle behind fractions and folds.
        fold, folds: k-fold: part ``fold`` (0-based) of ``folds`` becomes ``val``; the rest, less
            ``test``, ``train``.

    Raises:
        DataError: DATA-MISSING (an id that does not exist), LEAK (a subject in two parts),
            DATA-EMPTY (nothing to train on). ConfigError: CONFIG-VALUE.
    """
    parts = {"train": train, "val": val, "test": test}
    named = {part: list(value) for part, value in parts.items() if _is_list(value)}
    _check_named(named, ids)
    listed = {subject for members in named.values() for subject in members}
    order = np.random.default_rng(seed).permutation(len(ids))
    free = [s for s in (sorted(ids)[i] for i in order) if s not in listed]
    result = {part: named.get(part, []) for part in parts}
    total = len(free)
    for part in ("test", "val"):
        if (
            part not in named
            and parts[part] is not None
            and not (part == "val" and fold is not None)
        ):
            count = _count(parts[part], total, part)
            result[part], free = free[:count], free[count:]
    if fold is not None:
        if not 0 <= fold < folds or folds < 2:
            raise ConfigError("CONFIG-VALUE", f"fold {fold} of {folds}: give 0 to {folds - 1}")
        result["val"] = free[fold::folds]
        free = [s for s in free if s not in result["val"]]
    if "train" not in named:
        result["train"] = free if train is None else free[: _count(train, total, "train")]
    if not result["train"]:
        raise DataError(
            "DATA-EMPTY", f"no subject is left to train on, of {len(ids)}: see train, val and test"
        )
    return {part: sorted(members) for part, members in result.items()}


def _is_list(value: Any) -> bool:
    return value is not None and not isinstance(value, int | float)


def _count(fraction: float, total: int, part: str) -> int:
    if not 0 <= fraction <= 1:
        raise ConfigError(
            "CONFIG-VALUE", f"data.params.{part} is {fraction}: give a fraction 0..1 or a list"
        )
    return round(fraction * total) or int(fraction > 0 and total > 1)


def _check_named(named: dict[str, list[str]], ids: Sequence[str]) -> None:
    owner: dict[str, str] = {}
    for part, members in named.items():
        for subject in members:
            if subject not in ids:
                raise DataError("DATA-MISSING", f"no such subject{nearest(subject, ids)}", subject)
            if owner.setdefault(subject, part) != part:
                raise DataError(
                    "LEAK",
                    f"is in '{owner[subject]}' and in '{part}': a patient has one side",
                    subject,
                )
