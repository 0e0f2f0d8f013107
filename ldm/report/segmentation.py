"""An evaluation of segmentations as a person reads it: its tables, and the folder with the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.data.layouts import Choice
from ldm.evaluation.scores import Evaluation
from ldm.evaluation.segmentation import Told, compare_segmentations
from ldm.progress import Progress, silent
from ldm.report.environment import environment
from ldm.report.evaluation import claim_report
from ldm.report.gallery import OverlayGallery
from ldm.report.page import Report, write_all
from ldm.report.score_tables import segmentation_tables
from ldm.typed import typed
from ldm.util import user_path

NAME = "segmentation"
SEGMENTATION_FILES = (f"{NAME}.csv", f"{NAME}.json", "report.html")


@typed
def evaluate_segmentations(
    prediction: str | Path,
    reference: str | Path,
    *,
    output: str | Path | None = None,
    subjects: Sequence[str] | None = None,
    regions: str | Sequence[str] | None = None,
    layout: Choice = None,
    labels: Told = None,
    prediction_labels: Told = None,
    allow_seen: bool = False,
    command: str = "evaluate_segmentations(...)",
    progress: Progress = silent,
) -> Evaluation:
    """Compare label maps with the reference labels, as ``dsdiff segment evaluate`` does.

    Args:
        output: folder for the scores and ``report.html``; None: nothing is written.
        command: what made it, for the page.
        prediction, reference, subjects, regions, layout, labels, prediction_labels, allow_seen,
        progress: see :func:`ldm.evaluation.segmentation.compare_segmentations`.

    Raises:
        DataError: see there. OutputError: OUT-EXISTS, OUT-INPUT, OUT-OWNER, OUT-IO.
    """
    folder = None if output is None else user_path(output)
    inputs = [user_path(place) for place in (prediction, reference)]
    gallery = None if folder is None else OverlayGallery()
    with claim_report(folder, inputs, "segment evaluate", SEGMENTATION_FILES):
        result = compare_segmentations(
            prediction,
            reference,
            subjects=subjects,
            regions=regions,
            layout=layout,
            labels=labels,
            prediction_labels=prediction_labels,
            allow_seen=allow_seen,
            watch=gallery.add if gallery else None,
            progress=progress,
        )
        if folder is not None and gallery:
            _write(result, gallery, folder, command)
    return result


def _write(result: Evaluation, gallery: OverlayGallery, folder: Path, command: str) -> None:
    result.write(folder, NAME)
    report = Report(
        title="Segmentation against the reference",
        lead=" ".join(["Mean ± standard deviation over patients.", *result.remarks()]),
        tables=segmentation_tables(result),
        figures=gallery.figures(),
        command=command,
        environment=environment(),
    )
    write_all(report, folder)
