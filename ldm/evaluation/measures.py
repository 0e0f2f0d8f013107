"""The metrics: one table of everything that is measured, at whatever level."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import nan
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

from ldm.evaluation.metrics import calibration, enhancement, overlap, published
from ldm.evaluation.metrics import similarity as metrics
from ldm.evaluation.views import View

Level = Literal["region", "volume", "spread", "enhancement", "slices_of_row", "segmentation"]


def _ssim(view: View) -> float:
    return metrics.mean_similarity(view.volumes.similarity, view.inside)


def _ssim_3d(view: View) -> float:
    similarity = view.volumes.similarity_3d
    return nan if similarity is None else metrics.mean_similarity(similarity, view.inside, dims=3)


def _frechet(features: tuple[NDArray, NDArray]) -> float:
    from ldm.evaluation.metrics.perceptual import frechet_distance  # imports torch

    return frechet_distance(*features)


class Measure(NamedTuple):
    """A metric: its column, its definition, and its value.

    ``of`` gets what the level says (:mod:`ldm.evaluation.views`): a ``View`` of one region
    (``region``), of a region that holds whole slices (``volume``), of a prediction with a spread
    (``spread``) or of a target with labels and native contrast (``enhancement``); the features of
    all slices of a row, and those of the reference (``slices_of_row``); the ``Masks`` of a region
    (``segmentation``).
    """

    title: str
    definition: str
    of: Callable[[Any], float]
    best: str = "high"  # or low, or one (then neither is better)
    level: Level = "region"
    regions: tuple[str, ...] = ()  # where it is defined; none: in each that is compared
    typical: Literal["mean", "median"] = "mean"  # what stands for all patients

    @property
    def digits(self) -> int | None:
        """Decimals in a table, alike for every row of dB and mm; None: by the size of a number."""
        return 2 if self.title.endswith((" dB", " mm")) else None

    def is_in(self, region: str) -> bool:
        """Whether it is defined in a region."""
        return not self.regions or region in self.regions


WHOLE = ("full", "brain")
LEAST_SPANS = {"psnr": 0.5, "ms_ssim": 0.01, "recovery": 0.1}  # of an axis in a figure
INSIDE = ("brain", "tumour", "enhancing", "ring", "healthy", "rest")

MEASURES = {
    "psnr": Measure(
        "PSNR dB",
        "3-D over the voxels of the region, dB",
        lambda v: metrics.psnr(*v.values, 1.0),
    ),
    "nrmse": Measure(
        "NRMSE",
        "root mean square error / (max - min of the reference in the region)",
        lambda v: metrics.nrmse(*v.values),
        "low",
    ),
    "ssim": Measure(
        "SSIM",
        "2-D, Gaussian window 11x11 sigma 1.5 inside the slice, population covariance, mean of the "
        "map over the region (scikit-image)",
        _ssim,
    ),
    "ms_ssim": Measure(
        "MS-SSIM",
        "2-D, five scales, Gaussian window 11x11 sigma 1.5 inside the slice, mean over slices "
        "(as monai, in double precision); sides < 176 padded with zeros",
        lambda v: v.volumes.ms_ssim,
        level="volume",
        regions=WHOLE,
    ),
    "mae": Measure(
        "MAE",
        "mean absolute error over the voxels of the region",
        lambda v: metrics.mae(*v.values),
        "low",
    ),
    "flicker": Measure(
        "Flicker",
        "gradient energy along the slice axis / within slices, prediction / reference, square "
        "root; pairs of neighbours inside the region",
        lambda v: v.changes.flicker,
        "one",
    ),
    "nrmse_l2": Measure(
        "NRMSE L2",
        "euclidean: root mean square error / root mean square of the reference in the region",
        lambda v: metrics.nrmse(*v.values, normalisation="euclidean"),
        "low",
    ),
    "nmi": Measure(
        "NMI",
        "normalised mutual information, joint histogram of 100 x 100 bins (scikit-image)",
        lambda v: metrics.nmi(*v.values),
    ),
    "hfen": Measure(
        "HFEN",
        "norm of the difference of the Laplacians of Gaussian (sigma 1.5, 15x15, within slices) / "
        "norm of that of the reference, over the region",
        View.hfen,
        "low",
    ),
    "sharpness": Measure(
        "Sharpness",
        "gradient energy within slices, prediction / reference, square root",
        lambda v: v.changes.sharpness,
        "one",
    ),
    "lpips": Measure(
        "LPIPS",
        "learned perceptual distance (Zhang et al. 2018), mean over slices; needs weights on disk",
        lambda v: v.volumes.lpips,
        "low",
        "volume",
        WHOLE,
    ),
    "frechet": Measure(
        "Fréchet",
        "Fréchet distance of the features of all slices of a row, in the network of LPIPS",
        _frechet,
        "low",
        "slices_of_row",
        ("brain",),
    ),
    "psnr_2d": Measure(
        "PSNR 2-D",
        "mean over slices of the PSNR of the voxels of the region in the slice, dB",
        lambda v: v.of_slices(partial(metrics.psnr, data_range=1.0)),
    ),
    "nrmse_2d": Measure(
        "NRMSE 2-D",
        "mean over slices of the min-max NRMSE of the voxels of the region in the slice",
        lambda v: v.of_slices(metrics.nrmse),
        "low",
    ),
    "ssim_3d": Measure(
        "SSIM 3-D",
        "Gaussian window 11x11x11 sigma 1.5 inside the volume, mean of the map over the region",
        _ssim_3d,
    ),
    "brasyn_ssim": Measure(
        "SSIM (BraSyn)",
        "3-D, both volumes 0 outside the region, Gaussian window 11x11x11 sigma 1.5, mirrored "
        "borders, data range from the two masked volumes, mean of the map over the region",
        lambda v: published.brasyn_ssim(*v.volumes.stacks, v.area.stack),
    ),
    "legacy_ms_ssim": Measure(
        "MS-SSIM (padded)",
        "2-D, torchmetrics with mirrored borders, each volume standardised on its own to "
        "2048 ± 400 and clipped to 12 bits, data range from each pair of slices, mean over slices",
        lambda v: published.legacy_ms_ssim(*v.volumes.stacks, axis=0),
        level="volume",
        regions=WHOLE,
    ),
    "coverage_1sd": Measure(
        "Within 1 sd",
        "share of the voxels with the reference within ± 1 standard deviation (68.3 %)",
        lambda v: v.of_spread(partial(calibration.coverage, sigmas=1)),
        "one",
        "spread",
        INSIDE,
    ),
    "coverage_2sd": Measure(
        "Within 2 sd",
        "the same for ± 2 standard deviations (95.4 %)",
        lambda v: v.of_spread(partial(calibration.coverage, sigmas=2)),
        "one",
        "spread",
        INSIDE,
    ),
    "calibration_error": Measure(
        "ECE",
        "mean of |coverage - p| over p = 0.05, 0.1, ..., 0.95",
        lambda v: v.of_spread(calibration.calibration_error),
        "low",
        "spread",
        INSIDE,
    ),
    "error_to_spread": Measure(
        "Error / spread",
        "root mean square error / root mean square spread",
        lambda v: v.of_spread(calibration.error_to_spread),
        "one",
        "spread",
        INSIDE,
    ),
    "recovery": Measure(
        "Recovery",
        "mean enhancement in the enhancing tumour, predicted / true; median over patients",
        lambda v: enhancement.recovery(*v.volumes.enhancement, v.of_brain),
        "one",
        "enhancement",
        ("enhancing",),
        "median",
    ),
    "auc_tumour": Measure(
        "AUC tumour",
        "predicted enhancement as a score for enhancing tumour against the rest of the tumour, "
        "area under the ROC curve",
        View.auc,
        level="enhancement",
        regions=("tumour",),
    ),
    "auc_brain": Measure(
        "AUC brain",
        "the same against the rest of the brain",
        View.auc,
        level="enhancement",
        regions=("brain",),
    ),
    "rim_to_core": Measure(
        "Rim to core",
        "mean enhancement in the enhancing tumour less that in its necrotic core, predicted / "
        "true; median over patients",
        View.rim_to_core,
        "one",
        "enhancement",
        ("tumour",),
        "median",
    ),
    "false_enhancement": Measure(
        "False IQR",
        "mean predicted enhancement in the tumours of which no part enhances, in inter-quartile "
        "ranges of the brain",
        View.false_enhancement,
        "one",
        "enhancement",
        ("tumour",),
    ),
    "true_enhancement": Measure(
        "True IQR",
        "mean true enhancement in the enhancing tumour, in inter-quartile ranges of the brain",
        lambda v: enhancement.mean_within(v.volumes.enhancement[1], v.of_brain),
        "one",
        "enhancement",
        ("enhancing",),
    ),
    "dice": Measure(
        "Dice",
        "2 x overlap with the labels / sum of both volumes",
        lambda m: m.against_labels(overlap.dice),
        level="segmentation",
    ),
    "dice_real": Measure(
        "Dice / real",
        "the same against what is found with the real volume",
        lambda m: nan if m.real is None else overlap.dice(m.found, m.real),
        level="segmentation",
    ),
    "iou": Measure(
        "IoU",
        "overlap with the labels / union",
        lambda m: m.against_labels(overlap.iou),
        level="segmentation",
    ),
    "hd95": Measure(
        "HD95 mm",
        "95th percentile of the distance of the surfaces of what is found and of the labels, mm",
        lambda m: m.against_labels(overlap.hd95, m.geometry.spacing),
        "low",
        "segmentation",
    ),
    "nsd": Measure(
        "NSD",
        "share of both surfaces that lies within 1 mm of the other",
        lambda m: m.against_labels(overlap.surface_dice, m.geometry.spacing),
        level="segmentation",
    ),
    "sensitivity": Measure(
        "Sensitivity",
        "share of the labels that is found",
        lambda m: m.against_labels(overlap.sensitivity),
        level="segmentation",
    ),
    "specificity": Measure(
        "Specificity",
        "share of what lies outside the labels that is left out",
        lambda m: m.against_labels(overlap.specificity),
        level="segmentation",
    ),
    "volume_ml": Measure(
        "Found ml",
        "volume that is found, ml",
        lambda m: m.millilitres(m.found),
        "one",
        "segmentation",
    ),
    "labels_ml": Measure(
        "Labels ml",
        "volume of the labels, ml",
        lambda m: m.millilitres(m.labels),
        "one",
        "segmentation",
    ),
    "false_ml": Measure(
        "False ml",
        "volume of enhancing tumour that is found in patients whose labels hold none, ml",
        lambda m: m.false_millilitres(),
        "low",
        "segmentation",
        ("et",),
    ),
}


def of_level(level: Level) -> tuple[str, ...]:
    """Return the names of the measures of one level."""
    return tuple(name for name, measure in MEASURES.items() if measure.level == level)
