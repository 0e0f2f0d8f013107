"""Two images in turns, as the squares of a checkerboard: where they fit, edges go on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ldm.plots.figures import strip_figure

SQUARES = 8  # along the longer side


def checkerboard(first: NDArray, second: NDArray) -> NDArray:
    """Return squares of two images (H, W) in turns, each in [0, 1] by its own percentiles."""
    side = max(1, -(-max(first.shape) // SQUARES))
    rows, columns = (np.arange(n) // side for n in first.shape)
    return np.where((rows[:, None] + columns) % 2 == 0, _grey(first), _grey(second))


def checkerboards_figure(
    volumes: Mapping[str, NDArray], to: str, notes: Mapping[str, str]
) -> bytes:
    """Return checkerboards of a volume and each other one, in three planes, as PNG.

    Args:
        volumes: contrast -> (X, Y, Z) in RAS+, all on one grid.
        to: the contrast that stands in every board.
        notes: contrast -> what its caption says beside the names.
    """
    fixed = volumes[to]
    shown = fixed != np.median(fixed[:: max(1, len(fixed) - 1)])
    middle = [int(np.median(axis)) for axis in np.nonzero(shown if shown.any() else fixed + 1)]
    others = [name for name in volumes if name != to] or [to]
    rows = [
        {
            f"{to}, {name} {notes.get(name, '')}".strip(): checkerboard(
                _plane(fixed, axis, middle), _plane(volumes[name], axis, middle)
            )
            for name in others
        }
        for axis in (2, 1, 0)
    ]
    return strip_figure(rows, ["axial", "coronal", "sagittal"])


def _plane(volume: NDArray, axis: int, middle: list[int]) -> NDArray:
    return np.rot90(np.take(volume, middle[axis], axis))


def _grey(image: NDArray) -> NDArray:
    low, high = np.percentile(image, (1, 99.5))
    return np.clip((image - low) / max(high - low, 1e-12), 0, 1)
