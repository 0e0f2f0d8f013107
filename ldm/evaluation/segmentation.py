"""Evaluation of folders of segmentations against the reference labels, region by region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.contrasts import load_contrasts, load_labels, read_labels
from ldm.data.layouts import Layout, Subject, detect_layout, select_subjects
from ldm.data.nifti import Geometry
from ldm.errors import DataError
from ldm.evaluation.metrics import overlap
from ldm.evaluation.scores import strict_json
from ldm.plots.overlay import overlay_figure
from ldm.regions import REGION_SETS, region_masks, region_title
from ldm.report.page import Figure
from ldm.report.tables import Cell, Table, write_csv
from ldm.storage import write_json
from ldm.study import BRATS

METRICS = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95 mm",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
}
VOLUMES = ("volume_ml", "reference_ml")
CONVENTIONS = (
    "Nothing segmented where there is nothing scores best (Dice 1, HD95 0); one of the two alone "
    "scores worst (Dice 0, HD95 the diagonal of the volume)."
)
MOST_PICTURES = 8

RegionScores = dict[str, dict[str, float]]  # region -> metric -> value


@dataclass
class SegmentationScores:
    """Scores of a folder of segmentations.

    Args:
        regions: in the order of the tables.
        scores: subject -> region -> metric.
        pictures: subject -> (axial slice, {label: image or overlay}), for the report.
    """

    regions: tuple[str, ...]
    scores: dict[str, RegionScores] = field(default_factory=dict)
    pictures: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)

    def values(self, region: str, metric: str) -> list[float]:
        """Return a metric of each patient in which it is defined."""
        found = [scores[region][metric] for scores in self.scores.values()]
        return [value for value in found if not np.isnan(value)]

    def table(self) -> Table:
        """Return mean ± standard deviation over patients, a line a region."""
        body = [
            [region_title(region)]
            + [mean_and_deviation(self.values(region, metric)) for metric in METRICS]
            + [len(self.scores)]
            for region in self.regions
        ]
        columns = ["", *METRICS.values(), "n"]
        return Table("Segmentation against the reference", columns, body, CONVENTIONS)

    def figures(self) -> list[Figure]:
        """Return a picture with a slice a patient, or none."""
        shown = list(self.pictures.items())[:MOST_PICTURES]
        if not shown:
            return []
        titles = [f"{subject} · axial {index}" for subject, (index, _) in shown]
        image = overlay_figure([images for _, (_, images) in shown], titles)
        caption = "The axial slice with most of the reference."
        return [Figure("Patients", image, caption, "Image, reference and predicted regions")]

    def write(self, folder: Path) -> None:
        """Write ``segmentation.csv`` (a line a subject and region) and ``segmentation.json``."""
        names = (*METRICS, *VOLUMES)
        lines = [
            [subject, region, *(scores[region][name] for name in names)]
            for subject, scores in sorted(self.scores.items())
            for region in self.regions
        ]
        write_csv(folder / "segmentation.csv", ["subject", "region", *names], lines)
        described = {
            "regions": list(self.regions),
            "conventions": CONVENTIONS,
            "scores": strict_json(self.scores),
        }
        write_json(folder / "segmentation.json", described)


def evaluate_segmentations(
    prediction: Path,
    reference: Path,
    subjects: Sequence[str] | None = None,
    regions: Sequence[str] | None = None,
    progress: Any = None,
) -> SegmentationScores:
    """Compare label maps with the reference labels of the same patients.

    Args:
        prediction, reference: folders in any known layout.
        subjects: None: all that are predicted.
        regions: None: the tumour regions where any reference has another label than 1, else one
            lesion mask.
        progress: wraps the list of patients.

    Raises:
        DataError: DATA-MISSING; a volume that cannot be read or lies on another grid.
    """
    layout, real = detect_layout(reference)
    own_layout, predicted = detect_layout(prediction)
    ids = subjects or [i for i, subject in predicted.items() if "seg" in subject.files]
    if not ids:
        expected = own_layout.file_name("ID", "seg")
        raise DataError("DATA-MISSING", f"{prediction} holds no segmentation such as {expected}")
    chosen = select_subjects(real, ids)
    select_subjects(predicted, ids)
    names = tuple(regions or regions_of(chosen, layout))
    result = SegmentationScores(names)
    for subject in (progress or iter)(chosen):
        labels, geometry = read_labels(subject, layout)
        predicted[subject.id].require(["seg"], own_layout)
        found = load_labels(predicted[subject.id], own_layout, geometry)
        result.scores[subject.id] = score_regions(found, labels, names, geometry)
        result.pictures[subject.id] = _picture(subject, layout, labels, found, names)
    return result


def regions_of(subjects: Sequence[Subject], layout: Layout) -> tuple[str, ...]:
    """Return the tumour regions where any patient has a label above 1, else one lesion mask."""
    tumour = any(read_labels(subject, layout)[0].max() > 1 for subject in subjects)
    return REGION_SETS["tumour" if tumour else "lesion"]


def score_regions(
    prediction: np.ndarray, reference: np.ndarray, regions: Sequence[str], geometry: Geometry
) -> RegionScores:
    """Return every metric and the volumes, in ml, of each region of two label maps (X, Y, Z)."""
    spacing = geometry.spacing
    pairs = zip(
        regions,
        region_masks(prediction, regions).values(),
        region_masks(reference, regions).values(),
        strict=True,
    )
    return {
        region: {
            "dice": overlap.dice(found, true),
            "iou": overlap.iou(found, true),
            "hd95": overlap.hd95(found, true, spacing),
            "sensitivity": overlap.sensitivity(found, true),
            "specificity": overlap.specificity(found, true),
            "volume_ml": volume_ml(found, geometry),
            "reference_ml": volume_ml(true, geometry),
        }
        for region, found, true in pairs
    }


def volume_ml(mask: np.ndarray, geometry: Geometry) -> float:
    """Return the volume of a mask in millilitres."""
    return float(mask.sum() * np.prod(geometry.spacing) / 1000)


def mean_and_deviation(values: Sequence[float]) -> Cell:
    """Return mean ± sample standard deviation as a cell; the mean alone of one value."""
    if not len(values):
        return None
    mean = float(np.mean(values))
    digits = 1 if abs(mean) >= 10 else 3
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def _picture(
    subject: Subject,
    layout: Layout,
    labels: np.ndarray,
    found: np.ndarray,
    regions: Sequence[str],
) -> tuple[int, dict[str, Any]]:
    """Return the axial slice with most labels, with both segmentations; without an image, black."""
    index = int(((labels > 0) + 0.01 * (found > 0)).sum((0, 1)).argmax())
    names = [c for c in BRATS if c in subject.files]
    volumes = load_contrasts(subject, layout, names)[0] if names else {}
    shown = {name: np.rot90(volume[..., index]) for name, volume in volumes.items()}
    image = shown[names[-1]] if names else np.zeros_like(np.rot90(labels[..., index]), float)
    for name, array in (("reference", labels), ("prediction", found)):
        shown[name] = (image, region_masks(np.rot90(array[..., index]), regions))
    return index, shown
