"""Training of the autoencoder in whose latent space diffusion runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.called import module_from_config
from ldm.errors import bad_value
from ldm.losses.autoencoder import AutoencoderLoss
from ldm.models.base import Config, RunModule, Validated, image_quality
from ldm.models.draws import Draws
from ldm.modules.diffusionmodules.util import crop_to, pad_to_multiple
from ldm.study import Study
from ldm.util import evenly_spread, image_sides, shows

log = logging.getLogger(__name__)


class FirstStageTraining(RunModule):
    """Trains an autoencoder on all contrasts of a data module, each image by itself.

    Args:
        autoencoder_config: ``target`` / ``params`` of an autoencoder with ``encode``, ``decode``,
            ``forward`` and ``downsampling`` as :class:`ldm.models.autoencoder.AutoencoderKL` has.
        lossconfig: ``target`` / ``params`` of :class:`ldm.losses.autoencoder.AutoencoderLoss`.
        conditions, image_size: see :class:`ldm.study.Study`; with the target, they are learned.
        scale_slices: slices, spread evenly over the training patients, on which the scale of the
            latents is measured at each save.
        **settings: see :class:`RunModule`.
    """

    next_command = (
        "dsdiff train configs/backbone/unet.yaml configs/latent.yaml data.params.root={patients} "
        "model.params.first_stage_config.params.path={run}"
    )

    @shows(RunModule)
    def __init__(
        self,
        autoencoder_config: Config,
        lossconfig: Config | None = None,
        conditions: Sequence[str] = Study.conditions,
        image_size: int | list[int] = 192,
        scale_slices: int = 64,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.autoencoder: nn.Module = module_from_config(
            autoencoder_config,
            where="model.params.autoencoder_config",
            called="images, sample_posterior",
            needs=("encode", "decode", "downsampling"),
        )
        self.loss: AutoencoderLoss = module_from_config(
            lossconfig or {"target": "ldm.losses.autoencoder.AutoencoderLoss"},
            where="model.params.lossconfig",
            called=None,
        )
        self.images, self.image_size = len(conditions) + 1, image_sides(image_size)
        self.scale_slices = scale_slices

    @property
    def network(self) -> nn.Module:
        """The autoencoder."""
        return self.autoencoder

    def network_inputs(self, batch: int = 1) -> Sequence[Tensor]:
        """Return blank images (B * contrasts, 1, H, W): the contrasts of ``batch`` slices."""
        images = torch.zeros(batch * self.images, 1, *self.image_size)
        return (self.padded(images),)

    def check_start(self, data: Any) -> None:
        """Refuse volumes; say what the perceptual term is, where it is not a learned one.

        Raises:
            ConfigError: CONFIG-VALUE.
        """
        if len(self.image_size) != 2:
            raise bad_value(
                f"data.params.image_size is {list(self.image_size)}, but the first stage is "
                "trained on slices: give a side, or [height, width]"
            )
        if self.loss.perceptual_name != "LPIPS":
            log.warning(
                "perceptual term: %s (for LPIPS give model.params.lossconfig.params.lpips_weights, "
                "torchvision's vgg16 state dict)",
                self.loss.perceptual_name,
            )

    def padded(self, images: Tensor) -> Tensor:
        """Return images (B, 1, H, W) in a size that the autoencoder divides."""
        return pad_to_multiple(images, self.autoencoder.downsampling)

    def batch_loss(self, batch: Mapping[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        """Return the training loss of a batch by component; ``loss`` is the sum to minimise."""
        images, items = self.padded(all_images(batch)), len(batch["target"])
        posterior = self.autoencoder.encode(images)
        drawn = draws or Draws.unkeyed(items)
        noise = drawn.normal((len(images) // items, *posterior.mean.shape[1:]))
        reconstruction = self.autoencoder.decode(posterior.sample(noise.flatten(0, 1)))
        return self.loss(images, reconstruction, posterior, self.step)

    def validate(self, batch: Mapping[str, Any], place: int) -> Validated:
        """Return the loss of all contrasts without the adversarial terms, and the quality of the
        target's reconstruction from posterior means, and this for pictures.
        """
        images = self.padded(all_images(batch))
        reconstruction, posterior = self.autoencoder(images, sample_posterior=False)
        loss = self.loss.fidelity(images, reconstruction, posterior)["loss"]
        target = reconstruction.unflatten(0, (len(batch["target"]), -1))[:, -1]  # (B, 1, H, W)
        target = crop_to(target, batch["target"].shape[2:]).float().clamp(-1, 1)
        return image_quality(loss, target, batch)

    def measure(self, data: Any) -> dict[str, Any]:
        """Return the scale of the latents, and the patients that the weights have seen."""
        slices = data.train_slices
        places = evenly_spread(self.scale_slices, len(slices))
        batches = ({k: slices[i][k][None] for k in ("condition", "target")} for i in places)
        return {
            "scale_factor": self.scale_factor(all_images(batch) for batch in batches),
            "train_subjects": data.split["train"],
        }

    @torch.no_grad()
    def scale_factor(self, batches: Iterable[Tensor]) -> float:
        """Return 1 / standard deviation of the posterior means of batches (B, 1, H, W)."""
        mode, device = self.autoencoder.training, next(self.autoencoder.parameters()).device
        self.autoencoder.eval()
        total = squares = count = 0.0
        for images in batches:
            latents = self.autoencoder.encode(self.padded(images.to(device))).mode().double()
            total += latents.sum().item()
            squares += latents.square().sum().item()
            count += latents.numel()
        self.autoencoder.train(mode)
        return (squares / count - (total / count) ** 2) ** -0.5


def all_images(batch: Mapping[str, Any]) -> Tensor:
    """Return every contrast of a batch by itself, (B * contrasts, 1, H, W); the target is last."""
    return torch.cat([batch["condition"], batch["target"]], dim=1).flatten(0, 1).unsqueeze(1)
