"""The two namings of the BraTS challenges: ID, separator, contrast, in any folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ldm.data.layouts.base import CONTRASTS, LABELS, MASK_FILE, Layout, volume_stem


class SuffixLayout(Layout):
    """Files named ID, separator, contrast, ``.nii.gz`` or ``.nii``, in any folder below a root."""

    separator: str
    names: Mapping[str, str]  # contrast -> its name in this layout

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        return f"{subject}{self.separator}{self.names.get(contrast, contrast)}.nii.gz"

    def parse(self, path: Path) -> tuple[str, str] | None:  # noqa: D102
        stem = volume_stem(path.name) or ""
        subject, separator, ending = stem.rpartition(self.separator)
        contrast = {name: contrast for contrast, name in self.names.items()}.get(ending)
        return (subject, contrast) if separator and subject and contrast else None


class BraTS2021(SuffixLayout):
    """BraTS 2017-2021: ``ID_t1.nii.gz``, ``ID_t1ce``, ``ID_t2``, ``ID_flair``, ``ID_seg``;
    ``ID_brain`` where there is a mask of the brain."""

    name = "BraTS 2017-2021"
    separator = "_"
    names = {n: n for n in (*CONTRASTS, LABELS, MASK_FILE)}  # noqa: RUF012


class BraTS2023(SuffixLayout):
    """BraTS 2023 and later: ``ID-t1n.nii.gz``, ``ID-t1c``, ``ID-t2w``, ``ID-t2f``, ``ID-seg``."""

    name = "BraTS 2023+"
    separator = "-"
    names = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}  # noqa: RUF012
    names |= {LABELS: LABELS, MASK_FILE: MASK_FILE}
