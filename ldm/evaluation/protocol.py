"""What is compared with what: intensity mapping, regions and measures, written into every result.

A metric value means nothing without its protocol. In ``default`` the reference alone sets the
intensity bounds, so that a prediction cannot improve its score by its own range; both volumes go
through the same map onto [0, 1], and the data range of every metric is 1. Other protocols are there
to compare with numbers that others have published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import nan
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm.errors import one_of
from ldm.evaluation.case import Case, Prediction, to_unit
from ldm.evaluation.images import Sliced, stacked
from ldm.evaluation.measures import MEASURES, Level, of_level
from ldm.evaluation.metrics.similarity import same_shape
from ldm.evaluation.regions import REGIONS
from ldm.evaluation.views import View, Volumes
from ldm.regions import LABELS

if TYPE_CHECKING:
    from ldm.evaluation.metrics.perceptual import Perceptual

Scores = dict[str, dict[str, float]]  # region -> measure -> value

SPREAD, ENHANCEMENT = of_level("spread"), of_level("enhancement")
ENHANCEMENT_DEFINITION = (
    "z(target) - z(native contrast) at each voxel, z by the median and the inter-quartile range of "
    "each image in the brain"
)
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
class BaseProtocol:
    """What is measured where.

    Args:
        name: name in results and on the command line.
        summary: what it is for, in one line.
        regions: that are compared, in the order of the tables.
        measures: names in :data:`ldm.evaluation.measures.MEASURES`, columns of a region's table.
        more: further measures, in tables of their own.
    """

    name: str
    summary: str
    regions: tuple[str, ...]
    measures: tuple[str, ...]
    more: tuple[str, ...] = ()

    def names(self, region: str | None = None, levels: Sequence[Level] = ()) -> tuple[str, ...]:
        """The measures, in the order of the tables.

        Args:
            region: only those that are defined there.
            levels: only those of these levels; none: of all.
        """
        return tuple(
            name
            for name in self.measures + self.more
            if (region is None or MEASURES[name].is_in(region))
            and (not levels or MEASURES[name].level in levels)
        )

    def to_dict(self) -> dict[str, Any]:
        """The protocol with the definitions of what it names, as plain types for JSON."""
        fields = asdict(self)
        listed = {key: list(val) if isinstance(val, tuple) else val for key, val in fields.items()}
        return {**listed, "definitions": dict(self.definitions())}

    def definitions(self) -> Mapping[str, str]:
        """What each name in it means."""
        regions = {r: _region_definition(r) for r in self.regions}
        return regions | {name: MEASURES[name].definition for name in self.names()}


@dataclass(frozen=True)
class MetricProtocol(BaseProtocol):
    """A protocol for images: the choices that a table of metrics depends on.

    Args:
        percentiles: intensities that become 0 and 1.
        bounds_of: whose percentiles: ``reference`` (for both volumes) or each volume's ``own``.
        bounds_in: where the percentiles are taken, ``brain`` or ``full``.
        from_zero: the lower bound is never below 0.
        axis: the axis that counts the slices.
    """

    name: str = "default"
    summary: str = "the reference sets the intensity bounds; quality by region"
    regions: tuple[str, ...] = ("full", "brain", "tumour", "enhancing", "healthy")
    measures: tuple[str, ...] = ("psnr", "nrmse", "ssim", "ms_ssim", "mae", "flicker")
    more: tuple[str, ...] = (
        *("nrmse_l2", "nmi", "hfen", "sharpness", "lpips", "frechet"),
        *(*SPREAD, *ENHANCEMENT),
    )
    percentiles: tuple[float, float] = (0.1, 99.9)
    bounds_of: Literal["reference", "own"] = "reference"
    bounds_in: Literal["brain", "full"] = "brain"
    from_zero: bool = False
    axis: int = -1

    def definitions(self) -> Mapping[str, str]:
        """What each name in it means, and what they share."""
        shared = {"spread": SPREAD_DEFINITION, "enhancement": ENHANCEMENT_DEFINITION}
        used = {level: text for level, text in shared.items() if self.names(levels=[level])}
        return {"bounds": BOUNDS[self.bounds_of], **used, **super().definitions()}

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
            more=SPREAD,
        ),
        MetricProtocol(
            name="slices",
            summary="PSNR and NRMSE of 2-D slices beside 3-D ones, SSIM with 3-D windows",
            regions=("full", "brain"),
            measures=("psnr", "psnr_2d", "nrmse", "nrmse_2d", "ssim", "ssim_3d"),
            more=SPREAD,
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


SEGMENTATION = BaseProtocol(
    "segmentation",
    "label maps against the reference labels",
    tuple(LABELS),
    ("dice", "iou", "hd95", "sensitivity", "specificity"),
    ("volume_ml", "labels_ml"),
)
DOWNSTREAM = BaseProtocol(
    "downstream",
    "what a segmenter finds with each synthetic volume in place of the real one",
    tuple(LABELS),
    ("dice_real", "dice", "hd95", "nsd"),
    ("volume_ml", "labels_ml", "false_ml"),
)


def find_protocol(name: str) -> MetricProtocol:
    """Return a protocol by its name.

    Raises:
        ConfigError: CONFIG-VALUE for a name that does not exist.
    """
    return PROTOCOLS[one_of("protocol", name, PROTOCOLS)]


def evaluate_case(
    case: Case,
    prediction: Prediction,
    protocol: MetricProtocol = DEFAULT,
    perceptual: Perceptual | None = None,
) -> Scores:
    """All metrics of one volume in every region of the protocol.

    Args:
        case: the real volumes and masks. Without a segmentation the regions that need it are left
            out.
        prediction: synthetic volume, in the units of the reference. Without a spread there are no
            measures of it, and none of enhancement without labels and the native contrast.
        protocol: mapping, regions, measures and slice axis.
        perceptual: the network of LPIPS, which is NaN without it.

    Returns:
        ``{region: {measure: value}}``. Values that are not defined (constant reference, no brain,
        no tumour) are NaN.

    Raises:
        DataError: DATA-SHAPE if the shapes differ.
    """
    labels = {} if case.seg is None else {"segmentation": case.seg}
    same_shape(prediction=prediction.volume, reference=case.reference, brain=case.brain, **labels)
    levels: list[Level] = ["region", "volume"]
    levels += ["spread"] if prediction.spread is not None else []
    levels += ["enhancement"] if case.can_enhance else []
    regions = [r for r in protocol.regions if labels or not REGIONS[r].labelled]
    views = _views(case, prediction, regions, protocol, perceptual)
    return {
        region: {
            name: MEASURES[name].of(views[region]) if views else nan
            for name in protocol.names(region, levels)
        }
        for region in regions
    }


def slice_features(
    case: Case, prediction: Prediction, protocol: MetricProtocol, perceptual: Perceptual
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Features (slices, channels) of prediction and reference, of the slices with brain.

    Returns:
        None where the reference has no range.
    """
    views = _views(case, prediction, ["brain"], protocol, perceptual)
    if not views:
        return None
    predicted, real = views["brain"].volumes.slices
    own = case.once(("features", protocol), lambda: perceptual.features(real, axis=0))
    return perceptual.features(predicted, axis=0), own


