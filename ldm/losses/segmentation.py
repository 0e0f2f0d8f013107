"""Losses of overlapping regions: each channel is a decision of its own, region or not.

Every loss returns its weighted terms by name and their sum as ``loss``, so that the curves in the
logs add up and one can see which term is stuck.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import bad_value

MAX_POS_WEIGHT = 100.0


def positive_weight(share: float) -> float:
    """Return the weight of a foreground voxel for a share of the foreground, 0 < share < 1.

    The square root of (1 - share) / share, at most 100. The ratio itself makes foreground and
    background count alike as wholes; the network then marks far more than there is, against Dice
    (measured in docs/attention-gates.md).
    """
    return min(math.sqrt((1 - share) / share), MAX_POS_WEIGHT)


class SegmentationLoss(nn.Module):
    """``loss(logits (B, R, *S), target (B, R, *S) bool) -> {name: scalar}`` of R regions.

    The sum of Dice, binary cross-entropy and focal loss (Lin et al. 2017), each with a weight; a
    term of weight 0 is not computed. The Dice of a region is that of all its voxels in the batch,
    so that slices without any do not drown the others (monai's ``batch``); a region that a batch
    does not hold has none, because it would be 1 whatever little is predicted. Subclasses are the
    usual mixtures.

    Args:
        dice, cross_entropy, focal: weights of the terms.
        pos_weight: how much more a voxel of the region counts than one outside in the
            cross-entropy: a number, or one a region; None: :func:`positive_weight` of the share
            of the training voxels that are in the region, see :meth:`measure`.
        region_weights: of the regions in every term, or None for all alike.
        gamma: exponent of the focal loss.

    Raises:
        ConfigError: CONFIG-VALUE for a weight below 0, or no term at all.
    """

    def __init__(
        self,
        dice: float = 1.0,
        cross_entropy: float = 0.0,
        focal: float = 0.0,
        pos_weight: float | list[float] | None = 1.0,
        region_weights: list[float] | None = None,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.weights = {"dice": dice, "cross_entropy": cross_entropy, "focal": focal}
        if min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise bad_value(f"loss weights are {self.weights}: give at least one above 0")
        self.pos_weight, self.region_weights = pos_weight, region_weights
        from monai.losses import DiceLoss, FocalLoss  # takes seconds to import

        self.dice = DiceLoss(sigmoid=True, batch=True, weight=region_weights, reduction="none")
        self.focal = FocalLoss(gamma=gamma, weight=region_weights)

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms as ``loss_dice`` and so on, and their sum as ``loss``."""
        logits, target = logits.float(), target.float()
        terms = {
            f"loss_{name}": weight * getattr(self, f"_{name}")(logits, target)
            for name, weight in self.weights.items()
            if weight
        }
        return {"loss": sum(terms.values()), **terms}

    def measure(self, shares: Sequence[float]) -> None:
        """Set ``pos_weight`` from the share of each region in the training voxels, if it is None.

        Args:
            shares: a number a region, above 0.
        """
        if self.pos_weight is None:
            self.pos_weight = [float(f"{positive_weight(share):.4g}") for share in shares]

    def _dice(self, logits: Tensor, target: Tensor) -> Tensor:
        regions = self.dice(logits, target).flatten()  # (R,)
        held = target.transpose(0, 1).flatten(1).any(1)  # (R,)
        return (regions * held).sum() / held.sum().clamp(min=1)

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            logits,
            target,
            weight=_along_channels(self.region_weights or 1.0, logits),
            pos_weight=_along_channels(1.0 if self.pos_weight is None else self.pos_weight, logits),
        )

    def _focal(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.focal(logits, target)


class RegionDiceLoss(SegmentationLoss):
    """Dice alone."""

    def __init__(self, region_weights: list[float] | None = None) -> None:
        super().__init__(dice=1.0, region_weights=region_weights)


class BCEDiceLoss(SegmentationLoss):
    """Binary cross-entropy, weighted by the share of the foreground, and Dice (the default).

    Args:
        dice, bce: weights of the terms.
        pos_weight, region_weights: see :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        dice: float = 1.0,
        bce: float = 1.0,
        pos_weight: float | list[float] | None = None,
        region_weights: list[float] | None = None,
    ) -> None:
        super().__init__(dice, bce, 0.0, pos_weight, region_weights)


class CEDiceFocalLoss(SegmentationLoss):
    """Cross-entropy, Dice and focal loss.

    Args:
        dice, cross_entropy, focal: weights of the terms.
        pos_weight, region_weights, gamma: see :class:`SegmentationLoss`.
    """

    def __init__(
        self,
        dice: float = 1.0,
        cross_entropy: float = 0.5,
        focal: float = 0.5,
        pos_weight: float | list[float] | None = 1.0,
        region_weights: list[float] | None = None,
        gamma: float = 2.0,
    ) -> None:
        super().__init__(dice, cross_entropy, focal, pos_weight, region_weights, gamma)


def _along_channels(weights: float | Sequence[float], like: Tensor) -> Tensor:
    """Return one weight, or one a channel, so that it multiplies (B, C, *S)."""
    values = torch.as_tensor(weights, dtype=like.dtype, device=like.device)
    return values.reshape(-1, *[1] * (like.ndim - 2))
