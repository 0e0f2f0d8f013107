"""What few patients tell of where tissue enhances: a regression of few coefficients.

A network of millions of weights that has seen tens of patients learns their tumours by heart: on
others its errors there are larger than what it knows, and a quadratic form of each contrast at two
scales finds the enhancing part better (docs/what-helps.md). So the two are stacked (Wolpert 1992):
the network has its say everywhere, in abnormal tissue a smaller one, and the form the rest of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.errors import bad_value
from ldm.intensity import (
    BACKGROUND,
    UNIT,
    abnormality,
    blur_inside,
    clearest,
    standard_units,
)
from ldm.label_scheme import UNKNOWN
from ldm.models.base import Config
from ldm.models.diffusion.anchors import FITTED_SLICES
from ldm.modules.polynomial import polynomial
from ldm.regions import ENHANCING, OEDEMA
from ldm.study import Study, native_of
from ldm.util import evenly_spread, instantiate_from_config, own_channels

log = logging.getLogger(__name__)

SCALES = (96, 24)  # Gaussians of 2 and 8 mm, as parts of the height of an image of 192 mm
SURROUNDINGS = 32  # and one of 6 mm
LARGEST_SHARE = 0.3  # share of the brain above which something else is taken for abnormal tissue
ABNORMAL = 0.3  # how bright the surroundings of a voxel are that is abnormal for certain
CLIP = 4.0  # z of a contrast that counts
CERTAIN = 3.0  # z of enhancement, where no label tells, that counts as much as a label
LEAST = 0.005  # of the brain of a patient: one with less abnormal tissue counts less than others
RIDGE = 0.03  # of the sum over patients, each of whom has weight 1


class Moments(NamedTuple):
    """Sums over the abnormal tissue of a patient, of which a regression is made.

    Args:
        products: (K, K) of the terms, two by two.
        labelled, enhanced: (K,) of the terms with what labels say, and what the truth shows.
        weight: of the voxels.
        brain: number of voxels of brain.
        tells: whether labels tell what enhances.
        doubtful: whether there are labels of which nobody says what they mean.
    """

    products: Tensor
    labelled: Tensor
    enhanced: Tensor
    weight: Tensor
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
        """The sums with what labels say, or else with what the truth shows."""
        return self.labelled if self.tells and not self.doubtful else self.enhanced


class EnhancementPrior(nn.Module):
    """``prior(image, condition, presence, factor, asked, sampled) -> image`` of an enhanced target.

    ``image + A (strength p - shrink (image - source))``, in units of z: A, from 0 to 1, says where
    the surroundings are abnormal, see :func:`ldm.intensity.abnormality`, and p how certainly tissue
    enhances: a quadratic form of each contrast at two scales, fitted to the training patients by
    ridge regression where A is above a half, and stored with the weights. It is taught by the
    labels of those who have them, else by how much the truth enhances there. Patients count alike.

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
    """

    def __init__(
        self,
        conditions: Sequence[str],
        target: str | None = Study.target,
        neighbours: int = 0,
        image_size: Sequence[int] = (96, 96),
        strength: float = 3.0,
        shrink: float = 0.5,
    ) -> None:
        super().__init__()
        self.strength, self.shrink = strength, shrink
        self.own, places = own_channels(len(conditions), neighbours), list(conditions)
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

    def forward(
        self,
        image: Tensor,
        condition: Tensor,
        presence: Tensor,
        factor: float = 1.0,
        asked: Tensor | None = None,
        sampled: bool = False,
    ) -> Tensor:
        """Return the image with what the prior knows.

        Args:
            condition: (B, N*M, *S) contrasts.
            presence: (B, M) bool.
            factor: of what is added; below 1 also of what is taken back.
            asked: (B, 2M) where the target varies, see :data:`ldm.study.ASKED`.
            sampled: whether the image has the texture of a sample; what is taken back is smooth
                then, so that texture stays.
        """
        if self.is_flat or not self.coefficients.any():
            return image
        contrasts = self.contrasts(condition)
        brain = brain_of(contrasts)
        made = image - contrasts[:, self.source, None]
        made = blur_inside(made, brain, self.widths[0]) if sampled else made
        added = self.strength * UNIT * self.certainty(contrasts, brain)
        change = factor * added - min(factor, 1.0) * self.shrink * made
        changes = presence[:, self.places].all(dim=1)
        if self.enhanced is not None and asked is not None:
            changes = changes & (asked[:, self.enhanced] > 0)
        inside = brain & changes.view(-1, *[1] * (image.ndim - 1))
        return (image + self.abnormal(contrasts, brain) * inside * change).clamp(-1, 1)

    def contrasts(self, condition: Tensor) -> Tensor:
        """Return the contrasts (B, M, *S) of the slice itself that the prior looks at."""
        return condition[:, self.own][:, self.places]

    def abnormal(self, contrasts: Tensor, brain: Tensor) -> Tensor:
        """Return A (B, 1, *S)."""
        guide = contrasts[:, self.guide, None]
        return (abnormality(guide, brain, self.reach) / ABNORMAL).clamp(max=1.0)

    def certainty(self, contrasts: Tensor, brain: Tensor) -> Tensor:
        """Return p (B, 1, *S), from 0 to 1."""
        fitted = torch.einsum("bk...,k->b...", self.terms(contrasts, brain), self.coefficients)
        return fitted[:, None].clamp(0, 1)

    def terms(self, contrasts: Tensor, brain: Tensor) -> Tensor:
        """Return the terms (B, K, *S) of the quadratic form."""
        z = standard_units(contrasts).clamp(-CLIP, CLIP)
        scales = [blur_inside(z, brain, width) for width in self.widths]
        return torch.stack(polynomial(torch.cat(scales, dim=1).unbind(1), 2), dim=1)

    def fit(self, data: Any) -> None:
        """Take the coefficients from training slices, patient by patient, in float64.

        Without abnormal tissue, or where most of the brain is taken for it, they stay 0.
        """
        if self.is_flat:
            return
        slices, patients = data.train_slices, dict[str, Moments]()
        places = evenly_spread(FITTED_SLICES // self.depth, len(slices))
        for place in data.progress(places, "Fitting the prior", len(places)):
            item = slices[place if self.enhanced is None else (place, None, self.enhanced)]
            own, before = self.moments(item, slices.labels(place)), patients.get(item["subject"])
            patients[item["subject"]] = before.joined(own) if before else own
        brain = sum(int(sums.brain) for sums in patients.values())
        abnormal = sum(int(sums.weight) for sums in patients.values()) / max(1, brain)
        if not 0 < abnormal <= LARGEST_SHARE:
            log.warning(
                "no prior of enhancement: %.0f %% of the brain in training counts as abnormal "
                "tissue; up to %.0f %% is expected, of FLAIR and by the default normaliser",
                100 * abnormal,
                100 * LARGEST_SHARE,
            )
            return
        size = len(self.coefficients)
        products, moments = torch.zeros(size, size).double(), torch.zeros(size).double()
        for sums in patients.values():
            share = 1 / torch.maximum(sums.weight, LEAST * sums.brain).clamp(min=1.0)
            products += share * sums.products
            moments += share * sums.taught
        products += RIDGE * len(patients) * torch.eye(size)
        self.coefficients.copy_(torch.linalg.solve(products, moments))

    def moments(self, item: dict[str, Any], labels: Tensor | None) -> Moments:
        """Return the sums of one slice, whose labels (1, *S) are those of :mod:`ldm.regions`."""
        contrasts = self.contrasts(item["condition"][None])
        brain = brain_of(contrasts)
        labels = torch.zeros_like(brain) if labels is None else labels[None]
        abnormal = self.abnormal(contrasts, brain)
        source = standard_units(contrasts[:, self.source, None])
        enhanced = standard_units(item["target"][None]) - source
        inside = ((abnormal > 0.5) & brain)[0, 0]
        terms = self.terms(contrasts, brain)[0][:, inside].double()  # (K, V)
        shown = (abnormal * enhanced / CERTAIN).clamp(0, 1)[0, 0][inside].double()
        return Moments(
            terms @ terms.T,
            terms @ (labels == ENHANCING)[0, 0][inside].double(),
            terms @ shown,
            inside.sum(),
            brain.sum(),
            bool(((labels == ENHANCING) | (labels == OEDEMA)).any()),
            bool((labels == UNKNOWN).any()),
        )


def build_prior(config: Config | None, facts: Mapping[str, Any]) -> nn.Module | None:
    """Return the prior that a configuration describes; None: there is none.

    Args:
        facts: what it may ask for: ``conditions``, ``target``, ``neighbours``, ``image_size``.
    """
    where = "model.params.prior_config"
    return config and instantiate_from_config(config, where=where, interface=facts, needs=("fit",))


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
