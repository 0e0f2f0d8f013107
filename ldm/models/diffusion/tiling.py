"""A network that was trained on patches, applied to whole volumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]

SIGMA = 1 / 6  # of a window: wide ramps between windows, and little weight (3 sigma) at their edges


@dataclass(frozen=True)
class Tiling:
    """Evaluates a prediction on overlapping windows and averages it with Gaussian weights.

    Done at every step of a sampler, this keeps one noisy volume whose windows agree at each step
    (as MultiDiffusion, Bar-Tal et al. 2023), so that windows leave no seams in the result.

    Args:
        window: (D, H, W) of a patch.
        overlap: share of a window, along each axis, that the next one covers again; in [0, 1).
        batch_size: windows at once.
    """

    window: tuple[int, ...]
    overlap: float = 0.25
    batch_size: int = 1

    def __call__(self, predict: Predict, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return ``predict(x_t, t, condition)`` (B, C, *S) of volumes of any size.

        Args:
            x_t: (B, C, *S).
            t: (B,), one timestep for all items where windows are needed.
            condition: (B, M, *S).
        """
        if all(n <= side for n, side in zip(x_t.shape[2:], self.window, strict=True)):
            return predict(x_t, t, condition)
        channels = x_t.shape[1]

        def predict_windows(both: Tensor) -> Tensor:
            x_t, condition = both[:, :channels], both[:, channels:]
            # a copy, because monai weights it in place, and a network may return its input
            return predict(x_t, t[:1].expand(len(both)), condition).clone()

        return sliding_window_inference(
            torch.cat([x_t, condition], dim=1),
            self.window,
            self.batch_size,
            predict_windows,
            self.overlap,
            mode="gaussian",
            sigma_scale=SIGMA,
            padding_mode="replicate",
        )
