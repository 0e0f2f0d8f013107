"""Compare segmenters on phantom lesions: ``python scripts/compare_segmenters.py FOLDER``.

The four slices with most lesion of 16 phantom patients train each network, those of 16 others judge
it: 64 slices of 64 x 64 pixels, of which about 3 % are lesion, the same steps and examples for all.
Writes FOLDER/comparison.json after every training, continues from it, and ends with comparison.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from ldm.config import load_config
from ldm.cost.network import count_parameters
from ldm.data.slices import EndlessShuffle, SliceDataset
from ldm.evaluation.metrics.overlap import dice
from ldm.evaluation.statistics import summarise_values
from ldm.models.segmentation import foreground_shares
from ldm.phantom import write_phantoms
from ldm.report.tables import Number, markdown_table
from ldm.storage import read_json, write_file, write_json
from ldm.study import build_model
from ldm.util import instantiate_from_config

PATIENTS, SLICES, SIDE = 32, 4, 64
NETWORK = "model.params.unet_config.params"
GATED = "configs/segmentation/attention_unet.yaml"
PLAIN_GATES = [f"{NETWORK}.deep_supervision=false"]
ROWS = {
    "U-Net": ["configs/segmentation/unet.yaml"],
    "channel-attention U-Net": ["configs/segmentation/se_unet.yaml"],
    "Attention U-Net, deepest gate": [GATED, *PLAIN_GATES, f"{NETWORK}.gated_levels=[2]"],
    "Attention U-Net, all gates": [GATED, *PLAIN_GATES],
    "Attention U-Net, all gates, deep supervision": [GATED],
    "UNet_Transformer": ["configs/segmentation/unet_transformer.yaml", f"{NETWORK}.num_heads=4"],
}


def main() -> None:
    """Train what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    patients = args.output / "patients"
    if not patients.is_dir():
        write_phantoms(patients, PATIENTS, size=SIDE, seed=1)
    results = read_json(args.output / "comparison.json")
    for seed in range(args.seeds):
        for row, files in ROWS.items():
            name = f"{row} / {args.steps} steps / seed {seed}"
            if name not in results:
                results[name] = measure(files, patients, args.steps, seed)
                write_json(args.output / "comparison.json", results)
                sys.stderr.write(f"{name}: Dice {results[name]['dice']:.3f}\n")
    write_file(args.output / "comparison.md", table(results, args.steps, args.seeds))


def measure(files: list[str], patients: Path, steps: int, seed: int) -> dict[str, float]:
    """Train one network; return its Dice over unseen patients, parameters and CPU seconds."""
    overrides = [f for f in files if "=" in f]
    overrides += [
        f"data.params.root={patients}",
        "data.params.val=0.5",
        "data.params.seed=0",  # the same patients and slices for every seed
        f"data.params.image_size={SIDE}",
        f"seed={seed}",
        f"{NETWORK}.channels=[32,32,64,64]",
        f"lightning.trainer.max_steps={steps}",
        "model.params.warmup_steps=10",
        "model.params.optimizer_config.params.lr=2.0e-3",
    ]
    yamls = [f for f in files if "=" not in f] + ["configs/segmentation/lesion.yaml"]
    config = load_config(yamls, overrides)
    data = instantiate_from_config(config["data"])
    data.setup()
    keep_most_lesion(data.train_slices)
    keep_most_lesion(data.val_dataset)
    torch.manual_seed(seed)
    model = build_model(config)
    share = foreground_shares(data.train_slices, model.regions)["lesion"]
    model.check_start(data)
    started = time.process_time()  # of one thread, whatever else the machine does
    fit(model, data.train_slices, steps, seed)
    return {
        "seconds": time.process_time() - started,
        "dice": judge(model.eval(), data.val_dataset),
        "parameters": count_parameters(model.network),
        "foreground": share,
    }


def keep_most_lesion(slices: SliceDataset) -> None:
    """Leave the slices of each patient with most lesion."""
    area = [int((slices[i]["seg"] > 0).sum()) for i in range(len(slices))]
    kept = []
    for number in range(len(slices.subjects)):
        own = [i for i, (subject, _) in enumerate(slices.places) if subject == number]
        kept += sorted(own, key=lambda i: -area[i])[:SLICES]
    slices.places = [slices.places[i] for i in kept]


def fit(model: Any, slices: SliceDataset, steps: int, seed: int, batch_size: int = 4) -> None:
    """Train a model as ``dsdiff segment train`` does, without its run folder and average."""
    optimizer = model.new_optimizer()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, model.rate_factor)
    order = iter(EndlessShuffle(len(slices), seed))
    model.train()
    for _ in range(steps):
        batch = default_collate([slices[next(order)] for _ in range(batch_size)])
        optimizer.zero_grad()
        model.batch_loss(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def judge(model: Any, slices: SliceDataset) -> float:
    """Return the mean over patients of the Dice of their slices together."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for i in range(len(slices)):
        batch = default_collate([slices[i]])
        logits = model.logits(batch["condition"], batch["presence"])[0]
        pair = ((logits > 0)[0, 0].numpy(), model.target(batch)[0, 0].numpy())
        found.setdefault(batch["subject"][0], []).append(pair)
    stacks = [[np.stack(part) for part in zip(*pairs, strict=True)] for pairs in found.values()]
    return float(np.mean([dice(*stack) for stack in stacks]))


def table(results: dict[str, Any], steps: int, seeds: int) -> str:
    """Return the table as Markdown; ± is the standard deviation over seeds."""
    body = []
    for row in ROWS:
        runs = [results[f"{row} / {steps} steps / seed {seed}"] for seed in range(seeds)]
        milliseconds = round(1000 / steps * float(np.median([run["seconds"] for run in runs])))
        millions = f"{runs[0]['parameters'] / 1e6:.3f}"
        dice = summarise_values([run["dice"] for run in runs], interval=False)
        body.append([row, Number.mean(dice.mean, dice.sd), millions, milliseconds])
    return markdown_table(["", "Dice", "parameters, M", "CPU ms a step"], body)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