def _views(
    case: Case,
    prediction: Prediction,
    regions: Sequence[str],
    protocol: MetricProtocol,
    perceptual: Perceptual | None,
) -> dict[str, View]:
    """The regions of both volumes, 0 outside the brain but in full; none without a range."""
    low, high = own = case.bounds(protocol)
    if protocol.bounds_of == "own":
        own = protocol.bounds(prediction.volume, case.brain)
    if not (high > low and own[1] > own[0]):
        return {}
    axis = protocol.axis
    predicted = Sliced(to_unit(stacked(prediction.volume, axis), *own))
    brain, further = case.area("brain", axis), (case, prediction, perceptual)
    pair = (predicted, case.image(protocol, axis))
    within = (predicted.inside(brain.stack), case.image(protocol, axis, inside=True))
    given = inside = Volumes(*pair, brain, *further)
    if within != pair:  # else they share what they compute
        inside = Volumes(*within, brain, *further)
    whole = protocol.bounds_in == "full"
    return {
        r: View(given if whole or r == "full" else inside, case.area(r, axis), case.region(r))
        for r in regions
    }


def _region_definition(region: str) -> str:
    if region in REGIONS:
        return REGIONS[region].definition
    return f"labels {', '.join(map(str, LABELS[region]))}" if LABELS[region] else "any label"
