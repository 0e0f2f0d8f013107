"""``dsdiff sample``: synthetic contrast-enhanced volumes of the subjects in a folder.

A model of slices samples slice by slice; a model of patches samples the volume as a whole, from one
noise volume, see :class:`ldm.models.diffusion.tiling.Tiling`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ldm.cli.arguments import add_model_arguments, add_subject_arguments
from ldm.data.brain import MASK_FILE
from ldm.data.layouts import Layout, Subject, detect_layout, select_subjects, summary
from ldm.data.nifti import encode_volume, write_volume
from ldm.data.prepare import PreparedSubject, fit_size, prepare_subject
from ldm.data.seen import read_seen, same_patient
from ldm.errors import CheckpointError, ConfigError, NonFiniteError
from ldm.inference.outputs import earlier_output, report_written, write_each
from ldm.storage import folder_lock, sha256, write_json

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from ldm.models.diffusion.samplers import SAMPLERS

    add_volume_arguments(parser)
    parser.add_argument(
        "--sampler", help=f"{', '.join(SAMPLERS)} (default: the model's, in general ddim)"
    )
    parser.add_argument("--steps", type=int, help="of the sampler (default: the model's)")
    parser.add_argument("--eta", type=float, help="ddim: 0 deterministic (default) to 1 as ddpm")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.add_argument(
        "--timing",
        type=int,
        metavar="N",
        help="write no volume: sample the first subject N times after a warm-up, and write its "
        "seconds, memory and energy to cost.json",
    )


def add_volume_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of every verb that samples volumes."""
    from ldm.models.diffusion.noise import NOISES

    add_subject_arguments(parser, "synthetic volumes")
    parser.add_argument(
        "--guidance",
        type=float,
        help="above 1 exaggerates what the conditions say (a model trained with drop_all)",
    )
    parser.add_argument(
        "--rescale", type=float, help="share, 0 to 1, of the contrast that guidance adds taken back"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument(
        "--noise",
        choices=NOISES,
        default="slice",
        help="independent in every slice (default), smooth along the slices, or one for a patient",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        help="of the noise: 1 samples from the model, 0 gives one image close to the conditional "
        "mean (default: the model's, and 1 with --samples)",
    )
    parser.add_argument(
        "--samples", type=int, default=1, help="average this many and write their deviation too"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, help="slices, or windows of a volume, at once (8)"
    )
    parser.add_argument(
        "--overlap",
        type=float,
        help="of the windows of a model of volumes, along each axis, 0 to 0.9 (default: 0.25)",
    )
    parser.add_argument(
        "--precision", choices=("32", "bf16"), default="32", help="of the network (default: 32)"
    )
    add_model_arguments(parser)


@dataclass(frozen=True)
class Request:
    """What decides the voxels of an output, beside the input."""

    model_digest: str
    sampler: str
    steps: int
    options: Mapping[str, Any]
    seed: int
    samples: int
    temperature: float
    precision: str
    overlap: float | None
    noise: str

    def to_dict(self) -> dict[str, Any]:
        """Return the request as written in a sidecar; what did not exist before only if given."""
        left_out = {"overlap": None, "noise": "slice"}
        given = {n: v for n, v in vars(self).items() if n not in left_out or v != left_out[n]}
        return {**given, "options": dict(self.options)}


def run(args: argparse.Namespace) -> int:
    """Sample every subject; one that fails does not stop the others."""
    check_counts(args)
    layout, found = detect_layout(args.input, args.layout)
    print(summary(layout, found), file=sys.stderr)
    subjects = select_subjects(found, args.subjects)
    with folder_lock(args.output):
        sampler = VolumeSampler(args)
        if args.timing:
            sampler.write_timing(subjects[0], layout, args.timing)
            return 0
        done = write_each(subjects, layout, sampler.write, "sample")
        sampler.write_cost()
    return report_written(done, args.output)


class VolumeSampler:
    """A loaded model that writes the synthetic volume of one subject after another.

    Args:
        args: arguments of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from ldm.checkpoint import load_model
        from ldm.environment import pick_device
        from ldm.modules.diffusionmodules.util import to_channels_last
        from ldm.util import instantiate_from_config

        self.args = args
        self.device = torch.device(pick_device(args.device))
        self.model, self.config, digest = load_model(args.model, args.trust)
        if not hasattr(self.model, "synthesise"):
            raise CheckpointError(
                "CKPT-MISMATCH",
                f"{args.model} holds a {type(self.model).__name__}, which synthesises nothing: "
                f"next is {self.model.next_command.format(run=args.model)}",
            )
        self.data = instantiate_from_config(self.config["data"], where="data")
        if args.allow_missing and not self.data.condition_dropout:
            raise CheckpointError(
                "CKPT-MISMATCH",
                "the model was trained with every contrast: --allow-missing needs a model trained "
                "with data.params.condition_dropout > 0",
            )
        given = {name: getattr(args, name) for name in ("eta", "guidance", "rescale")}
        options = {name: value for name, value in given.items() if value is not None}
        self.request = Request(
            model_digest=digest,
            sampler=args.sampler or self.model.sampler,
            steps=self.model.sampling_steps if args.steps is None else args.steps,
            options=options,
            seed=args.seed,
            samples=args.samples,
            temperature=self._temperature(),
            precision=args.precision,
            overlap=self._overlap(),
            noise=args.noise,
        )
        # refuses a wrong request before any work
        self.calls = self.model.network_calls(self.request.steps, self.request.sampler, **options)
        dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        self.model.to(self.device)
        to_channels_last(self.model.model.to(dtype))
        if self.model.tiling:
            windows = {"overlap": self.request.overlap, "batch_size": args.batch_size}
            self.model.tiling = replace(self.model.tiling, **windows)
        self.timings: list[dict[str, Any]] = []
        self.seen = read_seen(args.model if args.model.is_dir() else args.model.parent)

    def at(self, output: Path, sampler: str, steps: int) -> VolumeSampler:
        """Return this sampler with another folder, sampler and number of steps; one model for both.

        Raises:
            ConfigError: CONFIG-VALUE for steps without a grid, CONFIG-UNKNOWN for an option.
        """
        other = copy.copy(self)
        other.args = argparse.Namespace(**{**vars(self.args), "output": output})
        other.request = replace(self.request, sampler=sampler, steps=steps)
        other.calls = self.model.network_calls(steps, sampler, **self.request.options)
        other.timings = []
        return other

    def write(self, subject: Subject, layout: Layout, title: str) -> bool:
        """Write the volume and the sidecar of a subject; return False if they exist already.

        The sidecar is written first: it says what the volume will be, so that a run that was
        killed between the two knows its own work from a stranger's.

        Raises:
            DataError, NonFiniteError: the subject cannot be sampled.
            OutputError: OUT-EXISTS, OUT-IO.
        """
        stem = f"{subject.id}_{self.data.target}"
        path, sidecar = (self.args.output / f"{stem}{end}" for end in (".nii.gz", ".json"))
        read = [c for c in (*self.data.conditions, MASK_FILE) if c in subject.files]
        inputs = {c: subject.files[c].sha256() for c in read}
        described = {"Synthetic": True, "inputs": inputs, "request": self.request.to_dict()}
        before = earlier_output(path, sidecar, described, self.args.overwrite)
        if before and path.is_file() and sha256(path) == before["sha256"]:
            return False
        prepared = self._prepare(subject, layout)
        self._warn_if_seen(subject.id, inputs)
        mean, deviation = self._synthesise(prepared, title)
        unit = next(c for c in self.data.conditions if c in prepared.scales)
        scale = prepared.scales[unit]
        described |= {
            "intensity": {"contrast": unit, **scale.to_dict()},
            "normaliser": self.config["data"]["params"].get("normaliser_config"),
            "preparation": prepared.to_dict(),
        }
        content = encode_volume(prepared.to_volume(scale.restore(mean)), prepared.geometry)
        write_sidecar(sidecar, described, content)
        spread_path = self.args.output / f"{stem}_std.nii.gz"
        spread_path.unlink(missing_ok=True)  # of another request
        if deviation is not None:
            spread = prepared.to_volume(scale.restore_spread(mean, deviation))
            volume = encode_volume(spread, prepared.geometry)
            write_volume(spread_path, volume, overwrite=True)
        write_volume(path, content, overwrite=True)
        return True

    def write_cost(self) -> None:
        """Write ``cost.json``: seconds and peak memory of what this process sampled."""
        from ldm.cost.network import peak_memory

        if self.timings:
            measured = {"peak_memory_bytes": peak_memory(self.device), "subjects": self.timings}
            write_json(self.args.output / "cost.json", self._described_cost() | measured)

    def write_timing(self, subject: Subject, layout: Layout, repeats: int) -> None:
        """Write ``cost.json`` with what sampling one subject costs once warmed up, and no volume.

        Seconds are the median of ``repeats``; the warm-up is one batch of slices, or the volume.
        """
        from ldm.cost.timing import measure

        prepared = self._prepare(subject, layout)
        first = prepared
        if not self.model.tiling:
            batch = slice(self.args.batch_size)
            first = replace(
                prepared, slices=prepared.slices[batch], brain=prepared.brain[batch], seg=None
            )
        found = measure(
            lambda: self._synthesise(prepared, f"timing {subject.id}"),
            repeats,
            self.device,
            warm_up=lambda: self._synthesise(first, "warm-up"),
        )
        timing = {
            "subject": subject.id,
            "slices": len(prepared.brain),
            "seconds": found.median_seconds,
        }
        write_json(
            self.args.output / "cost.json",
            self._described_cost() | {**vars(found), "subjects": [timing]},
        )

    def _described_cost(self) -> dict[str, Any]:
        return {
            "device": self.device.type,
            "precision": self.args.precision,
            "batch_size": self.args.batch_size,
            "steps": self.request.steps,
            "calls": self.calls,
        }

    def _prepare(self, subject: Subject, layout: Layout) -> PreparedSubject:
        return prepare_subject(
            subject,
            layout,
            self.data.conditions,
            None,
            self.data.preparation,
            self.args.allow_missing,
            self.args.nonfinite,
        )

    def _warn_if_seen(self, subject: str, inputs: Mapping[str, str]) -> None:
        if other := same_patient(subject, inputs, self.seen):
            named = "" if other == subject else f" (as {other})"
            log.warning("%s was trained on%s: no test of this model", subject, named)

    def _temperature(self) -> float:
        if self.args.temperature is not None:
            return self.args.temperature
        return 1.0 if self.args.samples > 1 else self.model.temperature

    def _overlap(self) -> float | None:
        if self.model.tiling:
            if self.args.noise != "slice":
                raise ConfigError(
                    "CONFIG-VALUE",
                    f"--noise is {self.args.noise}, but {self.args.model} samples whole volumes, "
                    "each from one noise volume: leave it out",
                )
            return self.model.tiling.overlap if self.args.overlap is None else self.args.overlap
        if self.args.overlap is not None:
            raise ConfigError(
                "CONFIG-VALUE",
                f"--overlap is {self.args.overlap}, but {self.args.model} samples slices, which "
                "have no windows: leave it out",
            )
        return None

    def _synthesise(
        self, prepared: PreparedSubject, title: str
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return mean and standard deviation over samples (S, H, W), in [-1, 1] units."""
        started = time.perf_counter()
        # a model of volumes takes the contrasts first and the slices as an axis of space
        images, draw = prepared.slices, self._slices
        if self.model.tiling:
            images, draw = images.swapaxes(0, 1), self._volume  # (M, S, H, W)
        own = prepared.brain.shape[-len(self.data.image_size) :]
        images = fit_size(images, np.maximum(self.data.image_size, own), -1)  # cuts nothing off
        total = np.zeros(prepared.brain.shape)
        squares = np.zeros_like(total)
        for sample in range(self.request.samples):
            named = f"{title}, sample {sample + 1}" if self.request.samples > 1 else title
            cropped = fit_size(draw(prepared, images, sample, named), own, -1)
            total += cropped
            squares += np.square(cropped, dtype=np.float64)
        count = self.request.samples
        mean = total / count
        deviation = np.sqrt(np.maximum(squares - count * mean**2, 0) / max(1, count - 1))
        if not np.isfinite(mean).all():
            raise NonFiniteError(
                "NONFINITE-SAMPLE", "the network returned NaN; try --precision 32", prepared.id
            )
        seconds = time.perf_counter() - started
        self.timings.append({"subject": prepared.id, "slices": len(total), "seconds": seconds})
        return mean.astype(np.float32), deviation.astype(np.float32) if count > 1 else None

    def _slices(
        self, prepared: PreparedSubject, slices: np.ndarray, sample: int, title: str
    ) -> np.ndarray:
        """Return one sample of every slice (S, H, W) in [-1, 1]."""
        import torch
        from rich.progress import track

        from ldm.data.slices import with_neighbours
        from ldm.models.diffusion.noise import KeyedNoise, slice_noise

        present = torch.from_numpy(prepared.present).to(self.device)
        results = []
        starts = range(0, len(slices), self.args.batch_size)
        for start in track(starts, title, transient=True):
            places = range(start, min(start + self.args.batch_size, len(slices)))
            stack = [with_neighbours(slices, i, self.data.neighbours) for i in places]
            kind, seed = self.request.noise, self.request.seed
            keys = [slice_noise(kind, seed, prepared.id, i, sample) for i in places]
            images = self.model.synthesise(
                torch.from_numpy(np.stack(stack)).to(self.device),
                present.expand(len(stack), -1),
                KeyedNoise(keys, self.device, self.request.temperature),
                self.request.sampler,
                self.request.steps,
                **self.request.options,
            )
            results.append(images[:, 0].cpu().numpy())
        return np.concatenate(results)

    def _volume(
        self, prepared: PreparedSubject, images: np.ndarray, sample: int, title: str
    ) -> np.ndarray:
        """Return one sample (S, H, W) in [-1, 1] of a volume (M, S, H, W), from one noise."""
        import torch
        from rich.progress import Progress

        from ldm.models.diffusion.noise import KeyedNoise

        keys = [(self.request.seed, prepared.id, sample)]
        with Progress(transient=True) as progress:
            task = progress.add_task(title)
            volume = self.model.synthesise(
                torch.from_numpy(np.ascontiguousarray(images))[None].to(self.device),
                torch.from_numpy(prepared.present)[None].to(self.device),
                KeyedNoise(keys, self.device, self.request.temperature),
                self.request.sampler,
                self.request.steps,
                callback=lambda step, total, *_: progress.update(
                    task, completed=step + 1, total=total
                ),
                **self.request.options,
            )
        return volume[0, 0].cpu().numpy()


def write_sidecar(path: Path, described: Mapping[str, Any], content: bytes) -> None:
    """Write what a volume will be, before the volume: see :meth:`VolumeSampler.write`."""
    write_json(path, {**described, "sha256": hashlib.sha256(content).hexdigest()})


def check_counts(args: argparse.Namespace) -> None:
    """Refuse counts below 1, and an overlap that leaves no step between windows.

    Raises:
        ConfigError: CONFIG-VALUE.
    """
    if args.overlap is not None and not 0 <= args.overlap <= 0.9:
        raise ConfigError("CONFIG-VALUE", f"--overlap is {args.overlap}: give 0 to 0.9")
    for name in ("samples", "batch_size", "steps", "timing"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            flag = name.replace("_", "-")
            raise ConfigError("CONFIG-VALUE", f"--{flag} is {value}: give a whole number >= 1")
