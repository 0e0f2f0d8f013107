"""Scores of a folder of predictions, kept in a file, so that no volume is evaluated twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm.evaluation.folder import evaluate_folders
from ldm.evaluation.metrics.calibration import Reliability
from ldm.evaluation.protocol import DEFAULT, MetricProtocol
from ldm.evaluation.scores import Evaluation
from ldm.storage import kept, volume_digests

ROW = "cell"
KEPT = ("scores", "reliability", "failures")
NAMES = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def evaluate_once(
    prediction: Path,
    reference: Path,
    references: Mapping[str, Mapping[str, str]],
    path: Path,
    protocol: MetricProtocol = DEFAULT,
    mask: str = "auto",
    **options: Any,
) -> Evaluation:
    """Return the evaluation of one folder as row ROW; from ``path`` if it is of the same files.

    Args:
        prediction: folder of synthetic volumes.
        reference: folder of real patients.
        references: the patients to compare, with the digests of their files.
        path: JSON file that keeps the scores; every number comes back as it was, bit by bit.
        protocol, mask, options: see :func:`ldm.evaluation.folder.evaluate_protocols`.

    Raises:
        DataError: see :func:`ldm.evaluation.folder.evaluate_protocols`.
    """
    described = _to_json(
        {
            "volumes": volume_digests(prediction),
            "references": references,
            "protocol": protocol.to_dict(),
            "mask": mask,
        }
    )

    def evaluate() -> dict[str, Any]:
        told = {"baseline": False, "mask": mask, "viewer_bytes": 0, **options}
        found = evaluate_folders({ROW: prediction}, reference, sorted(references), protocol, **told)
        groups = {s: g._asdict() for s, g in found.reliability.get(ROW, {}).items()}
        values = (found.scores[ROW], groups, found.failures.get(ROW, {}))
        return _to_json(dict(zip(KEPT, values, strict=True)))

    known = kept(path, described, evaluate)
    scores, groups, failures = (_from_json(known[key]) for key in KEPT)
    result = Evaluation(protocol, {ROW: scores}, subjects=sorted(references))
    result.failures = {ROW: failures} if failures else {}
    for subject, values in groups.items():
        arrays = (np.array(values[name]) for name in Reliability._fields)
        result.reliability.setdefault(ROW, {})[subject] = Reliability(*arrays)
    return result


def combine(result: Evaluation, row: str, runs: Mapping[str, Evaluation]) -> None:
    """Add the evaluations of the training seeds of a row to ``result``.

    A patient is the unit of every statistic: its scores are averaged over the seeds that have one,
    for the same patient synthesised by three trainings is not three patients.
    """
    result.scores.setdefault(row, {})
    several = len(runs) > 1
    for seed, found in runs.items():
        for subject, scores in found.scores[ROW].items():
            result.add(row, subject, scores, seed if several else None)
        for subject, reason in found.failures.get(ROW, {}).items():
            result.fail(row, subject, f"{seed}: {reason}" if several else reason)
    groups = [found.reliability.get(ROW, {}) for found in runs.values()]
    for subject in sorted(set().union(*groups)):
        fields = zip(*(g[subject] for g in groups if subject in g), strict=True)
        mean = Reliability(*(np.mean(values, axis=0) for values in fields))
        result.reliability.setdefault(row, {})[subject] = mean


def _to_json(value: Any) -> Any:
    """Return ``value`` for strict JSON: arrays as lists, NaN and infinity as text."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_to_json(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else str(float(value))
    return value.item() if isinstance(value, np.generic) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _from_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_from_json(inner) for inner in value]
    return NAMES.get(value, value) if isinstance(value, str) else value
