"""Pictures of an evaluation: strips and viewer of the patients, predicted spread against error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ldm.data.prepare import bounding_box
from ldm.evaluation.protocol import MetricProtocol
from ldm.evaluation.scores import COPY_T1, Evaluation
from ldm.plots.figures import Pane, panes_figure, reliability_figure
from ldm.report.page import Figure
from ldm.report.tables import format_cell
from ldm.report.viewer import (
    BYTES_A_VOXEL,
    MOST_PATIENTS,
    PAGE_BYTES,
    Viewer,
    viewer_patient,
    within_budget,
    worst_first,
)

if TYPE_CHECKING:
    from ldm.evaluation.case import Case, Prediction

MOST_STRIPS = 8  # patients in a page
LINE = 8  # panes in a line of a strip


@dataclass(frozen=True)
class Shown:
    """The volumes (or slices) of a patient as they are shown.

    Args:
        inputs: name -> image in [0, 1], each in its own window.
        real: in [0, 1] between the bounds that the protocol takes from it, 0 outside the brain.
        predictions: row -> image in the same window.
        spreads: row -> standard deviation in units of that window's range.
        aspect: height over width of a voxel of a slice.
    """

    inputs: dict[str, NDArray]
    real: NDArray
    predictions: dict[str, NDArray]
    spreads: dict[str, NDArray]
    aspect: float = 1.0

    def errors(self) -> dict[str, NDArray]:
        """Absolute errors, in units of the range of the real image."""
        return {row: np.abs(image - self.real) for row, image in self.predictions.items()}


def shown_volumes(
    case: Case, predictions: Mapping[str, Prediction], protocol: MetricProtocol
) -> Shown:
    """Bring the volumes of a patient to the windows in which they are shown."""

    def unit(volume: NDArray, low: float, high: float) -> NDArray:
        scaled = np.clip((volume - low) / max(high - low, 1e-12), 0, 1)
        return np.where(case.brain, scaled, 0).astype(np.float32)

    low, high = protocol.bounds(case.reference, case.brain)
    spreads = {row: p.spread for row, p in predictions.items() if p.spread is not None}
    return Shown(
        {
            name.upper(): unit(volume, *np.percentile(volume[case.brain], (0.1, 99.8)))
            for name, volume in case.inputs.items()
        },
        unit(case.reference, low, high),
        {row: unit(predicted.volume, low, high) for row, predicted in predictions.items()},
        {row: unit(spread, 0, high - low) for row, spread in spreads.items()},
    )


def comparison_strip(case: Case, volumes: Shown) -> Shown:
    """Return the shown axial slice of each volume, cropped to the brain, front upwards."""
    index = case.shown_slice()
    box = bounding_box(case.brain)[:2]

    def planes(group: Mapping[str, NDArray]) -> dict[str, NDArray]:
        return {name: np.rot90(volume[(*box, index)]) for name, volume in group.items()}

    width, height, _ = case.geometry.spacing
    return Shown(
        planes(volumes.inputs),
        planes({"": volumes.real})[""],
        planes({row: v for row, v in volumes.predictions.items() if row != COPY_T1}),
        planes(volumes.spreads),
        height / width,
    )


def add_to_viewer(result: Evaluation, case: Case, volumes: Shown, budget: int = PAGE_BYTES) -> None:
    """Encode a patient for the slice viewer; only the worst are kept."""
    patients = min(len(result.subjects), MOST_PATIENTS)
    sheets = len(volumes.inputs) + 1 + len(result.scores) + len(volumes.spreads)
    box = bounding_box(case.brain)[2]
    index = case.shown_slice()
    columns = [np.flatnonzero(case.brain[..., index].any(axis=1 - axis)) for axis in (0, 1)]
    result.viewer[case.id] = viewer_patient(
        case.id,
        volumes.inputs,
        volumes.real,
        volumes.predictions,
        case.brain,
        case.geometry.spacing,
        volumes.spreads,
        {row: _psnr(result, row, case.id) for row in volumes.predictions},
        (*(int(found.mean()) if found.size else 0 for found in columns), max(index, box.start)),
        voxels=budget / BYTES_A_VOXEL / (patients * sheets),
    )
    kept = worst_first(list(result.viewer.values()), _judged(result))[:MOST_PATIENTS]
    result.viewer = {patient.id: patient for patient in kept}


def viewer(result: Evaluation, budget: int = PAGE_BYTES) -> Viewer | None:
    """Return the slice viewer of an evaluation, its worst patients first; None without any."""
    ordered = worst_first(list(result.viewer.values()), _judged(result))
    patients = within_budget(ordered, budget)
    rows = [row for row in result.scores if any(row in p.predictions for p in patients)]
    return Viewer(patients, rows, len(result.subjects) - len(patients)) if patients else None


def strips_figure(result: Evaluation, most: int = MOST_STRIPS) -> list[Figure]:
    """Return a figure a patient: inputs, real, and of each row image, error and spread."""
    shown = sorted(result.strips, key=lambda subject: _quality(result, subject))[:most]
    strips = [result.strips[subject] for subject in shown]
    limits = {
        "error": _limit([image for strip in strips for image in strip.errors().values()]),
        "spread": _limit([image for strip in strips for image in strip.spreads.values()]),
    }
    return [
        Figure(
            f"Patient {subject}",
            panes_figure(_lines(result, subject), limits, result.strips[subject].aspect),
            f"{_place(place, len(shown), result)}. Axial slice {result.slices[subject]}, the one "
            "with most tumour; the patient's left is at the left. Synthetic and real images share "
            "one grey window, white at the 99.5th percentile of the real slice; errors one scale "
            "over all patients, in units of the real data range.",
            f"Inputs, real and synthetic T1ce and errors of patient {subject}",
        )
        for place, subject in enumerate(shown)
    ]


def _place(place: int, shown: int, result: Evaluation) -> str:
    """Why this patient stands here."""
    if not _judged(result) or len(result.strips) == 1:
        return "Brain PSNR above each image" if _judged(result) else "Inputs and real T1ce"
    order = f"Worst first: {place + 1} of {len(result.strips)} by the mean PSNR in the brain"
    left = len(result.strips) - shown
    return order + (f" ({left} better ones are not shown)" if left and place + 1 == shown else "")


def _lines(result: Evaluation, subject: str) -> list[list[Pane | None]]:
    """Inputs and real image in two lines, right of them the rows, each above its error and spread.

    Rows for which there is no room continue in lines of their own.
    """
    strip = result.strips[subject]
    white = _limit([strip.real])  # vessels alone reach the upper bound of the protocol
    given = [Pane(name, image) for name, image in strip.inputs.items()]
    given.append(Pane("real", strip.real / white))
    half = -(-len(given) // 2)
    rows = list(strip.predictions)
    width = min(LINE, half + len(rows))
    room = width - half
    blocks = [rows[:room], *(rows[i : i + width] for i in range(room, len(rows), width))]
    lines: list[list[Pane | None]] = []
    for block in blocks:
        psnr = (format_cell(_psnr(result, row, subject)) for row in block)
        titles = [f"{row} · {value} dB" for row, value in zip(block, psnr, strict=True)]
        below = [
            [Pane(kind, images[row], kind) if row in images else None for row in block]
            for kind, images in (("error", strip.errors()), ("spread", strip.spreads))
        ]
        above = [
            Pane(title, strip.predictions[row] / white)
            for title, row in zip(titles, block, strict=True)
        ]
        made = [above, *(line for line in below if any(line))]
        left = [given[:half], given[half:]] if block is blocks[0] else []
        for beside, line in zip_longest(left, made, fillvalue=[]):
            start = [*beside, *[None] * (half - len(beside))] if left else []
            lines.append([*start, *line, *[None] * (width - len(start) - len(line))])
    return lines


def _judged(result: Evaluation) -> list[str]:
    """The rows that order the patients: all but the copied T1, if there are others."""
    return [row for row in result.scores if row != COPY_T1] or list(result.scores)


def _psnr(result: Evaluation, row: str, subject: str) -> float:
    return result.scores.get(row, {}).get(subject, {}).get("brain", {}).get("psnr", math.nan)


def _quality(result: Evaluation, subject: str) -> float:
    values = np.array([_psnr(result, row, subject) for row in _judged(result)])
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else -math.inf


def _limit(images: Sequence[NDArray]) -> float:
    values = [image[image > 0] for image in images]
    values = np.concatenate(values) if values else np.zeros(0)
    return float(np.percentile(values, 99.5)) if values.size else 1.0


def spread_figure(result: Evaluation) -> list[Figure]:
    """Return a figure of observed error over predicted spread, or none without a spread."""
    if not result.reliability:
        return []
    image = reliability_figure(
        {row: list(found.values()) for row, found in result.reliability.items()}
    )
    caption = (
        "Voxels of the brain in ten groups of equal size, ordered by their predicted spread; thin: "
        "a patient, bold: all. On the dashed line the error is as large as predicted, above it the "
        "prediction is overconfident. In units of the real data range."
    )
    alt = "Observed error over predicted spread"
    return [Figure("Predicted spread against error", image, caption, alt, wide=False)]
