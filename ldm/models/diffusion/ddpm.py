"""Latent diffusion of one contrast given others, with any denoising backbone.

``DiffusionWrapper`` is the border between the diffusion process and a backbone: conditioning, sizes
and precision. ``LatentDiffusion`` is the LightningModule that trains and samples it.
``OneStepRegression`` is the honest baseline: the same network, called once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.losses.pointwise import POINTWISE_LOSSES
from ldm.models.base import Config, RunModule, places
from ldm.models.diffusion.bound import LOSSES, diffusion_loss
from ldm.models.diffusion.gaussian import (
    LEARNED,
    LOSS_WEIGHTS,
    VARIANCES,
    check_parameterisation,
    q_sample,
    split_output,
    to_x_0,
)
from ldm.models.diffusion.guidance import THRESHOLDS, guide
from ldm.models.diffusion.latent_cache import LatentCache
from ldm.models.diffusion.noise import KeyedNoise
from ldm.models.diffusion.samplers import get_sampler, network_calls
from ldm.models.diffusion.schedule import Schedule
from ldm.models.diffusion.tiling import Tiling
from ldm.modules.diffusionmodules.util import crop_to, pad_to_multiple
from ldm.storage import stable_seed
from ldm.util import (
    image_sides,
    instantiate_from_config,
    nearest,
    require_dims,
    resolve_target,
)

log = logging.getLogger(__name__)


# How a network gets the conditions: whether they follow the noisy channels, and the argument and
# encoder of what it gets beside them (the names are latent-diffusion's).
CONDITIONING: dict[str, tuple[bool, str | None, str | None]] = {
    "concat": (True, None, None),
    "crossattn": (False, "context", "ldm.modules.condition.ConditionTokens"),
    "hybrid": (True, "context", "ldm.modules.condition.ConditionTokens"),
    "adm": (False, "y", "ldm.modules.condition.ConditionVector"),
}
WIDTH_NAMES = {"context": "context_dim", "y": "adm_in_channels"}


class DiffusionWrapper(nn.Module):
    """Calls a backbone: gives it the conditions, pads to a size it can divide, keeps fp32 outside.

    Args:
        unet_config: ``target`` / ``params`` of the backbone.
        interface: facts for its constructor: ``out_channels``, ``image_size``, ``dims`` (number of
            spatial axes), ``stream_channels`` (of one contrast), ``condition_names`` (in channel
            order), ``in_channels``, and where conditions are encoded ``context_dim`` or
            ``adm_in_channels``. A class that uses other names says so in its attribute
            ``interface``: {own name: fact}. For volumes a class must know ``dims``.
        conditioning_key: ``concat``: the conditions follow the noisy channels; ``crossattn``: they
            are tokens, the backbone's ``context``; ``hybrid``: both; ``adm``: a vector, its ``y``.
        cond_stage_config: ``target`` / ``params`` of what encodes the conditions, trained with the
            backbone: a module with ``in_channels`` and an attribute ``width``. By default
            :class:`ldm.modules.condition.ConditionTokens` or ``ConditionVector``.
    """

    def __init__(
        self,
        unet_config: Config,
        interface: Config,
        conditioning_key: str = "concat",
        cond_stage_config: Config | None = None,
    ) -> None:
        super().__init__()
        _require("conditioning_key", conditioning_key, CONDITIONING)
        self.concatenates, self.encoded_as, encoder = CONDITIONING[conditioning_key]
        facts, self.cond_stage_model = dict(interface), None
        self.out_channels = interface["out_channels"]
        noisy = interface.get("stream_channels", self.out_channels)
        dims = interface.get("dims", 2)
        if self.encoded_as:
            where = "model.params.cond_stage_config"
            config = cond_stage_config or {"target": encoder}
            require_dims(resolve_target(config, where), dims, ["dims"], where)
            self.cond_stage_model = instantiate_from_config(
                config,
                where=where,
                interface={"in_channels": interface["in_channels"] - noisy, "dims": dims},
            )
            facts[WIDTH_NAMES[self.encoded_as]] = self.cond_stage_model.width
        if not self.concatenates:
            facts["in_channels"] = noisy
        where = "model.params.unet_config"
        # A class may know a fact by another name: a multi-stream network counts channels a stream.
        cls = resolve_target(unet_config, where)
        renamed = getattr(cls, "interface", {})
        require_dims(cls, dims, ["dims", *(n for n, f in renamed.items() if f == "dims")], where)
        facts |= {own: facts[fact] for own, fact in renamed.items()}
        self.diffusion_model = instantiate_from_config(unet_config, where=where, interface=facts)
        self.size_divisor = getattr(self.diffusion_model, "size_divisor", 1)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return the backbone's float32 output (B, C_out, *S) for x_t (B, C, *S) at t (B,)."""
        x, encoded = self.inputs(x_t, condition)
        return self.image(self.diffusion_model(x, t, **encoded), x_t, x)

    def forward_with_features(
        self, x_t: Tensor, t: Tensor, condition: Tensor
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Return the output of ``forward`` and the features of a backbone that disentangles."""
        x, encoded = self.inputs(x_t, condition)
        output, features = self.diffusion_model.forward_with_features(x, t, **encoded)
        return self.image(output, x_t, x), features

    @property
    def gives_features(self) -> bool:
        """Whether the backbone has ``forward_with_features``."""
        return hasattr(self.diffusion_model, "forward_with_features")

    def inputs(self, x_t: Tensor, condition: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the image that the backbone takes, and ``context`` or ``y``, in its dtype."""
        x = torch.cat([x_t, condition], dim=1) if self.concatenates else x_t
        dtype = next(self.diffusion_model.parameters()).dtype
        encoded = {}
        if self.encoded_as:
            encoded[self.encoded_as] = self.cond_stage_model(condition).to(dtype)
        return pad_to_multiple(x, self.size_divisor).to(dtype), encoded

    def image(self, output: Any, x_t: Tensor, x: Tensor) -> Tensor:
        """Return the backbone's output for the padded x in the size of x_t, in float32.

        Raises:
            ConfigError: CONFIG-SHAPE; a loss would broadcast another shape and train on nonsense.
        """
        expected = (len(x_t), self.out_channels, *x.shape[2:])
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if given != expected:
            raise ConfigError(
                "CONFIG-SHAPE",
                f"{type(self.diffusion_model).__name__} returned {given} for {tuple(x.shape)}: "
                f"expected one tensor {expected}; where it has learn_sigma, set it to false",
            )
        return crop_to(output, x_t.shape[2:]).float()


class LatentDiffusion(RunModule):
    """Denoising diffusion of the target contrast in the space of a first stage.

    Images are slices (H, W) or, in pixel space, patches (D, H, W) of volumes. A volume larger than
    a patch is sampled as a whole, see :class:`ldm.models.diffusion.tiling.Tiling`.

    Args:
        unet_config: the backbone; channels and image size are passed in.
        conditions: input contrasts, in channel order.
        image_size: side or [H, W] of the training slices, or [D, H, W] of patches.
        neighbours: slices on each side that join the conditions.
        subtract: a condition, such as ``t1``: what is diffused is then the subtraction image
            (target minus this contrast) times ``gain``; None: the target itself. Both contrasts
            are normalised by healthy tissue, so the subtraction image is about 0 but for what
            enhances; a network that returns 0 gives the contrast itself, and the errors of the
            network shrink by ``gain``.
        sparsity: weight of the mean absolute predicted x_0 in the loss. With ``subtract`` and l1
            it moves the prediction from the median to the quantile 0.5 - sparsity / 2 on the side
            of no enhancement: what is not likely to enhance is left as it is, which is what a
            model of few training patients needs most.
        gain: see ``subtract``; brings the subtraction image to about unit variance.
        parameterization: what the backbone predicts: ``eps``, ``x0``, ``v`` or ``flow``.
        loss_type: ``l1``, ``l2`` or ``charbonnier``.
        loss_weight: weight over timesteps, ``min_snr``, ``p2`` or ``truncated_snr``; None: all
            outputs alike.
        variance: of the reverse step; ``learned`` and ``learned_range`` double the channels of the
            backbone's output, which the variational bound trains.
        bound: its share, see :func:`~ldm.models.diffusion.bound.diffusion_loss`.
        timesteps_config: ``target`` / ``params`` of the sampler of training timesteps.
        drop_all: probability that a training item loses all its conditions, for guidance.
        threshold: of predicted images in pixel space: ``clip``, ``dynamic`` or ``none``.
        loss_config: further losses {name: ``target`` / ``params``} on the features of a backbone
            that disentangles; each returns weighted terms, which are added and logged by name.
        schedule_config: ``target`` / ``params`` of the noise schedule.
        first_stage_config: ``target`` / ``params`` of the first stage.
        scale_factor: latents are multiplied by it; None: the number that was measured when the
            first stage was trained (1 in pixel space).
        cache_latents: encode each training slice once and keep its latents in memory (of each
            process); for data without augmentation.
        conditioning_key, cond_stage_config: see :class:`DiffusionWrapper`.
        optimizer_config: ``target`` / ``params`` of a torch optimizer.
        warmup_steps: steps over which the learning rate rises linearly.
        sampler, sampling_steps, temperature: used in validation, and by default by
            ``dsdiff sample`` (for the temperature see :class:`KeyedNoise`).
        seed: seed of the training noise, which is a function of (seed, rank, step).

    Attributes:
        last_fit: timesteps (B,) of the last training batch and the loss (B,) at each.
    """

    has_reverse_steps = True  # whose variance may be learned
    next_command = "dsdiff sample {run} --input SUBJECTS --output PREDICTIONS"

    def __init__(
        self,
        unet_config: Config,
        conditions: Sequence[str] = ("t1", "t2", "flair"),
        image_size: int | list[int] = 192,
        neighbours: int = 0,
        subtract: str | None = None,
        gain: float = 1.0,
        sparsity: float = 0.0,
        parameterization: str = "x0",
        loss_type: str = "l2",
        loss_weight: str | None = None,
        variance: str = "fixed_small",
        bound: str = "rescaled_mse",
        timesteps_config: Config | None = None,
        drop_all: float = 0.0,
        threshold: str = "clip",
        loss_config: Mapping[str, Config | None] | None = None,
        schedule_config: Config | None = None,
        first_stage_config: Config | None = None,
        scale_factor: float | None = None,
        cache_latents: bool = False,
        conditioning_key: str = "concat",
        cond_stage_config: Config | None = None,
        optimizer_config: Config | None = None,
        warmup_steps: int = 100,
        sampler: str = "ddim",
        sampling_steps: int = 20,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer_config, warmup_steps, seed)
        _require("loss_type", loss_type, POINTWISE_LOSSES)
        _require("variance", variance, VARIANCES)
        _require("bound", bound, LOSSES)
        _require("threshold", threshold, THRESHOLDS)
        if loss_weight is not None:
            _require("loss_weight", loss_weight, LOSS_WEIGHTS)
        get_sampler(sampler)
        if subtract is not None and subtract not in conditions:
            raise ConfigError(
                "CONFIG-VALUE",
                f"model.params.subtract is '{subtract}': expected one of {', '.join(conditions)}",
            )
        self.conditions, self.image_size = tuple(conditions), image_sides(image_size)
        self.slices = 2 * neighbours + 1
        self.parameterization = parameterization
        self.loss = POINTWISE_LOSSES[loss_type]
        self.schedule: Schedule = instantiate_from_config(
            schedule_config or {"target": "ldm.models.diffusion.schedule.NoiseSchedule"},
            where="model.params.schedule_config",
        )
        check_parameterisation(parameterization, self.schedule)
        self.loss_weight, self.bound = loss_weight, bound
        self.variance = variance if self.has_reverse_steps else "fixed_small"
        self.drop_all, self.threshold = drop_all, THRESHOLDS[threshold]
        self.timesteps = instantiate_from_config(
            timesteps_config or {"target": "ldm.models.diffusion.timesteps.UniformTimesteps"},
            where="model.params.timesteps_config",
            interface={"timesteps": len(self.schedule)},
        )
        self.first_stage_model = instantiate_from_config(
            first_stage_config or {"target": "ldm.models.autoencoder.IdentityFirstStage"},
            where="model.params.first_stage_config",
        ).requires_grad_(False)
        if scale_factor is None:
            scale_factor = getattr(self.first_stage_model, "scale_factor", 1.0)
        self.scale_is_known, self.scale_factor = scale_factor is not None, scale_factor or 1.0
        self.latent_cache = LatentCache() if cache_latents else None
        channels = self.first_stage_model.latent_channels
        self.gain, self.sparsity, self.anchor_channels = gain, sparsity, None
        if subtract is not None:
            first = (neighbours * len(conditions) + list(conditions).index(subtract)) * channels
            self.anchor_channels = slice(first, first + channels)
        divisor = self.first_stage_model.downsampling
        size = tuple(-(-n // divisor) for n in image_sides(image_size))  # images are padded
        self.tiling = Tiling(size) if len(size) == 3 else None
        if self.tiling and (divisor > 1 or cache_latents):
            raise ConfigError(
                "CONFIG-VALUE",
                f"image_size is {image_size}: volumes are diffused in pixel space and not cached; "
                "give two numbers, or the IdentityFirstStage and cache_latents=false",
            )
        self.model = DiffusionWrapper(
            unet_config,
            {
                "in_channels": channels * (1 + len(conditions) * (2 * neighbours + 1)),
                "out_channels": channels * (2 if self.variance in LEARNED else 1),
                "image_size": size[0] if len(set(size)) == 1 else size,
                "dims": len(size),
                "stream_channels": channels,
                "condition_names": list(conditions) * (2 * neighbours + 1),
            },
            conditioning_key,
            cond_stage_config,
        )
        self.latent_shape = (channels, *size)
        self.feature_losses = self._feature_losses(loss_config or {})
        self.sampler, self.sampling_steps, self.temperature = sampler, sampling_steps, temperature
        self.last_fit: tuple[Tensor, Tensor] | None = None

    @property
    def network(self) -> nn.Module:
        """The backbone in its wrapper."""
        return self.model

    @torch.no_grad()
    def network_inputs(self, batch: int = 1) -> Sequence[Tensor]:
        """Return blank (x_t, t, condition) as ``model`` takes them."""
        contrasts = len(self.conditions)
        images = torch.zeros(batch, contrasts * self.slices, *self.image_size)
        condition = self.encode_condition(images, torch.ones(batch, contrasts, dtype=torch.bool))
        return (
            torch.zeros(batch, *self.latent_shape),
            torch.zeros(batch, dtype=torch.long),
            condition,
        )

    def check_start(self, data: Any) -> None:
        """Refuse a first stage without weights, report one that was trained on held-out patients.

        Raises:
            ConfigError: CONFIG-MISSING (weights, scale), CONFIG-VALUE (cache of augmented slices).
        """
        first = self.first_stage_model
        if not getattr(first, "trained", True):
            raise ConfigError(
                "CONFIG-MISSING",
                "the first stage has no weights: give "
                "model.params.first_stage_config.params.path=RUN, a trained autoencoder",
            )
        if not self.scale_is_known:
            raise ConfigError(
                "CONFIG-MISSING",
                "the scale of the first stage's latents is not known: give "
                "model.params.scale_factor, 1 / the standard deviation of its latents",
            )
        if self.latent_cache is not None and data.augmentation_config:
            raise ConfigError(
                "CONFIG-VALUE",
                "model.params.cache_latents keeps one version of a slice, but slices are "
                "augmented: give data.params.augmentation_config=null too",
            )
        held_out = {*data.split["val"], *data.split["test"]}
        if seen := sorted(held_out & set(getattr(first, "train_subjects", ()))):
            log.warning("the first stage was trained on held-out patients: %s", ", ".join(seen))

    def portable_params(self) -> dict[str, Any]:
        """Return the first stage without its file: the run's own weights hold it."""
        first = getattr(self.first_stage_model, "portable_config", None)
        return {"first_stage_config": first, "scale_factor": self.scale_factor} if first else {}

    def facts(self) -> dict[str, Any]:
        """Return the noise schedule and, in latent space, the scale."""
        scale = (
            {"scale_factor": self.scale_factor} if self.first_stage_model.downsampling > 1 else {}
        )
        return {"schedule": self.schedule.to_dict(), **scale}

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Set the mode of the backbone; the first stage is never in training mode."""
        super().train(mode)
        self.first_stage_model.eval()
        return self

    def _feature_losses(self, loss_config: Mapping[str, Config | None]) -> nn.ModuleDict:
        wanted = {name: node for name, node in loss_config.items() if node}
        if wanted and not self.model.gives_features:
            raise ConfigError(
                "CONFIG-VALUE",
                f"model.params.loss_config.{next(iter(wanted))} needs a backbone with features, "
                f"which {type(self.model.diffusion_model).__name__} does not give: set it to null, "
                "or choose UNet_DS_Diff.model.DSUnetModel or guided_diffusion.unet.UNet_disc_Model",
            )
        return nn.ModuleDict(
            (name, instantiate_from_config(node, where=f"model.params.loss_config.{name}"))
            for name, node in wanted.items()
        )

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents (B, M*C, *s) of images (B, M, *S), each encoded by itself.

        Sizes that the first stage cannot divide are padded.
        """
        single = images.flatten(0, 1).unsqueeze(1)  # (B*M, 1, *S)
        encoded = self.first_stage_model.encode(
            pad_to_multiple(single, self.first_stage_model.downsampling)
        )
        latents = encoded if isinstance(encoded, Tensor) else encoded.mode()  # means, not samples
        return (latents.float() * self.scale_factor).unflatten(0, images.shape[:2]).flatten(1, 2)

    def decode(self, latents: Tensor, size: Sequence[int]) -> Tensor:
        """Return the images (B, 1, *size) of latents (B, C, *s)."""
        return crop_to(self.first_stage_model.decode(latents / self.scale_factor), size).float()

    def encode_condition(self, condition: Tensor, presence: Tensor) -> Tensor:
        """Return the latents of condition (B, N*M, *S) of which ``presence`` (B, M) says what is.

        An absent contrast is 0 everywhere, whatever its channel held; a black image would be -1.
        """
        repeats = condition.shape[1] // presence.shape[1]
        mask = presence.repeat(1, repeats)[(..., *[None] * (condition.ndim - 2))]
        return self.encode(torch.where(mask, condition, 0.0))

    def encode_batch(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the encoded conditions and x_0 of a batch."""
        if self.latent_cache is not None and self.training:
            condition, target = self.latent_cache.encode(batch, self.encode)
        else:
            condition = self.encode_condition(batch["condition"], batch["presence"])
            target = self.encode(batch["target"])
        return condition, self.to_data(target, condition)

    def to_data(self, latents: Tensor, condition: Tensor) -> Tensor:
        """Return what is diffused, x_0, for latents of the target and the encoded conditions."""
        if self.anchor_channels is None:
            return latents
        return (latents - condition[:, self.anchor_channels]) * self.gain

    def from_data(self, x_0: Tensor, condition: Tensor) -> Tensor:
        """Undo :meth:`to_data`."""
        if self.anchor_channels is None:
            return x_0
        return x_0 / self.gain + condition[:, self.anchor_channels]

    def batch_loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the training loss of a batch by component; ``loss`` is the sum to minimise."""
        condition, x_0 = self.encode_batch(batch)
        t, importance = (drawn.to(x_0.device) for drawn in self.timesteps.draw(len(x_0)))
        eps = torch.randn(x_0.shape).to(x_0.device)
        x_t = q_sample(x_0, t, eps, self.schedule)
        output, terms = self.output_and_feature_losses(x_t, t, self.drop(condition))
        fit = diffusion_loss(
            self.bound,
            self.parameterization,
            output,
            x_0,
            eps,
            t,
            self.schedule,
            variance=self.variance,
            pointwise=self.loss,
            weight=self.weight(x_t, t),
        )["loss"]
        if self.training:
            self.timesteps.update(t, fit.detach())
            self.last_fit = t, fit.detach()
        prediction, _ = split_output(output, self.variance)
        predicted = to_x_0(self.parameterization, prediction, x_t, t, self.schedule)
        return self.total_loss((importance * fit).mean(), predicted, terms)

    def weight(self, x_t: Tensor, t: Tensor) -> Tensor | float:
        """Return the weight (B, 1, ...) of the error of the output at timesteps t (B,)."""
        if self.loss_weight is None:
            return 1.0
        return LOSS_WEIGHTS[self.loss_weight](self.parameterization, x_t, t, self.schedule)

    def drop(self, condition: Tensor) -> Tensor:
        """Return the conditions as training shows them: now and then none of an item's."""
        if not self.drop_all or not self.training:
            return condition
        kept = torch.rand(len(condition)).to(condition.device) >= self.drop_all
        return condition * kept.view(-1, *[1] * (condition.ndim - 1))

    def output_and_feature_losses(
        self, x_t: Tensor, t: Tensor, condition: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the network's output, and the weighted losses of its features by name."""
        if not self.feature_losses:
            return self.model(x_t, t, condition), {}
        output, features = self.model.forward_with_features(x_t, t, condition)
        terms: dict[str, Tensor] = {}
        for loss in self.feature_losses.values():
            terms |= loss(features)
        return output, terms

    def total_loss(
        self, fit: Tensor, predicted: Tensor, terms: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return ``loss`` and the weighted components that it is the sum of.

        Args:
            fit: misfit of the output.
            predicted: x_0 that it stands for.
            terms: weighted losses of the features.
        """
        components = {"fit": fit, **terms}
        if self.sparsity:
            components["sparsity"] = self.sparsity * predicted.abs().mean()
        total = {"loss": sum(components.values())}
        return total | components if len(components) > 1 else total

    def output(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return the backbone's output (B, C_out, *s), of a volume in windows.

        All parameterisations are affine in x_0, so the mean of outputs is that of their x_0.
        """
        if self.tiling:
            return self.tiling(self.model, x_t, t, condition)
        return self.model(x_t, t, condition)

    def denoiser(
        self, condition: Tensor, guidance: float = 1.0, rescale: float = 0.0, learned: bool = False
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return ``denoise(x_t, t) -> x_0`` given encoded conditions: what a sampler calls.

        With ``learned`` the channels of the variance follow those of x_0.
        """

        def given(condition: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda x_t, t: self.output(x_t, t, condition)

        network = guide(given(condition), given(torch.zeros_like(condition)), guidance, rescale)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            output, values = split_output(network(x_t, t), self.variance)
            x_0 = to_x_0(self.parameterization, output, x_t, t, self.schedule)
            if self.first_stage_model.downsampling == 1:  # latents have no known range
                image = self.threshold(self.from_data(x_0, condition))
                x_0 = self.to_data(image, condition)
            return torch.cat([x_0, values], dim=1) if learned else x_0

        return denoise

    @torch.no_grad()
    def synthesise(
        self,
        condition: Tensor,
        presence: Tensor,
        noise: KeyedNoise,
        sampler: str | None = None,
        steps: int | None = None,
        **options: Any,
    ) -> Tensor:
        """Sample images (B, 1, *S) in [-1, 1] given condition (B, N*M, *S), presence (B, M).

        Args:
            noise: all randomness; one key an item.
            sampler, steps: None means the model's own.
            **options: ``guidance`` and ``rescale`` (see :func:`~.guidance.guide`); the others go to
                the sampler (``eta``, ``callback``, ...).
        """
        latents = self.encode_condition(condition, presence)
        x_0 = self.generate(latents, noise, sampler, steps, **options)
        return self.decode(self.from_data(x_0, latents), condition.shape[2:]).clamp(-1, 1)

    def generate(
        self,
        latents: Tensor,
        noise: KeyedNoise,
        sampler: str | None,
        steps: int | None,
        guidance: float = 1.0,
        rescale: float = 0.0,
        **options: Any,
    ) -> Tensor:
        """Return x_0 (B, C, *s) given encoded conditions; see :meth:`synthesise`."""
        x_T = noise.draw((self.latent_shape[0], *latents.shape[2:]))
        name = sampler or self.sampler
        if name == "ddpm":
            options = {"variance": self.variance, **options}
        sample = get_sampler(name, noise=noise, **options)
        learned = options.get("variance") in LEARNED  # only DDPM asks for it
        denoise = self.denoiser(latents, guidance, rescale, learned)
        steps = self.sampling_steps if steps is None else steps
        return sample(denoise, x_T, self.schedule, steps)

    def network_calls(
        self, steps: int, sampler: str | None = None, guidance: float = 1.0, **options: Any
    ) -> int:
        """Return how often the backbone runs for one slice, or window; see :meth:`synthesise`.

        Raises:
            ConfigError: CONFIG-VALUE for guidance of a model that never saw conditions dropped;
                what :func:`get_sampler` raises.
        """
        if guidance != 1 and not self.drop_all:
            raise ConfigError(
                "CONFIG-VALUE",
                f"guidance is {guidance}, but in training no item lost all its conditions: give 1, "
                "or a model trained with model.params.drop_all=0.1",
            )
        options.pop("rescale", None)
        once = network_calls(sampler or self.sampler, self.schedule, steps, **options)
        return once if guidance in (0, 1) else 2 * once

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what the sampler of timesteps has learned."""
        checkpoint["timesteps"] = self.timesteps.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it; a checkpoint of before there was one starts it anew."""
        if "timesteps" in checkpoint:
            self.timesteps.load_state_dict(checkpoint["timesteps"])

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Log the loss and the quality of sampled slices; return them for pictures."""
        keys = [(self.seed, *key) for key in places(batch)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(self.seed, "validation", batch_idx))
            loss = self.batch_loss(batch)["loss"]
        synthetic = self.synthesise(
            batch["condition"],
            batch["presence"],
            KeyedNoise(keys, self.device, self.temperature),
        )
        self.log_validation(loss, synthetic, batch)
        return {"synthetic": synthetic}

    @torch.no_grad()
    def features(self, batch: Mapping[str, Any]) -> dict[str, list[Tensor]]:
        """Return what the backbone disentangles of a batch, {kind: [(B, C, *S) a stream]}.

        Empty for a backbone without features. The noisy image is that of the middle timestep, its
        noise a function of the slices.
        """
        if not self.model.gives_features:
            return {}
        condition, x_0 = self.encode_batch(batch)
        t = torch.full((len(x_0),), len(self.schedule) // 2, device=x_0.device)
        keys = [(self.seed, *key) for key in places(batch)]
        eps = KeyedNoise(keys, self.device).draw(tuple(x_0.shape[1:]))
        x_t = q_sample(x_0, t, eps, self.schedule)
        features = self.model.forward_with_features(x_t, t, condition)[1]
        return {kind: maps for kind, maps in features.items() if maps}


class OneStepRegression(LatentDiffusion):
    """The same backbone trained to return the target in one call: the baseline of every table.

    The noisy channels are 0 and the timestep is the last, so that network, conditioning and data
    are those of the diffusion model that it is compared with.
    """

    has_reverse_steps = False

    def blank_inputs(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return blank noisy channels (B, C, *s), the last timestep (B,), and the conditions."""
        batch, size = len(condition), condition.shape[2:]
        blank = condition.new_zeros(batch, self.latent_shape[0], *size)
        t = torch.full((batch,), len(self.schedule) - 1, device=condition.device)
        return blank, t, condition

    def batch_loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the loss between prediction and target."""
        condition, x_0 = self.encode_batch(batch)
        predicted, terms = self.output_and_feature_losses(*self.blank_inputs(condition))
        return self.total_loss(self.loss(predicted, x_0).mean(), predicted, terms)

    def generate(self, latents: Tensor, *args: Any, **options: Any) -> Tensor:
        """Return the prediction; noise, sampler and steps have no effect."""
        return self.output(*self.blank_inputs(latents))

    def network_calls(self, steps: int, sampler: str | None = None, **options: Any) -> int:
        """Return 1."""
        return 1


def _require(name: str, value: str, known: Mapping[str, Any]) -> None:
    if value not in known:
        raise ConfigError(
            "CONFIG-VALUE",
            f"model.params.{name} is '{value}'{nearest(value, known)}: expected {', '.join(known)}",
        )
