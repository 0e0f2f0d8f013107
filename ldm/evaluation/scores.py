"""Scores of several rows on the same patients: their tables, and the files of results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm.errors import PartialError
from ldm.evaluation.measures import MEASURES
from ldm.evaluation.metrics.calibration import Reliability
from ldm.evaluation.protocol import (
    DEFAULT,
    SPREAD_METRICS,
    MetricProtocol,
    Scores,
    SummaryRow,
    average_scores,
    summarise,
)
from ldm.evaluation.statistics import (
    FEWEST_RESAMPLED,
    Comparison,
    Seeds,
    compare,
    over_seeds,
)
from ldm.report import score_tables as tables
from ldm.report.tables import Table, write_csv
from ldm.storage import write_json

if TYPE_CHECKING:
    from ldm.report.gallery import Shown
    from ldm.report.viewer import ViewerPatient

COPY_T1 = "copy T1"
METRICS = {name: MEASURES[name].title for name in DEFAULT.measures}


@dataclass
class Evaluation:
    """Scores of several rows (prediction folders and baselines) on the same patients.

    Args:
        protocol: what was compared with what.
        scores: row -> subject -> region -> metric.
        reliability: row -> subject -> spread and error in the brain, for what has a spread.
        strips: subject -> axial slice of each volume, for reports.
        slices: subject -> index of the axial slice shown.
        subjects: all patients of the comparison, those that failed too.
        failures: row -> subject -> why it has no score (or, of several seeds, fewer).
        seeds: row -> training seed -> subject -> region -> metric, for rows of several trainings;
            their ``scores`` are the means over the seeds.
        features: row -> subject -> features of prediction and reference, for Fréchet distances.
        notes: metric -> why it is not defined in any row.
        viewer: subject -> volumes for the slice viewer of a page; only of the worst subjects.
    """

    protocol: MetricProtocol
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    reliability: dict[str, dict[str, Reliability]] = field(default_factory=dict)
    strips: dict[str, Shown] = field(default_factory=dict)
    slices: dict[str, int] = field(default_factory=dict)
    viewer: dict[str, ViewerPatient] = field(default_factory=dict)
    subjects: list[str] = field(default_factory=list)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    seeds: dict[str, dict[str, dict[str, Scores]]] = field(default_factory=dict)
    features: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, row: str, subject: str, scores: Scores, seed: str | None = None) -> None:
        """Add the scores of a patient; those of several training seeds are averaged."""
        if seed is not None:
            self.seeds.setdefault(row, {}).setdefault(seed, {})[subject] = scores
            runs = [found[subject] for found in self.seeds[row].values() if subject in found]
            scores = average_scores(runs)
        self.scores.setdefault(row, {})[subject] = scores

    def fail(self, row: str, subject: str, reason: str) -> None:
        """Note why a patient has no score; a second reason (another seed) is added."""
        failed = self.failures.setdefault(row, {})
        failed[subject] = "; ".join(filter(None, [failed.get(subject), reason]))

    def mean(self, row: str, region: str, metric: str) -> float:
        """Return the mean over patients; NaN where there is none."""
        found = self.summary(row).get((region, metric))
        return found.mean if found else nan

    def values(self, metric: str, region: str) -> dict[str, dict[str, float]]:
        """Return row -> subject -> value of one metric in one region, NaN where there is none."""
        return {row: _values(subjects, metric, region) for row, subjects in self.scores.items()}

    def comparisons(
        self, metric: str, region: str, reference_row: str | None = None
    ) -> list[Comparison]:
        """Compare the rows with each other, or with one of them, on the same patients."""
        return compare(self.values(metric, region), reference_row)

    def over_seeds(self, row: str, metric: str, region: str) -> Seeds:
        """Return what the training seed of a row changes."""
        runs = self.seeds[row].items()
        return over_seeds({seed: _values(found, metric, region) for seed, found in runs})

    def frechet_distances(self) -> dict[str, float]:
        """Return the distance of each row, over the slices of all its patients."""
        from ldm.evaluation.metrics.perceptual import frechet_distance

        distances = {}
        for row, found in self.features.items():
            pairs = [found[subject] for subject in sorted(found)]
            distances[row] = frechet_distance(
                *(np.concatenate(side) for side in zip(*pairs, strict=True))
            )
        return distances

    def table(self, region: str) -> Table:
        """Return mean ± standard deviation of each row in one region."""
        return tables.region_table(self, region)

    def region_tables(self) -> list[Table]:
        """Return the table of each region."""
        return [self.table(region) for region in self.regions()]

    def tables(
        self, metric: str | None = None, region: str | None = None, reference_row: str | None = None
    ) -> list[Table]:
        """Return the tables of the protocol, then what there is to say about differences.

        Args:
            metric, region: what the paired comparison is about; by default PSNR in the brain, or
                what comes first in the protocol.
            reference_row: compare the others with this row; None: each with each.
        """
        told = (metric or self.main_metric(), region or self.main_region())
        patients = len(self.subjects)
        found = self.region_tables()
        found += [tables.more_table(self)] if self.protocol.more else []
        found += [tables.interval_table(self)] if patients >= FEWEST_RESAMPLED else []
        if patients > 1 and len(self.scores) > 1:
            found += [tables.comparison_table(self, *told, reference_row)]
        found += [tables.seeds_table(self, *told)] if self.seeds else []
        found += [tables.spread_table(self)] if self.reliability else []
        found += [tables.failure_table(self)] if self.failures else []
        return found

    def regions(self) -> list[str]:
        """Return the regions with any value, in the order of the protocol."""
        known = {r for row in self.scores.values() for s in row.values() for r in s}
        return [r for r in self.protocol.regions if r in known]

    def main_region(self) -> str:
        """Return the region of comparisons: the brain, or the first of the protocol."""
        return "brain" if "brain" in self.protocol.regions else self.protocol.regions[0]

    def main_metric(self) -> str:
        """Return the metric of comparisons, the first of the protocol."""
        return self.protocol.measures[0]

    def require_complete(self) -> None:
        """Refuse an evaluation in which a case failed.

        Raises:
            PartialError: EVAL-FAILED, with how many failed and why the first one did.
        """
        failed = [(i, why) for row in self.failures.values() for i, why in sorted(row.items())]
        if failed:
            subject, reason = failed[0]
            raise PartialError(
                "EVAL-FAILED", f"{len(failed)} could not be evaluated; first: {reason}", subject
            )

    def write(self, folder: Path, stem: str = "metrics") -> None:
        """Write ``STEM.csv`` (a line a row, subject and region) and ``STEM.json``.

        The bytes depend on the values alone, not on the order of rows and subjects.
        """
        names = (*self.protocol.names(), *SPREAD_METRICS)
        lines = [
            [row, subject, region, *(scores[region].get(name) for name in names), ""]
            for row, subjects in sorted(self.scores.items())
            for subject, scores in sorted(subjects.items())
            for region in self.protocol.regions
            if region in scores
        ]
        lines += [
            [row, subject, "", *[None] * len(names), reason]
            for row, failed in sorted(self.failures.items())
            for subject, reason in sorted(failed.items())
        ]
        columns = ["row", "subject", "region", *names, "failure"]
        write_csv(folder / f"{stem}.csv", columns, lines)
        write_json(folder / f"{stem}.json", self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pictures, as plain types for strict JSON."""
        told = (self.main_metric(), self.main_region())
        compared = compare(dict(sorted(self.values(*told).items())))
        return {
            "protocol": self.protocol.to_dict(),
            "subjects": sorted(self.subjects),
            "scores": strict_json(self.scores),
            "failures": {row: dict(failed) for row, failed in self.failures.items()},
            "notes": dict(self.notes),
            "summary": {
                row: [strict_json(s._asdict()) for s in self.summary(row, interval=True).values()]
                for row in self.scores
            },
            "comparisons": {
                "metric": told[0],
                "region": told[1],
                "pairs": [strict_json(c._asdict()) for c in compared],
            },
            "seeds": strict_json(self.seeds),
            "frechet": strict_json(self.frechet_distances()),
            "reliability": {
                row: {s: strict_json(groups._asdict()) for s, groups in subjects.items()}
                for row, subjects in self.reliability.items()
            },
        }

    def summary(self, row: str, interval: bool = False) -> dict[tuple[str, str], SummaryRow]:
        """Return (region, metric) -> statistics over patients, with or without the bootstrap."""
        subjects = dict.fromkeys([*self.subjects, *self.scores[row]])
        found = [self.scores[row].get(subject, {}) for subject in subjects]
        return {(s.region, s.metric): s for s in summarise(found, interval)}


def _values(subjects: Mapping[str, Scores], metric: str, region: str) -> dict[str, float]:
    return {s: scores.get(region, {}).get(metric, nan) for s, scores in subjects.items()}


def strict_json(value: Any) -> Any:
    """Return ``value`` for strict JSON: NaN and infinity become text."""
    if isinstance(value, Mapping):
        return {key: strict_json(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return [strict_json(inner) for inner in value]
    if isinstance(value, float | np.floating) and not np.isfinite(value):
        return "n/a" if np.isnan(value) else "inf" if value > 0 else "-inf"
    return float(value) if isinstance(value, np.floating) else value
