"""The regions of a label map: what a segmentation network predicts, a channel each.

Tumour regions are those of the BraTS challenge (Baid et al. 2021): they overlap, enhancing tumour
within the core within the whole. A lesion mask is one region, any label.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TypeVar

import numpy as np

from ldm.errors import DataError, bad_value
from ldm.label_scheme import TELL, UNKNOWN
from ldm.util import nearest

NECROTIC_CORE, OEDEMA, ENHANCING = 1, 2, 4  # labels inside, those of BraTS 2017-2021
ENHANCING_2023 = 3  # in files since then; no label inside
CAVITY = 5  # of a resection, no part of the tumour
REGION_SETS = {"tumour": ("et", "tc", "wt"), "lesion": ("lesion",)}
LABELS = {  # region -> the labels that it is made of; none: every label above 0
    "et": (ENHANCING_2023, ENHANCING),
    "tc": (NECROTIC_CORE, ENHANCING_2023, ENHANCING),
    "wt": (NECROTIC_CORE, OEDEMA, ENHANCING_2023, ENHANCING),
    "lesion": (),
}
NAMES = {"et": "enhancing tumour", "tc": "tumour core", "wt": "whole tumour"}  # of short ones
PAINTED = {"lesion": 1, "wt": OEDEMA, "tc": NECROTIC_CORE, "et": ENHANCING}  # the later on top

Array = TypeVar("Array")  # a numpy array or a torch tensor


def region_names(regions: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of a set of regions (``tumour``, ``lesion``), or those given, checked.

    Raises:
        ConfigError: CONFIG-VALUE.
    """
    names = REGION_SETS.get(regions, (regions,)) if isinstance(regions, str) else tuple(regions)
    unknown = next((name for name in names if name not in LABELS), None)
    if unknown or not names:
        raise bad_value(
            f"regions is {regions!r}{nearest(str(unknown), [*REGION_SETS, *LABELS])}: give "
            f"{' or '.join(REGION_SETS)}, or a list of {', '.join(LABELS)}"
        )
    return names


def region_title(region: str) -> str:
    """Return a region as it is written: ET, TC, WT, lesion."""
    return region.upper() if len(region) == 2 else region


def region_name(region: str) -> str:
    """Return a region spelled out, as a legend says it: ``enhancing tumour (ET)``, ``lesion``."""
    return f"{NAMES[region]} ({region_title(region)})" if region in NAMES else region


def spelled_out(regions: Sequence[str]) -> str:
    """Return what the short names among regions mean, as a note of a table; empty without any."""
    told = [f"{region_title(name)}: {NAMES[name]}" for name in regions if name in NAMES]
    return f"{', '.join(told)}." if told else ""


def region_masks(labels: Array, regions: Sequence[str]) -> dict[str, Array]:
    """Return the mask of each region of a label map, an array or a tensor of any shape.

    Raises:
        DataError: DATA-LABEL, tumour regions are asked of labels whose meaning is not known.
    """
    if any(LABELS[name] for name in regions) and bool((labels == UNKNOWN).any()):
        raise DataError(
            "DATA-LABEL",
            "seg holds labels whose meaning is not known, so there is no "
            f"{', '.join(map(region_title, regions))}: {TELL}, or ask for the region lesion",
        )
    return {
        name: reduce(operator.or_, (labels == value for value in LABELS[name]))
        if LABELS[name]
        else labels > 0
        for name in regions
    }


def label_map(masks: Mapping[str, np.ndarray], enhancing: int = ENHANCING) -> np.ndarray:
    """Return masks (*S) of regions as one uint8 label map; what is inside lies on top.

    Args:
        enhancing: label of the enhancing tumour, 4, or 3 as of BraTS 2023.
    """
    labels = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for name, value in PAINTED.items():
        if name in masks:
            labels[masks[name]] = enhancing if name == "et" else value
    return labels
