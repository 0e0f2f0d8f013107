"""What is compared with what: intensity mapping, regions and summary, written into every result.

A metric value means nothing without its protocol. Here the reference alone sets the intensity
bounds, so that a prediction cannot improve its score by its own range; both volumes go through the
same map onto [0, 1], and the data range of every metric is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import isnan, nan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm.evaluation import calibration, metrics

Scores = dict[str, dict[str, float]]

REGIONS = ("full", "brain", "tumour", "healthy")
VOXEL_METRICS = ("psnr", "nrmse", "mae", "ssim", "flicker")
SLICE_METRICS = ("ms_ssim",)  # of whole slices: not defined on a part of the brain
SPREAD_METRICS = ("coverage_1sd", "coverage_2sd", "calibration_error", "error_to_spread")

DEFINITIONS = {
    "bounds": "percentiles of the reference inside the brain; both volumes mapped by "
    "(x - low) / (high - low) and clipped to [0, 1]; data range 1",
    "full": "all voxels as given; SSIM and MS-SSIM over the slices that contain brain",
    "brain": "brain mask; both volumes 0 outside",
    "tumour": "segmentation > 0 inside the brain",
    "healthy": "brain without tumour",
    "psnr": "3-D over the voxels of the region, dB",
    "nrmse": "root mean square error / (max - min of the reference in the region)",
    "mae": "mean absolute error over the voxels of the region",
    "ssim": "2-D, Gaussian window 11x11 sigma 1.5 inside the slice, population covariance, "
    "mean of the map over the region (scikit-image)",
    "ms_ssim": "2-D, five scales, Gaussian window 11x11 sigma 1.5 inside the slice, mean over "
    "slices (monai); sides < 176 padded with zeros",
    "flicker": "gradient energy along the slice axis / within slices, prediction / reference, "
    "square root; pairs of neighbours inside the region",
    "spread": "standard deviation over samples, mapped like the prediction, not clipped; corrected "
    "for the number of samples (Student's t), if it is known; not in full",
    "coverage_1sd": "share of the voxels with the reference within ± 1 standard deviation (68.3 %)",
    "coverage_2sd": "the same for ± 2 standard deviations (95.4 %)",
    "calibration_error": "mean of |coverage - p| over p = 0.05, 0.1, ..., 0.95",
    "error_to_spread": "root mean square error / root mean square spread",
}


@dataclass(frozen=True)
class MetricProtocol:
    """The choices that a table of metrics depends on.

    Args:
        name: name of the protocol in results.
        percentiles: of the reference inside the brain, which become 0 and 1.
        regions: any of ``full``, ``brain``, ``tumour``, ``healthy``.
        axis: the axis that counts the slices of SSIM, MS-SSIM and flicker.
    """

    name: str = "default"
    percentiles: tuple[float, float] = (0.1, 99.9)
    regions: tuple[str, ...] = REGIONS
    axis: int = -1

    def to_dict(self) -> dict[str, Any]:
        """The protocol with its definitions, as plain types for JSON."""
        fields = asdict(self)
        listed = {key: list(val) if isinstance(val, tuple) else val for key, val in fields.items()}
        return {**listed, "definitions": dict(DEFINITIONS)}

    def bounds(self, reference: ArrayLike, brain: ArrayLike) -> tuple[float, float]:
        """Intensities of ``reference`` that become 0 and 1; NaN if ``brain`` is empty."""
        inside = np.asarray(reference, np.float64)[np.asarray(brain) != 0]
        if inside.size == 0:
            return nan, nan
        low, high = np.percentile(inside, self.percentiles)
        return float(low), float(high)


DEFAULT = MetricProtocol()


def evaluate_volume(
    prediction: ArrayLike,
    reference: ArrayLike,
    brain: ArrayLike,
    tumour: ArrayLike | None = None,
    protocol: MetricProtocol = DEFAULT,
    spread: ArrayLike | None = None,
    samples: int | None = None,
) -> Scores:
    """All metrics of one volume in every region of the protocol.

    Args:
        prediction: synthetic volume (X, Y, Z), in the units of ``reference``.
        reference: real volume (X, Y, Z).
        brain: brain mask (X, Y, Z); by convention the voxels where any input contrast is not 0.
        tumour: segmentation (X, Y, Z), 0 where healthy. Without it ``tumour`` and ``healthy`` are
            left out.
        protocol: mapping, regions and slice axis.
        spread: predicted standard deviation (X, Y, Z), in the units of ``reference``. Without it
            there are no ``SPREAD_METRICS``.
        samples: how many samples the spread comes from, see :mod:`ldm.evaluation.calibration`.

    Returns:
        ``{region: {metric: value}}``. Values that are not defined (constant reference, no brain, no
        tumour) are NaN.

    Raises:
        DataError: DATA-SHAPE if the shapes differ.
    """
    masks = {"full": np.ones(np.shape(reference), bool), **_region_masks(brain, tumour)}
    metrics.same_shape(prediction=prediction, reference=reference, **masks)
    regions = [region for region in protocol.regions if region in masks]
    low, high = protocol.bounds(reference, brain)
    if not high > low:
        return {
            region: dict.fromkeys(_metric_names(region, spread is not None), nan)
            for region in regions
        }
    pair = [_to_unit(volume, low, high) for volume in (prediction, reference)]
    inside = [np.where(masks["brain"], volume, 0) for volume in pair]
    content = _slices_with(masks["brain"], protocol.axis)
    scores = {}
    for region in regions:
        volumes = pair if region == "full" else inside
        scores[region] = _scores(volumes, region, masks[region], content, protocol.axis)
        if spread is not None and region != "full":
            told = (prediction, reference, spread)
            scores[region] |= _spread_scores(*told, masks[region], samples)
    return scores


class SummaryRow(NamedTuple):
    """One metric in one region over all subjects."""

    region: str
    metric: str
    mean: float
    sd: float  # sample standard deviation over subjects; NaN for fewer than two
    n: int  # subjects with a value
    subjects: int  # subjects in all


def summarise(per_subject: Sequence[Scores]) -> list[SummaryRow]:
    """Mean and standard deviation over subjects, one row a region and metric.

    Subjects without a value (NaN, or the region is absent) do not enter the mean, and the row says
    so by ``n < subjects``. An infinite PSNR stays infinite.
    """
    rows = []
    for region, name in product(REGIONS, VOXEL_METRICS + SLICE_METRICS + SPREAD_METRICS):
        found = [scores[region][name] for scores in per_subject if name in scores.get(region, {})]
        if not found:
            continue
        values = np.sort([value for value in found if not isnan(value)])  # any order, same bytes
        mean = float(values.mean()) if values.size else nan
        spread = values.size > 1 and np.isfinite(values).all()
        sd = float(values.std(ddof=1)) if spread else nan
        rows.append(SummaryRow(region, name, mean, sd, values.size, len(per_subject)))
    return rows


def _to_unit(volume: ArrayLike, low: float, high: float) -> NDArray[np.float64]:
    return np.clip((np.asarray(volume, np.float64) - low) / (high - low), 0, 1)


def _region_masks(brain: ArrayLike, tumour: ArrayLike | None) -> dict[str, NDArray[np.bool_]]:
    inside = np.asarray(brain) != 0
    if tumour is None:
        return {"brain": inside}
    lesion = np.asarray(tumour) > 0
    metrics.same_shape(brain=inside, tumour=lesion)
    return {"brain": inside, "tumour": lesion & inside, "healthy": inside & ~lesion}


def _metric_names(region: str, with_spread: bool = False) -> tuple[str, ...]:
    names = VOXEL_METRICS + (SLICE_METRICS if region in ("full", "brain") else ())
    return names + (SPREAD_METRICS if with_spread and region != "full" else ())


def _slices_with(mask: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Which slices along ``axis`` contain a voxel of ``mask``, broadcastable against it."""
    others = tuple(other for other in range(mask.ndim) if other != axis % mask.ndim)
    return mask.any(axis=others, keepdims=True)


