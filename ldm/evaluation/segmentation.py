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
from ldm.errors import DataError
from ldm.evaluation.measures import MEASURES
from ldm.evaluation.protocol import SEGMENTATION, BaseProtocol, Scores
from ldm.evaluation.scores import PREDICTIONS, ROW, Evaluation
from ldm.evaluation.views import Masks
from ldm.progress import Progress, silent
from ldm.regions import REGION_SETS, region_masks, region_names
from ldm.storage import require_subjects
from ldm.study import KNOWN, LABELS
from ldm.util import listed, user_path

Told = str | Mapping[str, Any] | None
Watch = Callable[[Evaluation, Subject, Layout, np.ndarray, np.ndarray], None]


def compare_segmentations(
    prediction: str | Path,
    reference: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    regions: str | Sequence[str] | None = None,
    layout: Any = None,
    labels: Told = None,
    prediction_labels: Told = None,
    allow_seen: bool = False,
    watch: Watch | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Compare label maps with the reference labels of the same patients.

    A patient whose files cannot be used, or whom the segmenter was trained on, as the sidecar of
    the label map says, is a failure.

    Args:
        prediction, reference: folders in any known layout.
        subjects: None: all that are predicted.
        regions: None: the tumour regions where any reference has another label than 1, else one
            lesion mask.
        layout: of the reference; None: recognised.
        labels: what the labels of the reference mean, see :func:`ldm.label_scheme.read_scheme`;
            None: as the data set says.
        prediction_labels: the same of the predictions; None: by sidecars, else by their naming.
        allow_seen: judge the patients of the training too.
        watch: called with the evaluation, each real patient, its layout, and both labels (X, Y, Z).
        progress: shows how many patients are done.

    Raises:
        DataError: DATA-LAYOUT, DATA-MISSING. ConfigError: CONFIG-VALUE for an unknown region.
    """
    prediction = require_subjects(prediction, PREDICTIONS)
    layout, real = detect_layout(user_path(reference), layout, KNOWN.with_labels(labels, "labels"))
    own = KNOWN.with_labels(prediction_labels, "prediction labels")
    own_layout, predicted = find_predictions(prediction, real, LABELS, own)
    labelled = [i for i, subject in predicted.items() if LABELS in subject.files]
    ids = listed(subjects) if subjects else labelled
    if not ids:
        expected = own_layout.file_name("ID", LABELS)
        raise DataError("DATA-MISSING", f"{prediction} holds no segmentation such as {expected}")
    chosen = select_subjects(real, ids)
    select_subjects(predicted, ids)
    asked = region_names(regions) if regions else regions_of(chosen, layout)
    protocol = replace(SEGMENTATION, regions=asked)
    result = Evaluation(protocol, [ROW], [subject.id for subject in chosen])
    for subject in progress(chosen, "Evaluating", len(chosen)):
        pair = (subject, layout), (predicted[subject.id], own_layout)
        try:
            _compare(*pair, result, allow_seen, watch)
        except DataError as error:
            result.fail(ROW, subject.id, error.reason)
    return result


def _compare(
    real: tuple[Subject, Layout],
    predicted: tuple[Subject, Layout],
    result: Evaluation,
    allow_seen: bool,
    watch: Watch | None,
) -> None:
    """Add the scores of one patient; raises DataError."""
    subject, layout = real
    own, own_layout = predicted
    own.require([LABELS], own_layout)
    result.check_seen(ROW, own.id, own.files[LABELS], allow_seen)
    true, geometry = read_labels(subject, layout)
    found = load_labels(own, own_layout, geometry)
    scores = score_regions(found, geometry, result.protocol.regions, result.protocol, true)
    result.add(ROW, subject.id, scores)
    result.note_labels("reference", scheme_of(subject))
    result.note_labels(ROW, scheme_of(own))
    if watch:
        watch(result, subject, layout, true, found)


def regions_of(subjects: Sequence[Subject], layout: Layout) -> tuple[str, ...]:
    """Return the tumour regions where any patient has a label above 1, else one lesion mask."""
    tumour = any(_has_parts(subject, layout) for subject in subjects)
    return REGION_SETS["tumour" if tumour else "lesion"]


def _has_parts(subject: Subject, layout: Layout) -> bool:
    try:
        return bool(read_labels(subject, layout)[0].max() > 1)
    except DataError:  # is told where the patient is compared
        return False


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
