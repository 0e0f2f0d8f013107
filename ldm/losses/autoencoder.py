"""The loss of the KL autoencoder: fidelity, a posterior near normal, and a patch discriminator."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ldm.losses.adversarial import adversarial_terms, patch_discriminator
from ldm.losses.perceptual import LPIPS, multi_scale_gradient


class Posterior(Protocol):
    """What the loss asks of a posterior of latents."""

    def kl(self) -> Tensor:
        """Return the divergence (B,) from the standard normal distribution, in nats."""


class AutoencoderLoss(nn.Module):
    """L1 + perceptual + KL + adversarial, and the discriminator's loss, in one sum.

    See :func:`ldm.losses.adversarial.adversarial_terms` for the two players.

    The adversarial terms add gradients to ``loss`` but nothing to its value, so that its curve
    means the same before and after ``disc_start``.

    Args:
        disc_start: optimizer step from which the discriminator learns and is listened to.
        kl_weight: weight of the KL divergence in nats a pixel of the image.
        perceptual_weight: weight of the perceptual term; 0: none.
        disc_weight: weight of the adversarial terms; 0: no discriminator.
        disc_num_layers, disc_in_channels, disc_channels: size of the discriminator (PatchGAN,
            Isola et al. 2017).
        lpips_weights: file of :class:`ldm.losses.perceptual.LPIPS`, which is then the perceptual
            term; None: :func:`ldm.losses.perceptual.multi_scale_gradient`.
        lpips_net: network of that file.
    """

    def __init__(
        self,
        disc_start: int = 0,
        kl_weight: float = 1e-6,
        perceptual_weight: float = 1.0,
        disc_weight: float = 0.1,
        disc_num_layers: int = 3,
        disc_in_channels: int = 1,
        disc_channels: int = 64,
        lpips_weights: str | None = None,
        lpips_net: str = "vgg",
    ) -> None:
        super().__init__()
        self.disc_start, self.disc_weight = disc_start, disc_weight
        self.kl_weight, self.perceptual_weight = kl_weight, perceptual_weight
        self.perceptual = LPIPS(lpips_weights, lpips_net) if lpips_weights else multi_scale_gradient
        self.discriminator = None
        if disc_weight:
            self.discriminator = patch_discriminator(
                disc_in_channels, disc_channels, disc_num_layers
            )

    @property
    def perceptual_name(self) -> str:
        """What the perceptual term is."""
        if not self.perceptual_weight:
            return "none"
        return "LPIPS" if isinstance(self.perceptual, LPIPS) else "multi-scale gradient"

    def fidelity(
        self, images: Tensor, reconstruction: Tensor, posterior: Posterior
    ) -> dict[str, Tensor]:
        """Return the loss without the adversarial terms, by component; ``loss`` is the sum.

        Args:
            images, reconstruction: (B, C, H, W).
        """
        reconstruction = reconstruction.float()
        l1 = (reconstruction - images).abs().mean()
        kl = posterior.kl().mean() / images[0].numel()
        losses = {"loss": l1 + self.kl_weight * kl, "reconstruction": l1, "kl": kl}
        if self.perceptual_weight:
            losses["perceptual"] = self.perceptual(reconstruction, images)
            losses["loss"] = losses["loss"] + self.perceptual_weight * losses["perceptual"]
        return losses

    def forward(
        self, images: Tensor, reconstruction: Tensor, posterior: Posterior, step: int
    ) -> dict[str, Tensor]:
        """Return the training loss at an optimizer step; see :meth:`fidelity`."""
        losses = self.fidelity(images, reconstruction, posterior)
        if self.discriminator is None:
            return losses
        if step < self.disc_start:
            # every process of a distributed training expects a gradient for every parameter
            idle = sum(p.sum() for p in self.discriminator.parameters()) * 0.0
            return {**losses, "loss": losses["loss"] + idle}
        pull, hinge, generator = adversarial_terms(
            self.discriminator, images, reconstruction.float(), self.disc_weight
        )
        silent = pull + self.disc_weight * hinge  # or it would dominate the clipped gradient
        return {
            **losses,
            "loss": losses["loss"] + (silent - silent.detach()),
            "generator": generator,
            "discriminator": hinge,
        }
