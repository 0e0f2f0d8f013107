"""What a training has cost: ``cost.json`` of its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer

from ldm.callbacks.progress import images_a_step
from ldm.cost.energy import EnergyMeter
from ldm.cost.network import peak_memory
from ldm.data.datamodule import ContrastDataModule
from ldm.storage import COST_FILE, read_json, write_json


def write_training_cost(
    folder: Path,
    trainer: pl.Trainer,
    data: ContrastDataModule,
    meter: EnergyMeter,
    is_resumed: bool,
    finished: bool,
) -> None:
    """Write ``cost.json`` of a run: seconds, energy, memory, and the patients it was of.

    That of a finished run stays as long as no step is added.

    Args:
        meter: begun with the training.
        is_resumed: what the processes before used is not known then.
        finished: no signal has ended it.
    """
    told = read_json(folder / COST_FILE, torn=True)
    if told.get("finished") and told.get("steps") == trainer.global_step:
        return  # resumed at its end: what it took then is known
    device = trainer.strategy.root_device
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it
    timer = next(c for c in callbacks if isinstance(c, Timer))
    lost = "resumed: what the processes before used is not known" if is_resumed else ""
    write_json(
        folder / COST_FILE,
        {
            "finished": finished,
            "steps": trainer.global_step,
            "seconds": round(timer.time_elapsed(), 3),  # of all processes of a resumed run
            "energy_joules": None if is_resumed else meter.joules(),
            "energy_reason": lost or meter.reason,
            "images_a_step": images_a_step(trainer),
            "precision": trainer.precision,
            "device": device.type,
            "peak_memory_bytes": peak_memory(device),
            "train_subjects": data.split["train"],
            "val_subjects": data.split["val"],
        },
    )
