"""The metrics that a protocol can name, and what they share when several regions are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from math import nan
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ldm.evaluation.metrics import detail, published
from ldm.evaluation.metrics import similarity as metrics

if TYPE_CHECKING:
    from ldm.evaluation.metrics.perceptual import Perceptual


@dataclass(eq=False)
class Volumes:
    """Prediction and reference on one intensity scale, and what is computed from them only once.

    Args:
        prediction, reference: (X, Y, Z) in [0, 1].
        content: which slices contain brain, broadcastable against the volumes.
        axis: the axis that counts the slices.
        perceptual: the network of LPIPS, if there is one.
    """

    prediction: NDArray[np.float64]
    reference: NDArray[np.float64]
    content: NDArray[np.bool_]
    axis: int = -1
    perceptual: Perceptual | None = None

    def __post_init__(self) -> None:
        self.pair = (self.prediction, self.reference)

    @cached_property
    def similarity(self) -> NDArray[np.float64]:
        """SSIM at each voxel of the slices with brain, as a stack of slices."""
        stacks = metrics.stacks(*self.pair, np.broadcast_to(self.content, self.shape), self.axis)
        return metrics.similarity_map(*stacks, 1.0)

    @cached_property
    def similarity_3d(self) -> NDArray[np.float64] | None:
        """SSIM with 3-D windows as a stack of slices; None if a side is below 11."""
        if min(self.shape) < metrics.SSIM_WINDOW:
            return None
        return metrics.similarity_map(*metrics.stacks(*self.pair, None, self.axis), 1.0, dims=3)

    @cached_property
    def edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Laplacian of a Gaussian of both, as stacks of slices."""
        x, y, _ = metrics.stacks(*self.pair, None, self.axis)
        return detail.edges(x), detail.edges(y)

    @cached_property
    def slices(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Both with the slices only that contain brain."""
        return tuple(np.compress(self.content.ravel(), v, self.axis) for v in self.pair)

    @cached_property
    def ms_ssim(self) -> float:
        """MS-SSIM of the slices with brain."""
        return metrics.ms_ssim(*self.slices, 1.0, self.axis)

    @cached_property
    def lpips(self) -> float:
        """LPIPS of the slices with brain; NaN without a network."""
        return self.perceptual.lpips(*self.slices, self.axis) if self.perceptual else nan

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the volumes."""
        return self.reference.shape


@dataclass(eq=False)
class View:
    """One region of two volumes."""

    volumes: Volumes
    mask: NDArray[np.bool_]

    @cached_property
    def values(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The voxels of the region, in both volumes."""
        return tuple(volume[self.mask] for volume in self.volumes.pair)

    @cached_property
    def changes(self) -> detail.Changes:
        """What flicker and sharpness share."""
        return detail.changes(*self.volumes.pair, self.mask, self.volumes.axis)

    @property
    def stack(self) -> NDArray[np.bool_]:
        """The mask in slices with brain, as a stack of slices."""
        return np.moveaxis(self.mask & self.volumes.content, self.volumes.axis, 0)

    def of_slices(self, metric: Callable[..., float]) -> float:
        """Mean of a voxel metric over the slices with brain."""
        inside = self.mask & self.volumes.content
        return metrics.mean_over_slices(metric, *self.volumes.pair, inside, self.volumes.axis)


def _ssim(view: View) -> float:
    return metrics.mean_similarity(view.volumes.similarity, view.stack)


def _ssim_3d(view: View) -> float:
    similarity = view.volumes.similarity_3d
    return nan if similarity is None else metrics.mean_similarity(similarity, view.stack, dims=3)


def _hfen(view: View) -> float:
    inside = np.moveaxis(view.mask, view.volumes.axis, 0)
    return detail.relative_error(*(edges[inside] for edges in view.volumes.edges))


class Measure(NamedTuple):
    """A metric: its column, its definition, and its value in a region."""

    title: str
    definition: str
    of: Callable[[View], float]
    best: str = "high"  # or low, or one (then neither is better)
    whole: bool = False  # of whole slices: not defined on a part of the brain


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
        "(monai); sides < 176 padded with zeros",
        lambda v: v.volumes.ms_ssim,
        whole=True,
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
        _hfen,
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
        whole=True,
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
        lambda v: published.brasyn_ssim(*v.volumes.pair, v.mask),
    ),
    "legacy_ms_ssim": Measure(
        "MS-SSIM (padded)",
        "2-D, torchmetrics with mirrored borders, each volume standardised on its own to "
        "2048 ± 400 and clipped to 12 bits, data range from each pair of slices, mean over slices",
        lambda v: published.legacy_ms_ssim(*v.volumes.pair, v.volumes.axis),
        whole=True,
    ),
}
