"""What reading costs: random slices from the cache against NIfTI, and the sampler's arithmetic.

``python scripts/bench_data.py PATIENTS [--subjects 4] [--reads 200] [--output FOLDER]`` reads
slices of all contrasts at random places, from the cache as training does and from the files by
nibabel, and runs the default sampler with a network that does nothing. Writes ``data.md`` and
``data.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from bench_peers import publish

from ldm.config import load_config
from ldm.cost.timing import in_turns
from ldm.data.layouts import Subject
from ldm.memory import keep_freed_memory
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.noise import KeyedNoise
from ldm.report.environment import environment
from ldm.report.tables import markdown_table
from ldm.study import build_model
from ldm.util import instantiate_from_config

CONFIG = "configs/backbone/unet_tiny.yaml"


def from_files(subject: Subject, contrasts: Sequence[str], place: float) -> list[np.ndarray]:
    """Return a slice of each contrast at a place, 0 to 1, decoded from its file."""
    images = [nib.load(subject.files[contrast].path) for contrast in contrasts]
    return [np.asarray(im.dataobj[..., int(place * im.shape[2])], np.float32) for im in images]


def reading(
    root: Path, subjects: int, reads: int, decoded: int, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of one slice of all contrasts, by where it comes from."""
    config = load_config([CONFIG], [f"data.params.root={root}", "data.params.val=0"])
    data = instantiate_from_config(config["data"], where="data")
    data.setup()
    chosen = data.train_slices.subjects[:subjects]
    found = [data.subjects[cached.id] for cached in chosen]
    opened = [cached.open("slices") for cached in chosen]  # once for a training
    draw = np.random.default_rng(0)
    places = [(int(draw.integers(len(chosen))), draw.random()) for _ in range(reads)]

    def cache() -> None:
        for patient, place in places:
            slices = opened[patient]
            np.array(slices[int(place * len(slices))])  # (M, H, W)

    def files() -> None:
        for patient, place in places[:decoded]:
            from_files(found[patient], [*data.study.conditions, data.study.target], place)

    seconds = in_turns({"cache": cache, "NIfTI files": files}, rounds, "cpu")
    counts = {"cache": reads, "NIfTI files": decoded}
    return {name: [t / counts[name] for t in times] for name, times in seconds.items()}


class Nothing(torch.nn.Module):
    """A network without work: the sampler around it is what remains."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))  # has a type and a device

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return x[:, :1]


def sampling(size: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of a step of the default sampler on a slice, with network and without."""
    model = build_model(load_config([CONFIG], [f"data.params.image_size={size}"])).eval()
    assert isinstance(model, LatentDiffusion)
    images = torch.randn(1, model.images, size, size).clamp(-1, 1)
    present = torch.ones(1, len(model.conditions), dtype=torch.bool)

    def draw() -> None:
        with torch.inference_mode():
            model.synthesise(images, present, KeyedNoise([(0, "a")], "cpu", 1.0), steps=steps)

    def draw_without() -> None:
        network, model.model.diffusion_model = model.model.diffusion_model, Nothing()
        draw()
        model.model.diffusion_model = network

    calls = {"with the network": draw, "arithmetic alone": draw_without}
    return {n: [t / steps for t in times] for n, times in in_turns(calls, rounds, "cpu").items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patients", type=Path, help="a folder of patients with .nii.gz")
    parser.add_argument("--subjects", type=int, default=4, help="read from")
    parser.add_argument("--reads", type=int, default=2000, help="slices from the cache")
    parser.add_argument("--decoded", type=int, default=20, help="slices from the files")
    parser.add_argument("--size", type=int, default=192, help="of the slice that is sampled")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("bench"))
    given = parser.parse_args()
    keep_freed_memory()
    read = reading(given.patients, given.subjects, given.reads, given.decoded, given.rounds)
    step = sampling(given.size, given.steps, given.rounds)
    best = {name: min(times) for name, times in (read | step).items()}
    page = f"{environment()}\n\n" + markdown_table(
        ["what", "ms"], [[name, 1000 * seconds] for name, seconds in best.items()]
    )
    page += (
        f"\nThe cache is {best['NIfTI files'] / best['cache']:.0f} times as fast as the files; "
        f"arithmetic is {best['arithmetic alone'] / best['with the network']:.2%} of a step.\n"
    )
    publish(given.output, "data", page, {"seconds": best})


if __name__ == "__main__":
    main()
