"""Tables of an evaluation: quality by region, intervals, comparisons, training seeds, failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan
from typing import NamedTuple

from ldm.errors import one_of, to_the_reader
from ldm.evaluation.measures import MEASURES
from ldm.evaluation.protocol import DEFAULT
from ldm.evaluation.scores import Evaluation, SummaryRow
from ldm.evaluation.statistics import FEWEST, Comparison, fewest_patients, holm, smallest_p
from ldm.regions import LABELS, region_title, spelled_out
from ldm.report.tables import Cell, Number, Table
from ldm.util import how_many

BETTER = {m.title: f"{m.best}er" for m in MEASURES.values() if m.best != "one"}
INTERVALS = 3  # measures whose intervals fit beside each other
SIGNIFICANT = 0.05
# what a paper shows unless it asks for other columns; what no row has is left out
COLUMNS = ("psnr", "ssim", "ms_ssim", "nrmse", "recovery", "auc_tumour")
HEADLINE = (("enhancing", "recovery"), ("tumour", "auc_tumour"))  # whether a tumour enhances
SHORT = ("psnr", "ssim", "ms_ssim")  # of the main region, where there is little room
OWN_REGION = {name for name, m in MEASURES.items() if m.level == "enhancement"}  # in their title
Summaries = Mapping[tuple[str, str], SummaryRow]


class Group(NamedTuple):
    """Measures that share a table, a line a row and region."""

    title: str
    levels: tuple[str, ...]
    note: str = ""


GROUPS = (
    Group("Structure and detail", ("region", "volume", "slices_of_row")),
    Group(
        "Predicted spread",
        ("spread",),
        "Calibrated: 0.683 of the voxels within 1 standard deviation, 0.954 within 2, ECE 0, "
        "error / spread 1. Less coverage and a larger ratio: overconfident.",
    ),
)
ENHANCEMENT = (
    "Enhancement: what the agent added, in inter-quartile ranges (IQR) of the brain. Recovery: "
    "predicted / true, in the enhancing tumour, median; 1 is the truth, 0 a copy of {}. AUC: does "
    "predicted enhancement tell the enhancing tumour from the rest? False / true: mean in the {} "
    "tumours of which no part enhances, over the true one in those that do."
)
HEADLINE_NOTE = (
    "Recovery: of the true enhancement, median; 1 is the truth. AUC: is the enhancing part told "
    "from the rest of the tumour? 0.5 is chance."
)
NOTHING = 0.1  # of the true enhancement: a row that recovers less shows nothing to a reader
EMPTY = (
    "Nothing segmented where there is nothing scores best (Dice 1, HD95 0); one of the two alone "
    "scores worst (Dice 0, HD95 the diagonal of the volume)."
)
SEGMENTED = {
    "segmentation": ("Segmentation against the reference", EMPTY),
    "downstream": (
        "Segmentation with synthetic volumes",
        "What the segmenter finds with each volume, against the reference labels and (/ real) "
        f"against what it finds with the real one. {EMPTY}",
    ),
}
FALSE = "False: enhancing tumour that is found in patients whose labels hold none."


def evaluation_tables(
    result: Evaluation,
    region: str | None = None,
    measure: str | None = None,
    reference_row: str | None = None,
) -> list[Table]:
    """Return the tables of the protocol, then what there is to say about differences.

    Args:
        region, measure: what the paired comparison is about; by default PSNR in the brain, or what
            comes first in the protocol.
        reference_row: compare the others with this row; None: each with each.
    """
    told = (region or result.main_region(), measure or result.main_measure())
    first = result.main_region()
    found = [region_table(result, r) for r in sorted(result.regions(), key=lambda r: r != first)]
    found += [enhancement_table(result)]
    found += [group_table(result, group, result.protocol.more) for group in GROUPS]
    found += [interval_table(result)] if len(result.subjects) >= FEWEST else []
    found += comparison_tables(result, *told, reference_row)
    found += [seeds_table(result, *told), failure_table(result)]
    return [table for table in found if table.rows]


def segmentation_tables(result: Evaluation) -> list[Table]:
    """Return agreement and volumes of what was segmented, on its own or downstream."""
    protocol, levels = result.protocol, ("segmentation",)
    title, note = SEGMENTED[protocol.name]
    known = {m for row in result.rows for (_, m), s in result.summary(row).items() if s.n}
    volumes = [name for name in protocol.more if name in known]
    agreement = Group(title, levels, f"{spelled_out(result.regions())} {note}".lstrip())
    found = [
        group_table(result, agreement, protocol.measures),
        group_table(
            result,
            Group("Volumes found", levels, FALSE if "false_ml" in known else ""),
            volumes,
        ),
        failure_table(result),
    ]
    return [table for table in found if table.rows]


def main_table(result: Evaluation) -> Table:
    """What a reader looks at first: the main region, and where known whether the tumour enhances.

    PSNR and enhancement do not rise together, so that either alone misleads.
    """
    measures, known = result.protocol.measures, [result.summary(row) for row in result.rows]
    shown = [key for key in HEADLINE if any(key in own and own[key].n for own in known)]
    names = SHORT if set(SHORT) <= set(measures) else measures
    table = region_table(result, result.main_region(), names, shown)
    if not shown:
        return table
    n = max(own[key].n for own in known for key in shown if key in own)
    return replace(table, note=f"{HEADLINE_NOTE} Of {n}/{len(result.subjects)} patients.")


def region_table(
    result: Evaluation,
    region: str,
    names: Sequence[str] = (),
    beside: Sequence[tuple[str, str]] = (),
) -> Table:
    """Mean ± standard deviation of each row in one region.

    Args:
        names: of the measures; none: those of the protocol.
        beside: (region, measure) of other columns, which follow the first.
    """
    first, *others = ((region, m) for m in names or result.protocol.measures)
    keys, body = [first, *beside, *others], []
    for row in result.rows:
        found = result.summary(row)
        cells = [mean_cell(found.get(key)) for key in keys]
        body.append([row, *cells, counted(result, found, region)])
    columns = [MEASURES[m].title for _, m in keys]
    title = titled(result, region.capitalize())
    best = best_cells(result, result.rows, keys)
    return Table(title, ["", *columns, "n"], body, better=BETTER, best=best)


def group_table(result: Evaluation, group: Group, names: Sequence[str]) -> Table:
    """The measures of a group, a line a row and region that has any of them."""
    shown = [name for name in names if MEASURES[name].level in group.levels]
    body: list[list[Cell]] = []
    for row in result.rows:
        found = result.summary(row)
        for region in result.regions():
            own = {key: s for key, s in found.items() if key[0] == region and key[1] in shown}
            if own:
                cells = [mean_cell(own.get((region, m))) for m in shown]
                name = region_title(region) if region in LABELS else region
                body.append([row, name, *cells, counted(result, own, region)])
    columns = ["", "Region", *(MEASURES[m].title for m in shown), "n"]
    notes = [group.note, *(n for name, n in result.notes.items() if name in shown)]
    return Table(titled(result, group.title), columns, body, " ".join(filter(None, notes)))


def enhancement_table(result: Evaluation) -> Table:
    """Whether the tumour enhances, a line a row; no line without labels or a native contrast."""
    names = [n for n in result.protocol.names(levels=["enhancement"]) if n != "true_enhancement"]
    keys = [(MEASURES[name].regions[0], name) for name in names]
    body: list[list[Cell]] = []
    without = 0
    for row in result.rows:
        found = result.summary(row)
        if any(key in found for key in keys):
            false, true = (
                found.get((MEASURES[name].regions[0], name))
                for name in ("false_enhancement", "true_enhancement")
            )
            without = max(without, false.n if false else 0)
            ratio = false.mean / true.mean if false and true and true.mean > 0 else None
            cells = [mean_cell(found.get(key)) for key in keys]
            body.append([row, *cells, ratio, counted(result, found, "enhancing")])
    columns = ["", *(MEASURES[name].title for name in names), "False / true", "n"]
    native = result.study.contrasts.title(result.study.native or "")
    note = " ".join(filter(None, [ENHANCEMENT.format(native, without), enhances_nothing(result)]))
    best = best_cells(result, [str(line[0]) for line in body], keys)
    return Table(titled(result, "Enhancement"), columns, body, note, BETTER, best)


def enhances_nothing(result: Evaluation) -> str:
    """A sentence that names the rows which enhance nothing; empty where there is none.

    The copied source is left out: it enhances nothing by definition.
    """
    judged = [row for row in result.rows if row != result.copied]
    found = {row: result.summary(row).get(("enhancing", "recovery")) for row in judged}
    rows = [row for row, s in found.items() if s and s.n and s.median < NOTHING]
    if not rows:
        return ""
    verb = "enhances" if len(rows) == 1 else "enhance"
    return f"{', '.join(rows)} {verb} nothing: recovery below {NOTHING:g}."


def interval_table(result: Evaluation) -> Table:
    """Mean and median of the first measures with their intervals, a line a row and region."""
    shown, body = result.protocol.measures[:INTERVALS], []
    for row in result.rows:
        found = result.summary(row)
        for region in result.regions():
            cells = [c for m in shown for c in interval_cells(found.get((region, m)))]
            body.append([row, region, *cells])
    columns = [f"{MEASURES[m].title} {kind}" for m in shown for kind in ("mean", "median")]
    note = (
        "In brackets 95 % intervals: of the mean by Student's t, of the median between two of the "
        f"values; none below {FEWEST} patients. All measures: metrics.json."
    )
    return Table(titled(result, "Intervals"), ["", "Region", *columns], body, note)


def comparison_tables(
    result: Evaluation,
    region: str | None = None,
    measure: str | None = None,
    reference_row: str | None = None,
) -> list[Table]:
    """Return what differences between rows on the same patients are worth; none of one patient."""
    if len(result.subjects) < 2 or len(result.rows) < 2:
        return []
    region, measure = region or result.main_region(), measure or result.main_measure()
    found, digits = result.comparisons(region, measure, reference_row), MEASURES[measure].digits
    body: list[list[Cell]] = []
    for c in found:
        difference = signed(c.difference, digits), interval_cell(c.low, c.high, digits)
        body.append([c.row, c.other, c.n, *difference, *_tests(c)])
    note = (
        f"{MEASURES[measure].title} in {region}, row minus the other on the same patients. p: "
        f"Wilcoxon signed-rank test, two-sided; Holm over {how_many(len(found), 'comparison')}. "
        "Effect: matched-pairs rank-biserial correlation, -1 to 1."
    )
    if told := cannot_decide(found):
        note = f"{told} {note}"
    columns = ["", "Against", "n", "Difference", "95 % interval", "p", "p Holm", "Effect"]
    return [Table(titled(result, "Paired comparison"), columns, body, note)]


def cannot_decide(found: Sequence[Comparison]) -> str:
    """Warn where a difference, however clear, could not reach 0.05; empty where each could."""
    best = holm([smallest_p(c.n) for c in found])  # were every patient to agree
    if all(p < SIGNIFICANT for p in best):
        return ""
    smallest, count, reachable = min(c.n for c in found), len(found), max(best)
    what = "decide all of it" if min(best) < SIGNIFICANT else "decide"
    fewer = to_the_reader(", or fewer comparisons (--against)")
    return (
        f"Too few patients to {what}: with {smallest} of them and {how_many(count, 'comparison')} "
        f"no corrected p below {reachable:.3g} is possible; {SIGNIFICANT} needs "
        f"{fewest_patients(count)} patients{fewer if count > 1 else ''}."
    )


def paper_table(result: Evaluation, columns: Sequence[str] = ()) -> Table:
    """Every row under the chosen columns: one table for a paper.

    Args:
        columns: ``MEASURE`` or ``REGION:MEASURE``; where the region is not told it is the first
            of the measure's own, or the brain. Empty: :data:`COLUMNS`, or where the protocol has
            none of them all that was measured.

    Raises:
        ConfigError: CONFIG-VALUE for a measure or region that the protocol does not have.
    """
    found = {row: result.summary(row) for row in result.rows}
    keys = [column_key(result, column) for column in columns]
    if not columns:
        known = dict.fromkeys(key for own in found.values() for key in own)
        named = [n for n in COLUMNS if n in result.protocol.names()]
        keys = [key for key in (column_key(result, n) for n in named) if key in known]
        keys = keys or list(known)  # of a challenge, which has measures of its own
    body: list[list[Cell]] = [
        [row, *(mean_cell(own.get(key)) for key in keys)] for row, own in found.items()
    ]
    main = result.main_region()
    titles = [
        MEASURES[m].title + ("" if r == main or m in OWN_REGION else f", {region_title(r)}")
        for r, m in keys
    ]
    shown = dict(zip(titles, keys, strict=True))
    better = {c: BETTER[t] for c, (_, m) in shown.items() if (t := MEASURES[m].title) in BETTER}
    best = best_cells(result, list(found), keys)
    title = titled(result, f"Synthetic {result.target}")
    return Table(title, ["", *titles], body, _paper_note(result, found, shown), better, best)


def _paper_note(
    result: Evaluation, found: Mapping[str, Summaries], columns: Mapping[str, tuple[str, str]]
) -> str:
    """Return what the numbers are over; rows and columns of fewer patients by name."""
    patients, seeds = len(result.subjects), max(len(result.seeds(row)) for row in found)
    ns = {(row, c): own[k].n for row, own in found.items() for c, k in columns.items() if k in own}
    of_row, of_column = (
        {name: max((n for of, n in ns.items() if of[place] == name), default=0) for name in names}
        for place, names in enumerate((found, columns))
    )
    fewer = [f"{row}: {n}" for row, n in of_row.items() if n < patients]
    fewer += [f"{c}: {n}" for c, n in of_column.items() if n < max(of_row.values())]
    told = how_many(patients, "patient") + f" ({', '.join(fewer)})" * bool(fewer)
    each = f", each the mean of {seeds} training seeds" if seeds > 1 else ""
    median = any(MEASURES[measure].typical == "median" for _, measure in columns.values())
    return (
        f"{told}, in the {result.main_region()} where no other region "
        f"is named: mean ± standard deviation over patients{each}.{' Recovery: median.' * median}"
    )


def best_cells(
    result: Evaluation, rows: Sequence[str], keys: Sequence[tuple[str, str]], first: int = 1
) -> set[tuple[int, int]]:
    """Return what leads each column, see :attr:`ldm.report.tables.Table.best`.

    Args:
        keys: (region, measure) of the columns from the ``first`` on.
    """
    return {
        (rows.index(row), first + place)
        for place, key in enumerate(keys)
        for row in result.leading(*key)
        if row in rows
    }


def column_key(result: Evaluation, column: str) -> tuple[str, str]:
    """Return (region, measure) of ``MEASURE`` or ``REGION:MEASURE``."""
    region, colon, measure = column.rpartition(":")
    one_of("--columns", measure, result.protocol.names())
    if colon:
        one_of(f"--columns {column}: region", region, result.protocol.regions)
        return region, measure
    own = MEASURES[measure].regions
    return own[0] if own and result.main_region() not in own else result.main_region(), measure


def seeds_table(result: Evaluation, region: str, measure: str) -> Table:
    """What training again with another seed changes, apart from the spread over patients."""
    body: list[list[Cell]] = []
    for row in result.rows:
        if len(result.seeds(row)) > 1:
            seeds = result.over_seeds(row, region, measure)
            digits = MEASURES[measure].digits
            means = ", ".join(number(value, digits) for value in seeds.means.values())
            body.append([row, len(seeds.means), means, seeds.sd])
    note = (
        f"{MEASURES[measure].title} in {region}, mean over patients of each training; elsewhere "
        "the scores of a patient are averaged over the seeds."
    )
    columns = ["", "Seeds", "Mean of each", "sd over seeds"]
    return Table(titled(result, "Training seeds"), columns, body, note)


def failure_table(result: Evaluation) -> Table:
    """Every patient that could not be evaluated, with the reason."""
    body = [
        [row, subject, reason]
        for row, failed in sorted(result.failures.items())
        for subject, reason in sorted(failed.items())
    ]
    note = "They count in the patients of n, not in the means: compare rows on the same patients."
    where = ", downstream" if result.protocol.name == "downstream" else ""
    return Table(f"Failed cases{where}", ["", "Patient", "Reason"], body, note)


def titled(result: Evaluation, title: str) -> str:
    """Title of a table, with the protocol unless that is the default."""
    name = result.protocol.name
    return title if name in (DEFAULT.name, *SEGMENTED) else f"{title} · protocol {name}"


def counted(result: Evaluation, found: Summaries, region: str) -> Number:
    """Patients with a value in a region, of all."""
    most = max((s.n for (r, _), s in found.items() if r == region), default=0)
    return Number.of(most, len(result.subjects))


def mean_cell(summary: SummaryRow | None) -> Cell:
    """Mean ± standard deviation over patients, or the median where that is what is typical."""
    if summary is None:
        return None
    if MEASURES[summary.measure].typical == "median":
        median = summary.median
        return None if isnan(median) else Number(median, f"{median:.3f}")
    return Number.mean(summary.mean, summary.sd, MEASURES[summary.measure].digits)


def interval_cells(summary: SummaryRow | None) -> tuple[Cell, Cell]:
    """Mean and median, each with its interval."""
    if summary is None:
        return None, None
    s, digits = summary, MEASURES[summary.measure].digits
    told = ((s.mean, s.low, s.high), (s.median, s.median_low, s.median_high))
    mean, median = (
        value
        if isnan(low)
        else Number(
            value,
            f"{number(value, digits)} {bracket(low, high, digits)}",
            (("low", low), ("high", high)),
        )
        for value, low, high in told
    )
    return mean, median


def interval_cell(low: float, high: float, digits: int | None = None) -> Cell:
    """An interval, whose ends are two columns of a CSV; None where it is not defined."""
    return None if isnan(low) else Number(low, bracket(low, high, digits), (("to", high),))


def bracket(low: float, high: float, digits: int | None = None) -> str:
    """An interval as text."""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def number(value: float, digits: int | None = None) -> str:
    """As many digits as a mean has in the tables."""
    digits = digits or (2 if abs(value) >= 10 else 4)
    return "n/a" if isnan(value) else f"{unsigned_zero(value, digits):.{digits}f}"


def unsigned_zero(value: float, digits: int) -> float:
    """A number as it is rounded to be written; what is then 0 has no minus."""
    return round(value, digits) + 0.0


def signed(value: float, digits: int | None = None) -> Cell:
    """A difference, with its sign."""
    if isnan(value):
        return None
    digits = digits or (3 if abs(value) >= 0.1 else 4)
    return Number(value, f"{unsigned_zero(value, digits):+.{digits}f}")


def _tests(comparison: Comparison) -> list[Cell]:
    ps = (comparison.p, comparison.p_holm)
    shown: list[Cell] = [None if isnan(p) else Number(p, f"{p:.3g}") for p in ps]
    return [*shown, signed(comparison.effect, 2)]
