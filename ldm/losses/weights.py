"""How much the error of each voxel counts: more where tissue is abnormal, and enhances there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.called import module_from_config, require_tensor
from ldm.errors import calling, one_of
from ldm.intensity import abnormality, clearest, standard_units
from ldm.modules.broadcast import per_item
from ldm.study import ANY, ASKED, Study, native_of
from ldm.util import own_channels

MOST_ABNORMAL, MOST_ENHANCED = 2.0, 4.0
OF_HEIGHT = 48  # a Gaussian of 4 mm in an image of 192 mm


class VoxelWeights(nn.Module):
    """The weights that a configuration describes; 1 everywhere where there is none.

    Args:
        config: ``target`` / ``params`` of a module like :class:`EnhancementWeights`, or None.
        **facts: what it may ask for, as ``conditions``, ``target``, ``neighbours``, ``image_size``.
    """

    def __init__(self, config: Mapping[str, Any] | None, **facts: Any) -> None:
        super().__init__()
        where, called = "model.params.voxel_weight_config", "batch, means"
        self.weights: nn.Module | None = config and module_from_config(
            config, where=where, called=called, interface=facts
        )

    def forward(self, batch: Mapping[str, Any], size: Sequence[int], means: int) -> Tensor | float:
        """Return the weights (B, 1, *size) of a batch, averaged where latents are coarser.

        Args:
            means: how many items at its start learn the mean; the others learn to be sampled.
        """
        if not self.weights:
            return 1.0
        like = batch["target"]
        with calling(self.weights):
            weights = self.weights(batch, means)
        require_tensor(self.weights, weights, (len(like), 1, *like.shape[2:]), like)
        return F.interpolate(weights, size=tuple(size), mode="area")


class EnhancementWeights(nn.Module):
    """``weights(batch, means) -> (B, 1, *S)``, 1 in healthy tissue; needs no mask of the tumour.

    ``1 + abnormal X + enhancing P``. X is the abnormality of the inputs, see
    :func:`ldm.intensity.abnormality`; it moves attention, not the mean. P is the true subtraction
    image in units of z where the surroundings are abnormal, so that vessels, which enhance in every
    patient and outweigh tumours, do not count; it trades error in the brain for enhancement.

    Where nothing says what is abnormal, or the target is not the enhanced form of a condition, all
    voxels weigh alike; of a target that varies, where it is not that form.

    Args:
        conditions: input contrasts, in channel order; passed in.
        target: contrast to synthesise; passed in.
        neighbours: slices on each side that are conditions too; passed in.
        image_size: of the images, passed in.
        abnormal, enhancing: weights of X and P.
        sampled: weight of P for the items of a batch that learn to be sampled, where they are to
            enhance more than the mean; None: ``enhancing`` for all.
        width: of the Gaussian of X, in voxels; that of P is 1.5 times as wide. None: a 48th of the
            height of the images, about 4 mm where they hold a brain.
        guide: condition that shows what is abnormal; None: the clearest that is there.
        source: condition that the target is the enhanced form of; None: as its name says.

    Raises:
        ConfigError: CONFIG-VALUE where ``guide`` or ``source`` is no condition.
    """

    def __init__(
        self,
        conditions: Sequence[str],
        target: str | None = Study.target,
        neighbours: int = 0,
        image_size: Sequence[int] = (96, 96),
        abnormal: float = 1.0,
        enhancing: float = 1.0,
        sampled: float | None = None,
        width: float | None = None,
        guide: str | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("guide", guide), ("source", source)):
            if value is not None:
                one_of(f"model.params.voxel_weight_config.params.{name}", value, conditions)
        guide = guide or clearest(conditions)
        self.enhanced: int | None = None  # channel of the target that enhances, where it varies
        if target == ANY:
            target = Study(tuple(conditions), ANY).enhanced
            self.enhanced = target and list(conditions).index(target)
        source = source or native_of(target, conditions)
        self.is_flat = guide is None or source is None
        self.enhancing, self.sampled = enhancing, enhancing if sampled is None else sampled
        first, places = own_channels(len(conditions), neighbours).start, list(conditions)
        if not self.is_flat:
            self.guide, self.source = (first + places.index(name) for name in (guide, source))
        self.abnormal, self.width = abnormal, width or image_size[-2] / OF_HEIGHT

    def forward(self, batch: Mapping[str, Any], means: int = 0) -> Tensor:
        """Return the weights of a batch with ``condition``, ``target`` and ``brain``.

        Args:
            means: how many items at its start learn the mean.
        """
        if self.is_flat:
            return torch.ones_like(batch["target"])
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
        if self.enhanced is not None:
            enhances = batch[ASKED][:, self.enhanced] > 0
            weights = torch.where(per_item(enhances, weights), weights, 1.0)
        return weights
