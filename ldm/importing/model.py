"""From a public checkpoint and a YAML to a model folder that ``dsdiff sample`` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ldm
from ldm.checkpoint import PRIOR, claim_model, require_free, require_same_state, write_model_folder
from ldm.config import Overrides
from ldm.errors import CheckpointError, ConfigError, one_of
from ldm.importing.files import PublicCheckpoint, read_public_checkpoint
from ldm.importing.names import LIT_EMA, NETWORK, Fit, Translated, fit_shapes, hints, translate
from ldm.importing.research_yaml import read_import_config
from ldm.model_file import read_model, require_finite
from ldm.models.diffusion.noise import KeyedNoise
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.storage import MODEL_FILE, sha256
from ldm.study import Study, build_model, read_study
from ldm.typed import typed
from ldm.util import listed, params_of, user_path, with_params

TOLERANCE = {"rtol": 1e-4, "atol": 1e-8}  # public code keeps its schedule in float32


@dataclass
class ImportReport:
    """What an import took from a checkpoint, and what does not fit.

    Attributes:
        weights: ``ema`` or ``raw``.
        not_averaged: tensors that the EMA does not cover (buffers), taken from the raw weights.
        other_shape: {key: {"checkpoint": shape, "model": shape}}.
        reshaped, trimmed: see :class:`ldm.importing.names.Fit`.
        schedule_confirmed: whether the checkpoint states its schedule, which is then the model's.
    """

    checkpoint: str
    weights: str
    tensors: int
    parameters: int
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    other_shape: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    hints: list[str] = field(default_factory=list)
    not_averaged: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    trimmed: list[str] = field(default_factory=list)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    schedule_confirmed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


class ImportMismatch(CheckpointError):  # noqa: N818 - as OutOfMemory
    """Weights that do not fit: CKPT-MISMATCH, with every key in ``report``."""

    def __init__(self, message: str, report: ImportReport) -> None:
        super().__init__("CKPT-MISMATCH", message)
        self.report = report


@dataclass(frozen=True)
class Imported:
    """A model that was made of a public checkpoint.

    Args:
        folder: that ``Synthesiser.load`` takes.
        model: with the weights.
        config: of it.
        report: what was taken from the checkpoint.
        ignored_yaml: key paths of the YAML that have no meaning here.
        sha256: of ``model.safetensors``.
    """

    folder: Path
    model: Any = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    report: ImportReport
    ignored_yaml: list[str]
    sha256: str


@typed
def import_model(
    checkpoint: str | Path,
    config: str | Path | Sequence[str | Path],
    output: str | Path,
    overrides: Overrides = (),
    *,
    weights: str = "auto",
    overwrite: bool = False,
) -> Imported:
    """Make a model to sample from of the checkpoint of a public implementation.

    Args:
        checkpoint: ``.ckpt``, ``.pt``, ``.pth`` or ``.safetensors``.
        config: YAML of a run whose ``unet_config`` describes its network, or that of a
            latent-diffusion code.
        output: folder for ``model.safetensors`` and ``config.yaml``.
        overrides: of the resulting run.
        weights: ``ema``, ``raw``, or ``auto``: the moving average where there is one.
        overwrite: replace an existing model.

    Raises:
        ImportMismatch: CKPT-MISMATCH, with the report of what does not fit. CheckpointError,
        UnsafeError, ConfigError, OutputError: see :func:`import_checkpoint` and
        :func:`write_imported`.
    """
    one_of("weights", weights, ("auto", "ema", "raw"))
    output = user_path(output)
    require_free(output, overwrite)
    files = [str(file) for file in listed(config)]
    described, unused = read_import_config(files, overrides)
    source = user_path(checkpoint)
    model, report = import_checkpoint(source, described, weights)
    digest = write_imported(output, model, described, source, overwrite)
    return Imported(output, model, described, report, unused, digest)


def import_checkpoint(
    path: Path, config: Mapping[str, Any], weights: str = "auto"
) -> tuple[Any, ImportReport]:
    """Build the model of ``config`` and give it the weights of a public checkpoint.

    Args:
        path: file of the public implementation.
        config: resolved and checked configuration of a run.
        weights: ``ema``, ``raw``, or ``auto`` for the average where there is one.

    Returns:
        The model in eval mode, and what was done.

    Raises:
        ImportMismatch: names or shapes do not fit. CheckpointError: see
            :func:`ldm.importing.files.read_public_checkpoint`; CKPT-UNSUPPORTED (the network needs
            what LatentDiffusion does not give), CKPT-MISMATCH (another schedule or scale, no EMA),
            CKPT-NONFINITE. ConfigError: the model cannot be built.
    """
    content = read_public_checkpoint(path)
    config, study = _of_public(config), read_study(config)
    model = build_model(config, study)
    require_usable(model, study)
    own = model.state_dict()
    selected = _select(content, own, weights, path.name)
    if not any(name.startswith(PRIOR) for name in selected.weights):
        model.prior = None  # which public checkpoints do not have
        own = model.state_dict()
    fit = fit_shapes(selected.weights, own, model.latent_shape[0])
    report = _report(path, model, study.conditions, fit, selected)
    _require_fit(own, fit.weights, report)
    require_finite(fit.weights, path.name)
    report.schedule_confirmed = require_same_schedule(content, model.schedule)
    _require_same_scale(content, model.space.scale_factor)
    model.load_state_dict(fit.weights)
    return model.eval().requires_grad_(False), report


def _select(
    content: PublicCheckpoint, own: Mapping[str, Tensor], weights: str, source: str
) -> Translated:
    """Return the weights to load by own name; ``averages`` are those of them that are EMA."""
    raw = translate(content.raw, own)
    averages = raw.averages or translate(content.ema, own).weights
    if weights == "ema" and not averages:
        raise CheckpointError(
            "CKPT-MISMATCH", f"{source} holds no EMA weights: give --weights=raw, or the other file"
        )
    if weights == "raw" or not averages:
        if raw.averages:
            known = raw.ignored.get("EMA bookkeeping", [])
            raw.ignored["EMA"] = [k for k in content.raw if LIT_EMA in k and k not in known]
        return Translated(raw.weights, {}, raw.ignored)
    return Translated({**raw.weights, **averages}, averages, raw.ignored)


def write_imported(
    folder: Path, model: Any, config: Mapping[str, Any], source: Path, overwrite: bool = False
) -> str:
    """Write ``model.safetensors`` and ``config.yaml``; return the digest after reading it back.

    Raises:
        OutputError: see :func:`ldm.checkpoint.require_free`; OUT-IO.
    """
    require_free(folder, overwrite)
    if model.prior is None and params_of(config["model"]).get("prior_config"):
        config = {**config, "model": with_params(config["model"], {"prior_config": None})}
    config = _of_public(config)
    origin = {"file": source.name, "sha256": sha256(source)}
    facts = {**model.facts(), "imported": origin, "dsdiff": ldm.__version__}
    with claim_model(folder, "import", [source], overwrite) as place:
        write_model_folder(place, config, model.state_dict(), facts)
        return read_model(place / MODEL_FILE)[1]["sha256"]


def _of_public(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration with no learned mean, where it does not say in numbers that one is.

    What ``auto`` stands for in a training says nothing of one that another program made.
    """
    if params_of(config["model"]).get("mean_share") != "auto":
        return config
    return {**config, "model": with_params(config["model"], {"mean_share": 0.0})}


