"""From a trained model and a subject to its synthetic contrast.

A model of slices samples slice by slice; a model of patches samples the volume as a whole, from one
noise volume, see :class:`ldm.models.diffusion.tiling.Tiling`.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from ldm.compiling import compile_network
from ldm.cost.network import peak_memory
from ldm.cost.timing import measure
from ldm.data.layouts import Layout, Subject, detect_layout, select_subjects
from ldm.data.prepare import PreparedSubject
from ldm.data.seen import named_subjects
from ldm.environment import resolve_weights
from ldm.errors import (
    CheckpointError,
    DsdiffError,
    NonFiniteError,
    OutputError,
    PartialError,
    bad_value,
    survived,
)
from ldm.inference.deviation import deviation_of_error, error_model_of
from ldm.inference.fidelity import FirstCall
from ldm.inference.given import GivenLayout, VolumeLike, given_subject
from ldm.inference.onnx_denoiser import ONNX_FILE, OnnxDenoiser
from ldm.inference.outputs import SyntheticVolume
from ldm.inference.request import OPTIONS, Request
from ldm.inference.trained import Read, TrainedModel, load_for_inference
from ldm.inference.windows import Windows, asked_of
from ldm.models.diffusion.noise import Key, KeyedNoise, slice_noise
from ldm.models.diffusion.spread import mean_and_deviation
from ldm.models.diffusion.tiling import tiled
from ldm.models.prior import maps_of
from ldm.progress import Progress, silent
from ldm.storage import ERROR_MODEL
from ldm.study import ASKED, MAPS
from ldm.typed import typed

log = logging.getLogger(__name__)

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}  # of each precision


class Synthesiser:
    """A trained model that gives the synthetic contrast of one subject after another.

    ``Synthesiser.load("runs/mine")`` reads a run; ``synthesiser(t1=..., t2=..., flair=...)`` gives
    one volume, ``synthesiser.volumes(FOLDER)`` those of a folder. docs/python.md shows both.

    Args:
        trained: the model.
        request: what is asked of it; its precision is written as what ``auto`` means here.
        progress: wraps what is worked through, as ``tqdm.auto.tqdm``; by default nothing is shown.

    Raises:
        CheckpointError: CKPT-MISMATCH for a model that does not synthesise, or that always saw a
            contrast of ``allow_missing``. ConfigError: a request that the model cannot meet.
    """

    @typed
    def __init__(
        self, trained: TrainedModel, request: Request | None = None, progress: Progress = silent
    ) -> None:
        model = trained.model
        if trained.study.target is None or not hasattr(model, "synthesise"):
            raise CheckpointError(
                "CKPT-MISMATCH",
                f"{trained.path} holds a {type(model).__name__}, which synthesises nothing: "
                f"next is {model.next_step(trained.path)}",
            )
        self.trained, self.model, self.study = trained, model, trained.study
        self.progress = progress
        request = request or Request()
        precision = "32" if request.runtime == "onnx" else request.precision
        precision = resolve_weights(precision, trained.device.type)
        self._ask(replace(request, precision=precision))  # refused before any work
        is_fast = self.request.precision != "32"
        self.first_call = FirstCall(model.model) if is_fast else None
        trained.compute_in(DTYPES[self.request.precision])
        if request.runtime == "compile":
            compile_network(model.model, trained.device.type, "--runtime compile", graphs=True)
        if request.runtime == "onnx":  # the session is called in place of the network
            others, file = list(model.model.blank_others(1)), trained.folder / ONNX_FILE
            model.model.forward = OnnxDenoiser(file, trained.digest, others, trained.device.type)

    @classmethod
    @typed
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        trust: Collection[str] = (),
        progress: Progress = silent,
        **options: Any,
    ) -> Synthesiser:
        """Load a trained model.

        Args:
            path: run folder or model folder, the ``model.safetensors`` in it, or a checkpoint; or
                ``hub:owner/name``, which is downloaded.
            device: ``auto``, ``cpu``, ``cuda:1``, ``mps``.
            trust: classes accepted beside those that the shipped configurations name.
            progress: see the class.
            **options: what is asked of the model, see :class:`Request`.

        Raises:
            CheckpointError, UnsafeError, ConfigError: see the class, and
                :func:`ldm.checkpoint.load_model`.
        """
        return cls(load_for_inference(path, trust, device), Request().changed(**options), progress)

    def __repr__(self) -> str:
        return f"Synthesiser({self.trained})"

    def at(self, **options: Any) -> Synthesiser:
        """Return this synthesiser with other options of :class:`Request`; one model for both.

        Raises:
            ConfigError: CONFIG-UNKNOWN, CONFIG-VALUE; the precision is given to :meth:`load`.
        """
        other = copy.copy(self)
        other._ask(self.asked.changed(**options))
        for name in ("precision", "runtime"):
            asked, own = getattr(other.request, name), getattr(self.request, name)
            if asked != own:
                raise bad_value(
                    f"{name} is {asked}, but the model was loaded in {own}: give {name} to "
                    "Synthesiser.load"
                )
        return other

    def _ask(self, request: Request) -> None:
        self.asked = request
        self.request, self.calls = request.met_by(self.model, self.study)
        self.timings: list[dict[str, Any]] = []
        size, neighbours = self.study.image_size, self.study.neighbours
        self.windows = Windows(size, neighbours, request.batch_size)

    @property
    def target(self) -> str | None:
        """The contrast that is made; None: the one that a patient lacks."""
        return self.request.target or self.study.appended

    def __call__(self, *, subject: str = "subject", **given: Any) -> nib.Nifti1Image:
        """Return the synthetic volume of one subject, on the grid of its inputs.

        Args:
            subject: its name, which the noise depends on: with the id that it has in a folder, the
                voxels are those of ``dsdiff sample`` on that folder.
            **given: each input contrast of the model (and ``brain``, a mask, where there is one) as
                a path, a nibabel image or ``(array, affine)``; its covariates as numbers; then
                options of :class:`Request`.

        Raises:
            ConfigError: CONFIG-UNKNOWN for another name. DataError: an input is missing or cannot
                be used. NonFiniteError.
        """
        options = {name: given.pop(name) for name in OPTIONS if name in given}
        return self.at(**options).volume(subject, given).image

    @typed
    def volume(self, subject: str, given: Mapping[str, VolumeLike | float]) -> SyntheticVolume:
        """Return the synthetic volume of one subject with all that is known of it.

        Args:
            subject: its name, see :meth:`__call__`.
            given: contrast -> path, image or ``(array, affine)``; covariate -> number; None: none.

        Raises:
            ConfigError, DataError, NonFiniteError: see :meth:`__call__`.
        """
        there = [name for name, value in given.items() if value is not None]
        study = self.study.making(self.study.to_make(there, self.request.target, subject))
        if self.study.varies:
            given = {name: value for name, value in given.items() if name != study.target}
        known = given_subject(subject, given, study, self.request.allow_missing)
        return self.synthesise(known, GivenLayout())

    @typed
    def volumes(
        self,
        folder: str | Path,
        subjects: Sequence[str] | None = None,
        layout: str | Layout | None = None,
        **options: Any,
    ) -> Iterator[SyntheticVolume]:
        """Yield the synthetic volume of each subject in a folder, as ``dsdiff sample`` writes it.

        A subject that cannot be sampled does not stop the others: it is logged, and told last.

        Args:
            folder: of subjects in any known layout, or a CSV.
            subjects: only these ids; ``unseen``: those that the run has not seen.
            layout: of the files; None: recognised.
            **options: see :class:`Request`.

        Raises:
            DataError: there is no such subject. ConfigError: a wrong option.
            PartialError: PARTIAL, after the last volume, where a subject failed; its own error
                where all failed.
        """
        other = self.at(**options)
        own_layout, found = detect_layout(Path(folder), layout, self.study.contrasts)
        chosen = named_subjects(subjects, self.trained.path, found, self.study)
        return other._each(select_subjects(found, chosen), own_layout)

    def _each(self, subjects: Sequence[Subject], layout: Layout) -> Iterator[SyntheticVolume]:
        failures: list[DsdiffError] = []
        for number, subject in enumerate(subjects, 1):
            try:
                made = self.synthesise(subject, layout, f"{subject.id} ({number}/{len(subjects)})")
            except Exception as error:
                known = survived(error, OutputError)
                log.warning("%s", known)
                failures.append(known)
            else:
                yield made
        if failures and len(failures) == len(subjects):
            raise failures[0]
        if failures:
            told = f"{len(failures)} of {len(subjects)} subjects failed; first: {failures[0]}"
            raise PartialError("PARTIAL", told)

    def inputs_of(self, subject: Subject) -> tuple[Subject, str]:
        """Return a subject without the contrast that is to be made of it, and this contrast.

        Raises:
            DataError: DATA-MISSING, see :meth:`ldm.study.Study.to_make`.
        """
        target = self.study.to_make(subject.files, self.request.target, subject.id)
        files = {name: file for name, file in subject.files.items() if name != target}
        return replace(subject, files=files) if self.study.varies else subject, target

    def synthesise(
        self, subject: Subject, layout: Layout, title: str | None = None
    ) -> SyntheticVolume:
        """Return the synthetic volume of a subject; ``title`` is that of the progress.

        Raises:
            DataError, NonFiniteError: the subject cannot be sampled.
        """
        return self.of(self.read(subject, layout), title or subject.id)

    def read(self, subject: Subject, layout: Layout) -> Read:
        """Return what :meth:`of` needs of a subject; another thread may work on it.

        Raises:
            DataError: the subject cannot be sampled.
        """
        subject, target = self.inputs_of(subject)
        described = self.described(subject)
        prepared = self.prepare(subject, layout)
        described |= self.trained.said_of(subject)
        return Read(
            prepared, target, described, subject.paths(self.study.making(target).conditions)
        )

    def of(self, read: Read, title: str) -> SyntheticVolume:
        """Return the synthetic volume of what was read of a subject; raises NonFiniteError."""
        prepared, study = read.prepared, self.study.making(read.target)
        mean, deviation = self._synthesise(prepared, title)
        unit = next(c for c in study.conditions if c in prepared.scales)
        scale = prepared.scales[unit]
        described = {
            **read.described,
            "intensity": {"contrast": unit, **scale.to_dict()},
            "normaliser": self.study.data.get("normaliser_config"),
            "preparation": prepared.to_dict(),
            "geometry": prepared.geometry.stated,
            "weights": self.trained.weights,
            **study.sidecar(),
        }
        volume = prepared.to_volume(scale.restore(mean))
        restored = None if deviation is None else scale.restore_spread(mean, deviation)
        spread = None if restored is None else prepared.to_volume(restored)
        told = (prepared.geometry, volume, spread, described, read.sources)
        return SyntheticVolume(prepared.id, read.target, *told)

    def cost(self, timings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return peak memory and the seconds that were sampled with this request, for a JSON file.

        Args:
            timings: of each volume, as ``timings`` keeps them.
        """
        peak = peak_memory(self.trained.device)
        return self._described_cost() | {"peak_memory_bytes": peak, "subjects": list(timings)}

    def timing(self, subject: Subject, layout: Layout, repeats: int) -> dict[str, Any]:
        """Return what sampling one subject costs once warmed up, for a JSON file.

        Seconds are the median of ``repeats``; the warm-up is one batch of slices, or the volume.

        Raises:
            ConfigError: CONFIG-VALUE for less than one repeat. DataError, NonFiniteError.
        """
        if repeats < 1:
            raise bad_value(f"timing is {repeats}: give a whole number >= 1")
        prepared = self.prepare(subject, layout)
        first = prepared if self.model.tiling else prepared.beginning(self.request.batch_size)
        found = measure(
            lambda: self._synthesise(prepared, f"timing {subject.id}"),
            repeats,
            self.trained.device,
            warm_up=lambda: self._synthesise(first, "warm-up"),
        )
        slices, seconds = len(prepared.brain), found.median_seconds
        timed = {"subject": subject.id, "slices": slices, "seconds": seconds}
        return self._described_cost() | {**vars(found), "subjects": [timed]}

    def _described_cost(self) -> dict[str, Any]:
        asked = {n: getattr(self.request, n) for n in ("precision", "batch_size", "steps")}
        apart = {"first_call_from_32_bit": self.first_call.difference} if self.first_call else {}
        return {"device": self.trained.device.type, **asked, "calls": self.calls, **apart}

    def described(self, subject: Subject) -> dict[str, Any]:
        """Return what decides the voxels of a subject's volume; raises DataError."""
        inputs, request = self.trained.inputs(subject), self.request.to_dict(self.trained.digest)
        if error_model := error_model_of(self.trained, self.request):
            request[ERROR_MODEL] = error_model._asdict()
        described = {"Synthetic": True, "inputs": inputs, "request": request}
        if names := self.study.covariates:  # text, because strict JSON knows no NaN
            numbers = map(str, self._numbers(subject))
            described["covariates"] = dict(zip(names, numbers, strict=True))
        return described

    def prepare(self, subject: Subject, layout: Layout) -> PreparedSubject:
        """Return what the network is shown of a subject; raises DataError."""
        subject, target = self.inputs_of(subject)
        missing, nonfinite = (*self.request.allow_missing, target), self.request.nonfinite
        prepared = self.trained.prepare(subject, layout, missing, nonfinite)
        return replace(prepared, numbers=self._numbers(subject), target=target)

    def _numbers(self, subject: Subject) -> tuple[float, ...]:
        """Return the covariates of a subject; NaN for those that need not be known."""
        names, spared = self.study.covariates, self.study.data.get("covariate_dropout")
        is_told = subject.columns or not (spared or self.request.allow_missing)
        return subject.numbers(names) if is_told else (math.nan,) * len(names)

    def _others(self, prepared: PreparedSubject, places: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return what the model is told beside the images, for a batch of slices, or a volume."""
        others = {}
        if prepared.numbers:
            others["covariates"] = torch.tensor(prepared.numbers)
        if (wanted := asked_of(prepared, self.study)) is not None:
            others[ASKED] = wanted
        others = {name: value.expand(len(places), -1) for name, value in others.items()}
        if (maps := self.windows.maps(prepared, places)) is not None:
            others[MAPS] = maps
        return {name: value.to(self.trained.device) for name, value in others.items()}

    def _synthesise(
        self, prepared: PreparedSubject, title: str
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return mean and standard deviation over samples (S, H, W), in [-1, 1] units."""
        started, count = time.perf_counter(), self.request.samples
        if self.request.options.get("enhancement") != 0:
            prior = getattr(self.model, "prior", None)
            prepared = replace(prepared, maps=maps_of(prior, prepared.slices, prepared.aspect))
        draw = self._volume if self.model.tiling else self._slices
        paired = 1 if self.request.spread is None else 2

        def images() -> Iterator[np.ndarray]:
            for first in range(0, count, paired):
                both = first + 1 < min(count, first + paired)
                told = f"{title}, sample {first + 1}{f' and {first + 2}' * both}"
                yield from draw(prepared, first, told if count > 1 else title, both)

        mean, deviation = mean_and_deviation(images(), mirrored=paired == 2)
        if not np.isfinite(mean).all():
            cure = "train it again" if self.request.precision == "32" else "try --precision=32"
            told = f"the network returned NaN or infinity: {cure}"
            raise NonFiniteError("NONFINITE-SAMPLE", told, prepared.id)
        deviation = deviation_of_error(self.trained, self.request, prepared, deviation)
        seconds = time.perf_counter() - started
        self.timings.append({"subject": prepared.id, "slices": len(mean), "seconds": seconds})
        return mean.astype(np.float32), deviation.astype(np.float32) if count > 1 else None

    def _noise(self, keys: Sequence[Key | Mapping[Key, float]]) -> KeyedNoise:
        return KeyedNoise(keys, self.trained.device, self.request.temperature or 0.0)

    def _slices(
        self, prepared: PreparedSubject, sample: int, title: str, both: bool
    ) -> list[np.ndarray]:
        """Return one sample of every slice (S, H, W) in [-1, 1], or those of both signs."""
        request, device = self.request, self.trained.device
        present = torch.from_numpy(prepared.present).to(device)
        batches, results = self.windows.batches(prepared), []
        for places in self.progress(batches, title, len(batches)):
            keys = [
                slice_noise(request.noise, request.seed, prepared.id, i, sample) for i in places
            ]
            images = self.model.synthesise(
                self.windows.condition(prepared, places).to(device),
                present.expand(len(places), -1),
                self._noise(keys),
                request.sampler,
                request.steps,
                self._others(prepared, places),
                both=both,
                **request.options,
            )
            results.append(images.reshape(1 + both, len(places), *images.shape[-2:]).cpu().numpy())
        return [self.windows.cut(made, prepared) for made in np.concatenate(results, axis=1)]

    def _volume(
        self, prepared: PreparedSubject, sample: int, title: str, both: bool
    ) -> list[np.ndarray]:
        """Return one sample (S, H, W) in [-1, 1] of the volume, or those of both signs of noise."""
        request, device = self.request, self.trained.device
        steps: Iterator[int] | None = None

        def show(step: int, total: int, *_: Any) -> None:
            nonlocal steps
            if not step:  # of a sampler, which with a spread is asked more than once
                next(steps or iter(()), None)
                steps = iter(self.progress(range(total), title, total))
            next(steps or iter(()), None)

        with tiled(self.model, request.overlap, request.batch_size):
            image = self.model.synthesise(
                self.windows.condition(prepared, range(len(prepared.brain))).to(device),
                torch.from_numpy(prepared.present)[None].to(device),
                self._noise([(request.seed, prepared.id, sample)]),
                request.sampler,
                request.steps,
                self._others(prepared, [0]),
                callback=show,
                both=both,
                **request.options,
            )
        next(steps or iter(()), None)  # takes the bar away
        volumes = image.reshape(1 + both, *image.shape[-3:]).cpu().numpy()
        return [self.windows.cut(volume, prepared) for volume in volumes]
