"""First stages: the space in which diffusion runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.model import AutoencoderSettings, Decoder, Encoder


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

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return random latents; the noise is drawn on the CPU, from ``generator``."""
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        return self.mean + torch.exp(0.5 * self.logvar) * noise


class AutoencoderKL(nn.Module):
    """Autoencoder whose latents are kept near a normal distribution (Rombach et al. 2022).

    ``encode(images (B, in_channels, H, W))`` returns the posterior of latents
    (B, embed_dim, H/f, W/f), ``decode(latents)`` returns images (B, out_ch, H, W); f is
    ``downsampling`` and must divide H and W.

    Args:
        ddconfig: fields of :class:`AutoencoderSettings`.
        embed_dim: channels of the latents.

    Raises:
        ConfigError: CONFIG-VALUE or CONFIG-SHAPE for settings or images that do not fit.
    """

    def __init__(self, ddconfig: Mapping[str, Any], embed_dim: int) -> None:
        super().__init__()
        settings = AutoencoderSettings(**ddconfig)
        self.latent_channels, self.downsampling = embed_dim, settings.downsampling
        self.encoder = Encoder(settings)
        self.decoder = Decoder(settings)
        self.quant_conv = nn.Conv2d(2 * settings.z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, settings.z_channels, 1)

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """Return the posterior of the latents of images (B, in_channels, H, W)."""
        return DiagonalGaussian.from_moments(self.quant_conv(self.encoder(images)))

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (B, out_ch, H, W) of latents (B, embed_dim, h, w)."""
        return self.decoder(self.post_quant_conv(latents))
