"""The downstream score of synthetic volumes: what does a segmenter find on them?

A segmenter that takes the target among its contrasts sees a patient twice: with the real volume,
and with the synthetic one in its place. What it finds is compared between the two, and with the
reference labels. Both are normalised by themselves, as the segmenter normalises any image, so that
their units do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from ldm.data.contrasts import read_labels, scheme_of
from ldm.data.layouts import Layout, Subject
from ldm.data.seen import refuse_seen
from ldm.errors import DataError
from ldm.evaluation.protocol import DOWNSTREAM
from ldm.evaluation.scores import Evaluation
from ldm.evaluation.segmentation import score_regions
from ldm.progress import Progress, silent
from ldm.study import LABELS, Study

if TYPE_CHECKING:
    from ldm.inference.segmentation import Segmented, Segmenter

SEEN = "LEAK: the segmenter was trained on this patient: judge others, or --allow-seen"


def require_target(segmenter: Segmenter, study: Study) -> None:
    """Refuse a segmenter that does not look at the target, and so finds the same on any.

    Raises:
        DataError: DATA-SEGMENTER.
    """
    target = study.target
    if segmenter.contrasts is not None and target not in segmenter.contrasts:
        wanted = ",".join((*study.conditions, target))
        raise DataError(
            "DATA-SEGMENTER",
            f"the segmenter takes {', '.join(segmenter.contrasts)}: a downstream score needs one "
            f"that takes {target}; train it with data.params.conditions=[{wanted}]",
        )


def downstream_scores(
    segmenter: Segmenter,
    folders: Mapping[str, Sequence[tuple[Layout, Mapping[str, Subject]]]],
    subjects: Sequence[Subject],
    layout: Layout,
    study: Study,
    baseline: bool = True,
    allow_seen: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Segment patients with their real target and with each synthetic one in its place.

    Args:
        segmenter: a :class:`~ldm.inference.segmentation.NetworkSegmenter` or ``CommandSegmenter``.
        folders: row name -> folders of its training seeds, as
            :func:`ldm.evaluation.folder.predictions_of` returns them. A volume that cannot be
            used is passed over: the evaluation of the images names it.
        subjects: real patients, in ``layout``.
        study: what was synthesised, and from what.
        baseline: add the row of the source contrast copied as the target.
        allow_seen: judge patients of a training too; else one of the segmenter's is a failure.
        progress: shows how many patients are done.

    Raises:
        DataError: DATA-SEGMENTER, see :func:`require_target`; DATA-MISSING for a patient without a
            contrast; a volume on another grid.
    """
    require_target(segmenter, study)
    target, source = study.target, study.source
    result = Evaluation(DOWNSTREAM, subjects=[subject.id for subject in subjects], study=study)
    real = f"real {result.target}"
    result.rows = [real, *folders, *([result.copied] if baseline else [])]
    for subject in progress(subjects, "Segmenting", len(subjects)):
        subject.require([target], layout)
        if _knows(segmenter, subject, result) and not allow_seen:
            for row in result.rows:
                result.fail(row, subject.id, SEEN)
            continue
        candidates = [
            (row, seed, known[subject.id].files[target])
            for row, found in folders.items()
            for seed, (_, known) in enumerate(found)
            if subject.id in known
        ]
        if baseline and source in subject.files:
            candidates.append((result.copied, 0, subject.files[source]))
        truth = segmenter.segment(subject, layout)
        told = (segmenter.regions, DOWNSTREAM, _labels(subject, layout, truth), truth.labels)
        result.add(real, subject.id, score_regions(truth.labels, truth.geometry, *told))
        for row, seed, file in candidates:
            swapped = Subject(subject.id, {**subject.files, target: file})
            with suppress(DataError):
                if not allow_seen:
                    refuse_seen(file, subject.id)
                found = segmenter.segment(swapped, layout)
                scores = score_regions(found.labels, found.geometry, *told)
                result.add(row, subject.id, scores, seed)
    return result


def _knows(segmenter: Segmenter, subject: Subject, result: Evaluation) -> bool:
    """Return whether a segmenter was trained on a patient; note what is to be said of both."""
    seen = segmenter.has_seen(subject)
    if seen is None:
        result.note_untold("the segmenter")
    if LABELS in subject.files:
        result.note_labels("reference", scheme_of(subject))
    return bool(seen)


def _labels(subject: Subject, layout: Layout, truth: Segmented) -> np.ndarray | None:
    if LABELS not in subject.files:
        return None
    labels, geometry = read_labels(subject, layout)
    truth.geometry.require_same_grid(geometry, ("the image", "seg"), subject.id)
    return labels
