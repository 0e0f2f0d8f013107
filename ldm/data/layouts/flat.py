"""A folder a patient, a file a contrast."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ldm.data.layouts.base import Entry, Layout, Tree, named_folders
from ldm.data.layouts.context import in_context
from ldm.data.layouts.masks import labels_beside
from ldm.data.layouts.series import says_agent
from ldm.data.layouts.spelling import contrast_spelt, is_processed, unprocessed
from ldm.data.nifti import volume_stem
from ldm.study import LABELS

MASK = "mask"  # of the tumour, or of the brain


class Flat(Layout):
    """Folders of the DS-Diff research code: ``ID/t1.nii.gz``, ``t2``, ``flair``, ``ce``, ``seg``.

    Words of the field in any case are read too (``T1Gd``, ``T1_ohne_KM``, ``FLAIR``), and, where
    there is no other, an image that was registered or stripped (``t1ce_to_t1``, ``t1_bet``). The
    name of a contrast may stand for ``ce``, and ``mask`` for ``seg``; ``brain`` is a mask of the
    brain. A ``mask`` beside other labels (``seg``, ``tumor``) may be either, and is passed over.
    Folders of time points (``week-044``), any whose name comes again, and those beside them, are
    called by the folder above too: ``Patient-001_week-044``.
    """

    name = "folder per patient"

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        return f"{subject}/{self.contrasts.expected(contrast, 'flat')}.nii.gz"

    def parse(self, path: Path) -> tuple[str, str] | None:  # noqa: D102
        stem = volume_stem(path.name) or ""
        exact = self.contrasts.endings("flat").get(stem)
        plain = unprocessed(stem)
        contrast = exact or contrast_spelt(plain, self.contrasts) or says_agent(plain, before=True)
        return (path.parent.name, contrast) if contrast else None

    def find(self, tree: Tree) -> Iterator[Entry]:  # noqa: D102
        found = [(e, volume_stem(e.file.path.name) or "") for e in super().find(tree)]
        endings = self.contrasts.endings("flat")
        sure = [(entry, stem) for entry, stem in found if stem != MASK]
        exact = {(entry.owner, entry.contrast) for entry, stem in sure if stem in endings}
        plain = {(e.owner, e.contrast) for e, stem in sure if not is_processed(stem)} | exact
        labelled = {entry.owner for entry, _ in sure if entry.contrast == LABELS}
        read = []
        for entry, stem in found:
            told = plain if is_processed(stem) else exact
            spelt = stem not in endings and (entry.owner, entry.contrast) in told
            if not (spelt or (stem == MASK and entry.owner in labelled)):
                read.append(entry._replace(subject=""))
        resolved, remarks = in_context(read, tree.root, self.contrasts)
        ids = named_folders((entry.owner for entry in resolved), tree.root)
        named = [entry._replace(subject=ids[entry.owner]) for entry in resolved]
        labels, unclear = labels_beside(named, tree, self.contrasts)
        self.remarks = [*remarks, *unclear]
        yield from (*named, *labels)
