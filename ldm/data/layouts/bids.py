"""BIDS: file names of ``key-value`` entities, in any order, before a suffix."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from ldm.data.layouts.base import Entry, Layout, Tree
from ldm.data.layouts.context import Remarks, by_sidecar
from ldm.data.layouts.series import contrast_of_series, says_native
from ldm.data.nifti import volume_stem
from ldm.data.volume_file import VolumeFile
from ldm.study import LABELS, MASK_FILE, MASKS

LESION = re.compile(  # words of a label, desc or seg entity that name what a tumour mask holds
    r"lesion|tumou?r|glio(?!n)|gbm|metasta|mets?\b|edema|enhanc(?!ed)|necro|cavity|infarct|stroke|"
    r"wmh|\b(?:wt|tc|et|ncr|roi|ms|core)\b",
    re.IGNORECASE,
)
BY_HAND = re.compile(  # a folder of derivatives whose masks without a name are not of tissue
    rf"{LESION.pattern}|expert|manual|by.?hand|rater|annotat|consensus|ground.?truth|^labels?$|^sub-",
    re.IGNORECASE,
)
SYNTHETIC, SPREAD = "synth", "synthstd"  # `desc-` of what dsdiff sample --bids writes
NOT_RAW = ("derivatives", "sourcedata", "code")
NATIVE = ("", "T1w", "orig", "native", "individual", "scanner", "anat", "T1wnative")


class BIDS(Layout):
    """Brain Imaging Data Structure: ``sub-XX[/ses-YY]/anat/sub-XX[_ses-YY]_T1w.nii.gz``.

    ``_T1w`` with an entity ``ce-...`` (``ce-gad``, not ``ce-none``), or without one but with an
    agent in ``acq-`` (``acq-postgad``), or in its JSON where no T1w of the session has one in its
    name, is contrast-enhanced; ``_T2w``, ``_FLAIR`` and
    ``_dwi`` must be without, and a ``_dwi`` with a ``.bval`` is no image. Each session is a subject
    of its own, ``sub-XX_ses-YY``. Segmentations are ``_mask`` and ``_dseg`` that say ``lesion``,
    ``tumor``, ... (any other map of labels may be one of tissue or anatomy); without such a file, a
    ``_dseg`` that says nothing, beside raw images or in a folder of derivatives by hand
    (``experts``, ``manual``). The mask of the brain is ``_desc-brain_mask`` or
    ``_label-brain_mask``. Both are found below ``derivatives`` too, where images are passed over
    (give that folder itself to read them). Files of another ``space-`` than the images are passed
    over.

    Args:
        select: entity -> value, to choose among several runs, acquisitions or spaces, or to name
            a mask, such as ``{"run": 1, "acq": "mprage"}``; files without the entity stay.
    """

    name = "BIDS"
    ambiguous = "choose by data.params.layout.params.select (docs/data.md), or remove one"

    def __init__(self, select: Mapping[str, str | int] | None = None) -> None:
        self.select = {key: str(value) for key, value in (select or {}).items()}

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        return f"anat/{subject}_{self.contrasts.expected(contrast, 'bids')}.nii.gz"

    def find(self, tree: Tree) -> Iterator[Entry]:  # noqa: D102
        found: dict[str, list[tuple[str, Path]]] = defaultdict(list)
        for path in tree.volumes:
            parsed = self.parse(path)
            if parsed and _belongs(parsed[1], path, path.parent.relative_to(tree.root).parts):
                found[parsed[0]].append((parsed[1], path))
        remarks = Remarks()
        entries = list(by_sidecar(list(self._entries(found, tree.root)), remarks, _denies_agent))
        self.remarks = remarks.told(tree.root)
        yield from entries

    def _entries(self, found: Mapping[str, list[tuple[str, Path]]], root: Path) -> Iterator[Entry]:
        """Yield what is of the data set, of the images of each subject and the masks on them."""
        for subject, files in found.items():
            images = {_space(path) for contrast, path in files if contrast not in MASKS}
            shown = {""} if "" in images else images or {_space(path) for _, path in files}
            told = [(c, path) for c, path in files if _space(path) in shown]
            if any("desc" in _entities(path) for contrast, path in told if contrast not in MASKS):
                told = [(c, path) for c, path in told if c != LABELS or self._is_named(path)]
            lesions = {path for c, path in told if c == LABELS and _names_lesion(path)}
            for contrast, path in told:
                if contrast != LABELS or not lesions or path in lesions:
                    yield Entry(subject, contrast, VolumeFile(path), _dataset(path, root))

    def parse(self, path: Path) -> tuple[str, str] | None:  # noqa: D102
        *pairs, suffix = (volume_stem(path.name) or "").split("_")
        entities = _entities(path)
        contrast = self._contrast(suffix, entities, path)
        well_formed = len(entities) == len(pairs) and all(entities.values())
        is_subject = well_formed and entities.get("sub") and entities.get("desc") != SPREAD
        if not contrast or not is_subject or not self._told(entities):
            return None
        session = f"_ses-{entities['ses']}" if "ses" in entities else ""
        return f"sub-{entities['sub']}{session}", contrast

    def _contrast(self, suffix: str, entities: Mapping[str, str], path: Path) -> str | None:
        if suffix in ("mask", "dseg", "msk"):
            label = entities.get("label", entities.get("desc"))
            if suffix == "mask" and label == "brain":
                return MASK_FILE
            bare = suffix != "mask" and not _naming(entities)
            return LABELS if bare or self._is_named(path) else None
        enhanced = f"ce-gad_{suffix}" if _is_enhanced(entities) else suffix  # whatever the agent
        return self.contrasts.endings("bids").get(enhanced)

    def _is_named(self, path: Path) -> bool:
        """Whether a mask says that it is of a lesion, or the user does."""
        named = _naming(_entities(path))
        told = any(self.select.get(key) == value for key, value in named.items())
        return told or _names_lesion(path)

    def _told(self, entities: Mapping[str, str]) -> bool:
        return all(_plain(entities.get(k, v)) == _plain(v) for k, v in self.select.items())


def _entities(path: Path) -> dict[str, str]:
    *pairs, _ = (volume_stem(path.name) or "").split("_")
    return dict(pair.partition("-")[::2] for pair in pairs)


def _is_enhanced(entities: Mapping[str, str]) -> bool:
    """Whether an agent was given: by ``ce-`` (``ce-none`` denies it), else by ``acq-``."""
    if "ce" in entities:
        return not says_native(entities["ce"])
    return contrast_of_series(f"T1 {entities.get('acq', '')}") == "t1ce"


def _denies_agent(path: Path) -> bool:
    entities = _entities(path)
    return "ce" in entities or ("acq" in entities and says_native(entities["acq"]))


def _space(path: Path) -> str:
    """Return the space of a file, empty for that of the images as acquired."""
    space = _entities(path).get("space", "")
    return "" if space in NATIVE else space


def _naming(entities: Mapping[str, str]) -> dict[str, str]:
    """Return the entities that say what a mask holds."""
    return {k: v for k, v in entities.items() if k in ("label", "desc", "seg", "atlas")}


def _names_lesion(path: Path) -> bool:
    return any(map(LESION.search, _naming(_entities(path)).values()))


def _belongs(contrast: str, path: Path, above: tuple[str, ...]) -> bool:
    """Whether a file is of the data set by where it lies: ``above``, the folders from its root."""
    if contrast not in MASKS:
        return not set(above) & set(NOT_RAW)
    return contrast != LABELS or bool(_naming(_entities(path))) or _is_by_hand(above)


def _is_by_hand(above: tuple[str, ...]) -> bool:
    """Whether a segmentation lies beside the images, or where people put theirs."""
    if "derivatives" not in above:
        return True
    below = above[above.index("derivatives") + 1 :]
    return bool(below and BY_HAND.search(below[0]))


def _plain(value: str) -> str:
    """Return an index such as ``01`` without its zeros."""
    return value.lstrip("0") if value.isdigit() else value


def _dataset(path: Path, root: Path) -> Path:
    """Return the folder of the dataset: the one above ``derivatives`` or ``sub-XX``."""
    parts = path.relative_to(root).parts[:-1]
    inner = (i for i, p in enumerate(parts) if p == "derivatives" or p.startswith("sub-"))
    return root.joinpath(*parts[: next(inner, len(parts))])
