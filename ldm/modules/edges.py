"""Edge maps of images, as a further condition of a network."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import ConfigError, bad_value

# The two neighbours of a pixel in its 3 x 3 window (row by row) along a gradient of 0, 45, 90, 135
# degrees, rows counted downwards.
AHEAD, BEHIND = (5, 8, 7, 6), (3, 0, 1, 2)
SIGMA = 1.0  # pixels, of the Gaussian that smooths before Canny's edges are looked for
LOW, HIGH = 0.1, 0.2  # of the largest gradient of an image


def check_kind(kind: str) -> None:
    """Refuse what is no kind of edges.

    Raises:
        ConfigError: CONFIG-VALUE.
    """
    if kind not in EDGE_MAPS:
        raise bad_value(f"use_edge is '{kind}': expected {', '.join(EDGE_MAPS)} or false")


def edge_map(images: Tensor, kind: str) -> Tensor:
    """Return the edges of images (B, C, *S), each channel and slice by itself, in the same shape.

    Edges lie in the last two axes. A constant image has none, its border neither.

    Args:
        kind: ``sobel``: magnitude of the gradient, in intensity per two pixels. ``laplacian``: sum
            of the second differences, in intensity. ``canny``: 1 on thin connected edges, else 0.

    Raises:
        ConfigError: CONFIG-VALUE for another kind, CONFIG-SHAPE for images with one axis.
    """
    check_kind(kind)
    if images.ndim < 4:
        raise ConfigError(
            "CONFIG-SHAPE",
            f"edges of images of shape {tuple(images.shape)}: expected at least two spatial axes; "
            "set use_edge to false",
        )
    slices = images.float().reshape(-1, 1, *images.shape[-2:])  # (N, 1, H, W)
    return EDGE_MAPS[kind](slices).reshape(images.shape).to(images.dtype)


def _filter(image: Tensor, *kernels: list[list[float]]) -> Tensor:
    """Correlate image (N, 1, H, W) with square kernels, giving (N, kernels, H, W)."""
    weight = torch.tensor(kernels, device=image.device).unsqueeze(1)  # (kernels, 1, k, k)
    pad = [weight.shape[-1] // 2] * 4
    return F.conv2d(F.pad(image, pad, mode="replicate"), weight)


def _gradient(image: Tensor) -> Tensor:
    """Sobel's differences along x and y: (N, 1, H, W) -> (N, 2, H, W)."""
    along_x = [[-0.25, 0.0, 0.25], [-0.5, 0.0, 0.5], [-0.25, 0.0, 0.25]]
    along_y = [list(column) for column in zip(*along_x, strict=True)]
    return _filter(image, along_x, along_y)


def sobel(image: Tensor) -> Tensor:
    """Magnitude of Sobel's gradient, (N, 1, H, W) -> (N, 1, H, W)."""
    return torch.linalg.vector_norm(_gradient(image), dim=1, keepdim=True)


def laplacian(image: Tensor) -> Tensor:
    """Difference of the four neighbours from the pixel, (N, 1, H, W) -> (N, 1, H, W)."""
    return _filter(image, [[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])


def canny(image: Tensor) -> Tensor:
    """Thin connected edges, (N, 1, H, W) -> (N, 1, H, W) of 0 and 1 (Canny 1986).

    An edge is where the gradient exceeds LOW, connected to where it exceeds HIGH.
    """
    taps = [math.exp(-0.5 * (offset / SIGMA) ** 2) for offset in range(-3, 4)]
    gaussian = [[a * b / sum(taps) ** 2 for b in taps] for a in taps]
    gradient = _gradient(_filter(image, gaussian))  # (N, 2, H, W)
    magnitude = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)  # (N, 1, H, W)
    largest = magnitude.amax(dim=(2, 3), keepdim=True)
    # Below a rounding error there is nothing to find: a constant image has no edge.
    ridge = _ridge(gradient, magnitude) & (magnitude > 1e-5)
    candidates = (ridge & (magnitude > LOW * largest)).to(image)
    edges = candidates * (magnitude > HIGH * largest)
    while True:  # grow the strong edges along the candidates until nothing is added
        grown = candidates * F.max_pool2d(edges, 3, stride=1, padding=1)
        if torch.equal(grown, edges):
            return edges
        edges = grown


def _ridge(gradient: Tensor, magnitude: Tensor) -> Tensor:
    """Whether each pixel is the largest of three along its gradient, (N, 1, H, W) bool."""
    direction = (torch.atan2(gradient[:, 1:], gradient[:, :1]) * 4 / math.pi).round().long() % 4
    window = F.unfold(magnitude, 3, padding=1).unflatten(2, magnitude.shape[2:])  # (N, 9, H, W)
    ahead, behind = (torch.tensor(n, device=direction.device)[direction] for n in (AHEAD, BEHIND))
    return (magnitude >= window.gather(1, ahead)) & (magnitude > window.gather(1, behind))


EDGE_MAPS = {"sobel": sobel, "laplacian": laplacian, "canny": canny}
