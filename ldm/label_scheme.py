"""What the numbers of a segmentation mean: a fact of a data set, turned into one meaning on entry.

BraTS has renumbered its labels four times, and nnU-Net renumbers them again. Inside, labels are
those of :mod:`ldm.regions`: a file is translated where it is read, and a number that its scheme
does not explain becomes UNKNOWN there, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ldm.errors import bad_value
from ldm.letters import unaccented
from ldm.util import nearest

INSIDE = {  # part -> its label inside
    "necrosis": 1,
    "nonenhancing": 1,
    "cyst": 1,
    "lesion": 1,
    "oedema": 2,
    "enhancing": 4,
    "cavity": 5,
}
UNKNOWN = 255
ENHANCES = r"(?:enh(?:anc|\b)|anreich|aufnahme|rehauss|realce|captan)"  # without accents
NOT_ENHANCING = (
    r"\b(?:non?|un|not|without|hypo|ohne|nicht|keine?|sans|sin|senza) ?"
    rf"(?:(?:contrast|contraste|gadolinium|gad|gd|agent|km) )*(?:\w*{ENHANCES}|ce\b)|"
    r"\b(?:netc?|ncet?)\b"
)
CAVITY = r"cavit|resekt|resect|\brc\b"
WORDS = (  # of the names that data sets give their labels, the first that fits
    ("cavity", CAVITY),
    ("oedema", r"edem|odem|\bed\b|snfh|flair|peritum"),
    ("nonenhancing", NOT_ENHANCING),
    ("enhancing", rf"{ENHANCES}|\b(et|cet?|at)\b|\bactive|\bgd\b"),
    ("oedema", r"infiltrat"),
    ("cyst", r"cyst|\bcc\b"),
    ("necrosis", r"necro|nekro|\bncr\b|\bnc\b|core"),
    ("lesion", r"lesion|tumou?r|\bgtv\b|wmh|mask|foreground"),
)
TELL = (
    "say what they are, by name (data.params.labels=brats2023) or by number, such as "
    "data.params.labels={necrosis: 1, oedema: 2, enhancing: 4}"
)


@dataclass(frozen=True)
class LabelScheme:
    """Which labels of a file mean which part of a tumour.

    Args:
        parts: part (see INSIDE) -> labels.
        source: what says so; empty where nothing does, and the scheme is the usual one.
    """

    parts: Mapping[str, tuple[int, ...]]
    source: str = ""

    @cached_property
    def table(self) -> np.ndarray:
        """The label inside (256,) uint8 of each label of a file."""
        table = np.full(256, UNKNOWN, np.uint8)
        table[0] = 0
        for part, labels in self.parts.items():
            table[list(labels)] = INSIDE[part]
        return table

    def inside(self, labels: np.ndarray) -> np.ndarray:
        """Return a label map of a file (uint8) in the labels of :mod:`ldm.regions`."""
        return self.table[labels]

    def unknown(self, labels: Any) -> list[int]:
        """Return the labels that the scheme does not explain."""
        return sorted({int(label) for label in np.unique(labels)} & {*self._unexplained})

    @property
    def _unexplained(self) -> list[int]:
        return np.flatnonzero(self.table == UNKNOWN).tolist()

    def __str__(self) -> str:
        told = (f"{part} {'+'.join(map(str, labels))}" for part, labels in self.parts.items())
        return ", ".join(told) or "not known"


def _named(source: str, **parts: int) -> LabelScheme:
    return LabelScheme({part: (label,) for part, label in parts.items()}, source)


SCHEMES = {
    "brats2012": _named("BraTS 2012-2016", necrosis=1, oedema=2, nonenhancing=3, enhancing=4),
    "brats2017": _named("BraTS 2017-2021", necrosis=1, oedema=2, enhancing=4),
    "brats2023": _named("BraTS 2023", necrosis=1, oedema=2, enhancing=3),
    "brats2024": _named("BraTS 2023 and later", necrosis=1, oedema=2, enhancing=3, cavity=4),
    "ped2024": _named("BraTS-PED 2024", enhancing=1, nonenhancing=2, cyst=3, oedema=4),
    "decathlon": _named("Medical Decathlon", oedema=1, nonenhancing=2, enhancing=3),
}
USUAL = LabelScheme(SCHEMES["brats2017"].parts)  # where nothing says what labels are
NOT_TOLD = LabelScheme({})  # where there are several that fit


def read_scheme(told: str | Mapping[str, Any], source: str) -> LabelScheme:
    """Return the scheme that ``data.params.labels`` or a column says.

    Args:
        told: a name of SCHEMES, ``{part: label or labels}``, or the text of a scheme, as
            ``necrosis 1, oedema 2, enhancing 3+4``.

    Raises:
        ConfigError: CONFIG-VALUE.
    """
    if isinstance(told, str):
        if told.lower() in SCHEMES:
            return LabelScheme(SCHEMES[told.lower()].parts, source)
        pairs = re.findall(r"([a-z]+)[ =:]+(\d+(?:\+\d+)*)", told.lower())
        told = {part: [int(n) for n in labels.split("+")] for part, labels in pairs} or {told: []}
    parts = {}
    for part, labels in told.items():
        listed = labels if isinstance(labels, list | tuple) else [labels]
        usable = all(type(n) is int and 0 < n < UNKNOWN for n in listed) and len(listed) > 0
        if part not in INSIDE or not usable:
            raise bad_value(
                f"{source} has {part}: {labels}{nearest(str(part), [*INSIDE, *SCHEMES])}: give "
                f"{', '.join(SCHEMES)}, or numbers of {', '.join(INSIDE)}",
            )
        parts[part] = tuple(listed)
    if len(all_labels := [n for labels in parts.values() for n in labels]) > len(set(all_labels)):
        raise bad_value(f"{source}: one label means two parts: {dict(parts)}")
    return LabelScheme(parts, source)


def scheme_of_json(labels: Mapping[str, Any], source: str) -> LabelScheme | None:
    """Return the scheme that ``labels`` of a ``dataset.json`` describe; None where they do not.

    ``{"edema": 1, ...}`` of nnU-Net, ``{"1": "edema", ...}`` of its version 1 and of the Decathlon,
    or regions, ``{"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}``: the
    oedema is what only the first holds, the core less the enhancing part is necrosis.

    Raises:
        TypeError, ValueError: a name has what is no label.
    """
    if all(str(key).isdigit() for key in labels):
        labels = {str(name): int(number) for number, name in labels.items()}
    sets = {
        re.sub(r"[_\W]+", " ", unaccented(str(name))).strip(): _numbers(number)
        for name, number in labels.items()
        if str(name).lower() not in ("background", "ignore")
    }
    if any(len(numbers) > 1 for numbers in sets.values()):
        return _of_regions(sets, source)
    parts: dict[str, tuple[int, ...]] = {}
    for name, numbers in sets.items():
        part = next((part for part, pattern in WORDS if re.search(pattern, name)), None)
        if part is None or "whole" in name:
            return None
        parts[part] = (*parts.get(part, ()), *numbers)
    if "lesion" in parts and parts.keys() - {"lesion", "cavity"}:
        return None  # beside its parts, a tumour may be any of them
    return LabelScheme(parts, source) if parts else None


def _numbers(told: Any) -> set[int]:
    """Return the labels of one name; ``"1"`` is 1.

    Raises:
        TypeError, ValueError: they are no labels.
    """
    found = {int(str(number)) for number in (told if isinstance(told, list | tuple) else [told])}
    if not found or not all(0 < number < UNKNOWN for number in found):
        raise ValueError(f"{told} is no label")
    return found


def _of_regions(sets: Mapping[str, set[int]], source: str) -> LabelScheme | None:
    def region(pattern: str, but: str = "$.") -> set[int]:
        fitting = (name for name in sets if re.search(pattern, name) and not re.search(but, name))
        return next((sets[name] for name in fitting), set())

    whole, core = region(r"whole|\bwt\b"), region(r"core|\btc\b", but="enhanc")
    enhancing = region(rf"{ENHANCES}|\bet\b", but=NOT_ENHANCING)
    cavity = region(CAVITY)
    if not whole or not core or not enhancing <= core <= whole:
        return None
    parts = {"necrosis": core - enhancing, "oedema": whole - core - cavity, "enhancing": enhancing}
    parts["cavity"] = cavity - core
    return LabelScheme({p: tuple(sorted(own)) for p, own in parts.items() if own}, source)
