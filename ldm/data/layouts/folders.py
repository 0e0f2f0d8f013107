"""A folder a contrast, in each a file a patient: ``T1/P1.nii.gz``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from ldm.data.layouts.base import Entry, Layout, Tree, named_folders
from ldm.data.layouts.series import says_agent
from ldm.data.layouts.spelling import contrast_spelt
from ldm.data.nifti import volume_stem
from ldm.data.volume_file import VolumeFile
from ldm.study import MASKS

TIME_POINTS = {"t1", "t2"}  # or contrasts, where there is no other
Found = Mapping[str, list[tuple[str, Path]]]


class ContrastFolders(Layout):
    """Folders named as contrasts beside each other, with files of the same names: those of an id.

    A name of which there is one contrast alone makes no such folder, because files that are called
    otherwise may be of other patients. Where each folder above holds one name, and all the same
    (``P1/T1/image.nii.gz``), the id is that of the folder.
    """

    name = "folder per contrast"

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        return f"{self.contrasts.title(contrast)}/{subject}.nii.gz"

    def find(self, tree: Tree) -> Iterator[Entry]:  # noqa: D102
        found: dict[Path, dict[str, list[tuple[str, Path]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for path in tree.volumes:
            stem, folder = volume_stem(path.name) or "", path.parent
            contrast = self._spelt(folder.name) if folder != tree.root else None
            if contrast and not self._spelt(stem):
                found[folder.parent][stem].append((contrast, path))
        places = {place: files for place, files in found.items() if _is_of_contrasts(files)}
        names = {next(iter(files)) if len(files) == 1 else "" for files in places.values()}
        ids = named_folders(places, tree.root)
        is_folder = len(places) > 1 and len(names) == 1 and "" not in names
        for place, files in places.items():
            for stem, volumes in files.items():
                for contrast, path in volumes:
                    subject = ids[place] if is_folder else stem
                    yield Entry(subject, contrast, VolumeFile(path), place)

    def _spelt(self, name: str) -> str | None:
        return contrast_spelt(name, self.contrasts) or says_agent(name, before=True)


def _is_of_contrasts(files: Found) -> bool:
    """Whether a name comes in two folders of images, which are no time points."""
    images = [{c for c, _ in volumes} - {*MASKS} for volumes in files.values()]
    return any(len(own) > 1 for own in images) and bool(set().union(*images) - TIME_POINTS)
