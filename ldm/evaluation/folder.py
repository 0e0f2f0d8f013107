"""Evaluation of folders of synthetic volumes against the real ones, patient by patient.

A synthetic volume is written in the units of an input contrast, which its sidecar states; the real
T1ce has units of its own. Before comparison the prediction is brought to the units of the reference
by the two robust scales (of the input, from the sidecar; of the reference, measured in its brain).
A volume without a sidecar is taken to be in the units of the reference already. A spread beside it
(``ID_t1ce_std.nii.gz``, of ``dsdiff sample --samples N``) goes through the same map.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ldm.config import trusted_targets
from ldm.data.layouts import Layout, Subject, detect_layout, select_subjects
from ldm.data.nifti import read_volume
from ldm.data.normalise import IntensityScale, Normaliser, RobustNormaliser
from ldm.data.prepare import brain_mask, load_contrasts, load_labels
from ldm.errors import DataError
from ldm.evaluation.calibration import Reliability, reliability
from ldm.evaluation.protocol import (
    DEFAULT,
    SPREAD_METRICS,
    MetricProtocol,
    Scores,
    evaluate_volume,
    summarise,
)
from ldm.evaluation.report import Figure, Table, csv_rows, reliability_figure, strip_figure
from ldm.storage import atomic_path, write_json
from ldm.util import instantiate_from_config, refuse_untrusted_targets

INPUTS = ("t1", "t2", "flair")
TARGET = "t1ce"
COPY_T1 = "copy T1"
METRICS = {
    "psnr": "PSNR dB",
    "nrmse": "NRMSE",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "mae": "MAE",
    "flicker": "Flicker",
}
SPREAD = dict(
    zip(SPREAD_METRICS, ("Within 1 sd", "Within 2 sd", "ECE", "Error / spread"), strict=True)
)


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


@dataclass
class Evaluation:
    """Scores of several rows (prediction folders and baselines) on the same patients.

    Args:
        protocol: what was compared with what.
        scores: row -> subject -> region -> metric.
        reliability: row -> subject -> spread and error in the brain, for what has a spread.
        strips: subject -> picture label -> axial slice, for reports.
        slices: subject -> index of the axial slice shown.
    """

    protocol: MetricProtocol
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    reliability: dict[str, dict[str, Reliability]] = field(default_factory=dict)
    strips: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    slices: dict[str, int] = field(default_factory=dict)
    subjects: list[str] = field(default_factory=list)

    def mean(self, row: str, region: str, metric: str) -> float:
        """Return the mean over patients; NaN where there is none."""
        return self._summary(row).get((region, metric), (np.nan,))[0]

    def table(self, region: str) -> Table:
        """Return mean ± standard deviation of each row in one region."""
        body = []
        for row in self.scores:
            summary = self._summary(row)
            cells = [
                _spread(*summary[region, m]) if (region, m) in summary else None for m in METRICS
            ]
            counted = max((summary[k][2] for k in summary if k[0] == region), default=0)
            body.append([row, *cells, f"{counted}/{len(self.subjects)}"])
        return Table(region.capitalize(), ["", *METRICS.values(), "n"], body)

    def tables(self) -> list[Table]:
        """Return the table of each region, and that of the spread where a row has one."""
        regions = [self.table(region) for region in self.regions()]
        return [*regions, *([self.spread_table()] if self.reliability else [])]

    def spread_table(self) -> Table:
        """Return how well the predicted spread covers the error, a line a row and region."""
        body = []
        for row in self.reliability:
            summary = self._summary(row)
            for region in self.regions():
                if (region, SPREAD_METRICS[0]) in summary:
                    found = [summary[region, metric] for metric in SPREAD_METRICS]
                    counted = f"{found[0][2]}/{len(self.subjects)}"
                    body.append([row, region, *(_spread(*values) for values in found), counted])
        note = (
            "Calibrated: 0.683 of the voxels within 1 standard deviation, 0.954 within 2, ECE 0, "
            "error / spread 1. Less coverage and a larger ratio: overconfident."
        )
        return Table("Predicted spread", ["", "Region", *SPREAD.values(), "n"], body, note)

    def regions(self) -> list[str]:
        """Return the regions with any value, in the order of the protocol."""
        known = {r for row in self.scores.values() for s in row.values() for r in s}
        return [r for r in self.protocol.regions if r in known]

    def write(self, folder: Path) -> None:
        """Write ``metrics.csv`` (a line a row, subject and region) and ``metrics.json``."""
        lines = [
            [row, subject, region, *(scores[region].get(m) for m in (*METRICS, *SPREAD))]
            for row, subjects in self.scores.items()
            for subject, scores in sorted(subjects.items())
            for region in scores
        ]
        with (
            atomic_path(folder / "metrics.csv") as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            columns = ["row", "subject", "region", *METRICS, *SPREAD]
            csv.writer(file).writerows(csv_rows(columns, lines))
        described = {
            "protocol": self.protocol.to_dict(),
            "subjects": self.subjects,
            "scores": _plain(self.scores),
            "summary": {
                row: [_plain(s._asdict()) for s in summarise(list(subjects.values()))]
                for row, subjects in self.scores.items()
            },
            "reliability": {
                row: {subject: _plain(groups._asdict()) for subject, groups in subjects.items()}
                for row, subjects in self.reliability.items()
            },
        }
        write_json(folder / "metrics.json", described)

    def _summary(self, row: str) -> dict[tuple[str, str], tuple[float, float, int]]:
        rows = summarise(list(self.scores[row].values()))
        return {(s.region, s.metric): (s.mean, s.sd, s.n) for s in rows}


def evaluate_folders(
    predictions: Mapping[str, Path],
    reference: Path,
    subjects: Sequence[str] | None = None,
    protocol: MetricProtocol = DEFAULT,
    baseline: bool = True,
    progress: Any = None,
) -> Evaluation:
    """Compare each folder of synthetic volumes with the real patients.

    Args:
        predictions: row name -> folder of ``ID_t1ce.nii.gz``.
        reference: folder of real subjects in any known layout.
        subjects: patients to compare; None: all that any folder predicts.
        baseline: add the row of T1 copied as T1ce.
        progress: wraps the list of patients, as ``rich.progress.track`` does.

    Raises:
        DataError: DATA-MISSING, or a volume that cannot be read or lies on another grid.
    """
    layout, real = detect_layout(reference)
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
    path = subject.files[TARGET]
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


def comparison_strip(
    case: Case, volumes: Mapping[str, np.ndarray], protocol: MetricProtocol
) -> dict[str, np.ndarray]:
    """Return the shown axial slice of inputs, predictions, reference and of the first error."""
    index = case.shown_slice()
    low, high = protocol.bounds(case.reference, case.brain)

    def picture(volume: np.ndarray) -> np.ndarray:
        plane = np.where(case.brain[..., index], volume[..., index], volume[case.brain].min())
        rows, columns = (np.flatnonzero(case.brain.any(axis=a)) for a in ((1, 2), (0, 2)))
        return np.rot90(plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])

    images = {name.upper(): picture(volume) for name, volume in case.inputs.items()}
    unit = {n: np.clip((v - low) / (high - low), 0, 1) for n, v in volumes.items() if n != COPY_T1}
    images |= {name: picture(volume) for name, volume in unit.items()}
    real = np.clip((case.reference - low) / (high - low), 0, 1)
    images["real"] = picture(real)
    if unit:
        first = next(iter(unit.values()))
        images["error"] = picture(np.where(case.brain, np.abs(first - real), 0))
    return images


def strips_figure(result: Evaluation, most: int = 8) -> list[Figure]:
    """Return a figure with one strip a patient (inputs, each row, real, error), or none."""
    shown = list(result.strips)[:most]
    if not shown:
        return []
    image = strip_figure(
        [result.strips[i] for i in shown],
        [f"{i} · axial {result.slices[i]}" for i in shown],
        shared_window=(*result.scores, "real"),
    )
    caption = (
        "The axial slice with most tumour. Synthetic and real images share one grey window; the "
        "error is that of the first row, in units of the real data range."
    )
    return [Figure("Patients", image, caption, "Inputs, synthetic and real T1ce, error map")]


def spread_figure(result: Evaluation) -> list[Figure]:
    """Return a figure of observed error over predicted spread, or none without a spread."""
    if not result.reliability:
        return []
    image = reliability_figure(
        {row: list(found.values()) for row, found in result.reliability.items()}
    )
    caption = (
        "Voxels of the brain in ten groups of equal size, ordered by their predicted spread; thin: "
        "a patient, bold: all. On the dashed line the error is as large as predicted, above it the "
        "prediction is overconfident. In units of the real data range."
    )
    alt = "Observed error over predicted spread"
    return [Figure("Predicted spread against error", image, caption, alt)]


def _spread(mean: float, sd: float, n: int) -> str | float:
    if np.isnan(mean) or not np.isfinite(mean) or np.isnan(sd):
        return mean
    digits = 2 if abs(mean) >= 10 else 4
    return f"{mean:.{digits}f} ± {sd:.{digits}f}"


def _plain(value: Any) -> Any:
    """Return ``value`` for strict JSON: NaN and infinity become text."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(inner) for inner in value]
    if isinstance(value, float | np.floating) and not np.isfinite(value):
        return "n/a" if np.isnan(value) else "inf"
    return float(value) if isinstance(value, np.floating) else value
