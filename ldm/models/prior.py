"""What few patients tell of where tissue enhances: a regression of few coefficients.

A network of millions of weights that has seen tens of patients learns their tumours by heart: on
others its errors there are larger than what it knows, and a quadratic form of each contrast at two
scales finds the enhancing part better (docs/what-helps.md). So the two are stacked (Wolpert 1992):
the network has its say everywhere, in abnormal tissue a smaller one, and the form the rest of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.errors import bad_value
from ldm.intensity import (
    BACKGROUND,
    UNIT,
    blur_inside,
    bright,
    clearest,
    standard_units,
)
from ldm.label_scheme import UNKNOWN
from ldm.models.base import Config
from ldm.models.diffusion.anchors import FITTED_SLICES
from ldm.modules.polynomial import polynomial
from ldm.progress import Progress
from ldm.regions import CAVITY, ENHANCING, OEDEMA
from ldm.study import ASKED, SLAB, Study, native_of
from ldm.util import evenly_spread, instantiate_from_config, own_channels

log = logging.getLogger(__name__)

SCALES = (96, 24)  # Gaussians of 2 and 8 mm, as parts of the height of an image of 192 mm
SURROUNDINGS = 32  # and one of 6 mm
LARGEST_SHARE = 0.3  # share of the brain above which something else is taken for abnormal tissue
ABNORMAL = 0.3  # how bright the surroundings of a voxel are that is abnormal for certain
CLIP = 4.0  # z of a contrast that counts
CERTAIN = 3.0  # z of enhancement, where no label tells, that counts as much as a label
LEAST = 0.005  # of the brain of a patient: one with less abnormal tissue counts less than others
SHARES = (0.02, 0.98)  # of a tumour that enhances, which are balanced
POOLED = 0.5  # of the fit that is to all abnormal tissue, the rest within the tumour of a patient
AROUND = 2  # deviations of the widest Gaussian that are looked at through the slices
MOST_AROUND = 48  # slices on each side, however thin a header says they are
RIDGE = 0.03  # of the sum over patients, each of whom has weight 1


class Moments(NamedTuple):
    """Sums over the abnormal tissue of a patient, of which a regression is made.

    Args:
        labelled, shown: (3, K, K) of the terms, two by two: where tissue enhances, where it does
            not, and where it is no tumour (or was taken out); as labels say, and as far as the
            truth shows, which does not tell the third.
        brain: number of voxels of brain.
        tells: whether labels tell what enhances.
        doubtful: whether there are labels of which nobody says what they mean.
    """

    labelled: Tensor
    shown: Tensor
    brain: Tensor
    tells: bool
    doubtful: bool

    def joined(self, other: Moments) -> Moments:
        """Return those of two slices of a patient."""
        sums = [own + given for own, given in zip(self[:-2], other[:-2], strict=True)]
        facts = self.tells or other.tells, self.doubtful or other.doubtful
        return Moments(*sums, *facts)  # type: ignore[arg-type]

    @property
    def taught(self) -> Tensor:
        """The sums as labels say, or else as the truth shows."""
        return self.labelled if self.tells and not self.doubtful else self.shown

    @property
    def weight(self) -> Tensor:
        """The number of voxels; a patient with few of them counts less than others."""
        return torch.maximum(self.taught[:, 0, 0].sum(), LEAST * self.brain).clamp(min=1.0)

    @property
    def within(self) -> tuple[Tensor, Tensor]:
        """The covariances (K, K) of the terms, and (K,) with what enhances, within the tumour.

        What enhances and what does not have half of the weight each, so that they say what tells
        the one from the other, not how much of it there is.
        """
        enhancing, rest, _ = self.taught
        count = enhancing[0, 0] + rest[0, 0]
        share = (enhancing[0, 0] / count.clamp(min=1.0)).clamp(*SHARES)
        enhancing, rest = 0.5 / share * enhancing, 0.5 / (1 - share) * rest
        both = enhancing + rest
        mean = both[0] / both[0, 0].clamp(min=1.0)
        products = both - both[0, 0] * torch.outer(mean, mean)
        weight = torch.maximum(both[0, 0], LEAST * self.brain).clamp(min=1.0)
        return products / weight, (enhancing[0] - enhancing[0, 0] * mean) / weight


class EnhancementPrior(nn.Module):
    """``prior(image, condition, presence, factor, ...) -> image`` of an enhanced target.

    ``image + A (strength p - shrink (image - source))``, in units of z: A, from 0 to 1, says where
    the surroundings are abnormal, see :func:`ldm.intensity.abnormality`, and p how certainly tissue
    enhances: a quadratic form of each contrast at two scales, stored with the weights. It is fitted
    to the training patients where A is above a half, in two steps: by ridge regression, half of it
    to all tissue there and half within each tumour, to what tells enhancing tissue from the rest
    (fixed effects of the patient, both of equal weight); then by the line of least squares that
    makes a probability of that. It is taught by the labels of those who have them, else by how much
    the truth enhances there, and all tissue there counts as tumour. Patients count alike.

    An item that lacks a contrast is returned as it is, and so is every item where the target is not
    the enhanced form of a condition, or no training patient showed abnormal tissue. Where the
    target varies, the items that ask for the enhanced form change.

    Args:
        conditions: input contrasts, in channel order; passed in.
        target: contrast to synthesise; passed in.
        neighbours: slices on each side that are conditions too; passed in.
        image_size: of the images; passed in.
        strength: z by which tissue that enhances for certain becomes brighter.
        shrink: share of what the network makes of abnormal tissue that is taken back.
        through: whether the Gaussians reach through the slices around each, by their distance; else
            they lie in its plane, and in volumes take voxels for cubes.
    """

    def __init__(
        self,
        conditions: Sequence[str],
        target: str | None = Study.target,
        neighbours: int = 0,
        image_size: Sequence[int] = (96, 96),
        strength: float = 3.0,
        shrink: float = 0.5,
        through: bool = False,
    ) -> None:
        super().__init__()
        self.strength, self.shrink = strength, shrink
        self.own, places = own_channels(len(conditions), neighbours), list(conditions)
        self.count = len(places)
        enhanced = Study(tuple(conditions), target).enhanced
        self.enhanced = places.index(enhanced) if enhanced in places else None  # a target varies
        given = [name for name in conditions if name != enhanced]
        self.places = [places.index(name) for name in given]
        guide, source = clearest(given), native_of(enhanced, given)
        self.is_flat = guide is None or source is None
        if guide is not None and source is not None:
            self.guide, self.source = given.index(guide), given.index(source)
        self.widths = tuple(image_size[-2] / part for part in SCALES)
        self.reach = image_size[-2] / SURROUNDINGS
        self.depth = math.prod(image_size[:-2])  # slices of a patch of a volume, else 1
        terms = len(polynomial([0.0] * len(given) * len(SCALES), 2))
        self.register_buffer("coefficients", torch.zeros(terms))
        self.through = through
        if through:  # how wide a voxel is, as part of the distance of slices
            self.register_buffer("aspect", torch.ones(()))

    @property
    def around(self) -> int:
        """The slices on each side of one that it looks at, where it is given them."""
        if not self.through or self.is_flat or self.depth > 1:
            return 0
        return min(MOST_AROUND, math.ceil(AROUND * self.across(self.widths[-1]) - 1e-4))

    def across(self, width: float) -> float:
        """Return how many slices a number of voxels of their plane measures."""
        return width * float(self.aspect) if self.through else width

    def forward(
        self,
        image: Tensor,
        condition: Tensor,
        presence: Tensor,
        factor: float = 1.0,
        sampled: bool = False,
        asked: Tensor | None = None,
        slab: Tensor | None = None,
    ) -> Tensor:
        """Return the image with what the prior knows.

        Args:
            condition: (B, N*M, *S) contrasts.
            presence: (B, M) bool.
            factor: of what is added; below 1 also of what is taken back.
            sampled: whether the image has the texture of a sample; what is taken back is smooth
                then, so that texture stays.
            asked: (B, 2M) where the target varies, see :data:`ldm.study.ASKED`.
            slab: (B, N*M, H, W) contrasts of the slices around each; None: the slice alone.
        """
        if self.is_flat or not self.coefficients.any():
            return image
        own = self.looked_at(condition)
        contrasts = self.contrasts(condition, slab)
        brain = brain_of(own)
        made = image - own[:, self.source, None]
        made = blur_inside(made, brain, self.widths[0]) if sampled else made
        added = self.strength * UNIT * self.certainty(contrasts)
        change = factor * added - min(factor, 1.0) * self.shrink * made
        changes = presence[:, self.places].all(dim=1)
        if self.enhanced is not None and asked is not None:
            changes = changes & (asked[:, self.enhanced] > 0)
        inside = brain & changes.view(-1, *[1] * (image.ndim - 1))
        return (image + self.abnormal(contrasts) * inside * change).clamp(-1, 1)

    def looked_at(self, condition: Tensor) -> Tensor:
        """Return the contrasts (B, M, *S) of the slice itself that the prior looks at."""
        return condition[:, self.own][:, self.places]

    def contrasts(self, condition: Tensor, slab: Tensor | None = None) -> Tensor:
        """Return the contrasts that the prior looks at, (B, M, D, H, W): D slices, or the volume.

        Without a slab D is 1.
        """
        if self.depth > 1:
            return condition[:, self.places]
        slab = condition[:, self.own] if slab is None else slab
        return slab.unflatten(1, (-1, self.count))[:, :, self.places].transpose(1, 2)

    def smoothed(self, images: Tensor, brain: Tensor, width: float) -> Tensor:
        """Return images (B, C, D, H, W) in a Gaussian, of a slab those of its middle (B, C, H, W).

        Args:
            width: in voxels of the plane of slices.
        """
        if self.depth > 1:
            return blur_inside(images, brain, (self.across(width), width, width))
        return blur_inside(images, brain, width, self.across(width))

    def abnormal(self, contrasts: Tensor) -> Tensor:
        """Return A (B, 1, *S)."""
        excess = bright(contrasts[:, self.guide, None])
        return (self.smoothed(excess, brain_of(contrasts), self.reach) / ABNORMAL).clamp(max=1.0)

    def certainty(self, contrasts: Tensor) -> Tensor:
        """Return p (B, 1, *S), from 0 to 1."""
        fitted = torch.einsum("bk...,k->b...", self.terms(contrasts), self.coefficients)
        return fitted[:, None].clamp(0, 1)

    def terms(self, contrasts: Tensor) -> Tensor:
        """Return the terms (B, K, *S) of the quadratic form."""
        z, brain = standard_units(contrasts).clamp(-CLIP, CLIP), brain_of(contrasts)
        scales = [self.smoothed(z, brain, width) for width in self.widths]
        return torch.stack(polynomial(torch.cat(scales, dim=1).unbind(1), 2), dim=1)

    def fit(self, data: Any) -> None:
        """Take the coefficients from training slices, patient by patient, in float64.

        Without abnormal tissue, or where most of the brain is taken for it, they stay 0.
        """
        if self.is_flat:
            return
        slices = data.train_slices
        if self.through:
            self.aspect.fill_(slices.aspect)
            slices.around = self.around
        patients = self.patients(slices, data.progress)
        brain = sum(int(sums.brain) for sums in patients)
        abnormal = sum(int(sums.taught[:, 0, 0].sum()) for sums in patients) / max(1, brain)
        if 0 < abnormal <= LARGEST_SHARE:
            self.coefficients.copy_(coefficients(patients))
            if not self.coefficients.any():
                log.warning("no prior of enhancement: nothing enhances in the training patients")
        else:
            log.warning(
                "no prior of enhancement: %.0f %% of the brain in training counts as abnormal "
                "tissue; up to %.0f %% is expected, of FLAIR and by the default normaliser",
                100 * abnormal,
                100 * LARGEST_SHARE,
            )

    def patients(self, slices: Any, progress: Progress) -> Collection[Moments]:
        """Return the sums of each patient of the training."""
        patients: dict[str, Moments] = {}
        places = evenly_spread(FITTED_SLICES // self.depth, len(slices))
        for place in progress(places, "Fitting the prior", len(places)):
            item = slices[place if self.enhanced is None else (place, None, self.enhanced)]
            own, before = self.moments(item, slices.labels(place)), patients.get(item["subject"])
            patients[item["subject"]] = before.joined(own) if before else own
        return patients.values()

    def moments(self, item: dict[str, Any], labels: Tensor | None) -> Moments:
        """Return the sums of one slice, whose labels (1, *S) are those of :mod:`ldm.regions`."""
        condition, slab = (item[n][None] if n in item else None for n in ("condition", SLAB))
        contrasts, own = self.contrasts(condition, slab), self.looked_at(condition)
        brain, abnormal = brain_of(own)[0, 0], self.abnormal(contrasts)[0, 0]
        inside = (abnormal > 0.5) & brain
        enhanced = standard_units(item["target"]) - standard_units(own[0, self.source])
        shown = (abnormal * enhanced[0] / CERTAIN).clamp(0, 1)[inside].double()
        told = torch.zeros_like(shown) if labels is None else labels[0][inside]
        terms = self.terms(contrasts)[0][:, inside].double()  # (K, V)

        def sums(*parts: Tensor) -> Tensor:
            return torch.stack([terms * part @ terms.T for part in parts])

        enhancing, tumour = told == ENHANCING, (told > 0) & (told != CAVITY)
        whole = torch.zeros_like(brain) if labels is None else labels
        return Moments(
            sums(enhancing, tumour & ~enhancing, ~tumour),
            sums(shown, 1 - shown, torch.zeros_like(shown)),
            brain.sum(),
            bool(((whole == ENHANCING) | (whole == OEDEMA)).any()),
            bool((whole == UNKNOWN).any()),
        )


def coefficients(patients: Collection[Moments]) -> Tensor:
    """Return (K,) those of the prior: 0 where nothing tells what enhances from what does not."""
    within = zip(*(sums.within for sums in patients), strict=True)
    products, moments = (torch.stack(parts).sum(0) for parts in within)
    tissue = torch.stack([sums.taught / sums.weight for sums in patients]).sum(0)
    enhancing, whole = tissue[0], tissue.sum(0)
    products = POOLED * whole + (1 - POOLED) * products
    moments = POOLED * enhancing[0] + (1 - POOLED) * moments
    ridge = RIDGE * len(patients) * torch.eye(len(moments))
    direction = torch.linalg.solve(products + ridge, moments)
    # the line, by least squares of all abnormal tissue
    count, share = whole[0, 0], enhancing[0, 0] / whole[0, 0]
    mean = whole[0] @ direction / count
    variance = direction @ whole @ direction / count - mean**2
    slope = (enhancing[0] @ direction / count - mean * share) / variance
    if not (variance > 0 and slope > 0):  # NaN too, where nothing enhances
        return torch.zeros_like(direction)
    found = slope * direction
    found[0] += share - slope * mean
    return found


def build_prior(config: Config | None, facts: Mapping[str, Any]) -> nn.Module | None:
    """Return the prior that a configuration describes; None: there is none.

    Args:
        facts: what it may ask for: ``conditions``, ``target``, ``neighbours``, ``image_size``.
    """
    where = "model.params.prior_config"
    return config and instantiate_from_config(config, where=where, interface=facts, needs=("fit",))


def prior_inputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what a batch tells a prior beside its conditions."""
    return {name: batch[name] for name in (ASKED, SLAB) if name in batch}


def require_prior(prior: nn.Module | None, options: Mapping[str, Any]) -> None:
    """Refuse ``enhancement`` of a model that has nothing to scale; raises ConfigError."""
    if "enhancement" in options and (prior is None or getattr(prior, "is_flat", False)):
        raise bad_value(
            f"enhancement is {options['enhancement']}, but the model has no prior to scale: leave "
            "it out, or train with model.params.prior_config"
        )


def brain_of(contrasts: Tensor) -> Tensor:
    """Return where contrasts (B, M, *S) in [-1, 1] show anything, (B, 1, *S)."""
    return (contrasts != BACKGROUND).any(dim=1, keepdim=True)
