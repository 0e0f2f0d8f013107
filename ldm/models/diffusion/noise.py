"""Noise that depends on what is sampled, not on how the work is batched or ordered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.storage import stable_seed


class KeyedNoise:
    """One CPU generator an item, keyed for example by (seed, subject, slice, sample).

    ``torch.randn`` of a batch is not the concatenation of ``torch.randn`` of its items, so each
    item is drawn by itself; the result is then independent of batch size, order and process.

    Args:
        keys: one key an item of the batch.
        device: where the noise goes.
        temperature: standard deviation of the noise. 1 samples from the model; 0 starts at the
            centre of the noise and follows it, which gives one deterministic image close to the
            conditional mean, with less error and less texture than a sample.
    """

    def __init__(
        self,
        keys: Sequence[tuple[Any, ...]],
        device: torch.device | str,
        temperature: float = 1.0,
    ) -> None:
        self.generators = [torch.Generator().manual_seed(stable_seed(*key)) for key in keys]
        self.device, self.temperature = device, temperature

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Return normal noise (B, *shape) float32 of the temperature's standard deviation."""
        items = [torch.randn(tuple(shape), generator=g) for g in self.generators]
        return torch.stack(items).to(self.device) * self.temperature

    def __call__(self, step: int, x: Tensor) -> Tensor:
        """Return noise like x (B, ...): what a stochastic sampler asks for at each step."""
        return self.draw(x.shape[1:])
