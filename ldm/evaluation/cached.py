"""Scores of a folder of predictions, kept in a file, and the pictures of several folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.layouts import detect_layout
from ldm.evaluation.calibration import Reliability
from ldm.evaluation.folder import evaluate_folders, load_case, read_prediction
from ldm.evaluation.pictures import comparison_strip
from ldm.evaluation.protocol import DEFAULT, MetricProtocol, Scores
from ldm.evaluation.result import Evaluation
from ldm.storage import read_json, sha256, write_json

ROW = "cell"
NAMES = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def evaluate_once(
    prediction: Path,
    reference: Path,
    references: Mapping[str, Mapping[str, str]],
    path: Path,
    protocol: MetricProtocol = DEFAULT,
    layout: Any = None,
    progress: Any = None,
) -> tuple[dict[str, Scores], dict[str, Reliability]]:
    """Return scores and reliability by patient; from ``path`` if they are of the same files.

    Args:
        prediction: folder of synthetic volumes.
        reference: folder of real patients.
        references: the patients to compare, with the digests of their files.
        path: JSON file that keeps the scores; every number comes back as it was, bit by bit.
        protocol, layout, progress: see :func:`ldm.evaluation.folder.evaluate_folders`.

    Raises:
        DataError: see :func:`ldm.evaluation.folder.evaluate_folders`.
    """
    volumes = {p.name: sha256(p) for p in sorted(prediction.glob("*.nii*"))}
    described = _to_json(
        {"volumes": volumes, "references": references, "protocol": protocol.to_dict()}
    )
    known = read_json(path)
    if not all(known.get(key) == value for key, value in described.items()):
        result = evaluate_folders(
            {ROW: prediction}, reference, sorted(references), protocol, False, progress, layout
        )
        groups = {s: found._asdict() for s, found in result.reliability.get(ROW, {}).items()}
        known = {**described, **_to_json({"scores": result.scores[ROW], "reliability": groups})}
        write_json(path, known)
    found = _from_json({key: known[key] for key in ("scores", "reliability")})
    groups = {
        subject: Reliability(*(np.array(values[name]) for name in Reliability._fields))
        for subject, values in found["reliability"].items()
    }
    return found["scores"], groups


def add_strips(
    result: Evaluation,
    predictions: Mapping[str, Path],
    reference: Path,
    layout: Any = None,
    most: int = 8,
) -> None:
    """Add the pictures of the first patients of an evaluation, a picture a prediction folder."""
    layout, real = detect_layout(reference, layout)
    found = {row: detect_layout(folder) for row, folder in predictions.items()}
    for subject in sorted(result.subjects)[:most]:
        case = load_case(real[subject], layout)
        volumes = {
            row: read_prediction(predicted[subject], own, case).volume
            for row, (own, predicted) in found.items()
            if subject in predicted
        }
        result.slices[subject] = case.shown_slice()
        result.strips[subject] = comparison_strip(case, volumes, result.protocol)


def mean_over_seeds(seeds: Sequence[Mapping[str, Scores]]) -> dict[str, Scores]:
    """Return the scores of each patient, averaged over the seeds that have a value.

    A patient is the unit of every statistic: the same patient synthesised by three trainings is
    not three patients.
    """
    subjects = sorted({subject for scores in seeds for subject in scores})
    return {
        subject: _mean_scores([s[subject] for s in seeds if subject in s]) for subject in subjects
    }


def _mean_scores(found: Sequence[Scores]) -> Scores:
    mean: Scores = {}
    for scores in found:
        for region, values in scores.items():
            for metric in values:
                own = [s[region][metric] for s in found if metric in s.get(region, {})]
                mean.setdefault(region, {})[metric] = _mean(own)
    return mean


def _mean(values: Sequence[float | None]) -> float:
    finite = [v for v in values if v is not None and not np.isnan(v)]
    return float(np.mean(finite)) if finite else float("nan")


def spread_over_seeds(
    seeds: Sequence[Mapping[str, Scores]], region: str, metric: str
) -> float | None:
    """Return the standard deviation over seeds (n - 1) of the mean over patients.

    Only patients that every seed has enter. None where there are not two seeds.
    """
    shared = set.intersection(*(set(scores) for scores in seeds)) if seeds else set()
    values = [
        [scores[s].get(region, {}).get(metric, np.nan) for s in sorted(shared)] for scores in seeds
    ]
    if len(values) < 2 or not shared:
        return None
    return float(np.std(np.mean(values, axis=1), ddof=1))


def mean_reliability(seeds: Sequence[Mapping[str, Reliability]]) -> dict[str, Reliability]:
    """Return the mean over seeds of the groups of each patient."""
    subjects = sorted({subject for found in seeds for subject in found})
    return {
        subject: Reliability(
            *(
                np.mean(values, axis=0)
                for values in zip(*(f[subject] for f in seeds if subject in f), strict=True)
            )
        )
        for subject in subjects
    }


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
