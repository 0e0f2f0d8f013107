"""The disentanglement loss of DisC-Diff: common features agree, distinct features differ.

Its other choice, the charbonnier loss of the prediction, is ``loss_type: charbonnier``.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn

from ldm.errors import bad_value
from ldm.losses.prediction import PredictedBatch


def pairwise_distance(maps: list[Tensor]) -> Tensor:
    """Mean L2 distance (B,) over the pairs of maps (B, C, *S), in float32."""
    pairs = combinations([m.flatten(1).float() for m in maps], 2)
    return torch.stack([torch.linalg.vector_norm(a - b, dim=1) for a, b in pairs]).mean(0)


class CommonDistinctLoss(nn.Module):
    """Distance of the common features over distance of the distinct ones (Mao et al. 2023).

    Args:
        weight: of the term ``common_distinct``.
    """

    needs_features = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, prediction: PredictedBatch) -> dict[str, Tensor]:
        """Return the weighted term of features ``{common, distinct: [(B, C, *S)] a stream}``.

        Raises:
            ConfigError: CONFIG-VALUE when the backbone gives no such features.
        """
        features = prediction.features
        if not {"common", "distinct"} <= features.keys():
            raise bad_value(
                f"the loss needs features common and distinct, the backbone gives "
                f"{sorted(features)}: choose guided_diffusion.unet.UNet_disc_Model, or drop it"
            )
        common = pairwise_distance(features["common"])  # (B,)
        distinct = pairwise_distance(features["distinct"])  # (B,)
        return {"common_distinct": self.weight * (common / distinct.clamp_min(1e-12)).mean()}
