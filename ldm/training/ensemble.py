"""Several trainings as one model, whose network is the mean of theirs: a deep ensemble."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ldm
from ldm.binding import decisive, differences
from ldm.checkpoint import (
    LOSSES,
    PRIOR,
    WEIGHTS,
    Loaded,
    claim_model,
    load_model,
    read_run_config,
    require_free,
    write_model_folder,
)
from ldm.config import ENSEMBLE
from ldm.data.seen import write_seen
from ldm.errors import CheckpointError, ConfigError
from ldm.models.diffusion.ensemble import BACKBONE, MEMBERS
from ldm.storage import run_folder
from ldm.typed import typed
from ldm.util import listed, user_path, with_params, without_params

FORM = f"{PRIOR}coefficients"  # 0 where it has found nothing
# in which trainings of one ensemble may differ: how each was led to its weights, and whom it saw
FREE = {
    "model": (
        *("unet_config", "seed", "loss_config", "sparsity", "voxel_weight_config", "loss_type"),
        *("loss_weight", "mean_share", "timesteps_config", "optimizer_config", "warmup_steps"),
        *("rate_schedule", "decay_to", "sampler", "sampling_steps", "temperature", "spread"),
    ),
    "data": ("seed", "patient", "min_brain", "batch_size", "augmentation_config", "abnormal_share"),
}
NETWORK_ALONE = "networks are averaged, and all else must agree"


class Member(NamedTuple):
    """A run that joins: its folder, its configuration, and what was loaded of it."""

    folder: Path
    config: dict[str, Any]
    loaded: Loaded

    @property
    def weights(self) -> dict[str, Tensor]:
        """All weights of its model."""
        return self.loaded.model.state_dict()

    @property
    def around(self) -> dict[str, Tensor]:
        """The weights outside the backbone that an answer depends on."""
        return {
            n: w for n, w in self.weights.items() if not n.startswith((BACKBONE, LOSSES, PRIOR))
        }


@typed
def ensemble(
    runs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    overwrite: bool = False,
    trust: Collection[str] = (),
) -> Path:
    """Write a model whose network is the mean of those of several runs, which other verbs take.

    The coefficients of its prior, which each has fitted to its own patients, are the mean of theirs
    too, of those that have found any.

    Trained with other seeds, on other patients or as other backbones, they differ by chance where
    the data do not decide; their mean has less of it. It costs as many network calls as it has
    members. It has seen the patients that any of them has seen.

    Args:
        runs: run folders, or their ``model.safetensors``: two or more.
        output: folder of the model.
        overwrite: replace an ensemble.
        trust: see :meth:`ldm.Synthesiser.load`.

    Returns:
        ``output``.

    Raises:
        ConfigError: USAGE for fewer than two runs. CheckpointError: CKPT-MISMATCH for runs that
            differ in more than network, training and patients, or are one and the same, and for an
            ensemble, in which runs would count twice; see
            :func:`ldm.checkpoint.load_model`. UnsafeError, OutputError.
    """
    given = listed(runs)
    output = user_path(output)
    require_free(output, overwrite)
    if len(given) < 2:
        raise ConfigError("USAGE", f"an ensemble has two runs or more: {len(given)} given")
    members = [_member(user_path(run), trust) for run in given]
    for member in members[1:]:
        _require_alike(members[0], member)
    for place, member in enumerate(members):
        _require_new(member, members[:place])
    config, weights = _joined(members)
    first = members[0].loaded
    facts = {**first.model.facts(), WEIGHTS: first.weights, "dsdiff": ldm.__version__}
    folders = [member.folder for member in members]
    with claim_model(output, "ensemble", folders, overwrite) as place:
        write_seen(place, {"train": {}}, folders)
        write_model_folder(place, config, weights, facts)
        load_model(place, trust)
    return output


def _member(run: Path, trust: Collection[str]) -> Member:
    """Return a run that joins, after every check that sampling with it would make."""
    loaded = load_model(run, trust)
    if not hasattr(loaded.model, "synthesise"):
        raise _mismatch(
            f"{run} holds a {type(loaded.model).__name__}, which synthesises nothing: give runs of "
            "dsdiff train"
        )
    folder = run_folder(run)
    config = read_run_config(folder, trust)
    if config["model"]["params"]["unet_config"]["target"] == ENSEMBLE:
        raise _mismatch(f"{run} is an ensemble: give the runs that it is the mean of")
    return Member(folder, config, loaded)


def _require_alike(first: Member, other: Member) -> None:
    """Refuse what is not the same question, asked and answered in the same numbers."""
    names = other.folder.name, first.folder.name
    kept = [_without_free(decisive(member.config)) for member in (other, first)]
    for key, *values in differences(*kept):
        own, known = map(reprlib.repr, values)
        raise _mismatch(f"{names[0]} has {key}={own}, and {names[1]} {known}: {NETWORK_ALONE}")
    if other.loaded.model.knows_mean != first.loaded.model.knows_mean:
        raise _mismatch(
            f"of {names[0]} and {names[1]} one has learned its mean (model.params.mean_share), and "
            "one has not: give runs of one kind"
        )
    around = other.around, first.around
    for name in sorted(around[0].keys() | around[1].keys()):
        own, known = (weights.get(name) for weights in around)
        if own is None or known is None or not own.equal(known):
            raise _mismatch(
                f"{names[0]} has another {name} than {names[1]}, trained or fitted beside the "
                f"network: {NETWORK_ALONE}"
            )


def _require_new(member: Member, before: Sequence[Member]) -> None:
    """Refuse a run that is there already, under whatever name."""
    for other in before:
        if member.loaded.digest == other.loaded.digest:
            names = member.folder.name, other.folder.name
            raise _mismatch("{} has the weights of {}: give each training once".format(*names))


def _mismatch(message: str) -> CheckpointError:
    return CheckpointError("CKPT-MISMATCH", message)


def _without_free(bound: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the weights of a run, without what members may differ in."""
    return {section: without_params(bound[section], names) for section, names in FREE.items()}


def _joined(members: Sequence[Member]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return configuration and weights of the ensemble: of the first, but for its backbone."""
    first, backbones = members[0], [m.config["model"]["params"]["unet_config"] for m in members]
    network = {"target": ENSEMBLE, "params": {"members": backbones}}
    model = with_params(first.config["model"], {"unet_config": network})
    weights = {n: w for n, w in first.weights.items() if not n.startswith(BACKBONE)}
    for place, member in enumerate(members):
        start = f"{BACKBONE}{MEMBERS}{place}."
        weights |= {
            start + name.removeprefix(BACKBONE): value
            for name, value in member.weights.items()
            if name.startswith(BACKBONE)
        }
    fitted = [m.weights for m in members if m.weights.get(FORM, torch.ones(1)).any()] or [weights]
    for name in [name for name in weights if name.startswith(PRIOR)]:
        weights[name] = torch.stack([own[name] for own in fitted]).mean(dim=0)
    return {**first.config, "model": model, "name": "ensemble"}, weights
