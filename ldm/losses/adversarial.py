"""A patch discriminator as a loss: two players in one sum, one optimizer and one backward pass.

The two players do not see each other's gradient: the discriminator is trained on a detached
prediction, and the prediction is pulled along the discriminator's gradient with respect to it,
which is computed beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.losses.prediction import PredictedBatch

SMALLEST = 4  # voxels across that a discriminator's last layers need


def patch_discriminator(in_channels: int, channels: int, layers: int, dims: int = 2) -> nn.Module:
    """Return a PatchGAN (Isola et al. 2017) whose group norms keep no statistics."""
    from monai.networks.nets import PatchDiscriminator  # takes seconds to import

    return PatchDiscriminator(
        spatial_dims=dims,
        channels=channels,
        in_channels=in_channels,
        num_layers_d=layers,
        norm=("GROUP", {"num_groups": 8}),
    )


def adversarial_terms(
    discriminator: nn.Module, real: Tensor, fake: Tensor, weight: float, seen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the term that pulls the prediction, the discriminator's loss, and -E[D].

    The pull has ``weight`` times the size of the gradient of a mean absolute error (whose norm over
    N voxels is N^-1/2). Latent diffusion balances gradients too, at the last layer, where it takes
    two more backward passes (Esser et al. 2021, equation 7).

    Args:
        discriminator: returns a list of which the last are scores.
        real, fake: (B, C, *S), fake with a gradient.
        seen: (B, K, *S) what the discriminator sees besides, the conditions of a conditional GAN.
    """

    def score(images: Tensor) -> Tensor:
        shown = images if seen is None else torch.cat([images, seen], dim=1)
        return discriminator(shown)[-1].float()

    detached = fake.detach().requires_grad_()
    of_fake = score(detached)
    (ascent,) = torch.autograd.grad(of_fake.mean(), detached, retain_graph=True)
    size = weight * detached.numel() ** -0.5
    norm = torch.linalg.vector_norm(ascent).clamp_min(torch.finfo(ascent.dtype).tiny)
    pull = -(ascent * (size / norm) * fake).sum()
    return pull, hinge_loss(score(real), of_fake), -of_fake.mean().detach()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return half the mean of max(0, 1 - D(real)) + max(0, 1 + D(fake)) (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


class Adversarial(nn.Module):
    """A discriminator of predicted x_0 beside the conditions: pix2pix (Isola et al. 2017).

    With a one-step regression it is the conditional GAN that syntheses are compared with
    (``configs/gan.yaml``); with diffusion it sharpens the prediction at every timestep.

    Args:
        weight: of the pull on the prediction, see :func:`adversarial_terms`.
        disc_channels, disc_num_layers: size of the discriminator; each layer halves the image, so
            that a small one, or a thin patch, has fewer.
        channels, size: of x_0, (H, W) or (D, H, W); passed in.
        images: number of condition images; passed in.
    """

    def __init__(
        self,
        channels: int,
        size: Sequence[int],
        images: int,
        weight: float = 0.5,
        disc_channels: int = 32,
        disc_num_layers: int = 3,
    ) -> None:
        super().__init__()
        self.weight = weight
        layers = max(1, min(disc_num_layers, int(math.log2(min(size) / SMALLEST))))
        self.discriminator = patch_discriminator(
            channels + images, disc_channels, layers, len(size)
        )

    def forward(self, prediction: PredictedBatch) -> dict[str, Tensor]:
        """Return the two players' terms; that of the generator has the value of -E[D].

        None outside training: validation compares images, whoever judges them.
        """
        if not self.training:
            return {}
        fake, real = prediction.x_0.float(), prediction.target
        seen = F.interpolate(prediction.batch["condition"], size=real.shape[2:], mode="area")
        pull, hinge, score = adversarial_terms(self.discriminator, real, fake, self.weight, seen)
        return {
            "generator": pull - pull.detach() + self.weight * score,
            "discriminator": self.weight * hinge,
        }
