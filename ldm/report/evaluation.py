"""An evaluation as a person reads it: its tables, and the folder with page, figures and numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from ldm.claims import claim
from ldm.data.layouts import Choice
from ldm.errors import bad_value, one_of
from ldm.evaluation.downstream import Segmenter
from ldm.evaluation.folder import Folders, Place, evaluate_folders, listed_folders
from ldm.evaluation.protocol import DEFAULT, DOWNSTREAM, MetricProtocol, find_protocol
from ldm.evaluation.scores import Evaluation
from ldm.progress import Progress, silent
from ldm.report.charts import charts
from ldm.report.environment import environment
from ldm.report.gallery import Gallery
from ldm.report.page import Report, write_all
from ldm.report.score_tables import (
    column_key,
    comparison_tables,
    evaluation_tables,
    failure_table,
    main_table,
    paper_table,
    region_table,
    segmentation_tables,
)
from ldm.report.tables import Table, write_table
from ldm.storage import remove_own
from ldm.typed import typed
from ldm.util import how_many, user_path

WRITES = ("metrics.csv", "metrics.json", "report.html", "table.tex", "table.md", "table.csv")


class Compared(NamedTuple):
    """What the paired comparison is about; None: the first of the protocol, every pair of rows."""

    region: str | None = None
    measure: str | None = None
    against: str | None = None  # a row

    def check(self, protocol: MetricProtocol, rows: Iterable[str]) -> None:
        """Refuse what a protocol cannot compare, before hours of work.

        Raises:
            ConfigError: CONFIG-VALUE.
        """
        known = {"region": protocol.regions, "metric": protocol.names(), "against": list(rows)}
        for (name, names), value in zip(known.items(), self, strict=True):
            if value is not None:
                one_of(f"--{name}", value, names)


DEFAULT_COMPARISON = Compared()


@typed
def evaluate(
    predictions: Place | Folders,
    reference: Place,
    *,
    output: Place | None = None,
    target: str | None = None,
    subjects: Sequence[str] | None = None,
    protocols: Sequence[MetricProtocol | str] = (DEFAULT,),
    baseline: bool = True,
    segmenter: Segmenter | Place | None = None,
    lpips_weights: Place | None = None,
    layout: Choice = None,
    labels: str | Mapping[str, Any] | None = None,
    mask: str = "auto",
    allow_seen: bool = False,
    trust: Collection[str] = (),
    columns: Sequence[str] = (),
    progress: Progress = silent,
) -> Evaluation:
    """Compare each folder of synthetic volumes with the real patients, as ``dsdiff evaluate`` does.

    Args:
        output: folder for ``report.html``, tables, figures and metrics; None: nothing is written.
        columns: of ``table.tex``, ``.md`` and ``.csv`` there, as ``tumour:psnr``; empty: the usual.
        predictions, reference, target, subjects, protocols, baseline, segmenter, lpips_weights,
        layout, labels, mask, allow_seen, trust, progress: see
            :func:`ldm.evaluation.folder.evaluate_folders`.

    Raises:
        DataError, CheckpointError, UnsafeError: see there. ConfigError: a wrong column.
        OutputError: OUT-EXISTS, OUT-INPUT, OUT-OWNER, OUT-IO.
    """
    output = None if output is None else user_path(output)
    asked = [find_protocol(p) if isinstance(p, str) else p for p in protocols]
    folders = listed_folders(predictions)
    check_columns(asked[0], columns)
    if not folders:
        raise bad_value("predictions is empty: give a folder, or {name: folder}")
    gallery = None if output is None else Gallery()
    with claim_report(output, [reference, *(path for own in folders.values() for path in own)]):
        result = evaluate_folders(
            folders,
            reference,
            target=target,
            subjects=subjects,
            protocols=asked,
            baseline=baseline,
            segmenter=segmenter,
            lpips_weights=lpips_weights,
            layout=layout,
            labels=labels,
            mask=mask,
            allow_seen=allow_seen,
            trust=trust,
            watch=gallery.add if gallery else None,
            progress=progress,
        )
        if output is not None and gallery:
            write_evaluation(result, gallery, output, columns)
    return result


def check_columns(protocol: MetricProtocol, columns: Sequence[str]) -> None:
    """Refuse a column of the table for a paper that a protocol lacks, before hours of work.

    Raises:
        ConfigError: CONFIG-VALUE.
    """
    for column in columns:
        column_key(Evaluation(protocol), column)


def claim_report(
    output: Place | None,
    inputs: Iterable[Place],
    verb: str = "evaluate",
    writes: Sequence[str] = WRITES,
) -> AbstractContextManager[Any]:
    """Return the claim of an evaluation on the folder of its report, if there is one."""
    if output is None:
        return nullcontext()
    return claim(Path(output), verb, inputs=map(user_path, inputs), writes=writes)


def write_evaluation(
    result: Evaluation,
    gallery: Gallery,
    output: Path,
    columns: Sequence[str] = (),
    compared: Compared = DEFAULT_COMPARISON,
    command: str = "evaluate(...)",
) -> None:
    """Write the numbers, the table for a paper and ``report.html`` of an evaluation.

    Args:
        gallery: that was shown the patients.
        columns: of the table; empty: what a paper shows.
        command: what made it, for the page.

    Raises:
        OutputError: OUT-IO, OUT-EXISTS.
    """
    others = [*output.glob("metrics-*"), *output.glob(f"{DOWNSTREAM.name}.*")]
    remove_own(others)  # of an evaluation before, under other protocols
    result.write(output)
    for name, other in result.others.items():
        other.write(output, name if name == DOWNSTREAM.name else f"metrics-{name}")
    write_table(paper_table(result, columns), output, "table")
    failed = sum(map(len, result.failures.values()))
    lead = [f"Patients: {len(result.subjects)}; mean ± standard deviation over patients."]
    lead += [f"{how_many(failed, 'case')} failed, see the table."] if failed else []
    described = {r.protocol.name: r.protocol.to_dict() for r in (result, *result.others.values())}
    report = Report(
        title=f"Synthetic against real {result.target}",
        lead=" ".join([*lead, *remarks(result)]),
        tables=all_tables(result, compared),
        figures=[*charts(result), *gallery.figures(result)],
        command=command,
        protocol=described if len(described) > 1 else result.protocol.to_dict(),
        environment=environment(),
        viewer=gallery.viewer(result),
    )
    write_all(report, output)


def main_tables(result: Evaluation, compared: Compared = DEFAULT_COMPARISON) -> list[Table]:
    """Return what a reader looks at first: brain and tumour, the comparison, what failed."""
    judged = [other for name, other in result.others.items() if name != DOWNSTREAM.name]
    found = [main_table(r) for r in (result, *judged)]
    if DOWNSTREAM.name in result.others:
        found += segmentation_tables(result.others[DOWNSTREAM.name])[:1]
    found += comparison_tables(result, *compared)
    return [t for t in (*found, failure_table(result)) if t.rows]


def all_tables(result: Evaluation, compared: Compared = DEFAULT_COMPARISON) -> list[Table]:
    """Return all there is: all of the first protocol, of others the regions, then downstream."""
    tables = evaluation_tables(result, *compared)
    for name, other in result.others.items():
        if name == DOWNSTREAM.name:
            tables += segmentation_tables(other)
        else:
            tables += [region_table(other, region) for region in other.regions()]
    return tables


def remarks(result: Evaluation) -> list[str]:
    """Return each sentence about the patients once, of an evaluation and its others."""
    said = (text for r in (result, *result.others.values()) for text in r.remarks())
    return list(dict.fromkeys(said))
