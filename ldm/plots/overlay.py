"""Pictures of segmentations: regions over an image, and where attention gates are open."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ldm.plots.figures import COLOUR_MAPS, strip_figure
from ldm.regions import region_name

# Okabe & Ito (2008), told apart with every common colour blindness; the later covers the earlier
REGION_COLOURS = {"lesion": "#E69F00", "wt": "#009E73", "tc": "#56B4E9", "et": "#D55E00"}
OPEN = 0.5  # alpha above which a gate counts as open
OPACITY = 0.55

Picture = NDArray | tuple[NDArray, Mapping[str, NDArray]]


def overlay(image: NDArray, masks: Mapping[str, NDArray]) -> NDArray:
    """Return an image (H, W) in grey with coloured regions (H, W) bool, (H, W, 3) in [0, 1]."""
    from matplotlib.colors import to_rgb

    grey = _grey(image)
    picture = grey.copy()
    for name, colour in REGION_COLOURS.items():
        if name in masks:
            shown = masks[name].astype(bool)
            picture[shown] = (1 - OPACITY) * grey[shown] + OPACITY * np.array(to_rgb(colour))
    return picture


def overlay_figure(rows: Sequence[Mapping[str, Picture]], titles: Sequence[str]) -> bytes:
    """Return rows of labelled slices as PNG.

    Args:
        rows: a row a slice: ``{label: image (H, W)}``, or ``{label: (image, masks)}`` for an
            overlay; first axis downwards.
        titles: one a row.
    """
    drawn = [
        {n: overlay(*each) if isinstance(each, tuple) else _grey(each) for n, each in row.items()}
        for row in rows
    ]
    pictures = [each for row in rows for each in row.values()]
    masks = [name for each in pictures if isinstance(each, tuple) for name in each[1]]
    return strip_figure(drawn, titles, region_legend(masks))


def region_legend(names: Collection[str]) -> dict[str, str]:
    """Return what a legend calls those of the regions that are drawn -> colour; the inner first."""
    return {region_name(n): c for n, c in reversed(REGION_COLOURS.items()) if n in names}


def open_share(alpha: NDArray, brain: NDArray) -> float:
    """Return the share of the brain in which a gate is open, alpha > 0.5; NaN without any."""
    return float((alpha[brain] > OPEN).mean()) if brain.any() else float("nan")


def attention_figure(
    image: NDArray,
    masks: Mapping[str, NDArray],
    maps: Mapping[int, NDArray],
    brain: NDArray,
    title: str,
) -> bytes:
    """Return a slice, what was segmented in it and the gates of each level, as PNG.

    Args:
        image: (H, W), first axis downwards.
        masks: regions (H, W) bool.
        maps: alpha (H, W) in [0, 1] by level; in the title of a level is the share of the brain
            where it is above 0.5.
        brain: (H, W) bool.
        title: of the row.
    """
    from matplotlib import colormaps

    row = {"image": _grey(image), "prediction": overlay(image, masks)}
    for level, alpha in maps.items():
        name = f"level {level}: {open_share(alpha, brain):.0%} open"
        row[name] = colormaps[COLOUR_MAPS["error"]](alpha)[..., :3]
    return strip_figure([row], [title], region_legend(masks))


def _grey(image: NDArray) -> NDArray:
    """Return an image (H, W) as (H, W, 3) in [0, 1]."""
    low, high = float(np.min(image)), float(np.percentile(image, 99.8))
    unit = np.clip((image - low) / ((high - low) or 1), 0, 1)
    return np.repeat(unit[..., None], 3, axis=-1)
