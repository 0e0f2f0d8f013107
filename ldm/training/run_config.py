"""The configuration of a training: of YAMLs, or of the run that it starts from or goes on with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.checkpoint import read_run_config
from ldm.config import Overrides, load_config
from ldm.errors import ConfigError
from ldm.storage import run_folder
from ldm.util import listed, params_of, trainer_options, user_path, with_params, without_params

SPLIT = ("train", "val", "test")


def run_config(
    config: str | Path | Sequence[str | Path] | None,
    overrides: Overrides = (),
    start: str | Path | None = None,
    trust: Collection[str] = (),
) -> dict[str, Any]:
    """Return the configuration of a new training: of YAMLs or, without any, that of ``start``.

    A run that starts from another has a name of its own, ``NAME-tuned``; where its patients lie in
    another folder, ids by which those of ``start`` were told apart are left out.

    Raises:
        ConfigError: USAGE without either; what is wrong, with its key path. CheckpointError.
    """
    if config:
        return load_config(listed(config), overrides)
    if start is None:
        raise ConfigError(
            "USAGE", "give a YAML such as configs/backbone/unet.yaml, --resume RUN or --from RUN"
        )
    start = user_path(start)
    before = read_run_config(start, trust) | {"name": f"{run_folder(start).resolve().name}-tuned"}
    resolved = load_config([before], overrides)
    if _root(before) != _root(resolved):
        before["data"] = without_params(before["data"], _named(before))
    return load_config([before], overrides)


def told_of_start(config: Mapping[str, Any], start: Path) -> str:
    """Return a line on what a run takes from the one that it starts from."""
    params = config["model"]["params"]
    rate = params_of(params.get("optimizer_config") or {}).get("lr")
    steps = trainer_options(config).get("max_steps")
    length = f"{steps} steps" if steps else "no number of steps"
    return (
        f"start     weights of {start}; learning rate {rate}, {length} "
        "(model.params.optimizer_config.params.lr, lightning.trainer.max_steps)"
    )


def with_found_root(config: dict[str, Any], run: Path) -> dict[str, Any]:
    """Return a configuration whose root exists, also where the run is resumed from elsewhere.

    A relative root counts from where the run was begun, which lies above the run folder; that the
    patients are the same, their digests say.
    """
    root = Path(params_of(config["data"]).get("root") or "")
    if root.is_absolute() or root.exists():
        return config
    places = (above / root for above in run.absolute().parents)
    found = next((place for place in places if place.exists()), root)
    return {**config, "data": with_params(config["data"], {"root": str(found)})}


def portable_config(config: Mapping[str, Any], model: Any, data: Any) -> dict[str, Any]:
    """Return the configuration to save, with what was learned from the training subjects."""
    portable = dict(config)
    for section, part in (("model", model), ("data", data)):
        params = {**params_of(config[section]), **part.portable_params()}
        params.pop("cache", None)  # no run folder says where to write
        if params.get("mean_share") == "auto":  # which another version may take for something else
            params["mean_share"] = model.process.mean_share
        portable[section] = {**config[section], "params": params}
    return portable


def _root(config: Mapping[str, Any]) -> Path:
    return Path(params_of(config["data"]).get("root") or "").resolve()


def _named(config: Mapping[str, Any]) -> list[str]:
    """Return the parts of the split that are lists of ids."""
    return [part for part in SPLIT if isinstance(params_of(config["data"]).get(part), list)]
