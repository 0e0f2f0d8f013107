"""Evaluation of folders of synthetic volumes against the real ones, patient by patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.layouts import Layout, Subject, detect_layout, select_subjects
from ldm.data.normalise import RobustNormaliser
from ldm.errors import DataError, one_line
from ldm.evaluation.case import (
    Case,
    Prediction,
    in_reference_units,
    load_case,
    read_prediction,
)
from ldm.evaluation.metrics.calibration import Reliability, reliability
from ldm.evaluation.protocol import DEFAULT, MetricProtocol, evaluate_volume
from ldm.evaluation.scores import COPY_T1, Evaluation
from ldm.report.gallery import add_to_viewer, comparison_strip, shown_volumes
from ldm.report.viewer import PAGE_BYTES


def evaluate_folders(
    predictions: Mapping[str, Path | Sequence[Path]],
    reference: Path,
    subjects: Sequence[str] | None = None,
    protocol: MetricProtocol = DEFAULT,
    **options: Any,
) -> Evaluation:
    """Compare under one protocol; arguments and errors are those of :func:`evaluate_protocols`."""
    told = (predictions, reference, subjects, [protocol])
    return evaluate_protocols(*told, **options)[protocol.name]


def find_predictions(
    predictions: Mapping[str, Path | Sequence[Path]],
) -> dict[str, list[tuple[Layout, dict[str, Subject]]]]:
    """Return layout and subjects of the folders of each row; several are its training seeds."""
    listed = {row: [f] if isinstance(f, Path) else f for row, f in predictions.items()}
    return {row: [detect_layout(folder) for folder in f] for row, f in listed.items()}


def picture_folders(
    result: Evaluation,
    predictions: Mapping[str, Path],
    reference: Path,
    layout: Any = None,
    mask: str = "auto",
) -> None:
    """Add the pictures of an evaluation whose scores are known, a row a folder of predictions."""
    layout, real = detect_layout(reference, layout)
    found = find_predictions(predictions)
    for subject in result.subjects:
        if not any(subject in scores for scores in result.scores.values()):
            continue
        case = load_case(real[subject], layout, mask)
        volumes = {
            row: read_prediction(predicted[subject], own, case)
            for row, ((own, predicted),) in found.items()
            if subject in result.scores[row] and subject in predicted
        }
        add_pictures(result, case, volumes)


def evaluate_protocols(
    predictions: Mapping[str, Path | Sequence[Path]],
    reference: Path,
    subjects: Sequence[str] | None = None,
    protocols: Sequence[MetricProtocol] = (DEFAULT,),
    baseline: bool = True,
    progress: Any = None,
    lpips_weights: Path | None = None,
    layout: Any = None,
    mask: str = "auto",
    viewer_bytes: int = PAGE_BYTES,
) -> dict[str, Evaluation]:
    """Compare each folder of synthetic volumes with the real patients, under each protocol.

    A patient whose files are missing or cannot be used is a failure of the row, with its reason,
    and does not stop the others.

    Args:
        predictions: row name -> folder of ``ID_t1ce.nii.gz``; several folders are the training
            seeds of one row.
        reference: folder, or CSV, of real subjects in any known layout.
        subjects: patients to compare; None: all that any folder predicts.
        protocols: what is compared with what; each volume is read once for all.
        baseline: add the row of T1 copied as T1ce.
        progress: wraps the list of patients, as ``rich.progress.track`` does.
        lpips_weights: of the network of LPIPS; None looks where torch keeps downloads.
        layout: of ``reference``; None: recognised.
        mask: what is brain, see :func:`ldm.data.brain.subject_brain`.
        viewer_bytes: how large the slice viewer of a page may become; 0: none.

    Returns:
        name of the protocol -> its evaluation.

    Raises:
        DataError: a folder without patients, or DATA-MISSING for one that the reference lacks.
        CheckpointError: CKPT-MISSING, CKPT-MISMATCH for ``lpips_weights``.
    """
    layout, real = detect_layout(reference, layout)
    folders = find_predictions(predictions)
    predicted = {i for found in folders.values() for _, known in found for i in known}
    chosen = select_subjects(real, sorted(predicted if subjects is None else set(subjects)))
    tools = _tools(protocols, lpips_weights)
    results = {p.name: Evaluation(p, subjects=[s.id for s in chosen]) for p in protocols}
    for result in results.values():
        result.scores = {row: {} for row in (*predictions, *([COPY_T1] if baseline else []))}
        result.notes |= tools.notes if "lpips" in result.protocol.names() else {}
    for subject in (progress or iter)(chosen):
        shown = _evaluate_subject(subject, layout, mask, folders, list(results.values()), tools)
        if shown:
            add_pictures(results[protocols[0].name], *shown, viewer_bytes)
    if baseline and not any(COPY_T1 in r for r in _rows_with_anything(results.values())):
        for result in results.values():  # no patient has a T1
            result.scores.pop(COPY_T1)
    return results


@dataclass(frozen=True)
class _Tools:
    """The network of the perceptual metrics, or why there is none."""

    perceptual: Any = None
    notes: Mapping[str, str] = field(default_factory=dict)


def _tools(protocols: Sequence[MetricProtocol], weights: Path | None) -> _Tools:
    if not any("lpips" in protocol.names() for protocol in protocols):
        return _Tools()
    from ldm.evaluation.metrics.perceptual import find_weights

    perceptual, reason = find_weights(weights)
    return _Tools(perceptual, {"lpips": reason} if reason else {})


def _evaluate_subject(
    subject: Subject,
    layout: Layout,
    mask: str,
    folders: Mapping[str, Sequence[tuple[Layout, Mapping[str, Subject]]]],
    results: Sequence[Evaluation],
    tools: _Tools,
) -> tuple[Case, dict[str, Prediction]] | None:
    """Score one patient in every row and protocol, or note why not; return what to show of it."""
    try:
        case = load_case(subject, layout, mask)
    except DataError as error:
        for row, result in product(folders, results):
            result.fail(row, subject.id, f"the real patient: {_reason(error)}")
        return None
    volumes: dict[str, Prediction] = {}
    for row, found in folders.items():
        for number, (own_layout, predicted) in enumerate(found):
            seed = f"seed {number}" if len(found) > 1 else None
            try:
                if subject.id not in predicted:
                    raise DataError("DATA-MISSING", "there is no prediction", subject.id)
                volume = read_prediction(predicted[subject.id], own_layout, case)
                for result in results:
                    _score(result, row, case, volume, tools, seed)
            except DataError as error:
                told = f"{seed}: {_reason(error)}" if seed else _reason(error)
                for result in results:
                    result.fail(row, subject.id, told)
            else:
                volumes.setdefault(row, volume)
    if COPY_T1 in results[0].scores and "t1" in case.inputs:
        scale = RobustNormaliser().fit(case.inputs["t1"], case.brain, "t1", case.id)
        volume = Prediction(in_reference_units(case.inputs["t1"], scale, case))
        for result in results:
            _score(result, COPY_T1, case, volume, tools)
        volumes[COPY_T1] = volume
    return case, volumes


def add_pictures(
    result: Evaluation,
    case: Case,
    predictions: Mapping[str, Prediction],
    viewer_bytes: int = PAGE_BYTES,
) -> None:
    """Keep of a patient what a page shows."""
    shown = shown_volumes(case, predictions, result.protocol)
    result.slices[case.id] = case.shown_slice()
    result.strips[case.id] = comparison_strip(case, shown)
    if viewer_bytes:
        add_to_viewer(result, case, shown, viewer_bytes)


def _reason(error: DataError) -> str:
    return one_line(f"{error.code}: {error.message}")


def _rows_with_anything(results: Iterable[Evaluation]) -> list[set[str]]:
    return [{row for row, subjects in r.scores.items() if subjects} for r in results]


def _score(
    result: Evaluation,
    row: str,
    case: Case,
    predicted: Prediction,
    tools: _Tools,
    seed: str | None = None,
) -> None:
    """Add the scores of one prediction to ``result``; those of several seeds are averaged."""
    scores = evaluate_volume(
        predicted.volume,
        case.reference,
        case.brain,
        case.seg,
        result.protocol,
        spread=predicted.spread,
        samples=predicted.samples,
        spacing=case.geometry.spacing,
        perceptual=tools.perceptual,
    )
    result.add(row, case.id, scores, seed)
    own = result.protocol.bounds_of == "reference"  # the scale of a spread is that of the reference
    low, high = result.protocol.bounds(case.reference, case.brain)
    if own and tools.perceptual and high > low:
        sides = ((predicted.volume - low) / (high - low), (case.reference - low) / (high - low))
        content = case.brain.any(axis=(0, 1))
        features = (
            tools.perceptual.features(np.clip(np.where(case.brain, v, 0), 0, 1)[..., content])
            for v in sides
        )
        result.features.setdefault(row, {})[case.id] = tuple(features)
    if own and predicted.spread is not None:
        volumes = (predicted.volume, case.reference, predicted.spread)
        groups = reliability(*volumes, case.brain, predicted.samples)
        unit = Reliability(*(values / (high - low) for values in groups))
        result.reliability.setdefault(row, {})[case.id] = unit
