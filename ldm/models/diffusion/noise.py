"""Noise that depends on what is sampled, not on how the work is batched or ordered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, sqrt
from typing import Any

import torch
from torch import Tensor

from ldm.storage import stable_seed

Key = tuple[Any, ...]

SMOOTH_WIDTH = 1.0  # slices, of the Gaussian that smooth noise is made with
SMOOTH_REACH = 3  # slices to each side, three times the width


def slice_noise(
    kind: str, seed: int, subject: str, index: int, sample: int
) -> Key | dict[Key, float]:
    """Return the key of the noise of one slice, for :class:`KeyedNoise`.

    Each slice has standard normal noise, whatever the kind, so that the distribution of a slice by
    itself does not change; only how the slices of one patient belong together does.

    Args:
        kind: ``slice`` is independent noise in every slice, ``patient`` one noise image for all
            slices (the coarsest of the shared noises of Ge et al. 2023, arXiv:2305.10474),
            ``smooth`` a noise volume that a Gaussian smooths along the slices: the correlation at
            a distance of d slices is ``exp(-d^2 / (4 SMOOTH_WIDTH^2))``.
        seed, subject, index, sample: what is sampled; ``index`` counts the slices.
    """
    if kind == "slice":
        return (seed, subject, index, sample)
    if kind == "patient":
        return (seed, subject, kind, sample)
    reach = range(-SMOOTH_REACH, SMOOTH_REACH + 1)
    taps = [exp(-((d / SMOOTH_WIDTH) ** 2) / 2) for d in reach]
    size = sqrt(sum(tap**2 for tap in taps))  # unit variance
    return {
        (seed, subject, index + d, sample): tap / size for d, tap in zip(reach, taps, strict=True)
    }


class KeyedNoise:
    """One CPU generator an item, keyed for example by (seed, subject, slice, sample).

    ``torch.randn`` of a batch is not the concatenation of ``torch.randn`` of its items, so each
    item is drawn by itself; the result is then independent of batch size, order and process.

    Args:
        keys: one an item of the batch: a key, or ``{key: weight}`` for a weighted sum of the noise
            of several keys (see :func:`slice_noise`). Items with a key in common share its noise.
        device: where the noise goes.
        temperature: standard deviation of the noise. 1 samples from the model; 0 starts at the
            centre of the noise and follows it, which gives one deterministic image close to the
            conditional mean, with less error and less texture than a sample.
    """

    def __init__(
        self,
        keys: Sequence[Key | Mapping[Key, float]],
        device: torch.device | str,
        temperature: float = 1.0,
    ) -> None:
        self.weights = [key if isinstance(key, Mapping) else {key: 1.0} for key in keys]
        self.generators = {
            key: torch.Generator().manual_seed(stable_seed(*key))
            for weights in self.weights
            for key in weights
        }
        self.device, self.temperature = device, temperature

    def mirrored(self) -> KeyedNoise:
        """Return the same noise, from the start, with the other sign."""
        keys = [{key: -weight for key, weight in weights.items()} for weights in self.weights]
        return KeyedNoise(keys, self.device, self.temperature)

    def at(self, temperature: float) -> KeyedNoise:
        """Return the same noise, from the start, at another temperature."""
        return KeyedNoise(self.weights, self.device, temperature)

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Return normal noise (B, *shape) float32 of the temperature's standard deviation."""
        drawn = {k: torch.randn(tuple(shape), generator=g) for k, g in self.generators.items()}
        items = [sum(w * drawn[key] for key, w in weights.items()) for weights in self.weights]
        return torch.stack(items).to(self.device) * self.temperature

    def __call__(self, step: int, x: Tensor) -> Tensor:
        """Return noise like x (B, ...): what a stochastic sampler asks for at each step."""
        return self.draw(x.shape[1:])