def require_usable(model: Any, study: Study) -> None:
    """Sample one slice of the study in one step, as ``dsdiff sample`` would, with any weights.

    Raises:
        CheckpointError: CKPT-UNSUPPORTED for a network that needs a context or a class, or whose
            images do not have one channel.
    """
    size = study.image_size
    condition = torch.zeros(1, study.channels, *size)
    presence = torch.ones(1, len(study.conditions), dtype=torch.bool)
    problem = None
    try:
        noise = KeyedNoise([(0,)], "cpu")
        image = model.eval().synthesise(condition, presence, noise, "ddim", 1)
        if image.shape != (1, 1, *size):
            problem = f"its images have {image.shape[1]} channels"
    except (ConfigError, RuntimeError) as error:
        if "DefaultCPUAllocator" in str(error):
            raise
        problem = getattr(error, "message", str(error))
    if problem:
        raise CheckpointError(
            "CKPT-UNSUPPORTED",
            "LatentDiffusion gives its network images of one channel, no text and no class; this "
            f"model cannot be used so: {problem}",
        )


def require_same_schedule(content: PublicCheckpoint, schedule: NoiseSchedule) -> bool:
    """Compare the schedule that a checkpoint states, if any, with the model's.

    Returns:
        Whether the checkpoint states one.

    Raises:
        CheckpointError: CKPT-MISMATCH with both schedules.
    """
    seen = _stated(content, "betas")
    cumulative = _stated(content, "alphas_cumprod")
    if seen is None and cumulative is not None:
        seen = 1 - cumulative / torch.cat([cumulative.new_ones(1), cumulative[:-1]])
    if seen is None:
        return False
    if len(seen) != len(schedule) or not torch.allclose(seen, schedule.betas, **TOLERANCE):
        raise CheckpointError(
            "CKPT-MISMATCH",
            f"the checkpoint was trained with {_describe_betas(seen)}, the YAML gives "
            f"{describe_schedule(schedule)}: correct model.params.schedule_config",
        )
    return True


