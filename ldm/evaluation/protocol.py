"""What is compared with what: intensity mapping, regions and summary, written into every result.

A metric value means nothing without its protocol. In ``default`` the reference alone sets the
intensity bounds, so that a prediction cannot improve its score by its own range; both volumes go
through the same map onto [0, 1], and the data range of every metric is 1. Other protocols are there
to compare with numbers that others have published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import isnan, nan
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm.errors import ConfigError
from ldm.evaluation.measures import MEASURES, View, Volumes
from ldm.evaluation.metrics import calibration
from ldm.evaluation.metrics import similarity as metrics
from ldm.evaluation.regions import REGIONS, Labelled
from ldm.evaluation.statistics import summarise_values

if TYPE_CHECKING:
    from ldm.evaluation.metrics.perceptual import Perceptual

Scores = dict[str, dict[str, float]]

SPREAD = {
    "coverage_1sd": "share of the voxels with the reference within ± 1 standard deviation (68.3 %)",
    "coverage_2sd": "the same for ± 2 standard deviations (95.4 %)",
    "calibration_error": "mean of |coverage - p| over p = 0.05, 0.1, ..., 0.95",
    "error_to_spread": "root mean square error / root mean square spread",
}
SPREAD_METRICS = tuple(SPREAD)
SPREAD_DEFINITION = (
    "standard deviation over samples, mapped like the prediction, not clipped; corrected for the "
    "number of samples (Student's t), if it is known; not in full"
)
BOUNDS = {
    "reference": "percentiles of the reference; both volumes mapped by (x - low) / (high - low) "
    "and clipped to [0, 1]; data range 1",
    "own": "percentiles of each volume itself; mapped by (x - low) / (high - low) and clipped to "
    "[0, 1]: a gain or an offset of the prediction is not seen",
}


@dataclass(frozen=True)
class MetricProtocol:
    """The choices that a table of metrics depends on.

    Args:
        name: name of the protocol in results and on the command line.
        summary: what it is for, in one line.
        percentiles: intensities that become 0 and 1.
        bounds_of: whose percentiles: ``reference`` (for both volumes) or each volume's ``own``.
        bounds_in: where the percentiles are taken, ``brain`` or ``full``.
        from_zero: the lower bound is never below 0.
        regions: names in :data:`ldm.evaluation.regions.REGIONS`.
        measures: names in :data:`ldm.evaluation.measures.MEASURES`, columns of a region's table.
        more: further measures, which share one table.
        axis: the axis that counts the slices.
    """

    name: str = "default"
    summary: str = "the reference sets the intensity bounds; quality by region"
    percentiles: tuple[float, float] = (0.1, 99.9)
    bounds_of: Literal["reference", "own"] = "reference"
    bounds_in: Literal["brain", "full"] = "brain"
    from_zero: bool = False
    regions: tuple[str, ...] = ("full", "brain", "tumour", "healthy")
    measures: tuple[str, ...] = ("psnr", "nrmse", "ssim", "ms_ssim", "mae", "flicker")
    more: tuple[str, ...] = ("nrmse_l2", "nmi", "hfen", "sharpness", "lpips")
    axis: int = -1

    def to_dict(self) -> dict[str, Any]:
        """The protocol with the definitions of what it names, as plain types for JSON."""
        fields = asdict(self)
        listed = {key: list(val) if isinstance(val, tuple) else val for key, val in fields.items()}
        definitions = {"bounds": BOUNDS[self.bounds_of]}
        definitions |= {name: REGIONS[name].definition for name in self.regions}
        definitions |= {name: MEASURES[name].definition for name in self.names()}
        return {**listed, "definitions": {**definitions, "spread": SPREAD_DEFINITION, **SPREAD}}

    def names(self, region: str | None = None) -> tuple[str, ...]:
        """The measures, in the order of the tables; those defined in ``region`` if it is given."""
        names = self.measures + self.more
        if region is None or REGIONS[region].whole:
            return names
        return tuple(name for name in names if not MEASURES[name].whole)

    def bounds(self, volume: ArrayLike, brain: ArrayLike) -> tuple[float, float]:
        """Intensities of ``volume`` that become 0 and 1; NaN if there are no voxels."""
        values = np.asarray(volume, np.float64)
        inside = values[np.asarray(brain) != 0] if self.bounds_in == "brain" else values
        if inside.size == 0:
            return nan, nan
        low, high = map(float, np.percentile(inside, self.percentiles))
        return (max(low, 0.0) if self.from_zero else low), high


DEFAULT = MetricProtocol()
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        DEFAULT,
        MetricProtocol(
            name="region",
            summary="tumour, its enhancing part, the ring of 10 mm around it and healthy tissue",
            regions=("tumour", "enhancing", "ring", "healthy"),
            measures=("psnr", "nrmse", "ssim", "mae"),
            more=(),
        ),
        MetricProtocol(
            name="slices",
            summary="PSNR and NRMSE of 2-D slices beside 3-D ones, SSIM with 3-D windows",
            regions=("full", "brain"),
            measures=("psnr", "psnr_2d", "nrmse", "nrmse_2d", "ssim", "ssim_3d"),
            more=(),
        ),
        MetricProtocol(
            name="brasyn",
            summary="SSIM of the BraSyn challenge; its Dice needs its segmenter, not shipped here",
            percentiles=(0.5, 99.5),
            bounds_of="own",
            bounds_in="full",
            from_zero=True,
            regions=("tumour", "rest"),
            measures=("brasyn_ssim",),
            more=(),
        ),
        MetricProtocol(
            name="legacy",
            summary="the columns of the DS-Diff tables, blind to gain and offset: to compare only",
            percentiles=(0.0, 100.0),
            bounds_of="own",
            bounds_in="full",
            regions=("full",),
            measures=("psnr", "nrmse", "legacy_ms_ssim"),
            more=(),
        ),
    )
}


def find_protocol(name: str) -> MetricProtocol:
    """Return a protocol by its name.

    Raises:
        ConfigError: CONFIG-VALUE for a name that does not exist.
    """
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise ConfigError("CONFIG-VALUE", f"protocol '{name}' is not known; expected {known}")
    return PROTOCOLS[name]


def evaluate_volume(
    prediction: ArrayLike,
    reference: ArrayLike,
    brain: ArrayLike,
    tumour: ArrayLike | None = None,
    protocol: MetricProtocol = DEFAULT,
    spread: ArrayLike | None = None,
    samples: int | None = None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    perceptual: Perceptual | None = None,
) -> Scores:
    """All metrics of one volume in every region of the protocol.

    Args:
        prediction: synthetic volume (X, Y, Z), in the units of ``reference``.
        reference: real volume (X, Y, Z).
        brain: brain mask (X, Y, Z); by convention the voxels where any input contrast is not 0.
        tumour: segmentation (X, Y, Z), 0 where healthy. Without it the regions that need it are
            left out.
        protocol: mapping, regions, metrics and slice axis.
        spread: predicted standard deviation (X, Y, Z), in the units of ``reference``. Without it
            there are no ``SPREAD_METRICS``.
        samples: how many samples the spread comes from, see
            :mod:`ldm.evaluation.metrics.calibration`.
        spacing: size of a voxel along each axis, in mm.
        perceptual: the network of LPIPS, which is NaN without it.

    Returns:
        ``{region: {metric: value}}``. Values that are not defined (constant reference, no brain, no
        tumour) are NaN.

    Raises:
        DataError: DATA-SHAPE if the shapes differ.
    """
    anatomy = Labelled(
        np.asarray(brain) != 0, None if tumour is None else np.asarray(tumour), spacing
    )
    labels = {} if tumour is None else {"segmentation": tumour}
    metrics.same_shape(prediction=prediction, reference=reference, brain=brain, **labels)
    regions = [r for r in protocol.regions if labels or not REGIONS[r].labelled]
    masks = {region: REGIONS[region].mask(anatomy) for region in regions}
    scores = _scores(prediction, reference, anatomy, masks, protocol, perceptual)
    if spread is not None and protocol.bounds_of == "reference":
        for region in (r for r in regions if r != "full"):
            told = (prediction, reference, spread)
            defined = not isnan(next(iter(scores[region].values())))
            scores[region] |= _spread_scores(*told, masks[region], samples, defined)
    return scores


class SummaryRow(NamedTuple):
    """One metric in one region over all subjects."""

    region: str
    metric: str
    mean: float
    sd: float  # sample standard deviation over subjects; NaN for fewer than two
    n: int  # subjects with a value
    subjects: int  # subjects in all
    median: float
    low: float  # 95 % bootstrap interval of the mean; NaN unless asked for
    high: float


def summarise(per_subject: Sequence[Scores], interval: bool = False) -> list[SummaryRow]:
    """Statistics over subjects, one row a region and metric.

    Subjects without a value (NaN, or the region is absent) do not enter the mean, and the row says
    so by ``n < subjects``. An infinite PSNR stays infinite.
    """
    rows = []
    for region, name in product(REGIONS, (*MEASURES, *SPREAD_METRICS)):
        found = [scores[region][name] for scores in per_subject if name in scores.get(region, {})]
        if found:
            s = summarise_values(found, interval=interval)
            counts = (s.n, len(per_subject))
            rows.append(SummaryRow(region, name, s.mean, s.sd, *counts, s.median, s.low, s.high))
    return rows


def average_scores(runs: Sequence[Scores]) -> Scores:
    """Mean of each value over repeats of one patient (training seeds); NaN does not enter."""
    regions = list(dict.fromkeys(region for run in runs for region in run))
    averaged: Scores = {}
    for region in regions:
        found = [run[region] for run in runs if region in run]
        names = dict.fromkeys(name for scores in found for name in scores)
        averaged[region] = {
            name: summarise_values([s[name] for s in found if name in s], interval=False).mean
            for name in names
        }
    return averaged


def _scores(
    prediction: ArrayLike,
    reference: ArrayLike,
    anatomy: Labelled,
    masks: dict[str, NDArray[np.bool_]],
    protocol: MetricProtocol,
    perceptual: Perceptual | None,
) -> Scores:
    """The measures of the protocol in each region; volumes are 0 outside the brain but in full."""
    (low, high), own = (protocol.bounds(v, anatomy.brain) for v in (reference, prediction))
    own = own if protocol.bounds_of == "own" else (low, high)
    if not (high > low and own[1] > own[0]):
        return {region: dict.fromkeys(protocol.names(region), nan) for region in masks}
    pair = (_to_unit(prediction, *own), _to_unit(reference, low, high))
    content = _slices_with(anatomy.brain, protocol.axis)
    given = Volumes(*pair, content, protocol.axis, perceptual)
    inside = given
    if any(volume[~anatomy.brain].any() for volume in pair):  # else they share what they compute
        cut = (np.where(anatomy.brain, volume, 0) for volume in pair)
        inside = Volumes(*cut, content, protocol.axis, perceptual)
    views = {r: View(given if _as_given(r, protocol) else inside, m) for r, m in masks.items()}
    return {
        region: {name: MEASURES[name].of(view) for name in protocol.names(region)}
        for region, view in views.items()
    }


def _as_given(region: str, protocol: MetricProtocol) -> bool:
    return region == "full" or protocol.bounds_in == "full"


def _to_unit(volume: ArrayLike, low: float, high: float) -> NDArray[np.float64]:
    return np.clip((np.asarray(volume, np.float64) - low) / (high - low), 0, 1)


def _slices_with(mask: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Which slices along ``axis`` contain a voxel of ``mask``, broadcastable against it."""
    others = tuple(other for other in range(mask.ndim) if other != axis % mask.ndim)
    return mask.any(axis=others, keepdims=True)


def _spread_scores(
    prediction: ArrayLike,
    reference: ArrayLike,
    spread: ArrayLike,
    mask: NDArray[np.bool_],
    samples: int | None,
    defined: bool,
) -> dict[str, float]:
    """Calibration has no unit, so that the volumes enter as they are, and nothing is clipped."""
    if not defined:
        return dict.fromkeys(SPREAD_METRICS, nan)
    volumes = (prediction, reference, spread)
    return {
        "coverage_1sd": calibration.coverage(*volumes, 1, mask, samples),
        "coverage_2sd": calibration.coverage(*volumes, 2, mask, samples),
        "calibration_error": calibration.calibration_error(*volumes, mask, samples),
        "error_to_spread": calibration.error_to_spread(*volumes, mask, samples),
    }
