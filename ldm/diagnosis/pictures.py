"""Pictures of suspicious subjects, as PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Canvas

from ldm.data.contrasts import load_contrasts
from ldm.data.layouts import Layout, Subject
from ldm.data.prepare import bounding_box
from ldm.diagnosis.data import DataDiagnosis
from ldm.errors import DataError
from ldm.evaluation.report import COLOURS, STRIP_BACKGROUND, STRIP_CELL, figure_bytes
from ldm.storage import atomic_path

MOST_PICTURES = 24
PAPER = "#f2f3f5"


def write_pictures(diagnosis: DataDiagnosis, subjects: Mapping[str, Subject], layout: Layout, folder: Path) -> int:
    """Write ``ID.png`` of the subjects with most serious findings; return how many."""
    suspicious = dict.fromkeys(
        f.subject for f in diagnosis.findings if f.subject and f.severity != "note"
    )
    written = 0
    for subject in list(suspicious)[:MOST_PICTURES]:
        planes = _planes(subjects[subject], layout)
        if planes:
            messages = [f"{f.severity}: {f.message}" for f in diagnosis.of_subject(subject)]
            with atomic_path(folder / f"{subject}.png") as temporary:
                temporary.write_bytes(subject_picture(subject, planes, messages))
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


def subject_picture(
    title: str, planes: Mapping[str, np.ndarray], messages: list[str]
) -> bytes:
    """Return slices (H, W) side by side with the outline of the mask ``seg``, as PNG."""
    images = {name: plane for name, plane in planes.items() if name != "seg"} or dict(planes)
    mask = planes.get("seg")
    width = max(STRIP_CELL * 1.4 * len(images), 6)
    lines = [line for m in messages[:6] for line in textwrap.wrap(m, int(width * 15))]
    height = STRIP_CELL * 1.6 + 0.16 * len(lines) + 0.5
    canvas = Canvas(figsize=(width, height), facecolor=STRIP_BACKGROUND)
    foot = (0.16 * len(lines) + 0.15) / height
    for place, (name, plane) in enumerate(images.items()):
        ax = canvas.add_axes((place / len(images), foot, 1 / len(images) - 0.01, 0.8 - foot))
        ax.imshow(plane, cmap="gray", interpolation="nearest")
        if mask is not None and mask.shape == plane.shape and 0 < (mask > 0).mean() < 1:
            ax.contour(mask > 0, [0.5], colors=COLOURS[4], linewidths=0.8)
        ax.set_title(name, color=PAPER, fontsize=9)
        ax.axis("off")
    canvas.text(0.01, 0.95, title, color=PAPER, fontsize=10, va="center", weight="bold")
    canvas.text(0.01, 0.02, "\n".join(lines), color=PAPER, fontsize=7.5, va="bottom")
    return figure_bytes(canvas, "png")
