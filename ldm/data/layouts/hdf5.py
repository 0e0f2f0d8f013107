"""HDF5 files of BraTS, as research code cuts them: a file a slice, or a file a patient.

HDF5 has no geometry. The axes are taken to be those of BraTS, from which the public files were cut:
to the left, to the back, to the head, with voxels of 1 mm and the origin at the first voxel.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ldm.data.layouts.base import Entry, Layout, Tree
from ldm.data.nifti import Geometry, Volume, finite_values
from ldm.data.nifti_header import require_backed
from ldm.data.volume_file import VolumeFile
from ldm.errors import DataError, of_case
from ldm.extras import optional_module
from ldm.label_scheme import SCHEMES
from ldm.storage import require_regular, sha256
from ldm.study import BRATS, LABELS

ENDINGS = (".h5", ".hdf5")
SLICE = re.compile(r"(.+)_slice_(\d+)\.(h5|hdf5)")
BINARY_LABELS = (1, 2, 4)  # of the three channels of a mask: core, oedema, enhancing (BraTS 2020)
BRATS_AXES = np.diag([-1.0, -1.0, 1.0, 1.0])
ONE_HOT = len(BINARY_LABELS)


@dataclass(frozen=True)
class HDF5Stack(VolumeFile):
    """One contrast of a patient: a channel of ``image``, or ``mask``, of one file or all slices.

    Args:
        path: the file; of slices, the pattern ``ID_slice_*.h5``.
        channel: number in ``image``, or ``mask``.
    """

    @property
    def paths(self) -> tuple[Path, ...]:  # noqa: D102
        if "*" not in self.path.name:
            return (self.path,)
        folder = self.path.parent
        return _slices(folder, folder.stat().st_mtime_ns).get(self.path.name, ())

    def read(self, case: str | None = None, nonfinite: str = "refuse") -> Volume:  # noqa: D102
        with of_case(case):
            paths = self.paths
            if "*" in self.path.name:
                self._require_all(paths)
                stored = np.stack([self._read_one(path, 3) for path in paths], axis=2)
            else:
                stored = self._read_one(paths[0], 4)
            values = finite_values(stored.astype(np.float32), self.name, nonfinite)
        header = nib.Nifti1Header()
        header.set_data_shape(stored.shape)
        header.set_sform(BRATS_AXES, code=1)
        geometry = Geometry(stored.shape, BRATS_AXES, header)
        return Volume(geometry.to_canonical(values), geometry)

    def _require_all(self, paths: tuple[Path, ...]) -> None:
        numbers = [int(SLICE.fullmatch(path.name)[2]) for path in paths]
        missing = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers)) if numbers else [0]
        if missing:
            raise DataError(
                "DATA-MISSING",
                f"slice {missing[0]} of {self.path.name} is missing ({len(missing)} in all): a "
                "volume needs every slice from the first to the last; copy them again",
            )

    def _read_one(self, path: Path, axes: int) -> np.ndarray:
        """Return the channel in one file: (X, Y) of a slice, (X, Y, Z) of a volume."""
        h5py = _h5py()
        try:
            require_regular(path)
            with h5py.File(path, "r") as file:
                return self._select(file, axes, path)
        except OSError as error:  # of h5py, for damaged files too
            raise DataError(
                "DATA-CORRUPT", f"{path.name} cannot be read as HDF5 ({error}): copy it again"
            ) from error

    def _select(self, file: Any, axes: int, path: Path) -> np.ndarray:
        wanted = "mask" if self.channel == "mask" else "image"
        data = file.get("label" if wanted == "mask" and "mask" not in file else wanted)
        if not hasattr(data, "shape"):
            raise DataError(
                "DATA-FORMAT",
                f"{path.name} holds {', '.join(file) or 'nothing'}: expected image and mask",
            )
        require_backed(path, data.shape, data.nbytes)
        labels = wanted == "mask"
        last = axes == 3  # (H, W, C) of a slice, (C, H, W, D) of a volume
        if labels and data.ndim == axes - 1:
            return data[()]
        channels = data.shape[-1 if last else 0] if data.ndim == axes else 0
        if channels != (ONE_HOT if labels else len(BRATS)):
            raise DataError(
                "DATA-NDIM",
                f"{path.name} has {wanted} of shape {data.shape}: expected "
                f"{'(H, W, channels)' if last else '(channels, H, W, D)'} with "
                f"{len(BRATS)} contrasts or {ONE_HOT} labels",
            )
        if labels:
            array = np.moveaxis(data[()], -1 if last else 0, -1) > 0
            return (array * np.array(BINARY_LABELS)).max(axis=-1)
        return data[..., self.channel] if last else data[self.channel]

    def _digest(self) -> str:
        if len(self.paths) == 1:
            return sha256(self.paths[0])
        parts = "".join(sha256(path) for path in self.paths)
        return hashlib.sha256(parts.encode()).hexdigest()


@lru_cache(maxsize=4)
def _slices(folder: Path, changed: int) -> dict[str, tuple[Path, ...]]:
    """Return pattern -> slices in their order; a folder of all patients is listed only once."""
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in sorted(folder.iterdir()):
        if match := SLICE.fullmatch(path.name):
            found[f"{match[1]}_slice_*.{match[3]}"][int(match[2])] = path
    return {name: tuple(own[n] for n in sorted(own)) for name, own in found.items()}


class HDF5(Layout):
    """``ID_slice_N.h5`` with ``image`` (H, W, 4) and ``mask``, or ``ID.h5`` with (4, H, W, D).

    The first are the slices of the public BraTS 2020 set (``volume_1_slice_0.h5``): ``mask``
    (H, W, 3) marks labels 1, 2 and 4, or is (H, W) of labels. The second is a file a patient, with
    ``mask`` or ``label`` (H, W, D).

    Args:
        channels: contrast of each channel of ``image``. No file says it, and the descriptions in
            circulation disagree: look at one slice before trusting the default.
    """

    name = "HDF5"
    scheme = SCHEMES["brats2017"]

    def __init__(self, channels: tuple[str, ...] = BRATS) -> None:
        if sorted(channels) != sorted(BRATS):
            raise ValueError(f"channels {list(channels)}: give {', '.join(BRATS)} in some order")
        self.channels = tuple(channels)

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        return f"{subject}_slice_0.h5 or {subject}.h5"

    def find(self, tree: Tree) -> Iterator[Entry]:  # noqa: D102
        stacks: dict[tuple[Path, str], None] = {}
        for path in tree.files:
            if not path.name.endswith(ENDINGS):
                continue
            cut = SLICE.fullmatch(path.name)
            stem = path.name.rpartition(".")[0]
            name = f"{cut[1]}_slice_*.{cut[3]}" if cut else path.name
            stacks[path.with_name(name), cut[1] if cut else stem] = None
        for path, subject in stacks:
            first = HDF5Stack(path).paths[0] if "*" in path.name else path
            for contrast, channel in self._contents(first):
                yield Entry(subject, contrast, HDF5Stack(path, channel), path.parent)

    def _contents(self, path: Path) -> Iterator[tuple[str, int | str]]:
        """Yield contrast and channel of what a file holds; of a damaged one, what it should."""
        h5py, names = _h5py(), {"image", "mask"}
        if path.is_file():  # else reading it says why
            with suppress(OSError), h5py.File(path, "r") as file:
                names = set(file)
        if "image" in names:
            yield from ((contrast, i) for i, contrast in enumerate(self.channels))
            if names & {"mask", "label"}:
                yield LABELS, "mask"


def _h5py() -> Any:
    return optional_module("h5py", "HDF5", reads_data=True)
