"""Pointwise losses: prediction and target of one shape to an unreduced map of that shape."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute error."""
    return (prediction - target).abs()


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error."""
    return (prediction - target).square()


def charbonnier(prediction: Tensor, target: Tensor, epsilon: float = 1e-3) -> Tensor:
    """``sqrt(error^2 + epsilon^2)``, L1 that is smooth at zero (Charbonnier et al. 1994)."""
    return ((prediction - target).square() + epsilon**2).sqrt()


POINTWISE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "charbonnier": charbonnier,
}
