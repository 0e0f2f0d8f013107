"""A network that was trained on patches, applied to whole volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Predict = Callable[..., Tensor]

Others = Mapping[str, Tensor]

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

    def windows(self, network: Predict) -> Predict:
        """Return ``network(x_t, t, condition, others)`` for volumes of any size.

        ``others`` are conditions without axes in space, by name: every window of an item has them.
        """

        def of_items(x_t: Tensor, t: Tensor, condition: Tensor, others: Others) -> Tensor:
            if self.fits(x_t):
                return network(x_t, t, condition, others)
            return torch.cat([of_item(i, x_t, t, condition, others) for i in range(len(x_t))])

        def of_item(i: int, x_t: Tensor, t: Tensor, condition: Tensor, others: Others) -> Tensor:
            item = slice(i, i + 1)

            def predict(x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
                repeated = {k: v[item].expand(len(x_t), *v.shape[1:]) for k, v in others.items()}
                return network(x_t, t, condition, repeated)

            return self(predict, x_t[item], t[item], condition[item])

        return of_items

    def fits(self, x_t: Tensor) -> bool:
        """Whether x_t (B, C, *S) is no larger than a window."""
        return all(n <= side for n, side in zip(x_t.shape[2:], self.window, strict=True))

    def __call__(self, predict: Predict, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Return ``predict(x_t, t, condition)`` (B, C, *S) of volumes of any size.

        Args:
            x_t: (B, C, *S).
            t: (B,), one timestep for all items where windows are needed.
            condition: (B, M, *S).
        """
        if self.fits(x_t):
            return predict(x_t, t, condition)
        from monai.inferers.utils import sliding_window_inference  # takes seconds to import

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


@contextmanager
def tiled(model: Any, overlap: float | None, batch_size: int) -> Iterator[None]:
    """Let a model of patches lay its windows in another way, until the block ends."""
    own = model.tiling
    model.tiling = replace(own, overlap=overlap, batch_size=batch_size)
    try:
        yield
    finally:
        model.tiling = own
