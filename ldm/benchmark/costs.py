"""What a finished cell of a benchmark cost: from what its processes wrote, and from its network."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from ldm.benchmark.plan import GridCell, Training
from ldm.benchmark.results import RowCost
from ldm.cost.network import count_flops, count_parameters, training_flops
from ldm.storage import COST_FILE, read_json, write_json
from ldm.study import build_model


def cell_cost(cell: GridCell) -> RowCost:
    """Return what a finished cell cost, from what its processes wrote and from its network."""
    training, run = cell.training, read_json(cell.training.run / COST_FILE)
    network = network_cost(training)
    sampling = read_json(cell.folder / "timing" / COST_FILE)
    sampling = sampling or read_json(cell.prediction / COST_FILE)
    slice_seconds, volume_seconds = median_seconds(sampling)
    images = run.get("images_a_step") or run.get("batch_size") or 0  # as an older version wrote
    steps = run.get("steps")
    return RowCost(
        parameters=network["parameters"],
        flops=network["flops"],
        calls=sampling.get("calls"),
        train_steps=steps,
        train_seconds=run.get("seconds"),
        train_flops=steps and training_flops(network["flops"], images, steps),
        slice_seconds=slice_seconds,
        volume_seconds=volume_seconds,
        train_memory=run.get("peak_memory_bytes"),
        sample_memory=sampling.get("peak_memory_bytes"),
        train_batch=images or None,
        sample_batch=sampling.get("batch_size"),
        train_joules=run.get("energy_joules"),
        volume_joules=sampling.get("energy_joules"),
        no_joules=run.get("energy_reason") or sampling.get("energy_reason") or "",
        device=run.get("device") or sampling.get("device", "cpu"),
        precision=f"{run.get('precision', '-')} / {sampling.get('precision', '-')}",
    )


def median_seconds(cost: Mapping[str, Any]) -> tuple[float, float] | tuple[None, None]:
    """Return the seconds of a slice and of a volume by the ``cost.json`` of a sampling."""
    timings = cost.get("subjects") or []
    if not timings:
        return None, None
    a_slice = median(t["seconds"] / t["slices"] for t in timings)
    return a_slice, median(t["seconds"] for t in timings)


def network_cost(training: Training) -> dict[str, int]:
    """Return parameters and FLOPs of a training's network, counted once."""
    path = training.folder / "network.json"
    if not (known := read_json(path)):
        model = build_model(training.config)
        inputs = model.network_inputs()
        known = {
            "parameters": count_parameters(model.network),
            "flops": count_flops(model.network, *inputs),
        }
        write_json(path, known)
    return known
