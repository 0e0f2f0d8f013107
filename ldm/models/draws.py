"""Random numbers of a training batch that do not depend on how many processes share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.storage import stable_seed


class Draws:
    """Random numbers of a batch on the CPU, each item's from a generator of its own.

    The generator of an item is a function of ``key`` and of its position among all items of the
    training: processes that share a batch draw what one process draws for all of it.

    Args:
        key: what the numbers are a function of, such as the seed.
        items: of this process.
        first: position of the first item of the batch of all processes.
        rank, world_size: the items here are those at ``rank, rank + world_size, ...`` of it.
    """

    def __init__(
        self, key: Sequence[Any], items: int, first: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.total = items * world_size
        self.places = range(rank, self.total, world_size)
        self.generators = [_generator(*key, "item", first + place) for place in self.places]
        self.shared = _generator(*key, "batch", first)

    @classmethod
    def unkeyed(cls, items: int) -> Draws:
        """Return draws that follow torch's global generator."""
        return cls((int(torch.randint(2**62, ())),), items)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return standard normal numbers (B, *shape)."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self.generators])

    def uniform(self) -> Tensor:
        """Return a number in [0, 1) of each item, (B,) float64."""
        drawn = [torch.rand((), generator=g, dtype=torch.float64) for g in self.generators]
        return torch.stack(drawn)

    def one_of(self, count: int) -> int:
        """Return a whole number below ``count``, the same for all items of all processes."""
        return int(torch.randint(count, (), generator=self.shared))

    def items_of(self, share: float) -> int:
        """Return how many items, from the first on, belong to a share of the batch of all
        processes, which is rounded at random.
        """
        count = int(share * self.total + torch.rand((), generator=self.shared).item())
        return sum(place < count for place in self.places)


def _generator(*key: Any) -> torch.Generator:
    return torch.Generator().manual_seed(stable_seed(*key))