def describe_schedule(schedule: NoiseSchedule) -> str:
    """Return the name, the number of timesteps and the ends of a schedule in words."""
    text = f"{schedule.name}, {len(schedule)} timesteps"
    if schedule.name == "cosine":
        return text
    return f"{text}, linear_start {schedule.linear_start:g}, linear_end {schedule.linear_end:g}"


def _describe_betas(seen: Tensor) -> str:
    first, last = (float(f"{value:.4g}") for value in (seen[0], seen[-1]))
    ends = {"linear_start": first, "linear_end": last}
    for name, params in (("linear", ends), ("scaled_linear", ends), ("cosine", {})):
        with suppress(ConfigError):  # betas that no schedule here can have
            schedule = NoiseSchedule(name, len(seen), **params)
            if torch.allclose(seen, schedule.betas, rtol=1e-3):
                return describe_schedule(schedule)
    return f"an unknown schedule ({len(seen)} timesteps, betas from {first:g} to {last:g})"


def _stated(content: PublicCheckpoint, name: str) -> Tensor | None:
    value = content.raw.get(name)
    return None if value is None else value.double()


def _require_same_scale(content: PublicCheckpoint, scale_factor: float) -> None:
    seen = _stated(content, "scale_factor")
    if seen is not None and abs(seen.item() - scale_factor) > 1e-4 * abs(seen.item()):
        raise CheckpointError(
            "CKPT-MISMATCH",
            f"the checkpoint was trained with scale_factor {seen.item():.6g}, the YAML gives "
            f"{scale_factor:g}: add model.params.scale_factor={seen.item():.6g} after --config",
        )


def _report(
    path: Path, model: Any, conditions: Sequence[str], fit: Fit, selected: Translated
) -> ImportReport:
    own = model.state_dict()
    shapes = {
        name: (list(fit.weights[name].shape), list(own[name].shape))
        for name in sorted(own.keys() & fit.weights.keys())
        if fit.weights[name].shape != own[name].shape
    }
    unexpected = sorted(fit.weights.keys() - own.keys())
    network = {name for name in own if name.startswith(NETWORK)}
    averages = selected.averages.keys()
    return ImportReport(
        checkpoint=path.name,
        weights="ema" if averages else "raw",
        tensors=len(own),
        parameters=sum(p.numel() for p in model.parameters()),
        missing=sorted(own.keys() - fit.weights.keys()),
        unexpected=unexpected,
        other_shape={k: {"checkpoint": a, "model": b} for k, (a, b) in shapes.items()},
        hints=hints(shapes, unexpected, model.latent_shape[0], conditions),
        reshaped=sorted(fit.reshaped),
        trimmed=sorted(fit.trimmed),
        not_averaged=sorted(network & fit.weights.keys() - averages) if averages else [],
        ignored=selected.ignored,
    )


def _require_fit(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], report: ImportReport
) -> None:
    try:
        require_same_state(own, weights, report.checkpoint)
    except CheckpointError as error:
        likely = [*report.hints[:1], error.message]
        raise ImportMismatch("; ".join(likely), report) from None
