"""Slices or patches of prepared subjects as training examples, in an order that depends on a seed
only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ldm.data.cache import CachedSubject
from ldm.data.prepare import fit_size
from ldm.errors import ConfigError, DataError, calling
from ldm.intensity import BACKGROUND, bright
from ldm.storage import stable_seed
from ldm.study import ASKED, MAPS
from ldm.util import own_channels

MOST_OPEN = 64  # subjects whose maps a process holds: each array is an open file, of 1024 as a rule
GLIMPSE = 48  # voxels across, of an image that is to say how much of it is abnormal
TRIES = 20  # random places of a patch, to find one with enough brain


@dataclass(frozen=True)
class Drawing:
    """Which slices or patches a training sees, each number from 0 to 1.

    Args:
        min_brain: least share of a (brain-cropped) slice or patch that must be brain, to train on
            it.
        condition_dropout: probability of hiding each contrast in training.
        covariate_dropout: probability of hiding the numbers of a patient in training, so that a
            model can be asked without them.
        abnormal_share: share of the training examples that are drawn by how much of them is
            abnormal (bright in FLAIR, or in T2 where that is no condition); the others alike.
    """

    min_brain: float = 0.1
    condition_dropout: float = 0.0
    covariate_dropout: float = 0.0
    abnormal_share: float = 0.0


def with_neighbours(slices: np.ndarray, index: int, neighbours: int) -> np.ndarray:
    """Return slice ``index`` of (S, M, H, W) with its neighbours: ((2n+1)*M, H, W).

    Channels run slice by slice, each with all M contrasts; beyond the ends is background (2.5-D).
    """
    rows = range(index - neighbours, index + neighbours + 1)
    blank = np.full(slices.shape[1:], BACKGROUND, slices.dtype)
    return np.concatenate([slices[i] if 0 <= i < len(slices) else blank for i in rows])


def parts_beside(maps: Mapping[str, np.ndarray], index: int | tuple) -> dict[str, np.ndarray]:
    """Return what lies beside the slices at an index of (S, H, W) or (S, K, H, W), channels first.

    Of one slice that is (1 or K, H, W), of a patch (1 or K, D, H, W).
    """
    cut = {name: array[index] for name, array in maps.items() if name != "slices"}
    return {
        name: np.moveaxis(part, -3, 0) if maps[name].ndim == 4 else part[None]
        for name, part in cut.items()
    }


class Example(NamedTuple):
    """Which example of a data set.

    Args:
        index: of its slice.
        seed: of augmentation and what is hidden; None: the plain slice.
        target: which contrast is to be made, where that varies; None: a function of the others.
    """

    index: int
    seed: int | None = None
    target: int | None = None


class SliceDataset(Dataset):
    """Slices with enough brain, of many subjects.

    An item is ``target`` (1, H, W), ``condition`` (M*(2n+1), H, W), ``presence`` (M,) bool,
    ``brain`` (1, H, W) bool, ``subject``, ``slice``, ``seg`` (1, H, W) if all subjects have one.
    Without a target every channel is a condition. Where the target varies, it is one of the
    conditions, which is hidden there and not present; ``asked`` (2M,) float32 says which it is, and
    then which are present.
    A plain item has a key ``maps`` too, (K, H, W), where the attribute has those of its subject.
    Images are float32 in [-1, 1], background -1.

    Args:
        subjects: cache entries; the last channel of their slices is the target, if there is one.
        image_size: (H, W) to crop or pad to, symmetrically about the brain.
        min_brain: least share of a cropped slice that must be brain.
        neighbours: slices on each side that join the conditions.
        condition_dropout: probability with which each contrast is dropped (one always stays).
        augmentation: callable on the item with ``set_random_state(seed)``, as in monai.
        has_target: whether the last channel is the target.
        covariates: id -> numbers of a patient, which join the item as ``covariates`` (K,) float32.
        covariate_dropout: probability with which an item has none of them, but NaN.
        varies: whether the target is each of the conditions in turn.

    Indexing with an int gives the plain slice; with ``(index, seed)``, see :class:`Example`, it is
    augmented from ``seed``, so that the result does not depend on the worker that makes it.
    """

    def __init__(
        self,
        subjects: Sequence[CachedSubject],
        image_size: tuple[int, ...],
        min_brain: float = 0.0,
        neighbours: int = 0,
        condition_dropout: float = 0.0,
        augmentation: Callable | None = None,
        has_target: bool = True,
        covariates: Mapping[str, Sequence[float]] | None = None,
        covariate_dropout: float = 0.0,
        varies: bool = False,
    ) -> None:
        self.has_target, self.covariates, self.varies = has_target, covariates, varies
        self.covariate_dropout = covariate_dropout
        self.subjects = list(subjects)
        self.image_size = image_size
        self.min_brain = max(min_brain, 1e-9)
        self.neighbours = neighbours
        self.condition_dropout = condition_dropout
        self.augmentation = augmentation
        self.arrays = ["slices", "brain"]
        if self.subjects and all(s.has_seg for s in self.subjects):
            self.arrays.append("seg")
        self.maps: dict[int, np.ndarray] = {}  # subject -> what a prior found in it, (S, K, H, W)
        self._opened: dict[int, dict[str, np.ndarray]] = {}
        self.places = [
            (number, place)
            for number in range(len(self.subjects))
            for place in self._places_of(number)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def glimpse(self, index: int, channel: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a condition and the brain of an example, some GLIMPSE voxels across."""
        number, place = self.places[index]
        cut = self._cut(self._maps(number), place)
        step = max(1, min(cut["brain"].shape[-2:]) // GLIMPSE)
        rows = (..., slice(None, None, step), slice(None, None, step))
        return cut["condition"][channel][rows].astype(np.float32), cut["brain"][0][rows] != 0

    def volume(self, number: int) -> tuple[np.ndarray, np.ndarray | None, float]:
        """Return the slices (S, C, H, W) of a subject, its labels (S, H, W) or None, its aspect.

        The last channel of the slices is the target, if there is one; the aspect is how wide a
        voxel is within a slice, as part of the distance of slices.
        """
        subject = self.subjects[number]
        seg = np.array(subject.open("seg")) if subject.has_seg else None
        return np.asarray(self._maps(number)["slices"], np.float32), seg, subject.aspect

    def show_maps(
        self, number: int, find: Callable[[np.ndarray, float], np.ndarray | None]
    ) -> None:
        """Let the plain examples of a subject show what ``find`` makes of its slices and aspect."""
        slices, _, aspect = self.volume(number)
        if (maps := find(slices, aspect)) is not None:
            self.maps[number] = maps

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}  # a worker opens its own memory maps

    def __getitem__(self, key: int | tuple) -> dict[str, Any]:
        index, seed, target = Example(*key) if isinstance(key, tuple) else Example(key)
        number, place = self.places[index]
        if seed is not None:
            place = self._place(number, place, seed)
        maps = self._maps(number)
        if seed is None and number in self.maps:
            maps = {**maps, MAPS: self.maps[number]}
        item = {
            name: fit_size(a, self.image_size, BACKGROUND if name in ("condition", "target") else 0)
            for name, a in self._cut(maps, place).items()
        }
        images = {name: torch.from_numpy(np.array(a)) for name, a in item.items()}
        images = {n: a.float() if a.dtype == torch.float16 else a for n, a in images.items()}
        presence = torch.ones(maps["slices"].shape[1] - self.has_target, dtype=torch.bool)
        if self.varies:
            target = self._target(index, seed, len(presence)) if target is None else target
            presence[target] = False
            own = images["condition"][own_channels(len(presence), self.neighbours)]
            images["target"] = own[target, None].clone()
        if seed is not None:
            presence = self._drop(presence, np.random.default_rng(seed))
            images = self._augment(images, seed)
        subject = self.subjects[number].id
        item = {**images, "presence": presence, "subject": subject, "slice": place}
        if self.varies:
            item["condition"][target :: len(presence)] = BACKGROUND  # of neighbours too
            item[ASKED] = asked(target, presence)
        if self.covariates is not None:
            item["covariates"] = self._numbers(subject, seed)
        return item

    def _numbers(self, subject: str, seed: int | None) -> torch.Tensor:
        """Return the covariates of a subject (K,), or NaN where they are hidden."""
        numbers = torch.tensor(self.covariates[subject])
        if seed is None or not self.covariate_dropout:
            return numbers
        rng = np.random.default_rng(stable_seed(seed, "covariates"))
        return numbers * torch.nan if rng.random() < self.covariate_dropout else numbers

    def _places_of(self, number: int) -> list[int]:
        """Return the places in a subject that are examples."""
        return np.flatnonzero(self.subjects[number].brain_share >= self.min_brain).tolist()

    def _place(self, number: int, place: int, seed: int) -> int:
        """Return where to cut the example of a place for a seed."""
        return place

    def _cut(self, maps: Mapping[str, np.ndarray], place: int) -> dict[str, np.ndarray]:
        """Return the images (C, ...) of a place before they are fitted to the size."""
        count = maps["slices"].shape[1] - self.has_target
        images = {"condition": with_neighbours(maps["slices"][:, :count], place, self.neighbours)}
        if self.has_target:
            images["target"] = maps["slices"][place, -1:]
        return images | parts_beside(maps, place)

    def _maps(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._opened:
            subject = self.subjects[number]
            if len(self._opened) >= MOST_OPEN:
                del self._opened[next(iter(self._opened))]  # the one that was opened first
            try:
                self._opened[number] = {name: subject.open(name) for name in self.arrays}
            except (OSError, ValueError) as error:
                raise DataError(
                    "DATA-IO",
                    f"cache entry {subject.folder.name} is gone or damaged ({error}): --resume "
                    "makes it again",
                    subject.id,
                ) from error
        return self._opened[number]

    def _drop(self, presence: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        kept = torch.from_numpy(rng.random(len(presence)) >= self.condition_dropout) & presence
        if not kept.any():
            there = presence.nonzero()[:, 0]
            kept[there[rng.integers(len(there))]] = True
        return kept

    def _target(self, index: int, seed: int | None, contrasts: int) -> int:
        """Return which contrast is to be made: drawn by the seed, or each in turn."""
        if seed is None:
            return index % contrasts
        return int(np.random.default_rng(stable_seed(seed, "target")).integers(contrasts))

    def _augment(self, images: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
        if self.augmentation is None:
            return images
        with calling(self.augmentation):
            self.augmentation.set_random_state(seed % 2**32)
            made: Any = self.augmentation(dict(images))
        seen = shapes_of(made) if isinstance(made, Mapping) else {}
        expected = shapes_of(images)
        if wrong := [n for n in sorted({*seen, *expected}) if seen.get(n) != expected.get(n)]:
            raise ConfigError(
                "CONFIG-SHAPE",
                f"data.params.augmentation_config: {type(self.augmentation).__name__} returned "
                f"'{wrong[0]}' as {seen.get(wrong[0])}, expected {expected.get(wrong[0])}: let it "
                f"return what it is given, changed: {', '.join(expected)}",
            )
        # monai returns a subclass that drags a record of transforms through every operation
        plain = {n: torch.as_tensor(a).as_subclass(torch.Tensor) for n, a in made.items()}
        return {name: a.to(images[name].dtype) for name, a in plain.items()}


def shapes_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shape of each array by its name; the kind of what is none."""
    return {n: tuple(getattr(a, "shape", [type(a).__name__])) for n, a in arrays.items()}


def asked(target: int, presence: torch.Tensor) -> torch.Tensor:
    """Return (2M,) float32: which of M contrasts is to be made, and which are present (M,) bool."""
    wanted = torch.arange(len(presence)) == target
    return torch.cat([wanted, presence.cpu()]).float()


class PatchDataset(SliceDataset):
    """Patches of many subjects: items as of :class:`SliceDataset` with (D, H, W) for (H, W).

    D runs along the axis of the slices. A subject has as many patches as cover it, those with
    enough brain: an int gives the plain patch of this grid, ``(index, seed)`` a patch at a random
    place of the same subject, a function of ``seed``. ``slice`` numbers the places of a subject.
    Where a subject is smaller than a patch, background is around it.

    Args:
        subjects, condition_dropout, augmentation, has_target, covariates, covariate_dropout,
            varies: see :class:`SliceDataset`.
        image_size: (D, H, W) of a patch.
        min_brain: least share of (what a subject fills of) a patch that must be brain.
        neighbours: 0.
    """

    def _positions(self, maps: Mapping[str, np.ndarray]) -> list[int]:
        """Return the number of places of a patch along each axis."""
        sides = zip(maps["brain"].shape, self.image_size, strict=True)
        return [max(0, have - want) + 1 for have, want in sides]

    def _box(self, maps: Mapping[str, np.ndarray], place: int) -> tuple[slice, ...]:
        starts = np.unravel_index(place, self._positions(maps))
        return tuple(slice(n, n + side) for n, side in zip(starts, self.image_size, strict=True))

    def _has_brain(self, maps: Mapping[str, np.ndarray], place: int) -> bool:
        return maps["brain"][self._box(maps, place)].mean() >= self.min_brain

    def _places_of(self, number: int) -> list[int]:
        maps = self._maps(number)
        positions = self._positions(maps)
        starts = [
            np.linspace(0, n - 1, -(-have // side), dtype=int)
            for n, have, side in zip(positions, maps["brain"].shape, self.image_size, strict=True)
        ]
        grid = np.ravel_multi_index(np.meshgrid(*starts, indexing="ij"), positions).ravel().tolist()
        return [place for place in grid if self._has_brain(maps, place)]

    def _place(self, number: int, place: int, seed: int) -> int:
        maps, rng = self._maps(number), np.random.default_rng(stable_seed(seed, "place"))
        drawn = rng.integers(math.prod(self._positions(maps)), size=TRIES).tolist()
        return next((p for p in drawn if self._has_brain(maps, p)), place)

    def _cut(self, maps: Mapping[str, np.ndarray], place: int) -> dict[str, np.ndarray]:
        depth, *plane = self._box(maps, place)
        stack = np.moveaxis(maps["slices"][(depth, slice(None), *plane)], 1, 0)  # (M, D, H, W)
        count = len(stack) - self.has_target
        images = {"condition": stack[:count]}
        if self.has_target:
            images["target"] = stack[count:]
        return images | parts_beside(maps, (depth, ..., *plane))


def abnormality_of(slices: SliceDataset, channel: int) -> np.ndarray:
    """Return how much of each example (N,) is abnormal, by a channel of its conditions.

    The sum over a grid of its voxels of what :func:`ldm.intensity.abnormality` averages: exact
    enough to draw by, and milliseconds a patient.
    """
    sums = np.zeros(len(slices))
    for index in range(len(slices)):
        image, brain = slices.glimpse(index, channel)
        sums[index] = (bright(torch.from_numpy(image)) * torch.from_numpy(brain)).sum()
    return sums


class EndlessShuffle(Sampler):
    """Yields ``(index, seed)`` for ever, pass after pass; the order is a function of (seed, pass).

    Training is counted in steps, not epochs, so a resumed run continues in the middle of a pass by
    starting at the number of examples already drawn.

    Args:
        length: number of examples.
        seed: seed of the order and of the augmentation.
        start: examples already drawn (by all ranks together).
        rank, world_size: this process draws every ``world_size``-th example.
        weights: (length,) of the examples, by which a share of them is drawn instead.
        share: of the examples that are drawn by ``weights``.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        weights: np.ndarray | None = None,
        share: float = 0.0,
    ) -> None:
        self.length, self.seed, self.start = length, seed, start
        self.rank, self.world_size = rank, world_size
        self.share = share if weights is not None and weights.sum() > 0 else 0.0
        self.reach = np.cumsum(weights) / np.sum(weights) if self.share else None

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position = self.start + self.rank
        current, order = -1, np.empty(0, int)
        while True:
            turn, offset = divmod(position, self.length)
            if turn != current:
                rng = np.random.default_rng(stable_seed(self.seed, "order", turn))
                current, order = turn, rng.permutation(self.length)
            yield (
                self._drawn(position, int(order[offset])),
                stable_seed(self.seed, "augment", position),
            )
            position += self.world_size

    def _drawn(self, position: int, index: int) -> int:
        """Return the example of a position: that of the pass, or now and then one by weight."""
        if self.reach is None:
            return index
        rng = np.random.default_rng(stable_seed(self.seed, "weighted", position))
        if rng.random() >= self.share:
            return index
        return min(int(np.searchsorted(self.reach, rng.random(), "right")), self.length - 1)
