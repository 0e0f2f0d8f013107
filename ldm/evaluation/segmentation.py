"""Evaluation of folders of segmentations against the reference labels, region by region."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ldm.data.contrasts import load_labels, read_labels
from ldm.data.layouts import Layout, Subject, detect_layout, select_subjects
from ldm.data.nifti import Geometry
from ldm.errors import DataError
from ldm.evaluation.measures import MEASURES
from ldm.evaluation.protocol import SEGMENTATION, BaseProtocol, Scores
from ldm.evaluation.scores import Evaluation
from ldm.evaluation.views import Masks
from ldm.progress import Progress, silent
from ldm.regions import REGION_SETS, region_masks

ROW = "prediction"
Watch = Callable[[Evaluation, Subject, Layout, np.ndarray, np.ndarray], None]


def evaluate_segmentations(
    prediction: Path,
    reference: Path,
    subjects: Sequence[str] | None = None,
    regions: Sequence[str] | None = None,
    watch: Watch | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Compare label maps with the reference labels of the same patients.

    Args:
        prediction, reference: folders in any known layout.
        subjects: None: all that are predicted.
        regions: None: the tumour regions where any reference has another label than 1, else one
            lesion mask.
        watch: called with the evaluation, each real patient, its layout, and the labels (X, Y, Z)
            of the reference and of the prediction.
        progress: shows how many patients are done.

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
    protocol = replace(SEGMENTATION, regions=tuple(regions or regions_of(chosen, layout)))
    result = Evaluation(protocol, [ROW], [subject.id for subject in chosen])
    for subject in progress(chosen, "Evaluating", len(chosen)):
        labels, geometry = read_labels(subject, layout)
        predicted[subject.id].require(["seg"], own_layout)
        found = load_labels(predicted[subject.id], own_layout, geometry)
        scores = score_regions(found, geometry, protocol.regions, protocol, labels)
        result.add(ROW, subject.id, scores)
        if watch:
            watch(result, subject, layout, labels, found)
    return result


def regions_of(subjects: Sequence[Subject], layout: Layout) -> tuple[str, ...]:
    """Return the tumour regions where any patient has a label above 1, else one lesion mask."""
    tumour = any(read_labels(subject, layout)[0].max() > 1 for subject in subjects)
    return REGION_SETS["tumour" if tumour else "lesion"]


def score_regions(
    found: np.ndarray,
    geometry: Geometry,
    regions: Sequence[str],
    protocol: BaseProtocol,
    labels: np.ndarray | None = None,
    real: np.ndarray | None = None,
) -> Scores:
    """Return the measures of a protocol in each region of a label map (X, Y, Z).

    Args:
        labels: of the reference, or None.
        real: what was found on the real volume, or None.
    """
    maps = {"found": found, "labels": labels, "real": real}
    masks = {n: region_masks(m, regions) for n, m in maps.items() if m is not None}
    scores: Scores = {}
    for region in regions:
        own = Masks(geometry=geometry, **{name: known[region] for name, known in masks.items()})
        scores[region] = {n: MEASURES[n].of(own) for n in protocol.names(region)}
    return scores
