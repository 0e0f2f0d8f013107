"""What may be done to a prediction before a sampler uses it: guidance and thresholds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.models.diffusion.path import Denoise
from ldm.modules.broadcast import per_item


def guide(
    conditional: Denoise, unconditional: Denoise, scale: float, rescale: float = 0.0
) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022) as one function of (x_t, t) made of two.

    ``unconditional + scale (conditional - unconditional)``. Both may return x_0 or both a network's
    output: all parameterisations are affine in x_0, so the guided x_0 is the same.

    Args:
        conditional: prediction given the conditions.
        unconditional: that of the same network with all conditions absent, as it saw in training
            when they were dropped as a whole.
        scale: 1 is the conditional prediction, 0 the unconditional one; above 1 exaggerates what
            the conditions say.
        rescale: share, 0 to 1, to which each item's standard deviation is brought back to that of
            the conditional prediction (Lin et al. 2023, eq. 15 and 16). It scales the mean too, and
            so is made for predictions of mean 0, such as eps, v and the flow.

    Returns:
        The guided prediction, which calls both; only the one that counts for a scale of 0 or 1.
    """
    if scale == 1:
        return conditional
    if scale == 0:
        return unconditional

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        positive = conditional(x_t, t)
        prediction = torch.lerp(unconditional(x_t, t), positive, scale)
        if rescale == 0:
            return prediction
        # of an item without contrast there is nothing to bring back: 0 / 0
        ratio = (_std(positive) / _std(prediction)).nan_to_num(nan=1.0, posinf=1.0)
        return prediction * (1 + rescale * (ratio - 1))

    return guided


def clip(x_0: Tensor) -> Tensor:
    """x_0 within [-1, 1], the range of images; NaN where it is infinite."""
    return _unless_infinite(x_0.clamp(-1, 1), x_0)


def dynamic_threshold(x_0: Tensor, percentile: float = 0.995) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): x_0 (B, ...) within [-1, 1].

    Where a percentile of an item's absolute values lies above 1, the item is clipped there and
    divided by it, which keeps the saturated pixels from piling up at the ends of the range. It is
    NaN where x_0 is infinite.
    """
    sizes = x_0.abs().flatten(1)
    rank = 1 + round(percentile * (sizes.shape[1] - 1))  # torch.quantile takes no large volume
    size = sizes.kthvalue(rank, dim=1).values.clamp(min=1)
    size = per_item(size, x_0)
    return _unless_infinite(x_0.clamp(-size, size) / size, x_0)


def _unless_infinite(limited: Tensor, x_0: Tensor) -> Tensor:
    """What overflowed is no voxel at the end of the range: it makes a failed case of a subject."""
    return limited.masked_fill(x_0.isinf(), torch.nan)


THRESHOLDS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x_0: x_0,
    "clip": clip,
    "dynamic": dynamic_threshold,
}


def _std(x: Tensor) -> Tensor:
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)
