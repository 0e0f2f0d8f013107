"""Numbers of an item, or of each channel of it, in the shape that multiplies its images."""

from __future__ import annotations

import torch
from torch import Tensor


def per_item(values: Tensor, x: Tensor) -> Tensor:
    """Return values (B,) as (B, *[1]), which broadcast over x (B, ...)."""
    return values.view(-1, *[1] * (x.ndim - 1))


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return values (B, C) as (B, C, *[1]), which broadcast over the space of x (B, C, *S)."""
    return values.unflatten(1, (-1, *[1] * (x.ndim - 2)))


def where_present(images: Tensor, presence: Tensor) -> Tensor:
    """Return images (B, N*M, *S), 0 where ``presence`` (B, M) says that a contrast is absent."""
    present = presence.repeat(1, images.shape[1] // presence.shape[1])
    return torch.where(per_channel(present, images), images, 0.0)
