"""A trained model with the facts of its data: loaded once for synthesis and for segmentation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ldm.checkpoint import load_model, study_of
from ldm.data.layouts import Choice, Layout, Subject, detect_layout, select_subjects
from ldm.data.layouts.base import stored_files
from ldm.data.prepare import Preparation, PreparedSubject, prepare_subject
from ldm.data.seen import (
    Digests,
    as_read,
    identity,
    leaks,
    named_subjects,
    other_spacing,
    read_seen,
    spacing_text,
    tells_all,
)
from ldm.environment import pick_device
from ldm.hub import local_folder
from ldm.memory import keep_freed_memory
from ldm.models.diffusion.error_model import ErrorModel
from ldm.modules.diffusionmodules.util import to_channels_last
from ldm.storage import run_folder
from ldm.study import MASK_FILE, Study

log = logging.getLogger(__name__)


class Read(NamedTuple):
    """What is read of a subject before a network works on it.

    ``described`` is what decides the voxels, ``sources`` are the files of the inputs.
    """

    prepared: PreparedSubject
    target: str
    described: dict[str, Any]
    sources: tuple[Path, ...]


@dataclass(frozen=True)
class TrainedModel:
    """A model in eval mode, on its device, and what it must be given."""

    path: Path  # run folder, its model file, or a checkpoint
    model: Any  # the LightningModule
    digest: str  # this, weights and is_foreign: see ldm.checkpoint.Loaded
    study: Study  # what it was trained for
    preparation: Preparation  # how a subject becomes its slices
    device: torch.device  # where it runs
    weights: str | None = None
    trust: tuple[str, ...] = ()  # see load_for_inference
    is_foreign: bool = False
    # of its samples; None: their deviation is all that is known
    error_model: ErrorModel | None = None

    def __repr__(self) -> str:
        made, given = self.study.target or "labels", ", ".join(self.study.conditions)
        return f"{str(self.path)!r}, {made} from {given}, {self.device}"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return run_folder(self.path)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Let the network of a synthesis compute in a type.

        That of somebody else keeps its weights and goes by autocast, as in training: it may compute
        in 32 or 64 bit in between.
        """
        network = self.model.model
        if not self.is_foreign:
            network.to(dtype)
        elif dtype != torch.float32:
            network.forward = torch.autocast(self.device.type, dtype)(network.forward)
        to_channels_last(network)

    def inputs(self, subject: Subject) -> dict[str, str]:
        """Return the digest of each file of a subject that is read.

        Raises:
            DataError: DATA-IO, DATA-FORMAT; DATA-DIGEST, it is not the file of its manifest.
        """
        read = (*self.study.conditions, MASK_FILE)
        return {c: subject.sha256(c) for c in read if c in subject.files}

    @cached_property
    def seen(self) -> Digests:
        """The patients that the weights were trained on, as far as the run tells."""
        return read_seen(self.folder)

    def has_seen(self, subject: Subject) -> bool | None:
        """Return whether this is a patient of the training, under whatever name.

        Returns:
            None where the run does not tell of every patient, and this is none of those it tells.
        """
        return self.said_of(subject)["seen"]

    def said_of(self, subject: Subject) -> dict[str, Any]:
        """Return what a sidecar says: ``seen``, and ``seen_as`` whom and by which evidence."""
        known = identity(as_read(subject, self.study)) if self.seen else {}
        for leak in leaks(self.seen, {subject.id: known}):
            told = f"{leak.train}, {leak.reason}"
            named = "" if leak.train == subject.id else f" (as {told})"
            log.warning("%s was trained on%s: no test of this model", subject.id, named)
            return {"seen": True, "seen_as": told}
        return {"seen": False if self._tells_all else None}

    @cached_property
    def _tells_all(self) -> bool:
        """Whether the model says whom it was trained on; that it does not is said once."""
        if not (told := tells_all(self.folder)):
            log.warning(
                "%s does not say whom it was trained on, so it may know these patients",
                self.folder.name,
            )
        return told

    def prepare(
        self, subject: Subject, layout: Layout, allow_missing: Sequence[str], nonfinite: str
    ) -> PreparedSubject:
        """Return a subject as slices of the conditions, see :func:`ldm.data.prepare`.

        Raises:
            DataError: a contrast is missing, or cannot be used.
        """
        told = (self.study.conditions, None, self.preparation, allow_missing, nonfinite)
        prepared = prepare_subject(subject, layout, *told)
        self._warn_of_spacing(prepared)
        return prepared

    def _warn_of_spacing(self, prepared: PreparedSubject) -> None:
        """Say that voxels are of another size than any that the model was trained on."""
        if odd := prepared.geometry.unusual_spacing:  # a wrong unit, which no resampling mends
            log.warning("%s has %s", prepared.id, odd)
        elif self.preparation.spacing is None and (
            seen := other_spacing(prepared.geometry.spacing, self.seen)
        ):
            log.warning(
                "%s has voxels of %s mm, and this model was trained on %s: resample it",
                prepared.id,
                spacing_text(prepared.geometry.spacing),
                seen,
            )


def load_for_inference(
    path: str | Path, trust: Collection[str] = (), device: str = "auto"
) -> TrainedModel:
    """Load the model of a run or model folder onto a device.

    Args:
        path: run folder, its ``model.safetensors``, or a checkpoint of its training; or
            ``hub:owner/name``, see :func:`ldm.hub.local_folder`.
        trust: classes accepted beside those that the shipped configurations name.
        device: as ``auto``, ``cpu``, ``cuda:1``.

    Raises:
        CheckpointError, UnsafeError: see :func:`ldm.checkpoint.load_model`.
    """
    path, place = local_folder(path), torch.device(pick_device(device))
    loaded = load_model(path, trust)
    preparation = Preparation.read(loaded.study)
    if place.type == "cpu":
        keep_freed_memory()
    return TrainedModel(
        path,
        loaded.model.to(place),
        loaded.digest,
        loaded.study,
        preparation,
        place,
        loaded.weights,
        tuple(trust),
        loaded.is_foreign,
        ErrorModel(**loaded.error_model) if loaded.error_model else None,
    )


def chosen_subjects(
    model: Path,
    trust: Collection[str],
    source: Path,
    subjects: str | Sequence[str] | None,
    layout: Choice,
    watch: Callable[[Layout, Mapping[str, Subject]], None] | None,
) -> tuple[Study, Layout, list[Subject], list[Path]]:
    """Return the study of a model, the layout and the subjects asked for, and all that is read.

    Args:
        watch: told which subjects there are.

    Raises:
        DataError: there is no such subject. CheckpointError, UnsafeError: of the model.
    """
    study = study_of(model, trust)
    own_layout, found = detect_layout(source, layout, study.contrasts)
    if watch:
        watch(own_layout, found)
    chosen = select_subjects(found, named_subjects(subjects, model, found, study))
    return study, own_layout, chosen, [source, model, *stored_files(found.values())]
