"""The files of a subject that a model made, of which no other is ever overwritten.

The sidecar of a volume is written before it: it says what the volume will be, so that a run that
was killed between the two knows its own work from a stranger's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ldm.claims import Inputs, claimed, permit
from ldm.data.nifti import Geometry, encode_volume
from ldm.data.synthetic import refuse_acquired
from ldm.errors import OutputError
from ldm.inference.forms import Image, digest_at, digest_of, form_named, spread_path, stored
from ldm.storage import read_json, remove, write_file, write_json
from ldm.typed import typed
from ldm.util import user_path

DECISIVE = ("Synthetic", "inputs", "request", "covariates")  # of a sidecar: what decides the voxels


@dataclass(frozen=True)
class SyntheticVolume:
    """A synthetic volume of one subject and how it was made.

    Args:
        id: subject.
        target: the contrast that was synthesised.
        geometry: where the voxels of the input lie; the output takes their place.
        volume: (X, Y, Z) float32 in RAS+, in the units of the first input contrast.
        spread: (X, Y, Z) standard deviation over the samples, None of a single one.
        described: what decides the voxels, and their units.
        sources: files of the inputs.
    """

    id: str
    target: str
    geometry: Geometry = field(repr=False)
    volume: np.ndarray = field(repr=False)
    spread: np.ndarray | None = field(repr=False)
    described: Mapping[str, Any] = field(repr=False)
    sources: tuple[Path, ...] = field(default=(), repr=False)
    _packed: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict, repr=False)

    @property
    def image(self) -> nib.Nifti1Image:
        """The volume in memory, with the orientation and affine of the input."""
        return self._in_memory(self._images["sha256"])

    @property
    def std(self) -> nib.Nifti1Image | None:
        """The standard deviation over the samples, None of a single one."""
        return None if self.spread is None else self._in_memory(self._images["std_sha256"])

    @staticmethod
    def _in_memory(image: Image) -> nib.Nifti1Image:
        return as_image(image.volume, image.geometry, synthetic=image.said)

    @property
    def content(self) -> bytes:
        """The volume as a ``.nii.gz`` file."""
        return self.packed()["sha256"][""]

    @property
    def _images(self) -> dict[str, Image]:
        told = (self.geometry, self.described, self.sources)
        images = {"sha256": Image(self.id, self.target, self.volume, *told)}
        if self.spread is not None:
            images["std_sha256"] = Image(self.id, self.target, self.spread, *told, is_spread=True)
        return images

    def packed(self, form: str = "nifti") -> dict[str, dict[str, bytes]]:
        """Return the files in a form, under the key of their digest in the sidecar; kept."""
        if form not in self._packed:
            files = form_named(form).files
            self._packed[form] = {key: files(image) for key, image in self._images.items()}
        return self._packed[form]

    @property
    def sidecar(self) -> dict[str, Any]:
        """What is written beside the volume: model, request, inputs, units, digests."""
        return self.sidecar_in("nifti")

    def sidecar_in(self, form: str) -> dict[str, Any]:
        """Return what is written beside the volume in a form."""
        digests = {key: digest_of(files) for key, files in self.packed(form).items()}
        beside = form_named(form).beside(self._images["sha256"])
        return {**self.described, "target": self.target, **beside, **digests}

    @typed
    def save(self, folder: str | Path, overwrite: bool = False, form: str = "nifti") -> Path:
        """Write the volume, a JSON file beside it and, of several samples, their deviation.

        The same volume that is there already stays as it is.

        Args:
            form: ``nifti`` (``ID_TARGET.nii.gz``, ``.json``, ``_std.nii.gz``), ``bids`` or
                ``dicom``, see :mod:`ldm.inference.forms`.

        Returns the path of the volume, or the folder of the series.

        Raises:
            OutputError: OUT-EXISTS for another volume of that name, unless it may be overwritten;
                OUT-IO, OUT-INPUT. ConfigError: CONFIG-VALUE. DataError: DATA-ID, DATA-AFFINE, ...
        """
        form_named(form).check([self.id], [self.target])
        root = user_path(folder)
        if any(file.parent.resolve() == (root / self.id).resolve() for file in self.sources):
            Inputs([root, *self.sources]).refuse_within(root)
        path, sidecar = volume_paths(root, self.id, self.target, form)
        same = {key: self.described[key] for key in DECISIVE if key in self.described}
        with claimed(root, "sample", replace=overwrite):
            if is_written(path, sidecar, same, overwrite):
                return path
            if not overwrite:
                require_remade(path, sidecar, self.sidecar_in(form)["sha256"])
            return self.write(root, form)

    def write(self, folder: Path, form: str = "nifti") -> Path:
        """Write the files, also in place of those of another request; see :meth:`save`.

        Raises:
            OutputError: OUT-IO; OUT-EXISTS for a stranger's file.
        """
        path, sidecar = volume_paths(folder, self.id, self.target, form)
        packed, described = self.packed(form), self.sidecar_in(form)
        with claimed(folder, "sample"):
            write_about(folder, form)
            write_json(sidecar, described)
            try:
                self._write_spread(path, sidecar, form)
                form_named(form).write(path, packed["sha256"])
            except OutputError:  # a stranger's file came in between
                if digest_at(path) != described["sha256"]:
                    remove(sidecar)
                raise
        return path

    def _write_spread(self, path: Path, sidecar: Path, form: str) -> None:
        """Write the deviation, or remove that of another request."""
        spread, beside = spread_path(path), spread_path(sidecar)
        chosen, files = form_named(form), self.packed(form).get("std_sha256")
        if files is None:
            for old in stored(spread):
                remove(old)
        else:
            chosen.write(spread, files)
        if not chosen.has_spread_sidecar:
            return
        remove(beside)
        if files is not None:
            image = self._images["std_sha256"]
            told = {"Synthetic": True, **chosen.beside(image), "sha256": digest_of(files)}
            write_json(beside, told)


def write_about(folder: Path, form: str) -> None:
    """Write the files that describe a folder as a whole, where the form has such.

    Raises:
        OutputError: OUT-EXISTS for a stranger's file of that name, OUT-IO.
    """
    for name, text in form_named(form).about().items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            write_file(path, text)


def as_image(
    volume: np.ndarray, geometry: Geometry, synthetic: Mapping[str, Any] | None = None
) -> nib.Nifti1Image:
    """Return a canonical array as the image that :func:`encode_volume` writes, in memory."""
    content = encode_volume(volume, geometry, compress=False, synthetic=synthetic)
    image = nib.Nifti1Image.from_bytes(content)
    return nib.Nifti1Image(np.asarray(image.dataobj).copy(), image.affine, image.header)


def volume_paths(folder: Path, subject: str, name: str, form: str = "nifti") -> tuple[Path, Path]:
    """Return where a volume called ``name`` and its sidecar lie."""
    return form_named(form).paths(folder, subject, name)


def digests_of(path: Path, described: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the digests of a volume's files as they are, by the names in what describes them."""
    files = {"sha256": path, "std_sha256": spread_path(path)}
    return {name: digest_at(file) for name, file in files.items() if name in described}


