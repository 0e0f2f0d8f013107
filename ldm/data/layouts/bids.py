"""BIDS: file names of ``key-value`` entities, in any order, before a suffix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ldm.data.layouts.base import Entry, Layout, Tree, volume_stem
from ldm.data.volume_file import VolumeFile
from ldm.study import LABELS, MASK_FILE

NO_TUMOUR = ("head", "GM", "WM", "CSF")  # labels of masks that are no segmentation
DERIVED = (LABELS, MASK_FILE)
NOT_RAW = ("derivatives", "sourcedata", "code")


class BIDS(Layout):
    """Brain Imaging Data Structure: ``sub-XX[/ses-YY]/anat/sub-XX[_ses-YY]_T1w.nii.gz``.

    ``_T1w`` with an entity ``ce-...`` (``ce-gad``) is contrast-enhanced; ``_T2w``, ``_FLAIR`` and
    ``_dwi`` must be without, and a ``_dwi`` with a ``.bval`` is no image. Each session is a subject
    of its own, ``sub-XX_ses-YY``. Segmentations are ``_dseg`` or ``_label-NAME_mask``, the mask of
    the brain is ``_desc-brain_mask`` or ``_label-brain_mask``, also below ``derivatives``, where
    images are passed over (give that folder itself to read them).

    Args:
        select: entity -> value, to choose among several runs or acquisitions, such as
            ``{"run": 1, "acq": "mprage"}``; files without the entity stay.
    """

    name = "BIDS"
    ambiguous = "choose by data.params.layout.params.select (docs/data.md), or remove one"

    def __init__(self, select: Mapping[str, str | int] | None = None) -> None:
        self.select = {key: str(value) for key, value in (select or {}).items()}

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        return f"anat/{subject}_{self.contrasts.expected(contrast, 'bids')}.nii.gz"

    def find(self, tree: Tree) -> Iterator[Entry]:  # noqa: D102
        for path in tree.volumes:
            parsed = self.parse(path)
            above = path.relative_to(tree.root).parts
            if parsed and (parsed[1] in DERIVED or not set(above) & set(NOT_RAW)):
                yield Entry(*parsed, VolumeFile(path), _dataset(path, tree.root))

    def parse(self, path: Path) -> tuple[str, str] | None:  # noqa: D102
        *pairs, suffix = (volume_stem(path.name) or "").split("_")
        entities = dict(pair.partition("-")[::2] for pair in pairs)
        contrast = self._contrast(suffix, entities)
        well_formed = len(entities) == len(pairs) and all(entities.values())
        if not contrast or not well_formed or not entities.get("sub") or not self._told(entities):
            return None
        session = f"_ses-{entities['ses']}" if "ses" in entities else ""
        return f"sub-{entities['sub']}{session}", contrast

    def _contrast(self, suffix: str, entities: Mapping[str, str]) -> str | None:
        if suffix == "mask":
            label = entities.get("label", entities.get("desc"))
            return MASK_FILE if label == "brain" else LABELS if _is_lesion(entities) else None
        enhanced = f"ce-gad_{suffix}" if "ce" in entities else suffix  # whatever the agent
        return self.contrasts.endings("bids").get(enhanced)

    def _told(self, entities: Mapping[str, str]) -> bool:
        return all(_plain(entities.get(k, v)) == _plain(v) for k, v in self.select.items())


def _is_lesion(entities: Mapping[str, str]) -> bool:
    return "label" in entities and entities["label"] not in NO_TUMOUR


def _plain(value: str) -> str:
    """Return an index such as ``01`` without its zeros."""
    return value.lstrip("0") if value.isdigit() else value


def _dataset(path: Path, root: Path) -> Path:
    """Return the folder of the dataset: the one above ``derivatives`` or ``sub-XX``."""
    parts = path.relative_to(root).parts[:-1]
    inner = (i for i, p in enumerate(parts) if p == "derivatives" or p.startswith("sub-"))
    return root.joinpath(*parts[: next(inner, len(parts))])
