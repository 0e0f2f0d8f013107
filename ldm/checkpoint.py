"""Checkpoints: what a run resumes from, and how a model is built with the weights of one.

A training checkpoint is a ``torch.save`` file of tensors and plain values, loaded with
``weights_only`` always, its ZIP checksums verified first, because ``torch.load`` does not look at
them. Two generations are kept. The slim model that sampling needs is :mod:`ldm.model_file` beside
``config.yaml``.
"""

from __future__ import annotations

import logging
import pickle
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.binding import PARTS, decisive, require_bound
from ldm.claims import claim
from ldm.config import foreign_targets, read_saved_config, save_config, trusted_targets, validate
from ldm.environment import require_safe_libraries
from ldm.errors import (
    CheckpointError,
    OutOfMemory,
    OutputError,
    UnsafeError,
    as_known_error,
)
from ldm.folders import written_together
from ldm.model_file import (
    looks_like,
    read_model,
    require_known_format,
    save_model,
    tensor_digest,
)
from ldm.storage import (
    CONFIG_FILE,
    ERROR_MODEL,
    MODEL_FILE,
    head_of,
    require_run,
    run_folder,
)
from ldm.study import Study, build_model, read_study
from ldm.util import params_of, refuse_untrusted_targets

log = logging.getLogger(__name__)

# what zipfile and torch raise for damaged bytes, wherever the damage is
UNREADABLE = (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, LookupError)
UNREADABLE += (TypeError, AttributeError, ArithmeticError, struct.error, zlib.error)
MAX_ENTRIES = 100_000  # a tensor each; the largest network here has a thousand
OWN, BOUND = "dsdiff", "bound"  # what a checkpoint says of itself; what its weights depend on
RESTORED = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step")
WEIGHTS, EMA_WEIGHTS, LAST = "weights", "ema", "last"  # which weights a file holds
DAMAGED = ("CKPT-CORRUPT", "CKPT-FORMAT", "CKPT-MISSING")
LOSSES, PRIOR = "losses.", "prior."  # how the weights of the losses, and prior, of a model begin
CHECKPOINTS = ("checkpoints/last.ckpt", "checkpoints/previous.ckpt")  # newest first


