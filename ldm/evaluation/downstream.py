"""The downstream score of synthetic T1ce: what does a segmenter find on it?

A segmenter that takes T1ce among its contrasts sees a patient twice: with the real T1ce, and with
the synthetic one in its place. What it finds is compared between the two, and with the reference
labels. Both T1ce are normalised by themselves, as the segmenter normalises any image, so that their
units do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.contrasts import read_labels
from ldm.data.layouts import Layout, Subject, detect_layout, select_subjects
from ldm.errors import DataError
from ldm.evaluation.case import TARGET
from ldm.evaluation.folder import find_predictions
from ldm.evaluation.metrics.overlap import dice, hd95, surface_dice
from ldm.evaluation.scores import COPY_T1
from ldm.evaluation.segmentation import mean_and_deviation, volume_ml
from ldm.inference.segmentation import Segmented, Segmenter
from ldm.regions import region_masks, region_title
from ldm.report.tables import Cell, Table, write_csv
from ldm.storage import kept, volume_digests, write_json

REAL = "real T1ce"
ENHANCING = "et"
AGAINST = ("real", "labels")  # what is found on the real T1ce, and the reference labels

PatientScores = dict[str, float]


@dataclass
class DownstreamScores:
    """What a segmenter finds with each T1ce.

    Args:
        regions: of the segmenter.
        scores: row -> subject -> ``{region}_real`` and ``{region}_labels`` (Dice against what is
            found with the real T1ce, and against the reference labels), ``{region}_hd95`` (mm) and
            ``{region}_nsd`` (surface Dice at 1 mm; both against the labels), ``{region}_ml``
            (volume found) and ``{region}_labels_ml``. Without labels those are absent.
    """

    regions: tuple[str, ...]
    scores: dict[str, dict[str, PatientScores]] = field(default_factory=dict)

    def mean(self, row: str, metric: str) -> float:
        """Return the mean of a metric, such as ``et_labels``, over patients; NaN without any."""
        values = self._values(row, metric)
        return float(np.mean(values)) if values else float("nan")

    def false_enhancement(self, row: str) -> list[float]:
        """Return the enhancing volume, ml, found in each patient whose labels hold none."""
        return [
            scores[f"{ENHANCING}_ml"]
            for scores in self.scores[row].values()
            if scores.get(f"{ENHANCING}_labels_ml") == 0 and f"{ENHANCING}_ml" in scores
        ]

    def tables(self) -> list[Table]:
        """Return the tables of agreement, of surfaces and of volumes, a line a row."""
        named = [region_title(region) for region in self.regions]
        agreement = [
            [row, *(self.cell(row, f"{r}_{kind}") for kind in AGAINST for r in self.regions)]
            for row in self.scores
        ]
        columns = ["", *(f"{name} / {kind}" for kind in AGAINST for name in named)]
        patients = max((len(subjects) for subjects in self.scores.values()), default=0)
        note = (
            "Dice of what the segmenter finds with each T1ce, against what it finds on the real "
            f"one (/ real) and against the reference labels (/ labels); {patients} patients."
        )
        return [
            Table("Segmentation with synthetic T1ce", columns, agreement, note),
            *self._surface_tables(named),
            self._volume_table(named),
        ]

    def write(self, folder: Path) -> None:
        """Write ``downstream.csv`` (a line a row and subject) and ``downstream.json``."""
        patients = [scores for subjects in self.scores.values() for scores in subjects.values()]
        metrics = list(dict.fromkeys(metric for scores in patients for metric in scores))
        lines = [
            [row, subject, *(scores.get(metric) for metric in metrics)]
            for row, subjects in self.scores.items()
            for subject, scores in sorted(subjects.items())
        ]
        write_csv(folder / "downstream.csv", ["row", "subject", *metrics], lines)
        described = {"regions": list(self.regions), "scores": self.scores}
        write_json(folder / "downstream.json", described)

    def _surface_tables(self, named: Sequence[str]) -> list[Table]:
        """Return how far the surfaces found are from those of the labels; nothing without any."""
        body = [
            [
                row,
                *(self.cell(row, f"{r}_{kind}") for kind in ("hd95", "nsd") for r in self.regions),
            ]
            for row in self.scores
        ]
        columns = ["", *(f"{name} {kind}" for kind in ("HD95 mm", "NSD") for name in named)]
        note = (
            "Against the reference labels: 95th percentile of the surface distance, and share of "
            "the surfaces within 1 mm of each other."
        )
        known = any(cell is not None for cells in body for cell in cells[1:])
        return [Table("Surfaces found", columns, body, note)] if known else []

    def _volume_table(self, named: Sequence[str]) -> Table:
        with_false = ENHANCING in self.regions
        columns = ["", *(f"{name} ml" for name in named), *(["False ET ml"] if with_false else [])]
        body: list[list[Cell]] = []
        for row in self.scores:
            cells = [self.cell(row, f"{region}_ml") for region in self.regions]
            false = [mean_and_deviation(self.false_enhancement(row))] if with_false else []
            body.append([row, *cells, *false])
        labels = [self.cell(REAL, f"{region}_labels_ml") for region in self.regions]
        if any(cell is not None for cell in labels):
            body.append(["reference labels", *labels, *([0.0] if with_false else [])])
        note = ""
        if with_false:
            without = len(self.false_enhancement(REAL))
            note = f"False ET: in the patients whose labels hold no enhancing tumour, {without}."
        return Table("Volumes found", columns, body, note)

    def _values(self, row: str, metric: str) -> list[float]:
        return [scores[metric] for scores in self.scores.get(row, {}).values() if metric in scores]

    def cell(self, row: str, metric: str) -> Cell:
        """Return mean ± standard deviation of a metric over patients; None without any."""
        return mean_and_deviation(self._values(row, metric))


def require_target(segmenter: Segmenter) -> None:
    """Refuse a segmenter that does not look at T1ce, and so finds the same on any.

    Raises:
        DataError: DATA-SEGMENTER.
    """
    if segmenter.contrasts is not None and TARGET not in segmenter.contrasts:
        raise DataError(
            "DATA-SEGMENTER",
            f"the segmenter takes {', '.join(segmenter.contrasts)}: a downstream score needs one "
            f"that takes {TARGET}; train it with data.params.conditions=[t1,{TARGET},t2,flair]",
        )


def downstream_scores(
    segmenter: Segmenter,
    predictions: Mapping[str, Path | Sequence[Path]],
    reference: Path,
    subjects: Sequence[str] | None = None,
    baseline: bool = True,
    progress: Any = None,
    layout: Any = None,
) -> DownstreamScores:
    """Segment patients with their real T1ce and with each synthetic one in its place.

    Args:
        segmenter: a :class:`~ldm.inference.segmentation.NetworkSegmenter` or ``CommandSegmenter``.
        predictions: row name -> folder of ``ID_t1ce.nii.gz``; the scores of a patient in several
            folders (training seeds) are averaged. A volume that cannot be used is passed over: the
            evaluation of the images names it.
        reference: folder of real subjects in any known layout.
        subjects: patients to compare; None: all that any folder predicts.
        baseline: add the row of T1 copied as T1ce.
        progress: wraps the list of patients.
        layout: of ``reference``; None: recognised.

    Raises:
        DataError: DATA-SEGMENTER, see :func:`require_target`; DATA-MISSING for a patient without a
            contrast; a volume on another grid.
    """
    require_target(segmenter)
    layout, real = detect_layout(reference, layout)
    found = find_predictions(predictions)
    ids = subjects or sorted({i for pairs in found.values() for _, known in pairs for i in known})
    result = DownstreamScores(tuple(segmenter.regions), {REAL: {}} | {row: {} for row in found})
    if baseline:
        result.scores[COPY_T1] = {}
    for subject in (progress or iter)(select_subjects(real, ids)):
        subject.require([TARGET], layout)
        substitutes = {
            row: [known[subject.id].files for _, known in pairs if subject.id in known]
            for row, pairs in found.items()
        }
        if baseline and "t1" in subject.files:
            substitutes[COPY_T1] = [{TARGET: subject.files["t1"]}]
        truth = segmenter(subject, layout)
        labels = _labels(subject, layout, truth)
        result.scores[REAL][subject.id] = _score(truth, truth, labels, result.regions)
        for row, candidates in substitutes.items():
            scores = []
            for files in candidates:
                swapped = Subject(subject.id, {**subject.files, TARGET: files[TARGET]})
                with suppress(DataError):
                    segmented = segmenter(swapped, layout)
                    scores.append(_score(segmented, truth, labels, result.regions))
            if scores:
                mean = {name: float(np.mean([s[name] for s in scores])) for name in scores[0]}
                result.scores[row][subject.id] = mean
    return result


def judge_once(
    segmenter: Path,
    predictions: Mapping[str, Sequence[Path]],
    reference: Path,
    references: Mapping[str, Mapping[str, str]],
    path: Path,
    trusted: Sequence[str] = (),
    **options: Any,
) -> DownstreamScores:
    """Return the scores of a trained segmenter; from ``path`` if they are of the same files.

    Args:
        segmenter: run of ``dsdiff segment train``.
        predictions, options: see :func:`downstream_scores`.
        reference: folder of real patients.
        references: the patients to compare, with the digests of their files.
        path: JSON file that keeps the scores.
        trusted: classes accepted in the run folder beside the shipped ones.
    """
    from ldm.inference.segmentation import NetworkSegmenter

    judge = NetworkSegmenter(segmenter, trusted)
    volumes = {row: [volume_digests(f) for f in folders] for row, folders in predictions.items()}
    described = {"segmenter": judge.digest, "volumes": volumes, "references": dict(references)}

    def judged() -> dict[str, Any]:
        told = {"baseline": False, **options}
        found = downstream_scores(judge, predictions, reference, sorted(references), **told)
        return {"regions": list(found.regions), "scores": found.scores}

    known = kept(path, described, judged)
    return DownstreamScores(tuple(known["regions"]), known["scores"])


def _labels(subject: Subject, layout: Layout, truth: Segmented) -> np.ndarray | None:
    if "seg" not in subject.files:
        return None
    labels, geometry = read_labels(subject, layout)
    truth.geometry.require_same_grid(geometry, ("the image", "seg"), subject.id)
    return labels


def _score(
    found: Segmented, truth: Segmented, labels: np.ndarray | None, regions: Sequence[str]
) -> PatientScores:
    masks, real = (region_masks(each.labels, regions) for each in (found, truth))
    scores = {f"{region}_real": dice(masks[region], real[region]) for region in regions}
    scores |= {f"{region}_ml": volume_ml(masks[region], found.geometry) for region in regions}
    if labels is not None:
        spacing = found.geometry.spacing
        for region, mask in region_masks(labels, regions).items():
            pair = (masks[region], mask)
            scores[f"{region}_labels"] = dice(*pair)
            scores[f"{region}_hd95"] = hd95(*pair, spacing)
            scores[f"{region}_nsd"] = surface_dice(*pair, spacing)
            scores[f"{region}_labels_ml"] = volume_ml(mask, found.geometry)
    return scores
