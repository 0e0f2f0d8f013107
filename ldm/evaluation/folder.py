"""Evaluation of folders of synthetic volumes against the real ones, patient by patient.

A synthetic volume is written in the units of an input contrast, which its sidecar states; the real
T1ce has units of its own. Before comparison the prediction is brought to the units of the reference
by the two robust scales (of the input, from the sidecar; of the reference, measured in its brain).
A volume without a sidecar is taken to be in the units of the reference already. A spread beside it
(``ID_t1ce_std.nii.gz``, of ``dsdiff sample --samples N``) goes through the same map.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.config import trusted_targets
from ldm.data.contrasts import load_contrasts, load_labels
from ldm.data.layouts import Layout, Subject, detect_layout, select_subjects
from ldm.data.nifti import read_volume
from ldm.data.normalise import IntensityScale, Normaliser, RobustNormaliser
from ldm.data.prepare import brain_mask
from ldm.errors import DataError
from ldm.evaluation.calibration import Reliability, reliability
from ldm.evaluation.pictures import comparison_strip
from ldm.evaluation.protocol import (
    DEFAULT,
    MetricProtocol,
    evaluate_volume,
)
from ldm.evaluation.result import COPY_T1, Evaluation
from ldm.util import instantiate_from_config, refuse_untrusted_targets

INPUTS = ("t1", "t2", "flair")
TARGET = "t1ce"


@dataclass(frozen=True)
class Case:
    """A patient to compare with: canonical volumes (X, Y, Z).

    Args:
        id: subject.
        inputs: the input contrasts that exist.
        reference: the real target.
        brain: where any input contrast (or, without inputs, the reference) is not 0.
        seg: tumour labels, or None.
    """

    id: str
    inputs: dict[str, np.ndarray]
    reference: np.ndarray
    brain: np.ndarray
    seg: np.ndarray | None
    geometry: Any

    def shown_slice(self) -> int:
        """Return the axial slice with most tumour, or else with most brain."""
        mask = self.brain if self.seg is None or not self.seg.any() else self.seg > 0
        return int(mask.sum(axis=(0, 1)).argmax())


@dataclass(frozen=True)
class Prediction:
    """A synthetic volume in the units of the reference.

    Args:
        volume: (X, Y, Z).
        spread: standard deviation over samples (X, Y, Z), or None.
        samples: how many samples, or None where that is not known.
    """

    volume: np.ndarray
    spread: np.ndarray | None = None
    samples: int | None = None


def evaluate_folders(
    predictions: Mapping[str, Path],
    reference: Path,
    subjects: Sequence[str] | None = None,
    protocol: MetricProtocol = DEFAULT,
    baseline: bool = True,
    progress: Any = None,
    layout: Any = None,
) -> Evaluation:
    """Compare each folder of synthetic volumes with the real patients.

    Args:
        predictions: row name -> folder of ``ID_t1ce.nii.gz``.
        reference: folder, or CSV, of real subjects in any known layout.
        subjects: patients to compare; None: all that any folder predicts.
        baseline: add the row of T1 copied as T1ce.
        progress: wraps the list of patients, as ``rich.progress.track`` does.
        layout: of ``reference``; None: recognised.

    Raises:
        DataError: DATA-MISSING, or a volume that cannot be read or lies on another grid.
    """
    layout, real = detect_layout(reference, layout)
    found = {row: detect_layout(folder) for row, folder in predictions.items()}
    ids = subjects or sorted({i for _, predicted in found.values() for i in predicted})
    result = Evaluation(protocol, subjects=list(ids))
    result.scores = {row: {} for row in predictions}
    for subject in (progress or iter)(select_subjects(real, ids)):
        case = load_case(subject, layout)
        volumes = {
            row: read_prediction(predicted[subject.id], own_layout, case)
            for row, (own_layout, predicted) in found.items()
            if subject.id in predicted
        }
        if baseline and "t1" in case.inputs:
            scale = RobustNormaliser().fit(case.inputs["t1"], case.brain, "t1", case.id)
            volumes[COPY_T1] = Prediction(in_reference_units(case.inputs["t1"], scale, case))
        for row, predicted in volumes.items():
            _score(result, row, case, predicted)
        result.slices[subject.id] = case.shown_slice()
        pictures = {row: predicted.volume for row, predicted in volumes.items()}
        result.strips[subject.id] = comparison_strip(case, pictures, protocol)
    return result


def _score(result: Evaluation, row: str, case: Case, predicted: Prediction) -> None:
    """Add the scores of one prediction to ``result``."""
    told = {"spread": predicted.spread, "samples": predicted.samples}
    scores = evaluate_volume(
        predicted.volume, case.reference, case.brain, case.seg, result.protocol, **told
    )
    result.scores.setdefault(row, {})[case.id] = scores
    if predicted.spread is not None:
        low, high = result.protocol.bounds(case.reference, case.brain)
        volumes = (predicted.volume, case.reference, predicted.spread)
        groups = reliability(*volumes, case.brain, predicted.samples)
        unit = Reliability(*(values / (high - low) for values in groups))
        result.reliability.setdefault(row, {})[case.id] = unit


def load_case(subject: Subject, layout: Layout) -> Case:
    """Read the real volumes of a patient.

    Raises:
        DataError: there is no target, or a volume cannot be used.
    """
    absent = [c for c in INPUTS if c not in subject.files]
    arrays, geometry = load_contrasts(subject, layout, [TARGET, *INPUTS], missing=absent)
    reference = arrays.pop(TARGET)
    brain = brain_mask(list(arrays.values()) or [reference], subject.id)
    seg = None
    if "seg" in subject.files:
        seg = load_labels(subject, layout, geometry)
    return Case(subject.id, arrays, reference, brain, seg, geometry)


def read_prediction(subject: Subject, layout: Layout, case: Case) -> Prediction:
    """Return the synthetic volume of a patient, and its spread, in the units of the reference.

    Raises:
        DataError: it cannot be read, lies on another grid, or its sidecar is damaged.
    """
    arrays, geometry = load_contrasts(subject, layout, [TARGET])
    case.geometry.require_same_grid(geometry, ("reference", "prediction"), case.id)
    path = subject.files[TARGET].path
    stem = path.name.split(".nii")[0]
    spread = _read_spread(path.with_name(f"{stem}_std.nii.gz"), case)
    sidecar = path.with_name(f"{stem}.json")
    if not sidecar.is_file():
        return Prediction(arrays[TARGET], spread)
    try:
        described = json.loads(sidecar.read_text(encoding="utf-8"))
        numbers = described["intensity"]
        scale = IntensityScale(**{k: numbers[k] for k in ("centre", "width", "lower", "upper")})
        config = described.get("normaliser")
        samples = described.get("request", {}).get("samples")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "DATA-SIDECAR",
            f"{sidecar.name} does not state the units ({error}): sample again",
            case.id,
        ) from error
    normaliser = None
    if config:
        refuse_untrusted_targets(config, trusted_targets(), sidecar.name)
        normaliser = instantiate_from_config(config, where=sidecar.name)
    volume = in_reference_units(arrays[TARGET], scale, case, normaliser)
    if spread is None or samples == 1:  # one left by an earlier run, with samples
        return Prediction(volume)
    spread = in_reference_units(spread, scale, case, normaliser, difference=True)
    return Prediction(volume, spread, samples)


def _read_spread(path: Path, case: Case) -> np.ndarray | None:
    """Return a standard deviation over samples as stored, or None if there is none."""
    if not path.is_file():
        return None
    stored = read_volume(path, case.id)
    case.geometry.require_same_grid(stored.geometry, ("reference", "spread"), case.id)
    return stored.array


def in_reference_units(
    volume: np.ndarray,
    scale: IntensityScale,
    case: Case,
    normaliser: Normaliser | None = None,
    difference: bool = False,
) -> np.ndarray:
    """Map a volume with a scale of its own to the units of the reference, inside the brain.

    ``difference`` is for a volume of differences or spreads, which has no centre.
    """
    own = (normaliser or RobustNormaliser()).fit(case.reference, case.brain, TARGET, case.id)
    centre, own_centre = (0, 0) if difference else (scale.centre, own.centre)
    mapped = (volume - centre) / scale.width * own.width + own_centre
    return np.where(case.brain, mapped, 0).astype(np.float32)