def verify_archive(path: Path) -> None:
    """Check the ZIP structure and every checksum of a ``torch.save`` file.

    Raises:
        CheckpointError: CKPT-MISSING, CKPT-FORMAT or CKPT-CORRUPT.
    """
    if not path.is_file():
        raise CheckpointError("CKPT-MISSING", f"there is no checkpoint {path}: check the path")
    head = head_of(path)
    if not head.startswith(b"PK"):
        raise CheckpointError(
            "CKPT-FORMAT", f"{path.name} is no torch checkpoint: it {looks_like(head)}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) > MAX_ENTRIES:
                raise UnsafeError(
                    "UNSAFE-ARCHIVE", f"{path.name} has more than {MAX_ENTRIES} entries"
                )
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise UnsafeError("UNSAFE-ARCHIVE", f"{path.name} has compressed entries")
            damaged = archive.testzip()
    except UNREADABLE as error:
        raise CheckpointError("CKPT-CORRUPT", f"{path.name} is damaged: {error}") from error
    if damaged:
        raise CheckpointError("CKPT-CORRUPT", f"{path.name} is damaged in {damaged}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a training checkpoint, verified, on the CPU.

    Raises:
        CheckpointError: see :func:`verify_archive`. UnsafeError: UNSAFE-PICKLE.
    """
    require_safe_libraries()
    verify_archive(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(checkpoint, dict):
            require_known_format(checkpoint.get(OWN, {}).get("format", 0), path.name)
        return checkpoint
    except pickle.UnpicklingError as error:
        raise UnsafeError(
            "UNSAFE-PICKLE", f"{path.name} holds objects other than tensors and plain values"
        ) from error
    except UNREADABLE as error:
        if isinstance(as_known_error(error), OutOfMemory):
            raise
        raise CheckpointError(
            "CKPT-CORRUPT", f"{path.name} is no whole checkpoint: {str(error).splitlines()[0]}"
        ) from error


def step_of(checkpoint: Path) -> int:
    """Return the step of a training checkpoint that was verified, without reading its tensors."""
    return torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"]


def newest_checkpoint(run: Path) -> Path:
    """Return the newest valid checkpoint of a run, reporting each that was skipped.

    Raises:
        CheckpointError: CKPT-MISSING (no run, or nothing saved yet), CKPT-CORRUPT (none valid),
            CKPT-VERSION. UnsafeError: see :func:`read_checkpoint`.
    """
    run = require_run(run)
    existing = [run / name for name in CHECKPOINTS if (run / name).exists()]
    if not existing:
        raise CheckpointError("CKPT-MISSING", f"{run} has no checkpoint yet: start it anew")
    skipped: list[CheckpointError] = []
    for path in existing:
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            if error.code not in DAMAGED:
                raise
            skipped.append(error)
            continue
        for error in skipped:
            log.warning("%s; going on from %s", error, path.name)
        return path
    raise CheckpointError("CKPT-CORRUPT", f"no checkpoint of {run} is intact: restore a copy")


def write_model_folder(
    folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write ``config.yaml``, and weights that are bound to it as it will be read."""
    save_config(config, folder / CONFIG_FILE)
    bound = decisive(read_saved_config(folder / CONFIG_FILE))
    save_model(folder, state, {**facts, BOUND: bound})


def processes() -> int:
    """Return how many processes train together."""
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if shared else 1


def holds_run(folder: Path) -> bool:
    """Return whether a training has saved a checkpoint in a folder."""
    return any((folder / name).exists() for name in CHECKPOINTS)


def require_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds a run or a model.

    Weights are what a verb writes last: where they are missing it was interrupted, and goes on. A
    file of somebody else in the place of another one is refused by the claim on the folder.

    Raises:
        OutputError: OUT-EXISTS.
    """
    if holds_run(folder):
        raise OutputError("OUT-EXISTS", f"{folder} holds a training run: choose another --output")
    if (folder / MODEL_FILE).exists() and not overwrite:
        raise OutputError(
            "OUT-EXISTS", f"{folder}/{MODEL_FILE} exists: choose another --output, or --overwrite"
        )


@contextmanager
def claim_model(folder: Path, verb: str, inputs: Iterable[Path], overwrite: bool) -> Iterator[Path]:
    """Own a folder that will hold a model, and yield one where it is written and can be read.

    It is there once the block ends, in place of an older one: see
    :func:`ldm.storage.written_together`. What :func:`require_free` refuses may come meanwhile.

    Raises:
        OutputError: OUT-EXISTS; see :func:`ldm.claims.claim`. BusyError.
    """
    with claim(folder, verb, inputs=inputs, replace=overwrite) as own:
        require_free(folder, overwrite)
        with written_together(own, last=MODEL_FILE) as temporary:
            yield temporary


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and metadata of a run folder, or of any weights: safetensors or torch file.

    Raises:
        CheckpointError: see :func:`read_model` and :func:`verify_archive`. UnsafeError.
    """
    if path.is_dir():
        return read_model(path / MODEL_FILE)
    if path.suffix == ".safetensors":
        return read_model(path, own=False)
    checkpoint = read_checkpoint(path)
    return checkpoint.get("state_dict", checkpoint), checkpoint.get(OWN, {})


class Loaded(NamedTuple):
    """A model in eval mode, the study it was trained for, and of its weights the digest and kind.

    ``weights`` is ``ema`` or ``last``; None where the file does not say. ``is_foreign``: a class of
    somebody else is in it. ``error_model``: factors, see :mod:`ldm.models.diffusion.error_model`.
    """

    model: Any
    study: Study
    digest: str
    weights: str | None
    is_foreign: bool
    error_model: Mapping[str, float] | None


def load_model(path: Path, trust: Collection[str] = ()) -> Loaded:
    """Build the model of a run or model folder and load its EMA weights.

    Args:
        path: a run folder, its ``model.safetensors``, or a checkpoint of its training.
        trust: classes accepted beside those that the shipped configurations name.

    Raises:
        CheckpointError: see :func:`read_model`; CKPT-MISMATCH. UnsafeError: UNSAFE-TARGET.
    """
    is_checkpoint = path.suffix == ".ckpt"
    file = path / MODEL_FILE if path.is_dir() else path
    tensors, metadata = read_weights(file) if is_checkpoint else read_model(file)
    config = read_run_config(path, trust)
    require_bound(metadata.get(BOUND), decisive(config), path.name)
    study = read_study(config)
    model = build_model(config, study)
    require_same_state(model.state_dict(), tensors, path.name)
    for fact, value in () if is_checkpoint else model.facts().items():
        if metadata.get(fact) != value:
            raise CheckpointError(
                "CKPT-MISMATCH",
                f"{path.name} was trained with {fact} {metadata.get(fact)}, not with the {value} "
                f"of its {CONFIG_FILE}: restore the file",
            )
    model.load_state_dict(tensors)
    model.eval().requires_grad_(False)
    is_foreign = bool(foreign_targets(config["model"]))
    said = metadata.get(WEIGHTS), is_foreign, metadata.get(ERROR_MODEL)
    return Loaded(model, study, tensor_digest(tensors), *said)


def load_start(model: nn.Module, start: Path, config: Mapping[str, Any]) -> None:
    """Start a new training with the weights of another run.

    A part that its configuration reads from a file of its own keeps what is in it, the prior is
    that of the patients of both, and a loss that only one of the two runs has is no reason to
    refuse: the network is what is handed on.

    Args:
        start: run folder, or model file.
        config: of the new run.

    Raises:
        CheckpointError: see :func:`read_weights`; CKPT-MISMATCH.
    """
    is_alike = _asks_alike(start, read_study(config))
    (weights, _), own = read_weights(start), model.state_dict()
    kept = (*_parts_from_files(params_of(config["model"])), PRIOR)
    losses = {name for name in own.keys() ^ weights.keys() if name.startswith(LOSSES)}
    stay = {name: own[name] for name in own if name.startswith(kept) or name in losses}
    given = {n: w for n, w in weights.items() if not n.startswith(kept) and n not in losses} | stay
    require_same_state(own, given, start.name)
    model.load_state_dict(given)
    if is_alike and (join := getattr(getattr(model, "prior", None), "join", None)):
        join({n.removeprefix(PRIOR): w for n, w in weights.items() if n.startswith(PRIOR)})


def _asks_alike(start: Path, study: Study) -> bool:
    """Return whether a run made the same contrast of the same others; it is refused to mix them up.

    Raises:
        CheckpointError: CKPT-MISMATCH for the same conditions in another order.
    """
    file = run_folder(start) / CONFIG_FILE
    if not file.is_file():  # weights alone
        return False
    before = read_study(read_saved_config(file))
    if before.conditions == study.conditions:
        return before.target == study.target
    if sorted(before.conditions) == sorted(study.conditions):
        known = ",".join(before.conditions)
        raise CheckpointError(
            "CKPT-MISMATCH",
            f"{start.name} has read the same contrasts in another order: give "
            f"data.params.conditions=[{known}]",
        )
    log.warning("%s has read other contrasts: %s", start.name, ", ".join(before.conditions))
    return False


def _parts_from_files(params: Mapping[str, Any]) -> Iterator[str]:
    """Yield how the weights begin of each part for which ``model.params`` names a file."""
    nodes = {f"{part}.": params.get(key) for key, part in PARTS.items()}
    nodes |= {f"{LOSSES}{name}.": node for name, node in (params.get("loss_config") or {}).items()}
    for start, node in nodes.items():
        if isinstance(node, Mapping) and params_of(node).get("path"):
            yield start


def study_of(path: Path, trust: Collection[str] = ()) -> Study:
    """Return the study of a run folder or model file, whose weights are not read.

    Raises:
        CheckpointError, UnsafeError, ConfigError: see :func:`read_run_config`.
    """
    return read_study(read_run_config(path, trust))


def read_run_config(model: Path, trust: Collection[str] = ()) -> dict[str, Any]:
    """Return the configuration of a run, or model, after the trust gate.

    Raises:
        CheckpointError: CKPT-MISSING. UnsafeError: UNSAFE-TARGET. ConfigError: it is damaged.
    """
    folder = require_run(model)
    config = read_saved_config(folder / CONFIG_FILE)
    source = f"{folder.name}/{CONFIG_FILE}"
    refuse_untrusted_targets(config, trusted_targets(), source, named=trust)
    validate(config, for_training=False)
    if params_of(config["data"]).pop("cache", None):  # where to write is the user's
        log.warning("%s names a cache, which is not used: give data.params.cache=FOLDER", source)
    return config


def require_same_state(own: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights whose names or shapes are not exactly the model's.

    Raises:
        CheckpointError: CKPT-MISMATCH with the first keys that differ.
    """
    missing = sorted(own.keys() - given.keys())
    extra = sorted(given.keys() - own.keys())
    shapes = sorted(k for k in own.keys() & given.keys() if own[k].shape != given[k].shape)
    problems = {"missing": missing, "unexpected": extra, "of other shape": shapes}
    if any(problems.values()):
        text = "; ".join(
            f"{len(keys)} {kind} ({', '.join(keys[:2])})" for kind, keys in problems.items() if keys
        )
        raise CheckpointError("CKPT-MISMATCH", f"{source} does not fit the model: {text}")
