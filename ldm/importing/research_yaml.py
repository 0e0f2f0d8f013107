"""Configurations of latent-diffusion and its descendants, translated to a run of this project.

What decides the network and the process is kept: ``unet_config``, the schedule, the
parameterization, the first stage and its scale. Everything else (optimizer, data, logging) has no
meaning for an imported model and is named as ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ldm.config import Overrides, merge_config, validate
from ldm.errors import CheckpointError, ConfigError, bad_value
from ldm.losses.pointwise import POINTWISE_LOSSES
from ldm.modules.diffusionmodules.model import AutoencoderSettings
from ldm.util import current_path, image_sides, params_of

# Parameters that the research code has and LatentDiffusion here does not: they tell one YAML from
# the other, so that a misspelt key of a run is still refused.
MARKS = {"linear_start", "linear_end", "timesteps", "beta_schedule", "first_stage_key"}
MARKS |= {"cond_stage_key", "num_timesteps_cond", "use_ema", "log_every_t"}
MARKS |= {"monitor", "scheduler_config", "scale_by_std"}
# The names that latent-diffusion gives to schedules, and ours.
SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "cosine"}
SCHEDULE_PARAMS = ("timesteps", "linear_start", "linear_end", "cosine_s")
PASSED_IN = ("in_channels", "out_channels", "image_size")  # facts that data and first stage own
UNENCODED = (None, "__is_first_stage__", "__is_unconditional__")


def read_import_config(
    files: Sequence[str], overrides: Overrides = ()
) -> tuple[dict[str, Any], list[str]]:
    """Return the checked configuration of a run, and the key paths of the YAML that were ignored.

    Args:
        files: YAML files of a run, merged left to right, or those of a research code.
        overrides: ``key=value`` of the resulting run.

    Raises:
        ConfigError: see :func:`ldm.config.load_config`. CheckpointError: CKPT-UNSUPPORTED when the
            research model cannot be a LatentDiffusion of this project.
    """
    config, ignored = merge_config(files), []
    if is_research_yaml(config):
        translated, ignored = translate_research_yaml(config)
        config = merge_config(["configs/base.yaml", translated], overrides)
    else:
        config = merge_config(files, overrides)
    validate(config)
    return config, ignored


def is_research_yaml(config: Mapping[str, Any]) -> bool:
    """Return whether the model of a configuration has parameters of the research code."""
    model = config.get("model")
    if not isinstance(model, Mapping):
        return False
    params = model.get("params")
    marks = MARKS.intersection(params if isinstance(params, Mapping) else ())
    return bool(marks) or "base_learning_rate" in model


def translate_research_yaml(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the part of a run configuration that a research YAML decides, and what is ignored.

    Raises:
        ConfigError: CONFIG-MISSING without a ``unet_config``. CheckpointError: CKPT-UNSUPPORTED.
    """
    model = dict(config["model"])
    left = dict(model.pop("params", None) or {})
    _require_concatenation(left)
    first_stage, downsampling = _first_stage(left.pop("first_stage_config", None))
    if downsampling > 1 and left.get("cond_stage_config") not in UNENCODED:
        raise _unsupported(
            f"its conditions are encoded by {_target(left['cond_stage_config'])}, here they are "
            "encoded by the first stage"
        )
    params = {
        "unet_config": _network(left.pop("unet_config", None)),
        "schedule_config": _schedule(left),
        "first_stage_config": first_stage,
        "parameterization": left.pop("parameterization", "eps"),
        "scale_factor": float(left.pop("scale_factor", 1.0)),
        "loss_type": _known_loss(left.pop("loss_type", "l2")),
        "subtract": None,
        "gain": 1.0,
        "sparsity": 0.0,
        "temperature": 1.0,
    }
    run = {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}
    if "image_size" in left:
        sides = [n * downsampling for n in image_sides(left.pop("image_size"))]
        run["data"] = {"params": {"image_size": sides[0] if sides[0] == sides[1] else sides}}
    ignored = [f"model.params.{key}" for key in left if key != "conditioning_key"]
    ignored += [f"model.{key}" for key in model if key != "target"]
    ignored += [key for key in ("data", "lightning") if key in config]
    return {"name": str(config.get("name") or "imported"), **run}, ignored


def _require_concatenation(params: Mapping[str, Any]) -> None:
    kind = params.get("conditioning_key")
    if kind not in (None, "concat"):
        raise _unsupported(
            f"its conditioning_key is '{kind}' (text or classes through "
            f"{_target(params.get('cond_stage_config'))}), here the conditions are images "
            "concatenated to the noisy one"
        )


def _first_stage(node: Any) -> tuple[dict[str, Any], int]:
    """Return the first stage here, and the ratio of image size to latent size."""
    kind = _target(node).rpartition(".")[2]
    if kind in ("none", "Identity", "IdentityFirstStage"):
        return {"target": "ldm.models.autoencoder.IdentityFirstStage"}, 1
    if kind != "AutoencoderKL":
        raise _unsupported(f"its first stage is {kind}, here it is AutoencoderKL or none (pixels)")
    params = params_of(node)
    ddconfig = params.get("ddconfig") or {}
    channels = ddconfig.get("in_channels")
    if channels != 1:
        raise _unsupported(
            f"its first stage encodes images of {channels} channels (colour), contrasts have 1"
        )
    kept = {"ddconfig": ddconfig, "embed_dim": params.get("embed_dim")}
    try:
        downsampling = AutoencoderSettings(**ddconfig).downsampling
    except TypeError as error:
        raise bad_value(f"first_stage_config.params.ddconfig: {error}") from error
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": kept}, downsampling


def _network(node: Any) -> dict[str, Any]:
    if not isinstance(node, Mapping) or "target" not in node:
        raise ConfigError("CONFIG-MISSING", "the YAML has no model.params.unet_config: give it")
    target = current_path(str(node["target"]))
    params = {k: v for k, v in params_of(node).items() if k not in PASSED_IN}
    return {"target": target, "params": params}


def _schedule(params: dict[str, Any]) -> dict[str, Any]:
    """Take the schedule out of ``params``; what is not there has latent-diffusion's default."""
    name = params.pop("beta_schedule", "linear")
    if name not in SCHEDULES:
        raise _unsupported(f"its beta_schedule is '{name}', here: {', '.join(SCHEDULES)}")
    given = {key: params.pop(key) for key in SCHEDULE_PARAMS if key in params}
    return {
        "target": "ldm.models.diffusion.schedule.NoiseSchedule",
        "params": {"name": SCHEDULES[name], "timesteps": 1000, **given},
    }


def _known_loss(name: str) -> str:
    return name if name in POINTWISE_LOSSES else "l2"  # only a further training would use it


def _target(node: Any) -> str:
    return str(node.get("target")) if isinstance(node, Mapping) else str(node or "none")


def _unsupported(reason: str) -> CheckpointError:
    return CheckpointError("CKPT-UNSUPPORTED", f"this model cannot be used here: {reason}")
