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
from ldm.models.diffusion.gaussian import PARAMETERISATIONS, q_sample, target_of, to_x_0
from ldm.models.diffusion.latent_cache import LatentCache
from ldm.models.diffusion.noise import KeyedNoise
from ldm.models.diffusion.samplers import get_sampler
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.modules.diffusionmodules.util import crop_to, pad_to_multiple
from ldm.storage import stable_seed
from ldm.util import as_pair, instantiate_from_config, nearest, resolve_target

log = logging.getLogger(__name__)


class DiffusionWrapper(nn.Module):
    """Calls a backbone: joins the conditions, pads to a size it can divide, keeps float32 outside.

    Args:
        unet_config: ``target`` / ``params`` of the backbone.
        interface: facts for its constructor: ``in_channels``, ``out_channels``, ``image_size``,
            ``stream_channels`` (of one contrast), ``condition_names`` (in channel order). A class
            that uses other names says so in its attribute ``interface``: {own name: fact}.
        conditioning_key: ``concat``: the conditions follow the noisy channels.
    """

    def __init__(
        self, unet_config: Config, interface: Config, conditioning_key: str = "concat"
    ) -> None:
        super().__init__()
        if conditioning_key != "concat":
            raise ConfigError(
                "CONFIG-VALUE", f"conditioning_key is '{conditioning_key}': expected concat"
            )
        where = "model.params.unet_config"
        # A class may know a fact by another name: a multi-stream network counts channels a stream.
        renamed = getattr(resolve_target(unet_config, where), "interface", {})
        facts = {**interface, **{own: interface[fact] for own, fact in renamed.items()}}
        self.diffusion_model = instantiate_from_config(unet_config, where=where, interface=facts)
        self.size_divisor = int(getattr(self.diffusion_model, "size_divisor", 1))

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return the backbone's float32 output (B, C, h, w) for x_t (B, C, h, w) at t (B,)."""
        weight = next(self.diffusion_model.parameters())
        x = torch.cat([x_t, condition], dim=1)
        padded = pad_to_multiple(x, self.size_divisor)
        output = self.diffusion_model(padded.to(weight.dtype), t)
        return crop_to(output, x.shape[2:]).float()