def is_written(path: Path, sidecar: Path, described: Mapping[str, Any], overwrite: bool) -> bool:
    """Return whether a volume is there, whole and as ``described``; False where it is to be made.

    Raises:
        OutputError: OUT-EXISTS for any other output, unless it may be overwritten; OUT-INPUT.
    """
    before = read_json(sidecar, torn=True)
    if before.get("sha256") and all(before.get(key) == described[key] for key in described):
        if before == before | digests_of(path, before):
            return True
    elif before and not overwrite:  # without a sidecar: see require_remade
        differs = _settings(before, described)
        raise _another(path, f"is not of this model, input and settings{differs}")
    for output in (*stored(path), sidecar, *stored(spread_path(path))):
        permit(output, overwrite)  # refused before any work
    if "Synthetic" in described and "sha256" not in before:
        refuse_acquired(path)
    return False


def _settings(before: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    """Return in words which settings two sidecars state differently."""
    there, here = before.get("request"), described.get("request")
    if not isinstance(there, Mapping) or not isinstance(here, Mapping):
        return ""
    names = [n for n in here if n != "model_digest" and there.get(n) != here[n]]
    words = [f"{name} {there.get(name)} there, {here[name]} here" for name in names]
    return f" ({'; '.join(words)})" if words else ""


def require_remade(path: Path, sidecar: Path, digest: str) -> None:
    """Refuse to replace a volume whose sidecar is torn or lost, unless it was made again.

    Args:
        digest: of what was made.

    Raises:
        OutputError: OUT-EXISTS.
    """
    if path.exists() and not read_json(sidecar, torn=True) and digest_at(path) != digest:
        raise _another(path, "has no sidecar, and this command makes another volume")


def _another(path: Path, why: str) -> OutputError:
    return OutputError(
        "OUT-EXISTS",
        f"{path.name} exists and {why}: choose another --output, or give --overwrite",
    )
