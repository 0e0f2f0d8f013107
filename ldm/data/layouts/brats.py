"""The two namings of the BraTS challenges: ID, separator, contrast, in any folder."""

from __future__ import annotations

from pathlib import Path

from ldm.data.layouts.base import Layout, volume_stem
from ldm.label_scheme import NOT_TOLD, SCHEMES, LabelScheme

PAEDIATRIC = "BraTS-PED"


class SuffixLayout(Layout):
    """Files named ID, separator, contrast, ``.nii.gz`` or ``.nii``, in any folder below a root."""

    separator: str
    naming: str  # of the endings, in ldm.study

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        return f"{subject}{self.separator}{self.contrasts.expected(contrast, self.naming)}.nii.gz"

    def parse(self, path: Path) -> tuple[str, str] | None:  # noqa: D102
        stem = volume_stem(path.name) or ""
        known = self.contrasts.endings(self.naming)
        fitting = [e for e in known if stem.endswith(self.separator + e)]
        ending = max(fitting, key=len, default=None)  # of an ID_b0_dwi, b0_dwi where that is known
        subject = stem.removesuffix(f"{self.separator}{ending}")
        return (subject, known[ending]) if ending and subject else None


class BraTS2021(SuffixLayout):
    """BraTS 2017-2021: ``ID_t1.nii.gz``, ``ID_t2``, ``ID_flair``, ``ID_seg``, ...; ``ID_brain``
    where there is a mask of the brain."""

    name = "BraTS 2017-2021"
    scheme = SCHEMES["brats2017"]
    separator = "_"
    naming = "brats2021"


class BraTS2023(SuffixLayout):
    """BraTS 2023 and later: ``ID-t1n.nii.gz``, ``ID-t1c``, ``ID-t2w``, ``ID-t2f``, ``ID-seg``."""

    name = "BraTS 2023+"
    scheme = SCHEMES["brats2024"]
    separator = "-"
    naming = "brats2023"

    def scheme_of(self, subject: str) -> LabelScheme:
        """Return what labels mean: paediatric ones were numbered twice, under the same names."""
        told = super().scheme_of(subject)
        return NOT_TOLD if told is self.scheme and subject.startswith(PAEDIATRIC) else told
