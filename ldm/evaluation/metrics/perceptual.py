"""Perceptual metrics, for which the weights of a network must lie on disk; nothing is downloaded.

LPIPS and the Fréchet distance here use one network of torchvision trained on photographs. They say
whether an image looks alike to that network, not whether the anatomy is right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ldm.errors import to_the_reader
from ldm.evaluation.metrics.similarity import padded, stacks
from ldm.losses.perceptual import LPIPS, LPIPS_NETS

if TYPE_CHECKING:
    import torch

BATCH = 8
MIN_SIDE = 64  # what five poolings by two leave something of


class Perceptual:
    """LPIPS and pooled features of one network.

    Args:
        weights: file with the state dict of torchvision's network.
        net: ``vgg``, ``alex`` or ``squeeze``.

    Raises:
        ConfigError: CONFIG-VALUE for another net. CheckpointError: CKPT-MISSING, CKPT-MISMATCH.
    """

    def __init__(self, weights: str | Path, net: str = "vgg") -> None:
        self.net = net
        self.distance = LPIPS(weights, net)
        self.backbone = self.distance.network.eval().requires_grad_(False)

    def lpips(self, prediction: NDArray, reference: NDArray, axis: int = -1) -> float:
        """Mean LPIPS over the slices of two volumes in [0, 1]; NaN without slices.

        Raises:
            DataError: DATA-SHAPE if the shapes differ.
        """
        total, count = 0.0, 0
        for x, y in zip(_batches(prediction, axis), _batches(reference, axis), strict=True):
            total += float(self.distance(x, y)) * len(x)
            count += len(x)
        return total / count if count else float("nan")

    def features(self, volume: NDArray, axis: int = -1) -> NDArray[np.float64]:
        """Mean over the image of the last feature maps of each slice, (slices, channels)."""
        pooled = []
        for images in _batches(volume, axis):
            scaled = self.backbone.scaling_layer(images.expand(-1, 3, -1, -1))
            pooled.append(self.backbone.net(scaled)[-1].mean((2, 3)).double().numpy())
        return np.concatenate(pooled) if pooled else np.zeros((0, 0))


def frechet_distance(first: NDArray, second: NDArray) -> float:
    """Fréchet distance of two sets of features (N, C), each taken for a normal distribution.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` (Dowson & Landau 1982; Heusel et al. 2017). It
    needs more images than channels to be estimated without a large bias, and is no FID: that is
    defined for the features of Inception-v3.

    Returns:
        from 0; NaN for fewer than two images in a set.
    """
    if min(len(first), len(second)) < 2:
        return float("nan")
    gap = first.mean(axis=0) - second.mean(axis=0)
    covariances = [np.atleast_2d(np.cov(features, rowvar=False)) for features in (first, second)]
    # the eigenvalues of C1 C2 are those of a positive semi-definite matrix: no complex square root
    roots = np.sqrt(np.clip(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0, None))
    trace = sum(np.trace(covariance) for covariance in covariances) - 2 * roots.sum()
    return max(0.0, float(gap @ gap + trace))


def find_weights(path: str | Path | None = None) -> tuple[Perceptual | None, str]:
    """Return the network, if its weights lie on disk, and else the reason why there is none.

    Args:
        path: file of weights, whose name says which network (``vgg16-397923af.pth``); None looks
            where torch keeps downloads.

    Raises:
        CheckpointError: CKPT-MISSING, CKPT-MISMATCH for a ``path`` that cannot be used.
    """
    if (found := Path(path) if path else stored_weights()) is None:
        return None, to_the_reader(
            "LPIPS and Fréchet distance are n/a: no weights on disk (--lpips-weights FILE, or "
            "torchvision's file where torch keeps its downloads)"
        )
    starts = {net: file.partition("_")[0] for net, file in LPIPS_NETS.items()}
    net = next((net for net, start in starts.items() if found.name.startswith(start)), "vgg")
    return Perceptual(found, net), ""


def stored_weights() -> Path | None:
    """Return the first file of weights where torch keeps downloads, or None."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser()  # without torch
    folder = home / "hub" / "checkpoints"
    files = (sorted(folder.glob(f"{name}-*.pth")) for name in LPIPS_NETS.values())
    return next((found[0] for found in files if found), None)


def _batches(volume: NDArray, axis: int) -> Iterator[torch.Tensor]:
    """Slices as images (B, 1, H, W) in [-1, 1], at least 64 wide, empty around."""
    import torch

    slices = padded(stacks(volume, volume, None, axis)[0], MIN_SIDE)
    images = torch.tensor(slices, dtype=torch.float32)[:, None] * 2 - 1
    yield from images.split(BATCH) if len(images) else ()
