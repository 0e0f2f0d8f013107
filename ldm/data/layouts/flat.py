"""A folder a patient, a file a contrast."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ldm.data.layouts.base import Entry, Layout, Tree, volume_stem


class Flat(Layout):
    """Folders of the DS-Diff research code: ``ID/t1.nii.gz``, ``t2``, ``flair``, ``ce``, ``seg``.

    The name of a contrast may stand for ``ce``, and ``mask`` for ``seg``; ``brain`` is a mask of
    the brain. A ``mask`` beside a ``seg`` may be either, and is passed over.
    """

    name = "folder per patient"

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        return f"{subject}/{self.contrasts.expected(contrast, 'flat')}.nii.gz"

    def parse(self, path: Path) -> tuple[str, str] | None:  # noqa: D102
        contrast = self.contrasts.endings("flat").get(volume_stem(path.name) or "")
        return (path.parent.name, contrast) if contrast else None

    def find(self, tree: Tree) -> Iterator[Entry]:  # noqa: D102
        found = list(super().find(tree))
        labelled = {e.owner for e in found if volume_stem(e.file.path.name) == "seg"}
        for entry in found:
            if not (entry.owner in labelled and volume_stem(entry.file.path.name) == "mask"):
                yield entry
