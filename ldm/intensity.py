"""Intensities in [-1, 1], as data and networks hold them, and what is abnormal among them.

The default normaliser maps healthy tissue by its median and inter-quartile range (``z``), clips to
[LOWER, UPPER] and maps that to [-1, 1]; what is no brain is BACKGROUND.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOWER, UPPER = -4.0, 8.0
BACKGROUND = -1.0
UNIT = 2 / (UPPER - LOWER)  # one z in [-1, 1]
HEALTHY = 2 * (0 - LOWER) / (UPPER - LOWER) - 1  # the median of the brain: z = 0
ABNORMAL_IN = ("flair", "t2")  # contrasts in which abnormal tissue is bright, the clearest first
REACH = 3  # deviations to which a Gaussian is taken
HIGH, MOST = 1.0, 3.0  # z from which an image counts as bright, and how much of it counts


def clearest(contrasts: Sequence[str]) -> str | None:
    """Return the contrast that shows best what is abnormal; None: none does."""
    return next((name for name in ABNORMAL_IN if name in contrasts), None)


def standard_units(images: Tensor) -> Tensor:
    """Return z of images in [-1, 1]; exact for the default normaliser, else a fixed stretch."""
    return (images + 1) / 2 * (UPPER - LOWER) + LOWER


def gaussian(width: float, reach: int, like: Tensor) -> Tensor:
    """Return the weights (2 reach + 1,) of a Gaussian of a deviation in voxels; their sum is 1."""
    import torch

    places = torch.arange(-reach, reach + 1, device=like.device, dtype=like.dtype)
    taps = torch.exp(-0.5 * (places / width) ** 2)
    return taps / taps.sum()


def blur(images: Tensor, width: float | Sequence[float]) -> Tensor:
    """Return images (B, C, *S) smoothed by a Gaussian, 0 outside.

    Args:
        width: its deviation in voxels, of all axes or of each; 0: an axis stays as it is.
    """
    axes = range(2, images.ndim)
    widths = width if isinstance(width, Sequence) else [width] * len(axes)
    for axis, deviation in zip(axes, widths, strict=True):
        if deviation:  # a product with a matrix is several times faster than a convolution
            band, is_last = _gaussian_band(images.shape[axis], deviation, images), axis == axes[-1]
            blurred = images @ band if is_last else band @ images.flatten(axis + 1)
            images = blurred.view(images.shape)
    return images


def _gaussian_band(length: int, width: float, like: Tensor) -> Tensor:
    """Return the matrix (L, L) that smooths a line of L voxels."""
    import torch

    reach = math.ceil(REACH * width)
    taps = gaussian(width, reach, like)
    places = torch.arange(length, device=like.device)
    apart = (places[:, None] - places).abs()
    return torch.where(apart <= reach, taps[(reach + apart).clamp(max=2 * reach)], 0.0)


def blur_inside(images: Tensor, brain: Tensor, width: float | Sequence[float]) -> Tensor:
    """Return the mean of images (B, C, *S) over the brain (B, 1, *S) in a Gaussian; 0 outside it.

    Args:
        width: its deviation in voxels, see :func:`blur`.
    """
    weights = brain.to(images.dtype)
    return blur(images * weights, width) / blur(weights, width).clamp(min=1e-3) * brain


def bright(images: Tensor) -> Tensor:
    """Return how much z of images in [-1, 1] is above HIGH, up to MOST."""
    return (standard_units(images) - HIGH).clamp(0, MOST)


def abnormality(images: Tensor, brain: Tensor, width: float | Sequence[float]) -> Tensor:
    """Return how bright the surroundings of each voxel are, (B, 1, *S), from 0; 0 outside brain.

    Of a fluid-attenuated image, such as FLAIR, that is oedema and tumour: the mean excess of z over
    HIGH, up to MOST, of the brain within a Gaussian, see :func:`blur_inside`. It is a function of
    the inputs, so that weighing by it does not move the mean that a squared error asks for.

    Args:
        images: (B, 1, *S) in [-1, 1].
        brain: (B, 1, *S) bool.
    """
    return blur_inside(bright(images), brain, width)
