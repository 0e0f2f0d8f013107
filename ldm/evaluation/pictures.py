"""Pictures of an evaluation: a strip of slices a patient, and predicted spread against error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ldm.evaluation.protocol import MetricProtocol
from ldm.evaluation.report import Figure, reliability_figure, strip_figure
from ldm.evaluation.result import COPY_T1, Evaluation

if TYPE_CHECKING:
    from ldm.evaluation.folder import Case


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
