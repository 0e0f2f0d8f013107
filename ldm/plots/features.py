"""What a backbone disentangles, as a picture: feature maps, and how alike the features are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ldm.plots.axes import INK
from ldm.plots.figures import figure_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

Features = Mapping[str, Sequence[Tensor]]
CELL = 1.1  # inches, side of a feature map
SIMILARITY = "RdBu_r"  # diverging and safe for colour-blind readers; white is unrelated


def feature_figure(features: Features) -> bytes:
    """Feature maps of the first sample, and the cosine similarity of all samples, as PNG.

    Args:
        features: ``{kind: [(B, C, *S) a stream]}`` as ``forward_with_features`` gives them. A map
            is drawn as its root mean square over the channels; of a volume, the middle slice.
    """
    from matplotlib.figure import Figure as Canvas

    streams = max(len(maps) for maps in features.values())
    height = CELL * max(len(features), 3) + 0.7
    canvas = Canvas(figsize=(CELL * streams + 1.0 + height, height), facecolor="white")
    left, right = canvas.subfigures(1, 2, width_ratios=[CELL * streams + 0.6, height + 0.4])
    _draw_maps(left, features, streams)
    _draw_similarity(right.subplots(), *similarity(features))
    return figure_bytes(canvas, "png")


def similarity(features: Features) -> tuple[NDArray, list[str]]:
    """Return the cosine similarity (V, V) of all views, and the kind of each view.

    A view is the feature of one sample and stream. Views are ordered by kind, stream and sample, so
    that a kind that agrees over streams, or over samples, shows as a block or as diagonals.
    """
    names = [kind for kind, maps in features.items() for feature in maps for _ in feature]
    views = [f for maps in features.values() for feature in maps for f in feature.flatten(1)]
    unit = [F.normalize(view.float(), dim=0).cpu().numpy() for view in views]
    table = np.full((len(unit), len(unit)), np.nan)
    for i, a in enumerate(unit):
        for j, b in enumerate(unit):
            if a.shape == b.shape:
                table[i, j] = a @ b
    return table, names


def _draw_maps(figure: SubFigure, features: Features, streams: int) -> None:
    edges = {"left": 0.12, "right": 0.98, "bottom": 0.03, "top": 0.93, "wspace": 0.05}
    grid = figure.subplots(len(features), streams, squeeze=False, gridspec_kw=edges)
    for ax in grid.flat:
        ax.set_axis_off()
    for stream, ax in enumerate(grid[0], start=1):
        ax.set_title(f"stream {stream}", fontsize=8, color=INK)
    for row, (kind, maps) in zip(grid, features.items(), strict=True):
        for ax, feature in zip(row, maps, strict=False):
            energy = feature[0].float().square().mean(0).sqrt().cpu().numpy()  # (*S)
            image = energy if energy.ndim == 2 else energy[energy.shape[0] // 2]
            low, high = np.percentile(image, [5, 95])  # not set by what the padding does at the rim
            ax.imshow(np.rot90(image), cmap="viridis", vmin=low, vmax=high)
        row[0].text(
            *(-0.08, 0.5, kind),
            **{"transform": row[0].transAxes, "rotation": 90, "fontsize": 9, "color": INK},
            **{"ha": "right", "va": "center"},
        )


def _draw_similarity(ax: Axes, table: NDArray, names: Sequence[str]) -> None:
    image = ax.imshow(table, cmap=SIMILARITY, vmin=-1, vmax=1)
    kinds = list(dict.fromkeys(names))
    starts = [names.index(kind) for kind in kinds]
    centres = [
        start + (names.count(kind) - 1) / 2 for kind, start in zip(kinds, starts, strict=True)
    ]
    for start in starts[1:]:
        ax.axhline(start - 0.5, color=INK, linewidth=0.8)
        ax.axvline(start - 0.5, color=INK, linewidth=0.8)
    ax.set_xticks(centres, kinds, fontsize=8, color=INK)
    ax.set_yticks(centres, kinds, fontsize=8, color=INK, rotation=90, va="center")
    ax.tick_params(length=0)
    ax.set_title("cosine similarity of features", fontsize=9, color=INK)
    ax.figure.colorbar(image, ax=ax, shrink=0.8).ax.tick_params(labelsize=7)
