"""First stages: the space in which diffusion runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import read_weights, require_same_state
from ldm.config import read_saved_config
from ldm.errors import CheckpointError, ConfigError
from ldm.modules.diffusionmodules.model import AutoencoderSettings, Decoder, Encoder
from ldm.storage import CONFIG_FILE, require_run
from ldm.util import params_of, user_path

FIRST_LOGVAR = -6.0  # of the posterior before training


class IdentityFirstStage(nn.Module):
    """Pixel space: the latents are the images.

    Attributes:
        latent_channels: channels of the latents of one image.
        downsampling: ratio of image size to latent size.
    """

    latent_channels = 1
    downsampling = 1

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents (B, latent_channels, h, w) of images (B, 1, H, W)."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (B, 1, H, W) of latents (B, latent_channels, h, w)."""
        return latents


@dataclass(frozen=True)
class DiagonalGaussian:
    """Posterior of the latents: independent normal numbers, ``mean`` and ``logvar`` (B, C, h, w).

    Log-variances are limited to [-30, 20], so that no variance over- or underflows in float32.
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> DiagonalGaussian:
        """Return the distribution of moments (B, 2C, h, w): means, then log-variances."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    def mode(self) -> Tensor:
        """Return the most probable latents, the mean."""
        return self.mean

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Return random latents.

        Args:
            noise: standard normal (B, C, h, w); None: of torch's global generator, on the CPU.
        """
        noise = torch.randn(self.mean.shape) if noise is None else noise
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)

    def kl(self) -> Tensor:
        """Return the divergence (B,) from the standard normal distribution, in nats."""
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3))


class AutoencoderKL(nn.Module):
    """Autoencoder whose latents are kept near a normal distribution (Rombach et al. 2022).

    ``encode(images (B, in_channels, H, W))`` returns the posterior of latents
    (B, embed_dim, H/f, W/f), ``decode(latents)`` returns images (B, out_ch, H, W); f is
    ``downsampling`` and must divide H and W. :class:`ldm.models.first_stage.FirstStageTraining`
    trains it.

    Args:
        ddconfig: fields of :class:`AutoencoderSettings`.
        embed_dim: channels of the latents.
        ckpt_path: weights to start from: a run folder, ``.safetensors`` or a torch checkpoint, of
            this network or of a diffusion model that holds it.
        ignore_keys: beginnings of names whose weights are not taken from there.
        lossconfig, image_key, colorize_nlabels, monitor: arguments of the training in
            latent-diffusion's YAMLs, which so build this network as they are; without effect.

    Attributes:
        scale_factor: 1 / standard deviation of the latents, if it was measured.
        trained: whether there are weights that were trained.
        train_subjects: patients that these weights have seen, as far as is known.
        portable_config: ``target`` / ``params`` that build the network without weights.

    Raises:
        ConfigError: CONFIG-VALUE or CONFIG-SHAPE for settings or images that do not fit.
        CheckpointError: see :func:`ldm.checkpoint.read_weights`; CKPT-MISMATCH.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        embed_dim: int,
        lossconfig: Mapping[str, Any] | None = None,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
    ) -> None:
        super().__init__()
        settings = AutoencoderSettings(**ddconfig)
        self.latent_channels, self.downsampling = embed_dim, settings.downsampling
        self.encoder = Encoder(settings)
        self.decoder = Decoder(settings)
        self.quant_conv = nn.Conv2d(2 * settings.z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, settings.z_channels, 1)
        # A narrow posterior to begin with: the decoder learns from latents before it meets noise.
        self.quant_conv.bias.data[embed_dim:] = FIRST_LOGVAR
        self.portable_config = {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {"ddconfig": dict(ddconfig), "embed_dim": embed_dim},
        }
        self.scale_factor: float | None = None
        self.trained, self.train_subjects = False, []
        if ckpt_path is not None:
            self.load(user_path(ckpt_path), ignore_keys)

    def load(self, path: Path, ignore_keys: Sequence[str] = ()) -> None:
        """Take the weights of a file or run folder, and what was measured on them."""
        tensors, metadata = read_weights(path)
        for prefix in ("autoencoder.", "first_stage_model."):
            inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            tensors = inside or tensors
        ignored = ("loss.", *ignore_keys)
        given = {k: v for k, v in tensors.items() if not k.startswith(ignored)}
        own = {k: v for k, v in self.state_dict().items() if not k.startswith(ignored)}
        require_same_state(own, given, path.name)
        self.load_state_dict(given, strict=False)
        self.trained = True
        self.scale_factor = metadata.get("scale_factor")
        self.train_subjects = metadata.get("train_subjects", [])

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """Return the posterior of the latents of images (B, in_channels, H, W)."""
        return DiagonalGaussian.from_moments(self.quant_conv(self.encoder(images)))

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (B, out_ch, H, W) of latents (B, embed_dim, h, w)."""
        return self.decoder(self.post_quant_conv(latents))

    def forward(
        self, images: Tensor, sample_posterior: bool = True
    ) -> tuple[Tensor, DiagonalGaussian]:
        """Return the reconstruction of images (B, C, H, W), and the posterior of their latents."""
        posterior = self.encode(images)
        return self.decode(posterior.sample() if sample_posterior else posterior.mode()), posterior


class TrainedFirstStage(AutoencoderKL):
    """The autoencoder of a run folder, with its weights and its scale factor.

    A diffusion run that starts from it saves the weights and the settings in its own folder, and
    does not need this one again.

    Args:
        path: run folder of ``dsdiff train configs/first_stage/...``.

    Raises:
        ConfigError: CONFIG-MISSING without a path. CheckpointError: CKPT-MISSING, CKPT-MISMATCH.
    """

    def __init__(self, path: str | None = None) -> None:
        if path is None:
            raise ConfigError(
                "CONFIG-MISSING",
                "which autoencoder? Give model.params.first_stage_config.params.path=RUN, "
                "a folder that `dsdiff train configs/first_stage/...` made",
            )
        saved = read_saved_config(require_run(Path(path)) / CONFIG_FILE)
        params = params_of(saved.get("model") or {})
        described = params.get("autoencoder_config") or {}
        if described.get("target") != "ldm.models.autoencoder.AutoencoderKL":
            raise CheckpointError(
                "CKPT-MISMATCH", f"{path} holds no trained AutoencoderKL: give a run of one"
            )
        own = params_of(described)
        super().__init__(own.get("ddconfig") or {}, own.get("embed_dim", 0))
        self.load(user_path(path))
