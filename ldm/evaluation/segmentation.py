"""Evaluation of folders of segmentations against the reference labels, region by region."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.contrasts import load_labels, read_labels, scheme_of
from ldm.data.layouts import (
    Layout,
    Subject,
    detect_layout,
    find_predictions,
    select_subjects,
)
from ldm.data.nifti import Geometry
from ldm.data.seen import refuse_seen
from ldm.errors import DataError
from ldm.evaluation.measures import MEASURES
from ldm.evaluation.protocol import SEGMENTATION, BaseProtocol, Scores
from ldm.evaluation.scores import Evaluation
from ldm.evaluation.views import Masks
from ldm.progress import Progress, silent
from ldm.regions import REGION_SETS, region_masks
from ldm.study import KNOWN, LABELS

ROW = "prediction"
Told = str | Mapping[str, Any] | None
Watch = Callable[[Evaluation, Subject, Layout, np.ndarray, np.ndarray], None]


def evaluate_segmentations(
    prediction: str | Path,
    reference: str | Path,
    subjects: Sequence[str] | None = None,
    regions: Sequence[str] | None = None,
    labels: Told = None,
    prediction_labels: Told = None,
    allow_seen: bool = False,
    watch: Watch | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Compare label maps with the reference labels of the same patients.

    A patient whom the segmenter was trained on, as the sidecar of the label map says, is a failure.

    Args:
        prediction, reference: folders in any known layout.
        subjects: None: all that are predicted.
        regions: None: the tumour regions where any reference has another label than 1, else one
            lesion mask.
        labels: what the labels of the reference mean, see :func:`ldm.label_scheme.read_scheme`;
            None: as the data set says.
        prediction_labels: the same of the predictions; None: as their sidecars say, else their
            naming; ``ID.nii.gz`` as in the reference.
        allow_seen: judge the patients of the training too.
        watch: called with the evaluation, each real patient, its layout, and the labels (X, Y, Z)
            of the reference and of the prediction.
        progress: shows how many patients are done.

    Raises:
        DataError: DATA-MISSING; a volume that cannot be read or lies on another grid.
    """
    layout, real = detect_layout(Path(reference), contrasts=KNOWN.with_labels(labels, "labels"))
    own = KNOWN.with_labels(prediction_labels, "prediction labels")
    own_layout, predicted = find_predictions(Path(prediction), real, LABELS, own)
    ids = subjects or [i for i, subject in predicted.items() if LABELS in subject.files]
    if not ids:
        expected = own_layout.file_name("ID", LABELS)
        raise DataError("DATA-MISSING", f"{prediction} holds no segmentation such as {expected}")
    chosen = select_subjects(real, ids)
    select_subjects(predicted, ids)
    protocol = replace(SEGMENTATION, regions=tuple(regions or regions_of(chosen, layout)))
    result = Evaluation(protocol, [ROW], [subject.id for subject in chosen])
    for subject in progress(chosen, "Evaluating", len(chosen)):
        own_subject = predicted[subject.id]
        own_subject.require([LABELS], own_layout)
        if _is_refused(own_subject, result, allow_seen):
            continue
        true, geometry = read_labels(subject, layout)
        found = load_labels(own_subject, own_layout, geometry)
        for whose, side in (("reference", subject), (ROW, own_subject)):
            result.note_labels(whose, scheme_of(side))
        scores = score_regions(found, geometry, protocol.regions, protocol, true)
        result.add(ROW, subject.id, scores)
        if watch:
            watch(result, subject, layout, true, found)
    return result


def _is_refused(predicted: Subject, result: Evaluation, allow_seen: bool) -> bool:
    """Return whether the segmenter was trained on the patient; note what its sidecar says."""
    file = predicted.files[LABELS]
    if file.described().get("seen", False) is None:
        result.note_untold(ROW)
    try:
        if not allow_seen:
            refuse_seen(file, predicted.id)
    except DataError as error:
        result.fail(ROW, predicted.id, f"{error.code}: {error.message}")
        return True
    return False


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
