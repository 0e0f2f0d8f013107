"""BIDS: file names of ``key-value`` entities, in any order, before a suffix."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from ldm.data.layouts.base import Entry, Layout, Tree
from ldm.data.nifti import volume_stem
from ldm.data.volume_file import VolumeFile
from ldm.study import LABELS, MASK_FILE

LESION = re.compile(  # words of a label, desc or seg entity that name what a tumour mask holds
    r"lesion|tumou?r|glioma|gbm|metasta|mets?\b|o?edema|enhanc|necro|core|cavity|infarct|stroke|wmh|"
    r"\b(?:wt|tc|et|ncr|roi|ms)\b",
    re.IGNORECASE,
)
ANATOMY = re.compile(  # labels of tissue and of anatomy: masks, but of no lesion
    r"head|scalp|skull|bone|air|eyes?|background|bg|gm|wm|csf|sgm|scgm|gmcortical|cortex|cortical|"
    r"ribbon|ventricles?|brainstem|bs|cerebellum|cer|cbm|thalamus|hippocampus|hemi|[lr]h?|nawm|fov|"
    r"face|aseg|aparc\w*|tissues?|atlas|carve\w*|hmat|subcort\w*",
    re.IGNORECASE,
)
TISSUE_PIPELINES = re.compile(  # whose _dseg are tissues
    r"fmriprep|smriprep|freesurfer|fastsurfer|infant_?fs|synthseg|"
    r"synthstrip|samseg|cat12|spm\d*|fsl|fsl_?anat|fast|ants\w*|qsiprep|qsirecon|xcp_?d|mriqc|aslprep|"
    r"nibabies|petprep\w*|micapipe|mindboggle|macapype|civet|nipreps",
    re.IGNORECASE,
)
SYNTHETIC, SPREAD = "synth", "synthstd"  # `desc-` of what dsdiff sample --bids writes
DERIVED = (LABELS, MASK_FILE)
NOT_RAW = ("derivatives", "sourcedata", "code")
NATIVE = ("", "T1w", "orig", "native", "individual", "scanner", "anat", "T1wnative")


class BIDS(Layout):
    """Brain Imaging Data Structure: ``sub-XX[/ses-YY]/anat/sub-XX[_ses-YY]_T1w.nii.gz``.

    ``_T1w`` with an entity ``ce-...`` (``ce-gad``) is contrast-enhanced; ``_T2w``, ``_FLAIR`` and
    ``_dwi`` must be without, and a ``_dwi`` with a ``.bval`` is no image. Each session is a subject
    of its own, ``sub-XX_ses-YY``. Segmentations are ``_dseg`` or ``_label-NAME_mask``, unless they
    are of tissue or anatomy (of fMRIPrep, FreeSurfer, ...; ``desc-aseg``, ``label-GM``); one that
    says ``lesion`` or ``tumor`` goes first. The mask of the brain is ``_desc-brain_mask`` or
    ``_label-brain_mask``. Both are found below ``derivatives`` too, where images are passed over
    (give that folder itself to read them). Files of another ``space-`` than the images are passed
    over.

    Args:
        select: entity -> value, to choose among several runs, acquisitions, spaces or masks, such
            as ``{"run": 1, "acq": "mprage"}``; files without the entity stay.
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
            above = path.relative_to(tree.root).parts
            parsed = self.parse(path)
            if parsed and (parsed[1] in DERIVED or not set(above) & set(NOT_RAW)):
                found[parsed[0]].append((parsed[1], path))
        for subject, files in found.items():
            images = {_space(path) for contrast, path in files if contrast not in DERIVED}
            shown = {""} if "" in images else images or {_space(path) for _, path in files}
            told = [(c, path) for c, path in files if _space(path) in shown]
            lesions = {path for c, path in told if c == LABELS and _names_lesion(path)}
            for contrast, path in told:
                if contrast != LABELS or not lesions or path in lesions:
                    yield Entry(subject, contrast, VolumeFile(path), _dataset(path, tree.root))

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
        if suffix in ("mask", "dseg"):
            label = entities.get("label", entities.get("desc"))
            if suffix == "mask" and label == "brain":
                return MASK_FILE
            return LABELS if self._is_lesion(suffix, entities, path) else None
        enhanced = f"ce-gad_{suffix}" if "ce" in entities else suffix  # whatever the agent
        return self.contrasts.endings("bids").get(enhanced)

    def _is_lesion(self, suffix: str, entities: Mapping[str, str], path: Path) -> bool:
        """Whether a mask or a discrete segmentation may be that of a lesion."""
        named = {key: entities[key] for key in ("label", "desc", "seg", "atlas") if key in entities}
        if any(self.select.get(key) == value for key, value in named.items()):
            return True
        if any(LESION.search(value) for value in named.values()):
            return True
        if any(ANATOMY.fullmatch(value) for value in named.values()) or "atlas" in named:
            return False
        if suffix == "mask":
            return "label" in named
        return "desc" not in named and not any(map(TISSUE_PIPELINES.match, path.parts))

    def _told(self, entities: Mapping[str, str]) -> bool:
        return all(_plain(entities.get(k, v)) == _plain(v) for k, v in self.select.items())


def _entities(path: Path) -> dict[str, str]:
    *pairs, _ = (volume_stem(path.name) or "").split("_")
    return dict(pair.partition("-")[::2] for pair in pairs)


def _space(path: Path) -> str:
    """Return the space of a file, empty for that of the images as acquired."""
    space = _entities(path).get("space", "")
    return "" if space in NATIVE else space


def _names_lesion(path: Path) -> bool:
    named = (_entities(path).get(key, "") for key in ("label", "desc", "seg"))
    return any(LESION.search(value) for value in named)


def _plain(value: str) -> str:
    """Return an index such as ``01`` without its zeros."""
    return value.lstrip("0") if value.isdigit() else value


def _dataset(path: Path, root: Path) -> Path:
    """Return the folder of the dataset: the one above ``derivatives`` or ``sub-XX``."""
    parts = path.relative_to(root).parts[:-1]
    inner = (i for i, p in enumerate(parts) if p == "derivatives" or p.startswith("sub-"))
    return root.joinpath(*parts[: next(inner, len(parts))])
