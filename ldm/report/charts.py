"""Charts of an evaluation: what enhances against PSNR, predicted spread against error."""

from __future__ import annotations

from ldm.evaluation.measures import LEAST_SPANS
from ldm.evaluation.scores import Evaluation
from ldm.plots.axes import row_styles
from ldm.plots.figures import reliability_figure, scatter_figure
from ldm.report.page import Figure


def charts(result: Evaluation) -> list[Figure]:
    """Return those that the scores have something for, as both the pages of an evaluation do."""
    return [*enhancement_figure(result), *spread_figure(result)]


def enhancement_figure(result: Evaluation) -> list[Figure]:
    """Return recovered enhancement against PSNR in the brain, or none of fewer than two rows.

    The two do not rise together: whoever paints what the inputs do not tell for sure loses PSNR.
    """
    points = []
    for row in result.rows:
        found = result.summary(row)
        recovery, psnr = found.get(("enhancing", "recovery")), found.get(("brain", "psnr"))
        if recovery and psnr and recovery.n and psnr.n:
            points.append((row, recovery.median, psnr.mean))
    if len(points) < 2:
        return []
    image = scatter_figure(
        points,
        "recovery of enhancement (median)",
        "PSNR in the brain, dB (mean)",
        ideal=1,
        least=LEAST_SPANS["psnr"],
        styles=row_styles(result.rows),
    )
    caption = (
        "Higher is better, and further right up to the dotted line, where as much enhances as "
        "in reality; at 0 nothing does. The grey line joins the rows that no other beats in both."
    )
    title = "Enhancement against PSNR"
    return [Figure(title, image, caption, "PSNR against recovery by row", wide=False)]


def spread_figure(result: Evaluation) -> list[Figure]:
    """Return a figure of observed error over predicted spread, or none without a spread."""
    if not result.reliability:
        return []
    groups = {row: list(result.spread_groups(row).values()) for row in result.rows}
    shown = {row: found for row, found in groups.items() if found}
    image = reliability_figure(shown, row_styles(result.rows))
    caption = (
        "Voxels of the brain in ten groups of equal size, ordered by their predicted spread; thin: "
        "a patient, bold: all. On the dashed line the error is as large as predicted, above it the "
        "prediction is overconfident. In units of the real data range."
    )
    alt = "Observed error over predicted spread"
    return [Figure("Predicted spread against error", image, caption, alt, wide=False)]
