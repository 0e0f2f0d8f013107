"""First stages: the space in which diffusion runs."""

from __future__ import annotations

from torch import Tensor, nn


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
