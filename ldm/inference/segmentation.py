"""What segments a patient: a trained network of this project, or any command."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from ldm.data.contrasts import load_labels
from ldm.data.layouts import BraTS2021, BraTS2023, Layout, Subject, detect_layout
from ldm.data.nifti import Geometry, encode_volume
from ldm.data.prepare import PreparedSubject, fit_size
from ldm.data.volume_file import VolumeFile
from ldm.errors import CheckpointError, DataError, NonFiniteError, bad_value
from ldm.inference.given import GivenLayout, VolumeLike, given_subject
from ldm.inference.outputs import as_image
from ldm.inference.request import Request, require_missing_allowed
from ldm.inference.trained import load_for_inference
from ldm.inference.windows import Windows
from ldm.label_scheme import SCHEMES, LabelScheme
from ldm.models.segmentation import Segmentation
from ldm.regions import ENHANCING, REGION_SETS, label_map, region_names
from ldm.typed import typed


@dataclass(frozen=True)
class Segmented:
    """A segmentation: ``labels`` (X, Y, Z) uint8 in RAS+, and where it lies."""

    labels: np.ndarray
    geometry: Geometry

    @property
    def image(self) -> nib.Nifti1Image:
        """The labels in memory, with the orientation and affine of the input."""
        return as_image(self.labels, self.geometry)


class NetworkSegmenter:
    """A model of ``dsdiff segment train``; ``from ldm import Segmenter`` gives it.

    Args:
        path: run folder, or its ``model.safetensors``.
        trust: classes accepted beside those that the shipped configurations name.
        device: as ``auto``, ``cpu``, ``cuda:1``.
        batch_size: slices, or windows of a volume, at once.
        allow_missing, nonfinite: see :func:`ldm.data.prepare.prepare_subject`.

    Raises:
        CheckpointError: CKPT-MISMATCH for a model that does not segment. ConfigError: CONFIG-VALUE.
    """

    @typed
    def __init__(
        self,
        path: str | Path,
        trust: Collection[str] = (),
        device: str = "auto",
        batch_size: int = Request.batch_size,
        allow_missing: Sequence[str] = (),
        nonfinite: str = Request.nonfinite,
    ) -> None:
        if batch_size < 1:
            raise bad_value(f"batch_size is {batch_size}: give a whole number >= 1")
        trained = load_for_inference(path, trust, device)
        model = trained.model
        if not isinstance(model, Segmentation):
            raise CheckpointError(
                "CKPT-MISMATCH",
                f"{path} holds a {type(model).__name__}, which segments nothing: give a run of "
                "dsdiff segment train",
            )
        require_missing_allowed(trained.study, allow_missing)
        self.trained, self.model = trained, model
        self.digest, self.has_seen = trained.digest, trained.has_seen
        self.regions: tuple[str, ...] = model.regions
        self.contrasts: tuple[str, ...] | None = trained.study.conditions
        self.windows = Windows(model.window, model.neighbours, batch_size)
        self.allow_missing, self.nonfinite = allow_missing, nonfinite

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> NetworkSegmenter:
        """Return the segmenter of a run folder; options are those of the class."""
        return cls(path, **options)

    def __repr__(self) -> str:
        return f"Segmenter({self.trained})"

    @typed
    def __call__(self, *, subject: str = "subject", **contrasts: VolumeLike) -> nib.Nifti1Image:
        """Return the label map of one subject, on the grid of its inputs.

        Args:
            subject: its name, for messages.
            **contrasts: each contrast that the model takes (and ``brain``, a mask, where there is
                one) as a path, a nibabel image or ``(array, affine)``.

        Raises:
            ConfigError: CONFIG-UNKNOWN for another name. DataError: an input is missing or cannot
                be used. NonFiniteError.
        """
        given = given_subject(subject, contrasts, self.trained.study, self.allow_missing)
        return self.segment(given, GivenLayout()).image

    def segment(self, subject: Subject, layout: Layout) -> Segmented:
        """Segment a patient from the files of its contrasts."""
        prepared = self.prepare(subject, layout)
        return self.labels(prepared, self.masks(prepared), layout)

    def prepare(self, subject: Subject, layout: Layout) -> PreparedSubject:
        """Return the patient as slices.

        Raises:
            DataError: a contrast is missing, or cannot be used.
        """
        return self.trained.prepare(subject, layout, self.allow_missing, self.nonfinite)

    def masks(self, prepared: PreparedSubject) -> dict[str, np.ndarray]:
        """Return the regions (S, H, W) bool, which end with the brain.

        Raises:
            NonFiniteError: NONFINITE-SAMPLE.
        """
        probability = np.concatenate(
            [
                self.windows.cut(self._probabilities(prepared, places).cpu().numpy(), prepared)
                for places in self.windows.batches(prepared)
            ]
        )  # (S, R, H, W), of a volume (1, R, S, H, W)
        hold_volumes = self.windows.hold_volumes
        probability = probability[0] if hold_volumes else probability.swapaxes(0, 1)
        if not np.isfinite(probability).all():
            told = "the network returned NaN or infinity: train it again"
            raise NonFiniteError("NONFINITE-SAMPLE", told, prepared.id)
        inside = (probability > self.model.threshold) & prepared.brain  # (R, S, H, W)
        return dict(zip(self.regions, inside, strict=True))

    def labels(
        self, prepared: PreparedSubject, masks: Mapping[str, np.ndarray], layout: Layout
    ) -> Segmented:
        """Return regions (S, H, W) as a label map of the whole volume."""
        (enhancing,) = self.scheme(layout).parts.get("enhancing", (ENHANCING,))
        # a region that was resampled covers a voxel of the input where it fills half of it
        volumes = {name: prepared.to_volume(mask) >= 0.5 for name, mask in masks.items()}
        return Segmented(label_map(volumes, enhancing), prepared.geometry)

    def scheme(self, layout: Layout) -> LabelScheme:
        """Return what the labels of a label map mean: as BraTS has them in the year of a layout."""
        if not set(self.regions) & set(REGION_SETS["tumour"]):
            return LabelScheme({"lesion": (1,)})
        return SCHEMES["brats2023" if isinstance(layout, BraTS2023) else "brats2017"]

    def attention(self, prepared: PreparedSubject, place: int) -> dict[int, np.ndarray]:
        """Return alpha (H, W) in [0, 1] of a slice by gated level; empty without gates.

        A network of volumes sees the patch about the slice.
        """
        condition, index = self._condition(prepared, [place]), 0
        if self.windows.hold_volumes:
            depth, slices = self.model.window[0], condition.shape[2]
            index = place + (slices - len(prepared.brain)) // 2  # fit_size pads on both sides
            start = min(max(0, index - depth // 2), slices - depth)
            condition, index = condition[:, :, start : start + depth], index - start
        maps = self.model.attention_maps(condition, self._presence(prepared)[None])
        stacks = {n: alpha[0].cpu().numpy() for n, alpha in maps.items()}  # (1, H, W)
        if self.windows.hold_volumes:
            stacks = {n: volume[0] for n, volume in stacks.items()}  # (D, H, W)
        sides = prepared.brain.shape[1:]
        return {n: fit_size(stack[index], sides, 0) for n, stack in stacks.items()}

    def _probabilities(self, prepared: PreparedSubject, places: Sequence[int]) -> torch.Tensor:
        condition = self._condition(prepared, places)
        presence = self._presence(prepared)
        return self.model.probabilities(condition, presence, self.windows.batch_size)

    def _condition(self, prepared: PreparedSubject, places: Sequence[int]) -> torch.Tensor:
        return self.windows.condition(prepared, places).to(self.trained.device)

    def _presence(self, prepared: PreparedSubject) -> torch.Tensor:
        return torch.from_numpy(prepared.present).to(self.trained.device)


class CommandSegmenter:
    """Any program: ``command {input} {output}``, run once a patient, without a shell.

    ``{input}`` is a folder with the contrasts of one patient in the BraTS 2021 layout
    (``ID/ID_t1.nii.gz`` ...), ``{output}`` an empty folder for ``ID_seg.nii.gz`` or
    ``ID.nii.gz``.

    Args:
        command: with ``{input}`` and ``{output}``.
        regions: see :func:`ldm.regions.region_names`.

    Raises:
        ConfigError: CONFIG-VALUE for a command without one of the two.
    """

    @typed
    def __init__(self, command: str, regions: str | Sequence[str] = "tumour") -> None:
        if "{input}" not in command or "{output}" not in command:
            raise bad_value(
                f"--segmenter-command is '{command}': expected {{input}} and {{output}} in it"
            )
        self.command, self.regions = shlex.split(command), region_names(regions)
        self.contrasts: tuple[str, ...] | None = None

    def segment(self, subject: Subject, layout: Layout) -> Segmented:
        """Run the command on a patient.

        Raises:
            DataError: DATA-SEGMENTER when it fails or writes no segmentation; DATA-SHAPE or
                DATA-AFFINE when that lies on another grid.
        """
        with tempfile.TemporaryDirectory(prefix="dsdiff-") as temporary:
            given, out = Path(temporary, "input"), Path(temporary, "output")
            (given / subject.id).mkdir(parents=True)
            out.mkdir()
            images = {c: subject.files[c].read(subject.id) for c in subject.images}
            for contrast, image in images.items():
                copy = given / subject.id / f"{subject.id}_{contrast}.nii.gz"
                copy.write_bytes(encode_volume(image.array, image.geometry))
            self._run({"{input}": str(given), "{output}": str(out)}, subject.id)
            geometry = next(iter(images.values())).geometry
            found = {"seg": self._written(out, subject.id)}
            written = replace(subject, files=found)  # labels mean what the data set says
            labels = load_labels(written, BraTS2021(), geometry)
        return Segmented(labels, geometry)

    def has_seen(self, subject: Subject) -> bool | None:
        """Return None: no command says whom it was trained on."""
        return None

    def _run(self, places: Mapping[str, str], case: str) -> None:
        arguments = self.command
        for name, place in places.items():
            arguments = [argument.replace(name, place) for argument in arguments]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        except OSError as error:
            raise DataError(
                "DATA-SEGMENTER", f"cannot run {arguments[0]}: {error.strerror}", case
            ) from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise DataError(
                "DATA-SEGMENTER",
                f"{arguments[0]} ended with exit code {done.returncode}: {last}",
                case,
            )

    def _written(self, folder: Path, case: str) -> VolumeFile:
        for name in (f"{case}.nii.gz", f"{case}.nii"):
            if (folder / name).is_file():
                return VolumeFile(folder / name)
        try:
            return detect_layout(folder)[1][case].files["seg"]
        except (DataError, KeyError) as error:
            raise DataError(
                "DATA-SEGMENTER",
                f"{self.command[0]} wrote no {case}_seg.nii.gz into {{output}}: check the command",
                case,
            ) from error