def _scores(
    pair: Sequence[NDArray[np.float64]],
    region: str,
    mask: NDArray[np.bool_],
    content: NDArray[np.bool_],
    axis: int,
) -> dict[str, float]:
    scores = {
        "psnr": metrics.psnr(*pair, 1.0, mask),
        "nrmse": metrics.nrmse(*pair, mask),
        "mae": metrics.mae(*pair, mask),
        "ssim": metrics.ssim(*pair, 1.0, mask & content, axis),
        "flicker": metrics.flicker(*pair, mask, axis),
    }
    if "ms_ssim" in _metric_names(region):
        slices = [np.compress(content.ravel(), volume, axis) for volume in pair]
        scores["ms_ssim"] = metrics.ms_ssim(*slices, 1.0, axis)
    return scores


def _spread_scores(
    prediction: ArrayLike,
    reference: ArrayLike,
    spread: ArrayLike,
    mask: NDArray[np.bool_],
    samples: int | None,
) -> dict[str, float]:
    """Calibration has no unit, so that the volumes enter as they are, and nothing is clipped."""
    volumes = (prediction, reference, spread)
    return {
        "coverage_1sd": calibration.coverage(*volumes, 1, mask, samples),
        "coverage_2sd": calibration.coverage(*volumes, 2, mask, samples),
        "calibration_error": calibration.calibration_error(*volumes, mask, samples),
        "error_to_spread": calibration.error_to_spread(*volumes, mask, samples),
    }
