"""An evaluation of segmentations as a person reads it: its tables, and the folder with the page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ldm.claims import claim
from ldm.evaluation.scores import Evaluation
from ldm.evaluation.segmentation import Told, compare_segmentations
from ldm.progress import Progress, silent
from ldm.report.page import Report, Section, shareable, write_all
from ldm.report.score_tables import segmentation_tables

NAME = "segmentation"
SEGMENTATION_FILES = (f"{NAME}.csv", f"{NAME}.json", "report.html")


def evaluate_segmentations(
    prediction: str | Path,
    reference: str | Path,
    *,
    output: str | Path | None = None,
    subjects: Sequence[str] | None = None,
    regions: Sequence[str] | None = None,
    layout: Any = None,
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
    from ldm.report.gallery import OverlayGallery

    folder = None if output is None else Path(output).expanduser()
    gallery = OverlayGallery()
    with _claimed(folder, [prediction, reference]):
        result = compare_segmentations(
            prediction,
            reference,
            subjects=subjects,
            regions=regions,
            layout=layout,
            labels=labels,
            prediction_labels=prediction_labels,
            allow_seen=allow_seen,
            watch=gallery.add if folder else None,
            progress=progress,
        )
        if folder:
            _write(result, gallery, folder, command)
    return result


def _claimed(folder: Path | None, inputs: Sequence[str | Path]) -> AbstractContextManager[Any]:
    if folder is None:
        return nullcontext()
    places = [Path(place).expanduser() for place in inputs]
    return claim(folder, "segment evaluate", inputs=places, writes=SEGMENTATION_FILES)


def _write(result: Evaluation, gallery: Any, folder: Path, command: str) -> None:
    from ldm.environment import environment

    result.write(folder, NAME)
    report = Report(
        title="Segmentation against the reference",
        lead=" ".join(["Mean ± standard deviation over patients.", *result.remarks()]),
        tables=segmentation_tables(result),
        figures=gallery.figures(),
        sections=[Section("Command", [shareable(command)])],
        environment=environment(),
    )
    write_all(report, folder)
