"""A run is what its configuration says: its weights are bound to it, and little of it may change.

Both ``model.safetensors`` and the checkpoints hold what their weights depend on. A configuration
that was edited, or is another run's, is refused instead of giving other volumes without a word.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from ldm.errors import CheckpointError
from ldm.util import current_path, params_of, trainer_options, without_params

# of data.params: where the data are, and who; the weights do not depend on the one, and the other
# is known by the digests in subjects.json
PLACES = ("root", "layout", "cache", "num_workers", "worker_timeout", "val_slices")
PATIENTS = ("train", "val", "test", "fold", "folds")
# of model.params: what may be read from a run of its own -> the part of the model that it becomes
PARTS = {"first_stage_config": "first_stage_model", "anchor_config": "anchor"}
DURATION = "decay_steps"  # of model.params: as long as the run, which may be made longer
# what a resumed run takes: how long, on what and how fast, and what it shows and saves
RESUMABLE = ("name", "lightning.trainer", "lightning.compile", "lightning.logger")
RESUMABLE += (f"model.params.{DURATION}",)
RESUMABLE += tuple(f"data.params.{name}" for name in PLACES)
SHOWS = ("gradient_norms", "timestep_losses", "checkpoint", "samples", "features", "curve")
RESUMABLE += tuple(f"lightning.callbacks.{name}" for name in SHOWS)
# of lightning.trainer, what decides the steps themselves
FIXED = ("accumulate_grad_batches", "limit_train_batches", "overfit_batches")
FIXED += ("gradient_clip_val", "gradient_clip_algorithm", "precision")

Decisive = dict[str, Any]


def decisive(config: Mapping[str, Any]) -> Decisive:
    """Return what weights depend on, as JSON knows it: the model and, of the data, how they look.

    Args:
        config: resolved, with a ``model`` and a ``data`` section.
    """
    left_out = {"model": (DURATION,), "data": (*PLACES, *PATIENTS)}
    bound = {name: without_params(config[name], names) for name, names in left_out.items()}
    return json.loads(json.dumps(bound))


def require_bound(kept: Decisive | None, now: Decisive, source: str) -> None:
    """Refuse a configuration that is not the one that weights were trained with.

    Args:
        kept: what :func:`decisive` returned then; None: weights of a version that did not keep it.
        now: the same of ``config.yaml``.
        source: file of the weights.

    Raises:
        CheckpointError: CKPT-MISMATCH with the first key that differs, and both values.
    """
    for key, before, value in differences(kept, now) if kept else ():
        raise CheckpointError(
            "CKPT-MISMATCH",
            f"config.yaml says {key}={_shown(value)}, but {source} was trained with "
            f"{_shown(before)}: restore config.yaml",
        )


def require_resumable(before: Mapping[str, Any], now: Mapping[str, Any], run: str) -> None:
    """Refuse a change that a resumed run would not apply, or that would make it another run.

    Raises:
        CheckpointError: CKPT-MISMATCH with the key and both values.
    """
    for key, old, new in differences(before, now):
        parts = key.replace("[", ".").split(".")
        prefixes = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        if prefixes.isdisjoint(RESUMABLE) or parts[-1] in FIXED:
            raise CheckpointError(
                "CKPT-MISMATCH",
                f"{key}={_shown(new)}, but {run} was begun with {_shown(old)}: a resumed run takes "
                "places, duration, devices, and what is shown and saved; else begin another",
            )


def require_ahead(before: Mapping[str, Any], now: Mapping[str, Any], step: int, run: str) -> None:
    """Refuse another length that a resumed run has passed already.

    Raises:
        CheckpointError: CKPT-MISMATCH.
    """
    begun, length = (trainer_options(c).get("max_steps") or -1 for c in (before, now))
    if length != begun and 0 < length < step:
        raise CheckpointError(
            "CKPT-MISMATCH",
            f"lightning.trainer.max_steps={length}, but {run} has trained {step} steps: give more",
        )


def rate_notice(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return what becomes of the learning rate of a resumed run whose length is another, if any.

    Its fall was laid out for the length that the run was begun with. Changed alone, the length
    leaves the fall as it was; ``decay_steps`` changed, the rate jumps to another curve.
    """
    old, new = (params_of(c["model"]) for c in (before, now))
    lengths = [_length(config) for config in (before, now)]
    schedule, end = new.get("rate_schedule", "constant"), new.get(DURATION)
    if schedule == "constant" or not end or end < 1:
        return None
    if old.get(DURATION) != end:
        return (
            f"learning rate: from here on that of a {schedule} to step {end}, where the run was "
            f"begun with one to step {old.get(DURATION)}"
        )
    if lengths[0] == lengths[1]:
        return None
    return (
        f"learning rate: its {schedule} still ends at step {end}, as the run was begun, and the "
        f"run {lengths[1]}; model.params.{DURATION}=STEPS stretches it, from here on"
    )


def _length(config: Mapping[str, Any]) -> str:
    """Return in words when a run ends."""
    trainer = trainer_options(config)
    keys = ("max_steps", "max_time")
    told = [f"{key}={trainer[key]}" for key in keys if trainer.get(key) not in (None, -1)]
    return f"ends at {', '.join(told)}" if told else "has no end"


def differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield key path and both values of what differs; a class that has moved is the same."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            inner = f"{path}.{key}" if path else str(key)
            yield from differences(before.get(key), now.get(key), inner)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif path.endswith(".target") and isinstance(before, str) and isinstance(now, str):
        if current_path(before) != current_path(now):
            yield path, before, now
    elif before != now:
        yield path, before, now


def _shown(value: Any) -> str:
    return "nothing" if value is None else reprlib.repr(value)
