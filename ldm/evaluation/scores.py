"""Scores of several rows on the same patients: a long table of numbers, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldm.data.seen import refuse_seen
from ldm.data.volume_file import VolumeFile
from ldm.errors import DataError, PartialError, one_of, to_the_reader
from ldm.evaluation.measures import MEASURES
from ldm.evaluation.metrics.calibration import Reliability
from ldm.evaluation.protocol import BaseProtocol, Scores
from ldm.evaluation.statistics import (
    Comparison,
    Seeds,
    compare,
    leading,
    over_seeds,
    summarise_values,
)
from ldm.label_scheme import LabelScheme
from ldm.storage import strict_json, write_csv, write_json
from ldm.study import Study

ROW = "prediction"  # of a folder without a name
PREDICTIONS = "give the folder of the predictions"  # where there is none
FORMAT = 3  # of the files; 2 without labels; 1 with nested mappings
INFINITE = {"inf": float("inf"), "-inf": float("-inf"), None: nan}


class Score(NamedTuple):
    """One value: a line of the long table."""

    row: str
    seed: int  # of the training; 0 where there is one
    subject: str  # empty: of all patients together
    region: str
    measure: str
    value: float  # NaN: not defined


class SummaryRow(NamedTuple):
    """One measure in one region over all subjects."""

    region: str
    measure: str
    mean: float
    sd: float  # sample standard deviation over subjects; NaN for fewer than two
    n: int  # subjects with a value
    subjects: int  # subjects in all
    median: float
    low: float  # 95 % interval of the mean; NaN for fewer than six
    high: float
    median_low: float  # of the median; NaN for fewer than six
    median_high: float


@dataclass
class Evaluation:
    """Scores of several rows (prediction folders and baselines) on the same patients.

    Args:
        protocol: what was compared with what.
        rows: in the order of the tables.
        subjects: all patients of the comparison, those that failed too.
        scores: the long table; pandas takes it as it is: ``DataFrame(evaluation.scores)``.
        failures: row -> subject -> why it has no score (or, of several seeds, fewer).
        notes: measure -> why it is not defined in any row.
        reliability: (row, seed, subject) -> spread and error in the brain, for what has a spread.
        labels: whose segmentations -> what their labels mean -> in how many patients.
        untold: rows whose models do not say whom they were trained on.
        units: row of predictions without sidecars -> their median in the brain, in that of the
            reference, of the first patient where their units must differ.
        same: rows of which a prediction is the real image itself, or a copy that was rescaled.
        others: name -> the same predictions under a further protocol.
        study: which contrast was judged, and from which it was made.
    """

    protocol: BaseProtocol = field(repr=False)
    rows: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list, repr=False)
    scores: list[Score] = field(default_factory=list, repr=False)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    reliability: dict[tuple[str, int, str], Reliability] = field(default_factory=dict, repr=False)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    untold: list[str] = field(default_factory=list)
    units: dict[str, float] = field(default_factory=dict)
    same: list[str] = field(default_factory=list)
    others: dict[str, Evaluation] = field(default_factory=dict)
    study: Study = field(default=Study(), repr=False)
    _index: dict[str, dict[tuple[str, str], dict[str, dict[int, float]]]] = field(
        default_factory=dict, repr=False
    )
    _indexed: int = field(default=0, repr=False)

    @property
    def copied(self) -> str:
        """The row of the source contrast taken for the target, such as ``copy T1``."""
        return self.study.copied

    @property
    def target(self) -> str:
        """What was judged, for captions, such as ``T1ce``."""
        return self.study.contrasts.title(self.study.target)

    def add(self, row: str, subject: str, scores: Scores, seed: int = 0) -> None:
        """Add the scores of a patient in one training of a row."""
        self.scores += [
            Score(row, seed, subject, region, measure, value)
            for region, values in scores.items()
            for measure, value in values.items()
        ]

    def fail(self, row: str, subject: str, reason: str) -> None:
        """Note why a patient has no score; a second reason (another seed) is added."""
        failed = self.failures.setdefault(row, {})
        failed[subject] = "; ".join(filter(None, [failed.get(subject), reason]))

    def note_labels(self, whose: str, scheme: LabelScheme) -> None:
        """Note what the labels of one patient mean."""
        found = self.labels.setdefault(whose, {})
        text = f"{scheme} ({scheme.source or 'assumed'})"
        found[text] = found.get(text, 0) + 1

    def note_untold(self, row: str) -> None:
        """Note that the model of a row does not say whom it was trained on."""
        if row not in self.untold:
            self.untold.append(row)

    def check_seen(self, row: str, subject: str, file: VolumeFile, allow_seen: bool) -> None:
        """Refuse a patient of the training; note a model that does not say whom it saw.

        Raises:
            DataError: LEAK.
        """
        if not allow_seen:
            refuse_seen(file, subject)
        if file.described().get("seen", False) is None:
            self.note_untold(row)

    def remarks(self) -> list[str]:
        """Return, a sentence each, what holds of patients, labels, units and models."""
        said = [
            f"Labels of the {whose}: {'; '.join(_counted(found))}."
            for whose, found in self.labels.items()
        ]
        if self.untold:
            told = ", ".join(self.untold)
            said.append(f"Trained on unknown patients, so these may be among them: {told}.")
        said += [
            f"{row} is not in the units of the reference (its median in the brain is {ratio:.3g} "
            + to_the_reader("times the real one): rescale it, keep its .json beside it, or add ")
            + to_the_reader("--protocol=legacy, which allows for a gain and an offset, or brasyn.")
            for row, ratio in self.units.items()
        ]
        if self.same:
            said.append(
                "The real images themselves, or rescaled copies, so nothing is predicted: "
                f"{', '.join(self.same)}."
            )
        judged: dict[str, set[str]] = {}
        for score in self.scores:
            if score.subject:
                judged.setdefault(score.row, set()).add(score.subject)
        if len(set(map(frozenset, judged.values()))) > 1:
            said.append(
                "Rows are of different patients (n), so their means do not compare: the paired "
                "comparison takes those that two rows share."
            )
        if self.subjects and not self.labels and not self.scores and not self.failures:
            said.append(
                f"No reference has labels (seg), without which protocol {self.protocol.name} has "
                f"nothing to judge: its regions are {', '.join(self.protocol.regions)}."
            )
        return said

    def take(self, row: str, seed: int, found: Evaluation, told: str = "") -> None:
        """Add the only row of another evaluation as one training of a row.

        Args:
            told: what stands before its failures, such as the seed.
        """
        if row not in self.rows:
            self.rows.append(row)
        self.scores += [score._replace(row=row, seed=seed) for score in found.scores]
        for (_, _, subject), groups in found.reliability.items():
            self.reliability[row, seed, subject] = groups
        for failed in found.failures.values():
            for subject, reason in failed.items():
                self.fail(row, subject, told + reason)
        self.notes |= found.notes
        self.labels |= found.labels
        if found.untold:
            self.note_untold(row)

    def found(self, row: str) -> Mapping[tuple[str, str], Mapping[str, Mapping[int, float]]]:
        """Return (region, measure) -> subject -> seed -> value of a row."""
        for score in self.scores[self._indexed :]:
            values = self._index.setdefault(score.row, {}).setdefault(score[3:5], {})
            values.setdefault(score.subject, {})[score.seed] = score.value
        self._indexed = len(self.scores)
        return self._index.get(row, {})

    def values(self, row: str, region: str, measure: str) -> dict[str, float]:
        """Return subject -> value, the mean over training seeds; NaN where none has one."""
        found = self.found(row).get((region, measure), {})
        return {subject: _mean(list(seeds.values())) for subject, seeds in found.items()}

    def summary(self, row: str) -> dict[tuple[str, str], SummaryRow]:
        """Return (region, measure) -> statistics over patients.

        Patients without a value (NaN, or the region is absent) do not enter the mean, and the row
        says so by ``n < subjects``. An infinite PSNR stays infinite.

        Raises:
            ConfigError: CONFIG-VALUE for a row that the evaluation has not.
        """
        found, rows = self.found(one_of("row", row, self.rows)), {}
        for key in product(self.protocol.regions, self.protocol.names()):
            if key in found:
                values = self.values(row, *key)
                s = summarise_values(list(values.values()))._asdict()
                count = 1 if list(values) == [""] else len({*self.subjects, *values})
                rows[key] = SummaryRow(*key, subjects=count, **s)
        return rows

    def mean(self, row: str, region: str, measure: str) -> float:
        """Return the mean over patients; NaN where there is none.

        Raises:
            ConfigError: CONFIG-VALUE for a row, region or measure that the evaluation has not.
        """
        one_of("row", row, self.rows)
        self._require_known(region, measure)
        return _mean(list(self.values(row, region, measure).values()))

    def _require_known(self, region: str, measure: str) -> None:
        one_of("region", region, self.protocol.regions)
        one_of("measure", measure, self.protocol.names())

    def seeds(self, row: str) -> list[int]:
        """Return the training seeds of a row."""
        found = self.found(row).values()
        return sorted({n for subjects in found for seeds in subjects.values() for n in seeds})

    def over_seeds(self, row: str, region: str, measure: str) -> Seeds:
        """Return what the training seed of a row changes."""
        found = self.found(row).get((region, measure), {})
        runs: dict[str, dict[str, float]] = {f"seed {seed}": {} for seed in self.seeds(row)}
        for subject, seeds in found.items():
            for seed, value in seeds.items():
                runs[f"seed {seed}"][subject] = value
        return over_seeds(runs)

    def comparisons(
        self, region: str, measure: str, reference_row: str | None = None
    ) -> list[Comparison]:
        """Compare the rows with each other, or with one of them, on the same patients.

        Raises:
            ConfigError: CONFIG-VALUE for a region, measure or row that the evaluation has not.
        """
        self._require_known(region, measure)
        if reference_row is not None:
            one_of("reference_row", reference_row, self.rows)
        return compare({r: self.values(r, region, measure) for r in self.rows}, reference_row)

    def leading(self, region: str, measure: str) -> list[str]:
        """Return the best rows, see :func:`ldm.evaluation.statistics.leading`."""
        best = MEASURES[measure].best
        if best == "one":
            return []
        return leading({r: self.values(r, region, measure) for r in self.rows}, best == "high")

    def spread_groups(self, row: str) -> dict[str, Reliability]:
        """Return subject -> spread and error, the mean over training seeds."""
        groups: dict[str, list[Reliability]] = {}
        for (own, _, subject), found in self.reliability.items():
            if own == row:
                groups.setdefault(subject, []).append(found)
        return {
            subject: Reliability(*(np.mean(side, axis=0) for side in zip(*found, strict=True)))
            for subject, found in groups.items()
        }

    def regions(self) -> list[str]:
        """Return the regions with any value, in the order of the protocol."""
        known = {region for row in self.rows for region, _ in self.found(row)}
        return [r for r in self.protocol.regions if r in known]

    def main_region(self) -> str:
        """Return the region of comparisons: the brain, or the first of the protocol."""
        return "brain" if "brain" in self.protocol.regions else self.protocol.regions[0]

    def main_measure(self) -> str:
        """Return the measure of comparisons, the first of the protocol."""
        return self.protocol.measures[0]

    def require_complete(self) -> None:
        """Refuse an evaluation in which a case failed.

        Raises:
            PartialError: EVAL-FAILED, with how many failed and why the first one did.
            DataError: the same, where nothing at all could be judged.
        """
        failed = [(i, why) for row in self.failures.values() for i, why in sorted(row.items())]
        if failed:
            subject, reason = failed[0]
            kind = PartialError if self.scores else DataError
            raise kind(
                "EVAL-FAILED", f"{len(failed)} could not be evaluated; first: {reason}", subject
            )

    def write(self, folder: Path, stem: str = "metrics") -> None:
        """Write the long table and the failures as ``STEM.csv``, and all as ``STEM.json``.

        The bytes depend on the values alone, not on the order of rows and subjects.
        """
        lines = [[*score, ""] for score in sorted(self.scores)]
        lines += [
            [row, None, subject, "", "", None, reason]
            for row, failed in sorted(self.failures.items())
            for subject, reason in sorted(failed.items())
        ]
        write_csv(folder / f"{stem}.csv", [*Score._fields, "failure"], lines)
        write_json(folder / f"{stem}.json", self.to_dict() | self._statistics())

    def to_dict(self) -> dict[str, Any]:
        """Return what was measured, as plain types for strict JSON."""
        reliability = [
            dict(zip(Score._fields, key, strict=False)) | groups._asdict()
            for key, groups in sorted(self.reliability.items())
        ]
        return strict_json(
            {
                "format": FORMAT,
                "target": self.study.target,
                "inputs": list(self.study.conditions),
                "protocol": self.protocol.to_dict(),
                "subjects": sorted(self.subjects),
                "scores": [score._asdict() for score in sorted(self.scores)],
                "failures": self.failures,
                "notes": self.notes,
                "labels": self.labels,
                "untold": self.untold,
                "reliability": reliability,
            }
        )

    @classmethod
    def from_dict(
        cls, protocol: BaseProtocol, described: Mapping[str, Any], study: Study
    ) -> Evaluation:
        """Return what :meth:`to_dict` described; every number is as it was, bit by bit."""
        result = cls(protocol, subjects=list(described["subjects"]), study=study)
        for told in described["scores"]:
            value = told["value"]
            told = told | {"value": value if isinstance(value, int | float) else INFINITE[value]}
            result.scores.append(Score(**told))
        for told in described["reliability"]:
            groups = (np.array(told[name], float) for name in Reliability._fields)
            result.reliability[told["row"], told["seed"], told["subject"]] = Reliability(*groups)
        result.failures = {row: dict(failed) for row, failed in described["failures"].items()}
        result.notes = dict(described["notes"])
        result.labels = {whose: dict(found) for whose, found in described["labels"].items()}
        result.untold = list(described["untold"])
        result.rows = list(dict.fromkeys([s.row for s in result.scores] + list(result.failures)))
        return result

    def _statistics(self) -> dict[str, Any]:
        """Return what follows from the scores."""
        told = (self.main_region(), self.main_measure())
        compared = compare({row: self.values(row, *told) for row in sorted(self.rows)})
        rows = {row: self.summary(row).values() for row in self.rows}
        return strict_json(
            {
                "summary": {row: [s._asdict() for s in found] for row, found in rows.items()},
                "comparisons": {
                    **dict(zip(("region", "measure"), told, strict=True)),
                    "pairs": [c._asdict() for c in compared],
                },
            }
        )


def _counted(found: Mapping[str, int]) -> list[str]:
    return [f"{text} in {n}" if len(found) > 1 else text for text, n in found.items()]


def _mean(values: Sequence[float]) -> float:
    return summarise_values(values).mean
