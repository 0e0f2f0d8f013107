"""Pictures of an evaluation: strips and viewer of the patients."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.data.brain import bounding_box
from ldm.data.contrasts import load_contrasts
from ldm.data.layouts import Layout, Subject, detect_layout
from ldm.errors import DataError
from ldm.evaluation.case import Case, Prediction, load_case, nonfinite_of, read_prediction
from ldm.evaluation.folder import predictions_of
from ldm.evaluation.measures import MEASURES
from ldm.evaluation.protocol import MetricProtocol
from ldm.evaluation.scores import Evaluation
from ldm.plots.figures import Pane, panes_figure
from ldm.plots.overlay import overlay_figure
from ldm.regions import region_masks
from ldm.report.page import Figure
from ldm.report.tables import format_cell
from ldm.report.viewer import (
    BYTES_A_VOXEL,
    MOST_PATIENTS,
    PAGE_BYTES,
    Viewer,
    ViewerPatient,
    score_sign,
    score_unit,
    viewer_patient,
    within_budget,
)
from ldm.study import BRATS, LABELS

MOST_STRIPS = 8  # patients in a page
LINE = 8  # panes in a line of a strip
CAPTION = (
    "Axial slice {}, the one with most {}; the patient's left is at the left. Synthetic and real "
    "images share one grey window, white at the 99.5th percentile of the real slice; errors one "
    "scale over all patients, in units of the real data range."
)


@dataclass(frozen=True)
class Shown:
    """The volumes (or slices) of a patient as they are shown."""

    inputs: dict[str, NDArray]  # name -> image in [0, 1], each in its own window
    # in [0, 1] between the bounds that the protocol takes from it, 0 outside the brain
    real: NDArray
    predictions: dict[str, NDArray]  # row -> image in the same window
    spreads: dict[str, NDArray]  # row -> standard deviation in units of that window's range
    aspect: float = 1.0  # height over width of a voxel of a slice

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

    low, high = case.bounds(protocol)
    title = case.study.contrasts.title
    spreads = {row: p.spread for row, p in predictions.items() if p.spread is not None}
    return Shown(
        {
            title(name): unit(volume, *np.percentile(volume[case.brain], (0.1, 99.8)))
            for name, volume in case.inputs.items()
        },
        unit(case.reference, low, high),
        {row: unit(predicted.volume, low, high) for row, predicted in predictions.items()},
        {row: unit(spread, 0, high - low) for row, spread in spreads.items()},
    )


def comparison_strip(case: Case, volumes: Shown, copied: str = "") -> Shown:
    """Return the shown axial slice of each volume, cropped to the brain, front upwards.

    The row ``copied`` is left out: it is among the inputs.
    """
    index, _ = case.shown_slice()
    box = bounding_box(case.brain)[:2]

    def planes(group: Mapping[str, NDArray]) -> dict[str, NDArray]:
        return {name: np.rot90(volume[(*box, index)]) for name, volume in group.items()}

    width, height, _ = case.spacing
    return Shown(
        planes(volumes.inputs),
        planes({"": volumes.real})[""],
        planes({row: v for row, v in volumes.predictions.items() if row != copied}),
        planes(volumes.spreads),
        height / width,
    )


@dataclass
class Gallery:
    """What a page shows of the patients of an evaluation, gathered while they are in memory."""

    strips: dict[str, Shown] = field(default_factory=dict)  # subject -> axial slice of each volume
    # subject -> index of that slice, and what it has most of
    slices: dict[str, tuple[int, str]] = field(default_factory=dict)
    # subject -> volumes for the slice viewer; only of the worst subjects
    viewed: dict[str, ViewerPatient] = field(default_factory=dict)

    def add(self, result: Evaluation, case: Case, predictions: Mapping[str, Prediction]) -> None:
        """Keep of a patient what is shown; its scores are in ``result`` already."""
        shown = shown_volumes(case, predictions, result.protocol)
        self.slices[case.id] = case.shown_slice()
        self.strips[case.id] = comparison_strip(case, shown, result.copied)
        self._view(result, case, shown)

    def read(
        self,
        result: Evaluation,
        predictions: Mapping[str, Path],
        reference: Path,
        layout: Any = None,
        mask: str = "auto",
        trust: Collection[str] = (),
    ) -> None:
        """Add the patients of an evaluation whose scores are known, a row a folder."""
        study = result.study
        layout, real = detect_layout(reference, layout, study.contrasts)
        found = predictions_of({row: [path] for row, path in predictions.items()}, real, study)
        scored = {(score.row, score.subject) for score in result.scores}
        for subject in result.subjects:
            if not any((row, subject) in scored for row in found):
                continue
            nonfinite = nonfinite_of(found, subject, str(study.target))
            case = load_case(real[subject], layout, study, mask, nonfinite)
            volumes = {
                row: read_prediction(predicted[subject], own, case, trust)
                for row, ((own, predicted),) in found.items()
                if (row, subject) in scored and subject in predicted
            }
            self.add(result, case, volumes)

    def viewer(self, result: Evaluation) -> Viewer | None:
        """Return the slice viewer, the worst patients first; None without any."""
        ordered = [self.viewed[subject] for subject in _worst_first(result, self.viewed)]
        patients = within_budget(ordered, PAGE_BYTES)
        rows = [row for row in result.rows if any(row in p.predictions for p in patients)]
        left_out = len(result.subjects) - len(patients)
        measure = result.main_measure() if _order(result) else ""
        return Viewer(patients, rows, left_out, measure) if patients else None

    def figures(self, result: Evaluation) -> list[Figure]:
        """Return a figure a patient: inputs, real, and of each row image, error and spread."""
        shown = _worst_first(result, self.strips)[:MOST_STRIPS]
        strips = [self.strips[subject] for subject in shown]
        limits = {
            "error": _limit([image for strip in strips for image in strip.errors().values()]),
            "spread": _limit([image for strip in strips for image in strip.spreads.values()]),
        }
        return [
            Figure(
                f"Patient {subject}",
                panes_figure(_lines(result, subject, strip), limits, strip.aspect),
                f"{_place(place, shown, len(self.strips), result)}. "
                + CAPTION.format(*self.slices[subject]),
                f"Inputs, real and synthetic {result.target} and errors of patient {subject}",
            )
            for place, (subject, strip) in enumerate(zip(shown, strips, strict=True))
        ]

    def _view(self, result: Evaluation, case: Case, volumes: Shown) -> None:
        """Encode a patient for the slice viewer; only the worst are kept."""
        patients = min(len(result.subjects), MOST_PATIENTS)
        sheets = len(volumes.inputs) + 1 + len(result.rows) + len(volumes.spreads)
        box = bounding_box(case.brain)[2]
        index, _ = case.shown_slice()
        columns = [np.flatnonzero(case.brain[..., index].any(axis=1 - axis)) for axis in (0, 1)]
        self.viewed[case.id] = viewer_patient(
            case.id,
            volumes.inputs,
            volumes.real,
            volumes.predictions,
            case.brain,
            case.spacing,
            volumes.spreads,
            {row: _scores(result, row).get(case.id, math.nan) for row in volumes.predictions},
            (*(int(found.mean()) if found.size else 0 for found in columns), max(index, box.start)),
            voxels=PAGE_BYTES / BYTES_A_VOXEL / (patients * sheets),
        )
        kept = _worst_first(result, self.viewed)[:MOST_PATIENTS]
        self.viewed = {subject: self.viewed[subject] for subject in kept}


@dataclass
class OverlayGallery:
    """Label maps on images: patient -> (axial slice, {name: image or overlay})."""

    slices: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)

    def add(
        self, result: Evaluation, subject: Subject, layout: Layout, labels: NDArray, found: NDArray
    ) -> None:
        """Keep the axial slice with most labels, both segmentations on it.

        An image that cannot be read, or lies on another grid, is not shown; without any it is dark.
        """
        index = int(((labels > 0) + 0.01 * (found > 0)).sum((0, 1)).argmax())
        shown: dict[str, Any] = {}
        for name in (c for c in BRATS if c in subject.files):
            with suppress(DataError):
                pair = load_contrasts(subject, layout, [name, LABELS], nonfinite="zero")[0]
                shown[name] = np.rot90(pair[name][..., index])
        dark = np.zeros_like(np.rot90(labels[..., index]), float)
        image = list(shown.values())[-1] if shown else dark
        for name, array in (("reference", labels), ("prediction", found)):
            masks = region_masks(np.rot90(array[..., index]), result.protocol.regions)
            shown[name] = (image, masks)
        self.slices[subject.id] = (index, shown)

    def figures(self) -> list[Figure]:
        """Return a picture with a slice a patient, or none."""
        shown = list(self.slices.items())[:MOST_STRIPS]
        if not shown:
            return []
        titles = [f"{subject} · axial {index}" for subject, (index, _) in shown]
        image = overlay_figure([images for _, (_, images) in shown], titles)
        caption = "The axial slice with most of the reference. What lies inside covers the outer: "
        caption += "enhancing tumour is part of the core, and the core of the whole tumour."
        return [Figure("Patients", image, caption, "Image, reference and predicted regions")]


def _place(place: int, shown: Sequence[str], all_strips: int, result: Evaluation) -> str:
    """Why this patient, one of those who are ``shown``, stands here."""
    measure, left = _order(result), all_strips - len(shown)
    if all_strips == 1:
        images = "Inputs, real and synthetic image" if _judged(result) else "Inputs and real image"
        return f"{measure} above each image" if measure else images
    order = f"{place + 1} of {all_strips}"
    order = f"Worst first: {order} by the mean {measure}" if measure else f"By id: {order}"
    if measure and not _known(result, [shown[place]])[shown[place]]:
        order += ", of which there is none here"
    last = f" ({left} {'better ones' if measure else 'more'} are not shown)"
    return order + (last if left and place + 1 == len(shown) else "")


def _lines(result: Evaluation, subject: str, strip: Shown) -> list[list[Pane | None]]:
    """Inputs and real image in two lines, right of them the rows, each above its error and spread.

    Rows for which there is no room continue in lines of their own.
    """
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
        titles = [_titled(result, row, subject) for row in block]
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
    """The rows that order the patients: all but the copied source, if there are others."""
    return [row for row in result.rows if row != result.copied] or list(result.rows)


def _scores(result: Evaluation, row: str) -> dict[str, float]:
    """Return subject -> main measure of the protocol in its main region."""
    return result.values(row, result.main_region(), result.main_measure())


def _known(result: Evaluation, subjects: Iterable[str]) -> dict[str, list[float]]:
    """Return subject -> that value in each judged row where it has one."""
    found = [_scores(result, row) for row in _judged(result)]
    values = {s: [scores.get(s, math.nan) for scores in found] for s in subjects}
    return {s: [v for v in own if not math.isnan(v)] for s, own in values.items()}


def _order(result: Evaluation) -> str:
    """Return what orders the patients, such as ``PSNR in the brain``; empty where it is their id.

    So it is where nobody has a value, as without labels, or none is better than another.
    """
    measure, region = MEASURES[result.main_measure()], result.main_region()
    if measure.best == "one" or not any(_known(result, result.subjects).values()):
        return ""
    place = "whole volume" if region == "full" else region
    return f"{measure.title.removesuffix(' dB')} in the {place}"


def _titled(result: Evaluation, row: str, subject: str) -> str:
    """Return a row and under it its value, such as ``25.19 dB``; its name alone without one."""
    value = _scores(result, row).get(subject, math.nan)
    text = f"{format_cell(value)} {score_unit(result.main_measure())}".rstrip()
    return row if math.isnan(value) else f"{row}\n{text}"


def _worst_first(result: Evaluation, subjects: Iterable[str]) -> list[str]:
    """Order by the mean of the judged rows, those without a value first; else by id."""
    if not _order(result):
        return sorted(subjects)
    known, sign = _known(result, subjects), score_sign(result.main_measure())
    worth = {s: sign * float(np.mean(v)) if v else -math.inf for s, v in known.items()}
    return sorted(worth, key=worth.__getitem__)


def _limit(images: Sequence[NDArray]) -> float:
    values = [image[image > 0] for image in images]
    values = np.concatenate(values) if values else np.zeros(0)
    return float(np.percentile(values, 99.5)) if values.size else 1.0
