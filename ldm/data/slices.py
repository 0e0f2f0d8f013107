"""Slices of prepared subjects as training examples, in an order that depends on a seed only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ldm.data.cache import CachedSubject
from ldm.data.normalise import BACKGROUND
from ldm.data.prepare import fit_size
from ldm.storage import stable_seed


def with_neighbours(slices: np.ndarray, index: int, neighbours: int) -> np.ndarray:
    """Return slice ``index`` of (S, M, H, W) with its neighbours: ((2n+1)*M, H, W).

    Channels run slice by slice, each with all M contrasts; beyond the ends is background (2.5-D).
    """
    rows = range(index - neighbours, index + neighbours + 1)
    blank = np.full(slices.shape[1:], BACKGROUND, slices.dtype)
    return np.concatenate([slices[i] if 0 <= i < len(slices) else blank for i in rows])


class SliceDataset(Dataset):
    """Slices with enough brain, of many subjects.

    An item is ``target`` (1, H, W), ``condition`` (M*(2n+1), H, W), ``presence`` (M,) bool,
    ``brain`` (1, H, W) bool, ``subject``, ``slice``, ``seg`` (1, H, W) if all subjects have one.
    Images are float32 in [-1, 1], background -1.

    Args:
        subjects: cache entries; the last channel of their slices is the target.
        image_size: (H, W) to crop or pad to, symmetrically about the brain.
        min_brain: least share of a cropped slice that must be brain.
        neighbours: slices on each side that join the conditions.
        condition_dropout: probability with which each contrast is dropped (one always stays).
        augmentation: callable on the item with ``set_random_state(seed)``, as in monai.

    Indexing with an int gives the plain slice; with ``(index, seed)`` it is augmented from
    ``seed``, so that the result does not depend on the worker that makes it.
    """

    def __init__(
        self,
        subjects: Sequence[CachedSubject],
        image_size: tuple[int, int],
        min_brain: float = 0.0,
        neighbours: int = 0,
        condition_dropout: float = 0.0,
        augmentation: Callable | None = None,
    ) -> None:
        self.subjects = list(subjects)
        self.image_size = image_size
        self.neighbours = neighbours
        self.condition_dropout = condition_dropout
        self.augmentation = augmentation
        self.places = [
            (number, int(index))
            for number, subject in enumerate(self.subjects)
            for index in np.flatnonzero(subject.brain_share >= max(min_brain, 1e-9))
        ]
        self.arrays = ["slices", "brain"]
        if self.subjects and all(s.has_seg for s in self.subjects):
            self.arrays.append("seg")
        self._opened: dict[int, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}  # a worker opens its own memory maps

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, seed = key if isinstance(key, tuple) else (key, None)
        number, place = self.places[index]
        maps = self._maps(number)
        stack = with_neighbours(maps["slices"][:, :-1], place, self.neighbours)
        item = {
            "condition": fit_size(stack, self.image_size, BACKGROUND),
            "target": fit_size(maps["slices"][place, -1:], self.image_size, BACKGROUND),
        } | {
            name: fit_size(maps[name][place][None], self.image_size, 0)
            for name in self.arrays
            if name != "slices"
        }
        images = {name: torch.from_numpy(np.array(a)) for name, a in item.items()}
        images = {n: a.float() if a.dtype == torch.float16 else a for n, a in images.items()}
        presence = torch.ones(maps["slices"].shape[1] - 1, dtype=torch.bool)
        if seed is not None:
            presence = self._drop(presence, np.random.default_rng(seed))
            images = self._augment(images, seed)
        return {
            **images,
            "presence": presence,
            "subject": self.subjects[number].id,
            "slice": place,
        }

    def _maps(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._opened:
            subject = self.subjects[number]
            self._opened[number] = {name: subject.open(name) for name in self.arrays}
        return self._opened[number]

    def _drop(self, presence: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        kept = torch.from_numpy(rng.random(len(presence)) >= self.condition_dropout)
        if not kept.any():
            kept[rng.integers(len(presence))] = True
        return presence & kept

    def _augment(self, images: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
        if self.augmentation is None:
            return images
        self.augmentation.set_random_state(seed % 2**32)
        augmented = {n: torch.as_tensor(a) for n, a in self.augmentation(images).items()}
        # monai returns a subclass that drags a record of transforms through every operation
        plain = {n: a.as_subclass(torch.Tensor) for n, a in augmented.items()}
        return {name: a.to(images[name].dtype) for name, a in plain.items()}


class EndlessShuffle(Sampler):
    """Yields ``(index, seed)`` for ever, pass after pass; the order is a function of (seed, pass).

    Training is counted in steps, not epochs, so a resumed run continues in the middle of a pass by
    starting at the number of examples already drawn.

    Args:
        length: number of examples.
        seed: seed of the order and of the augmentation.
        start: examples already drawn (by all ranks together).
        rank, world_size: this process draws every ``world_size``-th example.
    """

    def __init__(
        self, length: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.length, self.seed, self.start = length, seed, start
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.start + self.rank
        current, order = -1, np.empty(0, int)
        while True:
            turn, offset = divmod(position, self.length)
            if turn != current:
                rng = np.random.default_rng(stable_seed(self.seed, "order", turn))
                current, order = turn, rng.permutation(self.length)
            yield int(order[offset]), stable_seed(self.seed, "augment", position)
            position += self.world_size
