"""A whole volume by ``dsdiff sample`` and by a plain MONAI script with the same weights.

``python scripts/bench_sampling.py PATIENTS [--subject ID] [--config YAML] [--calls 1 4]`` trains
the backbone for one step (speed does not depend on what it has learned), maps its weights into
MONAI's network, and times, in turns, from the files of one patient to the file of its volume. For
one call in 32 bit the same slices must come out alike, so that the work is provably the same; the
script works on whole slices, dsdiff on the brain. Writes ``sampling.md`` and ``sampling.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from bench_peers import Shape, map_weights, monai_network, publish
from torch import nn

from ldm import Synthesiser, train
from ldm.cost.timing import in_turns
from ldm.data.layouts import detect_layout
from ldm.environment import pick_device
from ldm.inference.given import GivenLayout, given_subject
from ldm.memory import keep_freed_memory
from ldm.models.diffusion.noise import KeyedNoise
from ldm.report.environment import environment
from ldm.report.tables import markdown_table
from ldm.storage import atomic_path

CONTRASTS = ("t1", "t2", "flair")
TOLERANCE = 1e-4  # of images in [-1, 1]


class MonaiScript:
    """What a user of MONAI writes: every slice, whole, in batches, 32 bit, DDIM."""

    def __init__(
        self, network: nn.Module, calls: int, device: str = "cpu", batch: int = 16
    ) -> None:
        from monai.networks.schedulers import DDIMScheduler  # behind ldm: see bench_peers

        self.network, self.calls, self.batch = network.eval().to(device), calls, batch
        self.device = device
        self.schedule = DDIMScheduler(1000, schedule="cosine", prediction_type="sample")
        self.schedule.set_timesteps(calls)

    @torch.no_grad()
    def __call__(self, files: dict[str, Path], output: Path) -> np.ndarray:
        images = {name: nib.as_closest_canonical(nib.load(path)) for name, path in files.items()}
        volumes = {name: image.get_fdata(dtype=np.float32) for name, image in images.items()}
        brain = np.logical_or.reduce([volume > 0 for volume in volumes.values()])
        scales = {name: self.scale(volume[brain]) for name, volume in volumes.items()}
        normalised = [self.normalised(volumes[n], brain, *scales[n]) for n in CONTRASTS]
        condition = torch.from_numpy(np.stack(normalised)).permute(3, 0, 1, 2)  # (slices, 3, X, Y)
        slices = [self.sample(c.to(self.device)).cpu() for c in condition.split(self.batch)]
        predicted = torch.cat(slices)[:, 0].permute(1, 2, 0).clamp(-1, 1).numpy()
        median, width = scales["t1"]
        volume = np.where(brain, np.maximum((predicted + 1) * 6 - 4, -4) * width + median, 0)
        with atomic_path(output, replace=True) as path:
            nib.save(nib.Nifti1Image(volume.astype(np.float32), images["t1"].affine), path)
        return volume

    @staticmethod
    def scale(values: np.ndarray) -> tuple[float, float]:
        low, median, high = np.percentile(values, [25, 50, 75])
        return median, high - low

    @staticmethod
    def normalised(
        volume: np.ndarray, brain: np.ndarray, median: float, width: float
    ) -> np.ndarray:
        z = np.clip((volume - median) / width, -4, 8)
        return np.where(brain, (z + 4) / 6 - 1, -1).astype(np.float32)

    def sample(self, condition: torch.Tensor) -> torch.Tensor:
        x = torch.zeros_like(condition[:, :1])
        if self.calls == 1:  # the posterior mean
            last = torch.full((len(x),), 999, device=self.device)
            return self.network(torch.cat([x, condition], dim=1), last)
        x = torch.randn_like(x)
        for t in self.schedule.timesteps:
            now = torch.full((len(x),), int(t), device=self.device)
            x, _ = self.schedule.step(self.network(torch.cat([x, condition], dim=1), now), t, x)
        return x


def trained_run(config: str, patients: Path, subject: str, image_size: int, folder: Path) -> Path:
    """Return a run of one step of a U-Net that MONAI's class can express, without its recipe."""
    network = "model.params.unet_config.params."
    return train(
        [config, "configs/objective/plain.yaml"],
        [
            f"data.params.root={patients}",
            "data.params.val=0",
            f"data.params.test=[{subject}]",
            f"data.params.image_size={image_size}",
            "data.params.batch_size=1",
            f"{network}use_scale_shift_norm=false",
            f"{network}use_new_attention_order=true",
            "model.params.subtract=null",
            "model.params.mean_share=0.25",
            "lightning.trainer.max_steps=1",
        ],
        output=folder / "run",
    ).folder


