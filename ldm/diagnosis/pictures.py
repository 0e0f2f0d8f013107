"""Pictures of suspicious subjects and of the curves of a run, as PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Canvas

from ldm.data.brain import bounding_box
from ldm.data.contrasts import load_contrasts
from ldm.data.layouts import Layout, Subject
from ldm.diagnosis.curves import plateau_start
from ldm.diagnosis.data import DataDiagnosis
from ldm.diagnosis.facts import LOSS, VALIDATION
from ldm.diagnosis.findings import NOTE
from ldm.diagnosis.run import RunDiagnosis
from ldm.errors import DataError
from ldm.plots.axes import COLOURS, GRID
from ldm.plots.figures import STRIP_BACKGROUND, figure_bytes
from ldm.storage import write_file

MOST_PICTURES, MOST_LINES = 24, 6
CELL = 2.4  # inches, width of an image
PAPER = "#f2f3f5"


def write_pictures(diagnosis: DataDiagnosis, folder: Path) -> int:
    """Write ``ID.png`` of the subjects with most serious findings; return how many."""
    suspicious = dict.fromkeys(
        f.subject for f in diagnosis.findings if f.subject and f.severity != NOTE
    )
    written = 0
    for subject in list(suspicious)[:MOST_PICTURES]:
        planes = _planes(diagnosis.files[subject], diagnosis.layout)
        if planes:
            messages = [f"{f.severity}: {f.message}" for f in diagnosis.of_subject(subject)]
            write_file(folder / f"{subject}.png", subject_picture(subject, planes, messages))
            written += 1
    return written


def _planes(subject: Subject, layout: Layout) -> dict[str, np.ndarray]:
    """Return an axial slice of each contrast that can be read, where the mask is largest.

    Each is cropped by itself: contrasts on different grids are what a picture may have to show.
    """
    planes, place = {}, None
    for name in sorted(subject.files, key=lambda n: n != "seg"):
        try:
            volume = load_contrasts(subject, layout, [name])[0][name]
        except DataError:
            continue
        known = volume != 0
        if place is None:
            counts = known.sum(axis=(0, 1))
            place = int(counts.argmax()) / max(len(counts) - 1, 1)
        planes[name] = volume[..., round(place * (volume.shape[2] - 1))]
    if "seg" in planes and len({plane.shape for plane in planes.values()}) == 1:
        seen = np.any([plane != 0 for plane in planes.values()], axis=0)
        if seen.any():
            box = bounding_box(seen)
            planes = {name: plane[box] for name, plane in planes.items()}
    return {name: np.rot90(plane) for name, plane in planes.items()}


def subject_picture(title: str, planes: Mapping[str, np.ndarray], messages: list[str]) -> bytes:
    """Return slices (H, W) side by side with the outline of the mask ``seg``, as PNG."""
    images = {name: plane for name, plane in planes.items() if name != "seg"} or dict(planes)
    mask = planes.get("seg")
    width = max(CELL * len(images), 6)
    lines = [line for m in messages[:MOST_LINES] for line in textwrap.wrap(m, int(width * 15))]
    height = CELL * 1.15 + 0.16 * len(lines) + 0.5
    canvas = Canvas(figsize=(width, height), facecolor=STRIP_BACKGROUND)
    foot = (0.16 * len(lines) + 0.15) / height
    for place, (name, plane) in enumerate(images.items()):
        ax = canvas.add_axes((place / len(images), foot, 1 / len(images) - 0.01, 0.8 - foot))
        low, high = np.percentile(plane, (0, 99.5))
        ax.imshow(plane, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        if mask is not None and mask.shape == plane.shape and 0 < (mask > 0).mean() < 1:
            ax.contour(mask > 0, [0.5], colors=COLOURS[4], linewidths=0.8)
        ax.set_title(name, color=PAPER, fontsize=9)
        ax.axis("off")
    canvas.text(0.01, 0.95, title, color=PAPER, fontsize=10, va="center", weight="bold")
    canvas.text(0.01, 0.02, "\n".join(lines), color=PAPER, fontsize=7.5, va="bottom")
    return figure_bytes(canvas, "png")


def run_picture(diagnosis: RunDiagnosis) -> bytes:
    """Return the curves of a run, as PNG: losses with the plateau marked, terms, gradient norms."""
    facts = diagnosis.facts
    losses = {n: c for n in (LOSS, VALIDATION) if (c := facts.curves.get(n))}
    terms = {f"train/{name}": curve for name, curve in facts.components.items()}
    terms |= {n: c for n, c in sorted(facts.curves.items()) if n.startswith("train/loss_t")}
    norms = {n: c for n, c in sorted(facts.curves.items()) if n.startswith("gradient/")}
    panels = [
        (t, c) for t, c in (("loss", losses), ("terms", terms), ("gradient norm", norms)) if c
    ]
    canvas = Canvas(figsize=(7, 0.6 + 2.3 * len(panels)), layout="constrained", facecolor="white")
    axes = canvas.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (title, curves) in zip(axes, panels, strict=False):
        for place, (name, curve) in enumerate(curves.items()):
            colour, style = COLOURS[place % len(COLOURS)], "o-" if len(curve.values) < 30 else "-"
            label = name.removeprefix("gradient/").removeprefix("train/")
            ax.plot(curve.steps, curve.values, style, color=colour, lw=1, ms=3, label=label)
        if all((curve.values > 0).all() for curve in curves.values()):
            ax.set_yscale("log")
        ax.set_ylabel(title)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color=GRID, linewidth=0.8)
        ax.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[-1].set_xlabel("training step")
    start = plateau_start(facts.loss) if facts.loss else None
    if start is not None:
        axes[0].axvspan(start, facts.steps, color=COLOURS[1], alpha=0.12, lw=0)
        axes[0].text(start, 1.02, "flat", color=COLOURS[1], transform=axes[0].get_xaxis_transform())
    verdict = diagnosis.likely[0].name if diagnosis.likely else "no likely cause of trouble"
    canvas.suptitle(f"{facts.folder.name}: {verdict}", fontsize=10)
    return figure_bytes(canvas, "png")
