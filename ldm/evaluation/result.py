"""Scores of several rows on the same patients: their tables, and the files of results."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm.evaluation.calibration import Reliability
from ldm.evaluation.protocol import SPREAD_METRICS, MetricProtocol, Scores, summarise
from ldm.evaluation.report import Table, csv_rows
from ldm.storage import atomic_path, write_json

if TYPE_CHECKING:
    from ldm.evaluation.pictures import Shown
    from ldm.evaluation.viewer import ViewerPatient

COPY_T1 = "copy T1"
METRICS = {
    "psnr": "PSNR dB",
    "nrmse": "NRMSE",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "mae": "MAE",
    "flicker": "Flicker",
}
# so that the best cell of a column can be marked
BETTER = {
    label: "higher" if name in ("psnr", "ssim", "ms_ssim") else "lower"
    for name, label in METRICS.items()
    if name != "flicker"
}
SPREAD = dict(
    zip(SPREAD_METRICS, ("Within 1 sd", "Within 2 sd", "ECE", "Error / spread"), strict=True)
)


@dataclass
class Evaluation:
    """Scores of several rows (prediction folders and baselines) on the same patients.

    Args:
        protocol: what was compared with what.
        scores: row -> subject -> region -> metric.
        reliability: row -> subject -> spread and error in the brain, for what has a spread.
        strips: subject -> axial slice of each volume, for reports.
        slices: subject -> index of the axial slice shown.
        viewer: subject -> volumes for the slice viewer of a page; only of the worst subjects.
    """

    protocol: MetricProtocol
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    reliability: dict[str, dict[str, Reliability]] = field(default_factory=dict)
    strips: dict[str, Shown] = field(default_factory=dict)
    slices: dict[str, int] = field(default_factory=dict)
    viewer: dict[str, ViewerPatient] = field(default_factory=dict)
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
        return Table(region.capitalize(), ["", *METRICS.values(), "n"], body, better=BETTER)

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
