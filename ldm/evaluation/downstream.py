"""The downstream score of synthetic volumes: what does a segmenter find on them?

A segmenter that takes the target among its contrasts sees a patient twice: with the real volume,
and with the synthetic one in its place. What it finds is compared between the two, and with the
reference labels. Both are normalised by themselves, as the segmenter normalises any image, so that
their units do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from ldm.data.contrasts import read_labels, scheme_of
from ldm.data.layouts import Layout, Subject, VolumeFile
from ldm.data.seen import refuse_seen
from ldm.errors import DataError
from ldm.evaluation.case import Found
from ldm.evaluation.protocol import DOWNSTREAM
from ldm.evaluation.scores import Evaluation
from ldm.evaluation.segmentation import score_regions
from ldm.progress import Progress, silent
from ldm.study import LABELS, Study

if TYPE_CHECKING:
    from ldm.inference.segmentation import Segmented

SEEN = "LEAK: the segmenter was trained on this patient: judge others, or --allow-seen"


@runtime_checkable
class Segmenter(Protocol):
    """What downstream scores ask of a segmenter."""

    regions: tuple[str, ...]
    contrasts: tuple[str, ...] | None  # that it looks at; None: not known

    def segment(self, subject: Subject, layout: Layout) -> Segmented:
        """Segment a patient from the files of its contrasts."""

    def has_seen(self, subject: Subject) -> bool | None:
        """Return whether it was trained on a patient; None where that is not known."""


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
    folders: Found,
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
            :func:`ldm.evaluation.folder.predictions_of` returns them.
        subjects: real patients, in ``layout``.
        study: what was synthesised, and from what.
        baseline: add the row of the source contrast copied as the target.
        allow_seen: judge patients of a training too; else one of the segmenter's is a failure.
        progress: shows how many patients are done.

    A patient, or a volume, that cannot be used is a failure of its rows and ends no other.

    Raises:
        DataError: DATA-SEGMENTER, see :func:`require_target`.
    """
    require_target(segmenter, study)
    target, source = study.target, study.source
    result = Evaluation(DOWNSTREAM, subjects=[subject.id for subject in subjects], study=study)
    real = f"real {result.target}"
    result.rows = [real, *folders, *([result.copied] if baseline else [])]
    for subject in progress(subjects, "Segmenting", len(subjects)):
        candidates = [
            (row, seed, known[subject.id].files[target])
            for row, found in folders.items()
            for seed, (_, known) in enumerate(found)
            if subject.id in known
        ]
        if baseline and source in subject.files:
            candidates.append((result.copied, 0, subject.files[source]))
        try:
            _judge(segmenter, subject, layout, candidates, result, allow_seen)
        except DataError as error:
            for row in result.rows:
                result.fail(row, subject.id, f"the real patient: {error.reason}")
    return result


def _judge(
    segmenter: Segmenter,
    subject: Subject,
    layout: Layout,
    candidates: Sequence[tuple[str, int, VolumeFile]],
    result: Evaluation,
    allow_seen: bool,
) -> None:
    """Score one patient, with the real target and with each candidate in its place.

    Args:
        candidates: row, training seed and file; one that cannot be used is a failure of its row.

    Raises:
        DataError: the real patient cannot be used.
    """
    target = str(result.study.target)
    subject.require([target], layout)
    if _knows(segmenter, subject, result) and not allow_seen:
        for row in result.rows:
            result.fail(row, subject.id, SEEN)
        return
    truth = segmenter.segment(subject, layout)
    told = (segmenter.regions, DOWNSTREAM, _labels(subject, layout, truth), truth.labels)
    result.add(result.rows[0], subject.id, score_regions(truth.labels, truth.geometry, *told))
    for row, seed, file in candidates:
        # the digests of a table are those of the real file
        swapped = replace(subject, files={**subject.files, target: file}, columns={})
        try:
            if not allow_seen:
                refuse_seen(file, subject.id)
            found = segmenter.segment(swapped, layout)
            scores = score_regions(found.labels, found.geometry, *told)
        except DataError as error:
            result.fail(row, subject.id, error.reason)
        else:
            result.add(row, subject.id, scores, seed)


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
