"""What is asked of a model that samples: one object for the command line and for Python."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from ldm.errors import CheckpointError, ConfigError, bad_value, nearest, one_of
from ldm.ranges import COUNT, RANGES, Range

if TYPE_CHECKING:  # the help of a verb imports this module, and no torch
    from ldm.study import Study

log = logging.getLogger(__name__)

NOISES = ("slice", "smooth", "patient")  # of :func:`ldm.models.diffusion.noise.slice_noise`
PRECISIONS = ("auto", "32", "bf16")
NONFINITE = ("refuse", "zero")
RUNTIMES = ("torch", "compile", "onnx")
DEVIATIONS = ("error", "samples")
SPANS = {"temperature": Range(0), "rescale": Range(0, 1), "eta": Range(0, 1)}
SPANS |= {"overlap": Range(0, 0.9), "guidance": Range(0), "enhancement": Range(0, 10)}
SPANS["spread"] = RANGES["spread"]
SWEPT_STEPS = (1, 2, 4, 8, 16, 32)
SWEPT_SAMPLERS = ("ddim", "dpmpp_2m", "unipc_3", "heun")
DRAWING = 3  # one more whenever the same request draws other samples
SAMPLER_OPTIONS = ("eta", "guidance", "rescale", "enhancement", "spread")


@dataclass(frozen=True)
class Request:
    """What is asked of a model; None: as its configuration says.

    Args:
        sampler: a name of :data:`ldm.models.diffusion.samplers.SAMPLERS`.
        steps: of the sampler.
        eta: of DDIM: 0 deterministic to 1 as DDPM.
        guidance: above 1 exaggerates what the conditions say (a model trained with ``drop_all``),
            see :func:`ldm.models.diffusion.guidance.guide`.
        rescale: share, 0 to 1, of the contrast that guidance adds which is taken back.
        enhancement: factor of what the prior of a model changes, see :mod:`ldm.models.prior`.
        spread: how far samples lie from the posterior mean; 1: as far as data of unit variance, see
            :mod:`ldm.models.diffusion.spread`.
        seed: of the noise, 0 or more and below 2**63.
        samples: this many are averaged, and their deviation is returned too; with a spread every
            second one has the noise of the one before with the other sign.
        deviation: of several samples: of the ``error`` of their mean, where the training has
            learned it (:mod:`ldm.models.diffusion.error_model`), or of the ``samples`` alone.
        temperature: standard deviation of the noise; 1 samples from the model, 0 gives one image
            close to the conditional mean. None: the model's, and 1 of several samples.
        precision: of the network: ``32``, ``bf16``, or ``auto``: bf16 where the device multiplies
            in it, see :func:`ldm.environment.resolve_weights`.
        overlap: of the windows of a model of volumes, along each axis, 0 to 0.9.
        noise: ``slice``, ``smooth`` or ``patient``, see
            :func:`ldm.models.diffusion.noise.slice_noise`.
        target: the contrast to make, of a model that makes any (configs/any_missing.yaml); None:
            the one that a patient lacks.
        allow_missing: contrasts that may be absent (a model trained with condition_dropout).
        runtime: what calls the network: ``torch``; ``compile``, torch.compile, with CUDA graphs on
            a GPU; or ``onnx`` in fp32, for a folder that ``dsdiff export --onnx`` wrote.
        nonfinite: ``refuse`` NaN and infinity in an input, or set them to ``zero``.
        batch_size: slices, or windows of a volume, at once; changes no voxel beyond rounding.

    Raises:
        ConfigError: CONFIG-VALUE.
    """

    sampler: str | None = None
    steps: int | None = None
    eta: float | None = None
    guidance: float | None = None
    rescale: float | None = None
    enhancement: float | None = None
    spread: float | None = None
    seed: int = 0
    samples: int = 1
    deviation: str = "error"
    temperature: float | None = None
    precision: str = "auto"
    overlap: float | None = None
    noise: str = "slice"
    target: str | None = None
    allow_missing: Sequence[str] = ()
    nonfinite: str = "refuse"
    runtime: str = "torch"
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "steps", "seed"):
            value = getattr(self, name)
            if value is None and name == "steps":
                continue
            span = RANGES["seed"] if name == "seed" else COUNT
            if not isinstance(value, Integral) or int(value) not in span:
                raise bad_value(f"{name} is {value!r}: give a whole number, {span}")
            object.__setattr__(self, name, int(value))  # of numpy too, for JSON
        for name, span in SPANS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, Real) or float(value) not in span:
                raise bad_value(f"{name} is {value!r}: give {span}")
            object.__setattr__(self, name, float(value))
        missing = self.allow_missing
        listed = (missing,) if isinstance(missing, str) else tuple(missing)
        object.__setattr__(self, "allow_missing", listed)
        known = {"precision": PRECISIONS, "noise": NOISES, "nonfinite": NONFINITE}
        known |= {"runtime": RUNTIMES, "deviation": DEVIATIONS}
        for name, values in known.items():
            one_of(name, getattr(self, name), values)
        if self.runtime == "onnx" and self.precision == "bf16":
            raise bad_value(
                "precision is bf16, and an ONNX file computes in 32: give --precision 32"
            )

    @property
    def options(self) -> dict[str, float]:
        """The options of the sampler that are given."""
        given = {name: getattr(self, name) for name in SAMPLER_OPTIONS}
        return {name: value for name, value in given.items() if value is not None}

    def changed(self, **options: Any) -> Request:
        """Return the request with other values.

        Raises:
            ConfigError: CONFIG-UNKNOWN, CONFIG-VALUE.
        """
        for name in options:
            if name not in OPTIONS:
                raise ConfigError(
                    "CONFIG-UNKNOWN",
                    f"'{name}' is no option of sampling{nearest(name, OPTIONS)}: known are "
                    f"{', '.join(OPTIONS)}",
                )
        return replace(self, **options)

    def met_by(self, model: Any, study: Study) -> tuple[Request, int]:
        """Return the request as a model answers it, and how often the network is called for it.

        Raises:
            ConfigError: CONFIG-VALUE, the model cannot meet it. CheckpointError: CKPT-MISMATCH, it
                always saw a contrast of ``allow_missing``.
        """
        require_missing_allowed(study, self.allow_missing)
        if self.target is not None:
            one_of("target", self.target, study.targets)
        request = self.of(model)
        asked = {name: getattr(request, name) for name in ("steps", "sampler", "temperature")}
        return request, model.network_calls(**asked, **request.options)

    def of(self, model: Any) -> Request:
        """Return the request with the model's own values where none is given.

        Raises:
            ConfigError: CONFIG-VALUE for what has no meaning for the model.
        """
        if model.tiling and self.noise != "slice":
            raise bad_value(
                f"noise is {self.noise}, but this model samples whole volumes, each from one noise "
                "volume: leave it out"
            )
        if not model.tiling and self.overlap is not None:
            raise bad_value(
                f"overlap is {self.overlap}, but this model samples slices, which have no windows: "
                "leave it out"
            )
        temperature = 1.0 if self.samples > 1 else model.temperature
        temperature = temperature if self.temperature is None else self.temperature
        steps = model.sampling_steps if self.steps is None else self.steps
        if self.spread is not None and not temperature:
            raise bad_value(
                f"spread is {self.spread}, but at temperature 0 there is one image, the mean: give "
                "temperature 1, or leave spread out"
            )
        if self.samples > 1 and not temperature:
            log.warning(
                "%d samples are all alike: at temperature 0 there is no noise", self.samples
            )
        elif self.samples > 1 and steps == 1 and model.knows_mean:
            log.warning(
                "%d samples of one step are all alike: from noise alone one step gives the mean; "
                "give steps 2 or more",
                self.samples,
            )
        overlap = model.tiling.overlap if model.tiling else None
        return replace(
            self,
            sampler=self.sampler or model.sampler,
            steps=steps,
            temperature=temperature,
            overlap=overlap if self.overlap is None else self.overlap,
            spread=model.spread(self.spread, steps, temperature),
        )

    def to_dict(self, digest: str) -> dict[str, Any]:
        """Return what decides the voxels, beside the input, as written in a sidecar.

        Args:
            digest: of the model's weights.
        """
        names = ("sampler", "steps", "seed", "samples", "temperature", "precision")
        described = {name: getattr(self, name) for name in names}
        described |= {"model_digest": digest, "options": self.options}
        since = {
            "overlap": None,
            "noise": "slice",
            "nonfinite": "refuse",
            "runtime": "torch",
        }  # written only where there is something to say
        if self.samples > 1 and self.spread is not None:
            described["mirrored"] = True  # every second noise is that of the one before, negative
        if self.temperature:
            described["drawing"] = DRAWING
        return described | {
            name: value for name, none in since.items() if (value := getattr(self, name)) != none
        }


def require_missing_allowed(study: Study, contrasts: Sequence[str]) -> None:
    """Refuse to leave out contrasts that a model always saw.

    Raises:
        CheckpointError: CKPT-MISMATCH.
    """
    if contrasts and not study.data.get("condition_dropout"):
        raise CheckpointError(
            "CKPT-MISMATCH",
            "the model was trained with every contrast: --allow-missing needs a model trained "
            "with data.params.condition_dropout > 0",
        )


OPTIONS = tuple(field.name for field in fields(Request))
