"""Tables of an evaluation: quality by region, intervals, comparisons, training seeds, failures."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, isnan
from typing import TYPE_CHECKING

from ldm.evaluation.measures import MEASURES
from ldm.evaluation.protocol import DEFAULT, SPREAD_METRICS, SummaryRow
from ldm.evaluation.statistics import FEWEST, Comparison, smallest_p
from ldm.report.tables import Cell, Table

if TYPE_CHECKING:
    from ldm.evaluation.scores import Evaluation

SPREAD = dict(
    zip(SPREAD_METRICS, ("Within 1 sd", "Within 2 sd", "ECE", "Error / spread"), strict=True)
)
BETTER = {m.title: f"{m.best}er" for m in MEASURES.values() if m.best != "one"}
INTERVALS = 4  # measures whose intervals fit beside each other
Summaries = Mapping[tuple[str, str], SummaryRow]


def region_table(result: Evaluation, region: str) -> Table:
    """Mean ± standard deviation of each row in one region."""
    body = []
    for row in result.scores:
        found = result.summary(row)
        cells = [mean_cell(found.get((region, m))) for m in result.protocol.measures]
        body.append([row, *cells, counted(result, found, region)])
    columns = [MEASURES[m].title for m in result.protocol.measures]
    title = titled(result, region.capitalize())
    return Table(title, ["", *columns, "n"], body, better=BETTER)


def more_table(result: Evaluation) -> Table:
    """The further measures of the protocol, a line a row and region."""
    frechet = result.frechet_distances()
    body = []
    for row in result.scores:
        found = result.summary(row)
        for region in result.regions():
            cells: list[Cell] = [mean_cell(found.get((region, m))) for m in result.protocol.more]
            distance = frechet.get(row) if region == result.main_region() else None
            body.append([row, region, *cells, distance, counted(result, found, region)])
    columns = [MEASURES[m].title for m in result.protocol.more]
    note = " ".join(result.notes.values())
    title = titled(result, "Structure and detail")
    return Table(title, ["", "Region", *columns, "Fréchet", "n"], body, note)


def interval_table(result: Evaluation) -> Table:
    """Median and 95 % interval of the mean of the first measures, a line a row and region."""
    shown, body = result.protocol.measures[:INTERVALS], []
    for row in result.scores:
        found = result.summary(row, interval=True)
        for region in result.regions():
            cells = [interval_cell(found.get((region, m))) for m in shown]
            body.append([row, region, *cells])
    columns = [MEASURES[m].title for m in shown]
    note = (
        "Median over patients; in brackets the 95 % bootstrap interval (BCa) of the mean. All "
        "measures: metrics.json."
    )
    return Table(titled(result, "Median and interval"), ["", "Region", *columns], body, note)


def comparison_table(
    result: Evaluation, metric: str, region: str, reference_row: str | None = None
) -> Table:
    """Differences between rows on the same patients, and what they are worth."""
    found = result.comparisons(metric, region, reference_row)
    body = [
        [c.row, c.other, str(c.n), signed(c.difference), bracket(c.low, c.high), *_tests(c)]
        for c in found
    ]
    note = (
        f"{MEASURES[metric].title} in {region}, row minus the other on the same patients. p: "
        f"Wilcoxon signed-rank test, two-sided; Holm over {len(found)} comparisons. Effect: "
        "matched-pairs rank-biserial correlation, -1 to 1."
    )
    smallest = min((c.n for c in found), default=0)
    if smallest < FEWEST:
        note += (
            f" With {smallest} patients no p below {smallest_p(smallest):.3g} is possible; 0.05 "
            f"needs {FEWEST}."
        )
    columns = ["", "Against", "n", "Difference", "95 % interval", "p", "p Holm", "Effect"]
    return Table(titled(result, "Paired comparison"), columns, body, note)


def seeds_table(result: Evaluation, metric: str, region: str) -> Table:
    """What training again with another seed changes, apart from the spread over patients."""
    body = []
    for row in result.seeds:
        seeds = result.over_seeds(row, metric, region)
        means = ", ".join(f"{number(value)}" for value in seeds.means.values())
        body.append([row, str(len(seeds.means)), means, seeds.sd])
    note = (
        f"{MEASURES[metric].title} in {region}, mean over patients of each training; elsewhere the "
        "scores of a patient are averaged over the seeds."
    )
    columns = ["", "Seeds", "Mean of each", "sd over seeds"]
    return Table(titled(result, "Training seeds"), columns, body, note)


def spread_table(result: Evaluation) -> Table:
    """How well the predicted spread covers the error, a line a row and region."""
    body = []
    for row in result.reliability:
        found = result.summary(row)
        for region in result.regions():
            if (region, SPREAD_METRICS[0]) in found:
                cells = [mean_cell(found[region, metric]) for metric in SPREAD_METRICS]
                n = found[region, SPREAD_METRICS[0]].n
                body.append([row, region, *cells, f"{n}/{len(result.subjects)}"])
    note = (
        "Calibrated: 0.683 of the voxels within 1 standard deviation, 0.954 within 2, ECE 0, "
        "error / spread 1. Less coverage and a larger ratio: overconfident."
    )
    return Table("Predicted spread", ["", "Region", *SPREAD.values(), "n"], body, note)


def failure_table(result: Evaluation) -> Table:
    """Every patient that could not be evaluated, with the reason."""
    body = [
        [row, subject, reason]
        for row, failed in sorted(result.failures.items())
        for subject, reason in sorted(failed.items())
    ]
    note = "They count in the patients of n, not in the means: compare rows on the same patients."
    return Table("Failed cases", ["", "Patient", "Reason"], body, note)


def titled(result: Evaluation, title: str) -> str:
    """Title of a table, with the protocol unless that is the default."""
    name = result.protocol.name
    return title if name == DEFAULT.name else f"{title} · protocol {name}"


def counted(result: Evaluation, found: Summaries, region: str) -> str:
    """Patients with a value in a region, of all."""
    most = max((s.n for (r, _), s in found.items() if r == region), default=0)
    return f"{most}/{len(result.subjects)}"


def mean_cell(summary: SummaryRow | None) -> Cell:
    """Mean ± standard deviation, or the mean alone where there is none."""
    if summary is None or not isfinite(summary.mean) or isnan(summary.sd):
        return None if summary is None else summary.mean
    digits = _digits(summary.mean)
    return f"{summary.mean:.{digits}f} ± {summary.sd:.{digits}f}"


def interval_cell(summary: SummaryRow | None) -> Cell:
    """Median and interval."""
    if summary is None or isnan(summary.low):
        return None if summary is None else summary.median
    return f"{number(summary.median)} {bracket(summary.low, summary.high)}"


def bracket(low: float, high: float) -> str | None:
    """An interval as text; None where it is not defined."""
    return None if isnan(low) else f"[{number(low)}, {number(high)}]"


def number(value: float) -> str:
    """As many digits as a mean has in the tables."""
    return "n/a" if isnan(value) else f"{value:.{_digits(value)}f}"


def signed(value: float) -> str:
    """A difference, with its sign."""
    return "n/a" if isnan(value) else f"{value:+.{3 if abs(value) >= 0.1 else 4}f}"


def _digits(value: float) -> int:
    return 2 if abs(value) >= 10 else 4


def _tests(comparison: Comparison) -> list[Cell]:
    shown = [None if isnan(p) else f"{p:.3g}" for p in (comparison.p, comparison.p_holm)]
    return [*shown, None if isnan(comparison.effect) else f"{comparison.effect:+.2f}"]