class LatentDiffusion(RunModule):
    """Denoising diffusion of the target contrast in the space of a first stage.

    Args:
        unet_config: the backbone; channels and image size are passed in.
        conditions: input contrasts, in channel order.
        image_size: side or [H, W] of the training images.
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
        parameterization: what the backbone predicts: ``eps``, ``x0`` or ``v``.
        loss_type: ``l1``, ``l2`` or ``charbonnier``.
        schedule_config: ``target`` / ``params`` of the noise schedule.
        first_stage_config: ``target`` / ``params`` of the first stage.
        scale_factor: latents are multiplied by it; None: the number that was measured when the
            first stage was trained (1 in pixel space).
        cache_latents: encode each training slice once and keep its latents in memory (of each
            process); for data without augmentation.
        conditioning_key: how the backbone receives the conditions.
        optimizer_config: ``target`` / ``params`` of a torch optimizer.
        warmup_steps: steps over which the learning rate rises linearly.
        sampler, sampling_steps, temperature: used in validation, and by default by
            ``dsdiff sample`` (for the temperature see :class:`KeyedNoise`).
        seed: seed of the training noise, which is a function of (seed, rank, step).
    """

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
        schedule_config: Config | None = None,
        first_stage_config: Config | None = None,
        scale_factor: float | None = None,
        cache_latents: bool = False,
        conditioning_key: str = "concat",
        optimizer_config: Config | None = None,
        warmup_steps: int = 100,
        sampler: str = "ddim",
        sampling_steps: int = 20,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer_config, warmup_steps, seed)
        _require("parameterization", parameterization, PARAMETERISATIONS)
        _require("loss_type", loss_type, POINTWISE_LOSSES)
        get_sampler(sampler)
        if subtract is not None and subtract not in conditions:
            raise ConfigError(
                "CONFIG-VALUE",
                f"model.params.subtract is '{subtract}': expected one of {', '.join(conditions)}",
            )
        self.parameterization = parameterization
        self.loss = POINTWISE_LOSSES[loss_type]
        self.schedule: NoiseSchedule = instantiate_from_config(
            schedule_config or {"target": "ldm.models.diffusion.schedule.NoiseSchedule"},
            where="model.params.schedule_config",
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
        height, width = (-(-n // divisor) for n in as_pair(image_size))  # images are padded
        self.model = DiffusionWrapper(
            unet_config,
            {
                "in_channels": channels * (1 + len(conditions) * (2 * neighbours + 1)),
                "out_channels": channels,
                "image_size": height if height == width else (height, width),
                "stream_channels": channels,
                "condition_names": list(conditions) * (2 * neighbours + 1),
            },
            conditioning_key,
        )
        self.latent_shape = (channels, height, width)
        self.sampler, self.sampling_steps, self.temperature = sampler, sampling_steps, temperature

    @property
    def network(self) -> nn.Module:
        """The backbone in its wrapper."""
        return self.model

    @torch.no_grad()
    def network_inputs(self, data: Any, batch: int = 1) -> Sequence[Tensor]:
        """Return blank (x_t, t, condition) as ``model`` takes them."""
        contrasts = len(data.conditions)
        images = torch.zeros(batch, contrasts * (2 * data.neighbours + 1), *data.image_size)
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

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents (B, M*C, h, w) of images (B, M, H, W), each encoded by itself.

        Sizes that the first stage cannot divide are padded.
        """
        single = images.flatten(0, 1).unsqueeze(1)  # (B*M, 1, H, W)
        encoded = self.first_stage_model.encode(
            pad_to_multiple(single, self.first_stage_model.downsampling)
        )
        latents = encoded if isinstance(encoded, Tensor) else encoded.mode()  # means, not samples
        return (latents.float() * self.scale_factor).unflatten(0, images.shape[:2]).flatten(1, 2)

    def decode(self, latents: Tensor, size: Sequence[int]) -> Tensor:
        """Return the images (B, 1, *size) of latents (B, C, h, w)."""
        return crop_to(self.first_stage_model.decode(latents / self.scale_factor), size).float()

    def encode_condition(self, condition: Tensor, presence: Tensor) -> Tensor:
        """Return the latents of condition (B, N*M, H, W) of which ``presence`` (B, M) says what is.

        An absent contrast is 0 everywhere, whatever its channel held; a black image would be -1.
        """
        repeats = condition.shape[1] // presence.shape[1]
        mask = presence.repeat(1, repeats)[:, :, None, None]
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
        t = torch.randint(len(self.schedule), (len(x_0),)).to(x_0.device)
        eps = torch.randn(x_0.shape).to(x_0.device)
        x_t = q_sample(x_0, t, eps, self.schedule)
        output = self.model(x_t, t, condition)
        target = target_of(self.parameterization, x_0, eps, t, self.schedule)
        predicted = to_x_0(self.parameterization, output, x_t, t, self.schedule)
        return self.total_loss(self.loss(output, target).mean(), predicted)

    def total_loss(self, fit: Tensor, predicted: Tensor) -> dict[str, Tensor]:
        """Return the loss by component, given the misfit and the predicted x_0."""
        if not self.sparsity:
            return {"loss": fit}
        size = predicted.abs().mean()
        return {"loss": fit + self.sparsity * size, "fit": fit, "predicted_size": size}

    def denoiser(self, condition: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return ``denoise(x_t, t) -> x_0`` given encoded conditions: what a sampler calls."""

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            output = self.model(x_t, t, condition)
            x_0 = to_x_0(self.parameterization, output, x_t, t, self.schedule)
            if self.first_stage_model.downsampling > 1:
                return x_0  # latents have no known range
            image = self.from_data(x_0, condition).clamp(-1, 1)
            return self.to_data(image, condition)

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
        """Sample images (B, 1, H, W) in [-1, 1] given condition (B, N*M, H, W), presence (B, M).

        Args:
            noise: all randomness; one key an item.
            sampler, steps: None means the model's own.
            **options: passed to the sampler (``eta``, ``callback``, ...).
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
        **options: Any,
    ) -> Tensor:
        """Return x_0 (B, C, h, w) given encoded conditions; see :meth:`synthesise`."""
        x_T = noise.draw((self.latent_shape[0], *latents.shape[2:]))
        sample = get_sampler(sampler or self.sampler, noise=noise, **options)
        steps = self.sampling_steps if steps is None else steps
        return sample(self.denoiser(latents), x_T, self.schedule, steps)

    def network_calls(self, steps: int) -> int:
        """Return how often the backbone runs to sample one slice in ``steps``."""
        return steps

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


class OneStepRegression(LatentDiffusion):
    """The same backbone trained to return the target in one call: the baseline of every table.

    The noisy channels are 0 and the timestep is the last, so that network, conditioning and data
    are those of the diffusion model that it is compared with.
    """

    def predict(self, condition: Tensor) -> Tensor:
        """Return the predicted latents (B, C, h, w) given encoded conditions."""
        batch, size = len(condition), condition.shape[2:]
        blank = condition.new_zeros(batch, self.latent_shape[0], *size)
        t = torch.full((batch,), len(self.schedule) - 1, device=condition.device)
        return self.model(blank, t, condition)

    def batch_loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the loss between prediction and target."""
        condition, x_0 = self.encode_batch(batch)
        predicted = self.predict(condition)
        return self.total_loss(self.loss(predicted, x_0).mean(), predicted)

    def generate(self, latents: Tensor, *args: Any, **options: Any) -> Tensor:
        """Return the prediction; noise, sampler and steps have no effect."""
        return self.predict(latents)

    def network_calls(self, steps: int) -> int:
        """Return 1."""
        return 1


def _require(name: str, value: str, known: Mapping[str, Any]) -> None:
    if value not in known:
        raise ConfigError(
            "CONFIG-VALUE",
            f"model.params.{name} is '{value}'{nearest(value, known)}: expected {', '.join(known)}",
        )