def shape_of(network: nn.Module) -> Shape:
    """Return what MONAI's class has to be told to build the network of a run."""
    settings = network.settings
    return Shape(
        width=settings.model_channels,
        mult=settings.channel_mult,
        attention=[
            2**i in settings.attention_resolutions for i in range(len(settings.channel_mult))
        ],
        head=settings.num_head_channels,
        blocks=settings.num_res_blocks[0],
    )


def difference(synthesiser: Synthesiser, script: MonaiScript, given: dict[str, Path]) -> float:
    """Return the largest difference of one call on the same slices, in [-1, 1]."""
    request = synthesiser.request
    subject = given_subject("subject", given, synthesiser.study, request.allow_missing)
    prepared = synthesiser.trained.prepare(
        subject, GivenLayout(), request.allow_missing, request.nonfinite
    )
    middle = len(prepared.brain) // 2
    device = synthesiser.trained.device
    condition = synthesiser.windows.condition(prepared, range(middle, middle + 2)).to(device)
    noise = KeyedNoise([(0, "subject", i) for i in range(2)], device, 0.0)
    present = torch.ones(2, len(CONTRASTS), dtype=torch.bool, device=device)
    with torch.no_grad():
        ours = synthesiser.model.synthesise(condition, present, noise)
        theirs = script.sample(condition).clamp(-1, 1)
    return (ours - theirs).abs().max().item()


def compare(
    patients: Path, subject: str, config: str, image_size: int, calls: int, rounds: int
) -> dict[str, Any]:
    """Return seconds a volume of the script and of dsdiff, and how far one call of each differs."""
    found = detect_layout(patients)[1][subject]
    given = {contrast: Path(found.files[contrast].path) for contrast in CONTRASTS}
    device = pick_device()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = trained_run(config, patients, subject, image_size, folder)
        exact = Synthesiser.load(run, device=device, precision="32")
        ours = exact.model.model.diffusion_model.cpu()
        network = monai_network(shape_of(ours))
        map_weights(ours, network, side=ours.size_divisor * 4)
        ours.to(device)
        error = difference(exact, MonaiScript(network, 1, device), given)
        if error > TOLERANCE:
            raise SystemExit(f"one call differs by {error:.1e}: expected at most {TOLERANCE}")
        options = {"temperature": float(calls > 1), "steps": calls}
        fast = Synthesiser.load(run, device=device)
        script = MonaiScript(network, calls, device)
        seconds = in_turns(
            {
                "MONAI script": lambda: script(given, folder / "monai.nii.gz"),
                "dsdiff, 32 bit": lambda: save(exact, given, folder / "exact.nii.gz", options),
                f"dsdiff, {fast.request.precision}": lambda: save(
                    fast, given, folder / "fast.nii.gz", options
                ),
            },
            rounds,
            device,
        )
    return {"calls": calls, "difference": error, "seconds": {n: min(t) for n, t in seconds.items()}}


def save(
    synthesiser: Synthesiser, given: dict[str, Path], path: Path, options: dict[str, Any]
) -> None:
    """Write the volume of a patient."""
    with atomic_path(path, replace=True) as temporary:
        nib.save(synthesiser(**given, **options), temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patients", type=Path, help="a folder of patients")
    parser.add_argument("--subject", help="its id; by default the first")
    parser.add_argument("--config", default="configs/backbone/unet.yaml")
    parser.add_argument("--image-size", type=int, default=192, help="that the run was trained on")
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 4], help="of the network")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("bench"))
    given = parser.parse_args()
    keep_freed_memory()
    subject = given.subject or next(iter(detect_layout(given.patients)[1]))
    results = [
        compare(given.patients, subject, given.config, given.image_size, calls, given.rounds)
        for calls in given.calls
    ]
    rows = [
        [result["calls"], name, seconds, result["seconds"]["MONAI script"] / seconds]
        for result in results
        for name, seconds in result["seconds"].items()
    ]
    page = f"{given.config}, {subject}; {environment()}\n\n" + markdown_table(
        ["calls a slice", "who", "s a volume", "speed"], rows
    )
    publish(given.output, "sampling", page, {"volumes": results})


if __name__ == "__main__":
    main()
