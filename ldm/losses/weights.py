"""How much the error of each voxel counts: more where tissue is abnormal, and enhances there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.intensity import ABNORMAL_IN, abnormality, standard_units
from ldm.util import instantiate_from_config

MOST_ABNORMAL, MOST_ENHANCED = 2.0, 4.0


class VoxelWeights(nn.Module):
    """The weights that a configuration describes; 1 everywhere where there is none.

    Args:
        config: ``target`` / ``params`` of a module like :class:`EnhancementWeights`, or None.
        conditions, neighbours: facts for it.
    """

    def __init__(
        self, config: Mapping[str, Any] | None, conditions: Sequence[str], neighbours: int
    ) -> None:
        super().__init__()
        self.weights: nn.Module | None = config and instantiate_from_config(
            config,
            where="model.params.voxel_weight_config",
            interface={"conditions": conditions, "neighbours": neighbours},
        )

    def forward(self, batch: Mapping[str, Any], size: Sequence[int], means: int) -> Tensor | float:
        """Return the weights (B, 1, *size) of a batch, averaged where latents are coarser.

        Args:
            means: how many items at its start learn the mean; the others learn to be sampled.
        """
        if not self.weights:
            return 1.0
        return F.interpolate(self.weights(batch, means), size=tuple(size), mode="area")


class EnhancementWeights(nn.Module):
    """``weights(batch, means) -> (B, 1, *S)``, 1 in healthy tissue; needs no mask of the tumour.

    ``1 + abnormal X + enhancing P``. X is the abnormality of the inputs, see
    :func:`ldm.intensity.abnormality`; it moves attention, not the mean. P is the true subtraction
    image in units of z where the surroundings are abnormal, so that vessels, which enhance in every
    patient and outweigh tumours, do not count; it trades error in the brain for enhancement.

    Args:
        conditions: input contrasts, in channel order; passed in.
        neighbours: slices on each side that are conditions too; passed in.
        abnormal, enhancing: weights of X and P.
        sampled: weight of P for the items of a batch that learn to be sampled, where they are to
            enhance more than the mean; None: ``enhancing`` for all.
        width: of the Gaussian of X, in voxels; that of P is 1.5 times as wide.
        guides: contrasts that show what is abnormal; the first that is a condition is taken.
        source: contrast that the target is the enhanced form of.

    Raises:
        ConfigError: CONFIG-VALUE where no condition is a guide, or the source is none.
    """

    def __init__(
        self,
        conditions: Sequence[str],
        neighbours: int = 0,
        abnormal: float = 1.0,
        enhancing: float = 2.0,
        sampled: float | None = None,
        width: float = 2.0,
        guides: Sequence[str] = ABNORMAL_IN,
        source: str = "t1",
    ) -> None:
        super().__init__()
        guide = next((name for name in guides if name in conditions), None)
        self.enhancing, self.sampled = enhancing, enhancing if sampled is None else sampled
        looks_at_target = bool(self.enhancing or self.sampled)
        if guide is None or (looks_at_target and source not in conditions):
            raise ConfigError(
                "CONFIG-VALUE",
                "model.params.voxel_weight_config needs one of "
                f"{', '.join(guides)} and {source} among the conditions, which are "
                f"{', '.join(conditions)}: name others as guides and source, or leave it out",
            )
        first, places = neighbours * len(conditions), list(conditions)
        self.guide = first + places.index(guide)
        self.source = first + places.index(source) if source in places else self.guide
        self.abnormal, self.width = abnormal, width

    def forward(self, batch: Mapping[str, Any], means: int = 0) -> Tensor:
        """Return the weights of a batch with ``condition``, ``target`` and ``brain``.

        Args:
            means: how many items at its start learn the mean.
        """
        guide, brain = batch["condition"][:, self.guide, None], batch["brain"]
        x = abnormality(guide, brain, self.width).clamp(max=MOST_ABNORMAL)
        weights = 1 + self.abnormal * x
        if self.enhancing or self.sampled:
            source = standard_units(batch["condition"][:, self.source, None])
            enhanced = (standard_units(batch["target"]) - source).clamp(0, MOST_ENHANCED) * brain
            near = abnormality(guide, brain, 1.5 * self.width).clamp(max=1.0)
            factor = brain.new_full(
                (len(brain), *[1] * (brain.ndim - 1)), self.sampled, dtype=x.dtype
            )
            factor[:means] = self.enhancing
            weights = weights + factor * enhanced * near
        return weights
