"""Scores of a folder of predictions, kept in a file, so that no volume is judged twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.data.layouts import detect_layout, select_subjects
from ldm.data.seen import Digests
from ldm.evaluation.downstream import downstream_scores
from ldm.evaluation.folder import evaluate_folders, predictions_of
from ldm.evaluation.metrics.perceptual import stored_weights
from ldm.evaluation.protocol import DEFAULT, DOWNSTREAM
from ldm.evaluation.scores import FORMAT, Evaluation
from ldm.inference.segmentation import NetworkSegmenter
from ldm.storage import kept, strict_json, volume_digests
from ldm.study import Study

ROW = "cell"


def evaluate_once(
    prediction: Path | None,
    reference: Path,
    references: Digests,
    path: Path,
    study: Study,
    mask: str = "auto",
    allow_seen: bool = False,
    **options: Any,
) -> Evaluation:
    """Return the evaluation of one folder as row ROW; from ``path`` if it is of the same files.

    Args:
        prediction: folder of synthetic volumes; None: the copied input alone, as a row of its own.
        reference: folder of real patients.
        references: the patients to compare, with the digests of their files.
        path: JSON file that keeps all scores and notes; every number comes back as it was, bit by
            bit. One of an older format is made again.
        study: what was synthesised, and from what.
        mask, allow_seen, options: see :func:`ldm.evaluation.folder.evaluate_folders`.

    Raises:
        DataError: see :func:`ldm.evaluation.folder.evaluate_folders`.
    """
    described = {
        "volumes": volume_digests(prediction) if prediction else {},
        "mask": mask,
        "weights": getattr(stored_weights(), "name", None),
        "protocol": DEFAULT.to_dict(),
        **_judged(references, study),
        **({"allow_seen": True} if allow_seen else {}),  # what is kept without is still good
    }

    def made() -> dict[str, Any]:
        told = {"study": study, "subjects": sorted(references), "protocols": [DEFAULT], **options}
        told |= {"mask": mask, "allow_seen": allow_seen}
        rows = {ROW: prediction} if prediction else {}
        return evaluate_folders(rows, reference, baseline=not rows, **told).to_dict()

    return Evaluation.from_dict(DEFAULT, kept(path, strict_json(described), made), study)


def judge_once(
    segmenter: Path,
    predictions: Mapping[str, Sequence[Path]],
    reference: Path,
    references: Digests,
    path: Path,
    study: Study,
    trusted: Sequence[str] = (),
    layout: Any = None,
    **options: Any,
) -> Evaluation:
    """Return what a trained segmenter finds; from ``path`` if it is of the same files.

    Args:
        segmenter: run of ``dsdiff segment train``.
        predictions: row name -> folders of its training seeds.
        reference, references, path, study: see :func:`evaluate_once`.
        trusted: classes accepted in the run folder beside the shipped ones.
        layout: of ``reference``; None: recognised.
        options: see :func:`ldm.evaluation.downstream.downstream_scores`.
    """
    judge = NetworkSegmenter(segmenter, trusted)
    volumes = {row: [volume_digests(f) for f in folders] for row, folders in predictions.items()}
    described = {"segmenter": judge.digest, "volumes": volumes, **_judged(references, study)}

    def judged() -> dict[str, Any]:
        own, real = detect_layout(reference, layout, study.contrasts)
        chosen = select_subjects(real, sorted(references))
        told = (judge, predictions_of(predictions, real, study), chosen, own, study)
        return downstream_scores(*told, baseline=False, **options).to_dict()

    known = kept(path, strict_json(described), judged)
    return Evaluation.from_dict(DOWNSTREAM, known, study)


def _judged(references: Digests, study: Study) -> dict[str, Any]:
    """Return what any kept score depends on, beside what is judged."""
    return {
        "references": dict(references),
        "target": study.target,
        "inputs": list(study.conditions),
        "scheme": str(study.contrasts.scheme),
        "format": FORMAT,
    }
