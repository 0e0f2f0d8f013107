"""What few patients tell of where tissue enhances: a regression of few coefficients.

A network of millions of weights that has seen tens of patients learns their tumours by heart: on
others its errors there are larger than what it knows, and a quadratic form of each contrast at two
scales finds the enhancing part better (docs/what-helps.md). So the two are stacked (Wolpert 1992):
the network has its say everywhere, in abnormal tissue a smaller one, and the form the rest of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.called import module_from_config, require_tensor, tensor_from
from ldm.errors import bad_value, calling
from ldm.intensity import (
    BACKGROUND,
    UNIT,
    abnormality,
    blur_inside,
    clearest,
    standard_units,
)
from ldm.models.base import Config
from ldm.models.prior_regression import (
    LEAST,
    TINY,
    AbnormalTissue,
    Moments,
    curve,
    line,
    moments_of,
    taught,
)
from ldm.modules.broadcast import per_item
from ldm.modules.polynomial import polynomial
from ldm.study import ASKED, MAPS, Study, native_of
from ldm.util import evenly_spread, own_channels

log = logging.getLogger(__name__)

SCALES = (96, 24)  # Gaussians of 2 and 8 mm, as parts of the height of an image of 192 mm
SURROUNDINGS = 32  # and one of 6 mm
LARGEST_SHARE = 0.3  # share of the brain above which something else is taken for abnormal tissue
ABNORMAL = 0.3  # how bright the surroundings of a voxel are that is abnormal for certain
CLIP = 4.0  # z of a contrast that counts
CERTAIN = 3.0  # z of enhancement, where no label tells, that counts as much as a label
FITTED_PATIENTS = 200  # spread evenly over those of the training
FITTED_VOXELS = 4096  # of each, spread evenly over its abnormal tissue


class EnhancementPrior(nn.Module):
    """``prior(image, condition, presence, factor, ...) -> image`` of an enhanced target.

    ``image + A (strength p - shrink (image - source))``, in units of z: A, from 0 to 1, says where
    the surroundings are abnormal, see :func:`ldm.intensity.abnormality`, and p how certainly tissue
    enhances: of a score, which is a quadratic form of each contrast at two scales, stored with the
    weights. It is fitted to the training patients where A is above a half, in two steps: the score
    by ridge regression, half of it to all tissue there and half within each tumour, to what tells
    enhancing tissue from the rest (fixed effects of the patient, both of equal weight); then p by a
    logistic curve of the score over its deviation in the abnormal tissue of the patient, because
    the scores of patients differ several times in scale, whatever enhances. It is taught by the
    labels of those who have them, else by how much the truth enhances there, and all tissue there
    counts as tumour. Patients count alike.

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
            they lie in its plane, and in patches of volumes take voxels for cubes.
        relative: whether p is a logistic curve of the score in units of the patient; else the score
            itself, from 0 to 1, after a line.
        pools: whether what it takes from patients stays with the weights (sums over them), so that
            a training that starts from its run adds its own patients to those; of a curve alone.
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
        relative: bool = False,
        pools: bool = False,
    ) -> None:
        super().__init__()
        self.strength, self.shrink = strength, shrink
        self.through, self.relative = through, relative
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
        self.sees_volumes = len(image_size) == 3
        terms = len(polynomial([0.0] * len(given) * len(SCALES), 2))
        self.register_buffer("coefficients", torch.zeros(terms))
        if through:  # how wide a voxel is, as part of the distance of slices
            self.register_buffer("aspect", torch.ones(()))
        if relative:  # of the curve; of the score in the abnormal tissue of a patient as a rule
            self.register_buffer("intercept_and_slope", torch.zeros(2))
            self.register_buffer("deviation", torch.ones(()))
        self.pools = pools
        if pools:
            self.register_buffer("products", torch.zeros(terms, terms))
            self.register_buffer("moments", torch.zeros(terms))
            self.register_buffer("patients", torch.zeros(()))

    @property
    def changes_nothing(self) -> bool:
        """Whether it has found nothing."""
        return self.is_flat or not self.coefficients.any()

    def forward(
        self,
        image: Tensor,
        condition: Tensor,
        presence: Tensor,
        factor: float = 1.0,
        sampled: bool = False,
        asked: Tensor | None = None,
        maps: Tensor | None = None,
    ) -> Tensor:
        """Return the image with what the prior knows.

        Args:
            condition: (B, N*M, *S) contrasts.
            presence: (B, M) bool.
            factor: of what is added; below 1 also of what is taken back.
            sampled: whether the image has the texture of a sample; what is taken back is smooth
                then, so that texture stays.
            asked: (B, 2M) where the target varies, see :data:`ldm.study.ASKED`.
            maps: (B, 2, *S), see :meth:`maps`; None: each item is all there is of a patient.
        """
        if self.changes_nothing or not factor:
            return image
        own = condition[:, self.own]
        maps = self.maps_of_items(own) if maps is None else maps
        abnormal, certainty = maps.split(1, dim=1)
        own = own[:, self.places]
        brain = brain_of(own)
        made = image - own[:, self.source, None]
        made = blur_inside(made, brain, self.widths[0]) if sampled else made
        change = factor * self.strength * UNIT * certainty - min(factor, 1.0) * self.shrink * made
        inside = brain & per_item(self.acts_on(presence, asked), image)
        return (image + abnormal * inside * change).clamp(-1, 1)

    def acts_on(self, presence: Tensor, asked: Tensor | None = None) -> Tensor:
        """Return which items (B,) the prior changes; arguments as of :meth:`forward`."""
        changes = presence[:, self.places].all(dim=1)
        if self.enhanced is None or asked is None:
            return changes
        return changes & (asked[:, self.enhanced] > 0)

    def doubt(
        self, maps: Tensor, presence: Tensor, asked: Tensor | None = None, factor: float = 1.0
    ) -> Tensor:
        """Return the variance (B, *S) of what is added, where tissue enhances or does not.

        Args:
            maps: A and p (B, 2, *S), see :meth:`maps`.
            presence, asked, factor: see :meth:`forward`.
        """
        abnormal, certainty = maps.unbind(1)
        added = factor * self.strength * UNIT * abnormal
        return (
            per_item(self.acts_on(presence, asked), maps[:, 0])
            * added**2
            * certainty
            * (1 - certainty)
        )

    def maps_of_items(self, condition: Tensor) -> Tensor:
        """Return A and p (B, 2, *S) of conditions (B, M, *S), each as if it were all there is."""
        items = condition.unsqueeze(2) if condition.ndim == 4 else condition
        found = torch.stack([self.maps(item.transpose(0, 1)) for item in items])
        return found.transpose(1, 2).reshape(len(items), 2, *condition.shape[2:])

    @torch.no_grad()
    def maps(self, volume: Tensor, aspect: float | None = None) -> Tensor | None:
        """Return A and p (S, 2, H, W) of the slices (S, M, H, W) of a patient; None: nothing.

        Args:
            aspect: how wide a voxel is, as part of the distance of slices; None: as in training.
        """
        if self.changes_nothing:
            return None
        images = volume.to(self.coefficients).transpose(0, 1)[self.places]
        abnormal, scales, brain = self.seen(images, aspect)
        score = self.score(scales)
        return torch.stack([abnormal, self.certainty(score, (abnormal > 0.5) & brain, brain)], 1)

    def seen(self, images: Tensor, aspect: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return A (S, H, W), what the form is of (C, S, H, W), and the brain, of (M, S, H, W)."""
        if not self.through:
            aspect = float(self.sees_volumes)
        elif aspect is None:
            aspect = float(self.aspect)

        def axes(width: float) -> tuple[float, float, float]:
            return width * aspect, width, width

        images, brain = images[None], brain_of(images[None])
        excess = abnormality(images[:, self.guide, None], brain, axes(self.reach))
        z = standard_units(images).clamp(-CLIP, CLIP)
        scales = [blur_inside(z, brain, axes(width)) for width in self.widths]
        return (excess / ABNORMAL).clamp(max=1.0)[0, 0], torch.cat(scales, 1)[0], brain[0, 0]

    def score(self, scales: Tensor) -> Tensor:
        """Return the quadratic form (*S) of images (C, *S).

        That of :func:`polynomial`, without holding all terms of a volume, which take a gigabyte.
        """
        count = len(scales)
        parts = [1, count, len(self.coefficients) - count - 1]
        constant, linear, squares = self.coefficients.split(parts)
        rows, columns = torch.triu_indices(count, count, device=scales.device)
        form = torch.zeros(count, count).to(squares).index_put((rows, columns), squares)
        slopes = torch.tensordot(form, scales, 1) + per_item(linear, scales)
        return constant + (slopes * scales).sum(dim=0)

    def certainty(self, score: Tensor, inside: Tensor, brain: Tensor) -> Tensor:
        """Return p (*S), from 0 to 1, of a score (*S) and where tissue is abnormal."""
        if not self.relative:
            return score.clamp(0, 1)
        found = score[inside]
        deviation = found.std(correction=0) if len(found) else self.deviation
        deviation = self.settled(deviation, len(found), int(brain.sum()))
        intercept, slope = self.intercept_and_slope
        return torch.sigmoid(intercept + slope * score / deviation)

    def settled(self, deviation: Tensor, count: int, brain: int) -> Tensor:
        """Return the deviation of a score, which few voxels do not tell, as that of others say."""
        others = max(1.0, LEAST * brain)
        variance = (count * deviation**2 + others * self.deviation**2) / (count + others)
        return variance.sqrt().clamp(min=TINY)

    def fit(self, data: Any) -> None:
        """Take the coefficients from the training patients, in float64.

        Without abnormal tissue, or where most of the brain is taken for it, they stay 0.
        """
        if self.is_flat:
            return
        slices = data.train_slices
        chosen = evenly_spread(FITTED_PATIENTS, len(slices.subjects))
        if self.through and chosen:
            self.aspect.fill_(float(np.median([slices.subjects[n].aspect for n in chosen])))
        shown = data.progress(chosen, "Fitting the prior", len(chosen))
        patients = [self.tissue(*slices.volume(number)) for number in shown]
        share = sum(p.count for p in patients) / max(1, sum(p.brain for p in patients))
        if not 0 < share <= LARGEST_SHARE:
            log.warning(
                "no prior of enhancement: %.0f %% of the brain in training counts as abnormal "
                "tissue; up to %.0f %% is expected, of FLAIR and by the default normaliser",
                100 * share,
                100 * LARGEST_SHARE,
            )
        elif not self.fit_to([patient for patient in patients if patient.count]):
            log.warning("no prior of enhancement: nothing enhances in the training patients")

    def tissue(
        self, slices: np.ndarray, labels: np.ndarray | None, aspect: float
    ) -> AbnormalTissue:
        """Return what a patient tells.

        Args:
            slices: (S, M + 1, H, W), the last contrast the target, unless it is one of the others.
            labels: (S, H, W) those of :mod:`ldm.regions`, or None.
            aspect: see :meth:`maps`.
        """
        images = torch.from_numpy(slices).transpose(0, 1)
        target = images[-1 if self.enhanced is None else self.enhanced]
        images = images[self.places]
        abnormal, scales, brain = self.seen(images, aspect)
        places = ((abnormal > 0.5) & brain).flatten().nonzero()[:, 0]
        count = len(places)
        places = places[evenly_spread(FITTED_VOXELS, count)]
        enhanced = (standard_units(target) - standard_units(images[self.source])).flatten()
        shown = (abnormal.flatten() * enhanced / CERTAIN).clamp(0, 1)[places]
        told = None if labels is None else torch.from_numpy(labels)
        enhancing, tumour = taught(told, shown, places)
        terms = polynomial(scales.flatten(1)[:, places].double().unbind(0), 2)
        return AbnormalTissue(
            torch.stack(terms), enhancing.double(), tumour.double(), count, int(brain.sum())
        )

    def fit_to(self, patients: Sequence[AbnormalTissue]) -> bool:
        """Take the coefficients from patients; return whether they tell what enhances."""
        found = moments_of(patients)
        if self.pools:
            self.keep(found)
        direction = found.direction()
        if not direction.any():
            return False
        scores = [direction @ patient.terms for patient in patients]
        if self.relative:
            deviations = torch.stack([score.std(correction=0) for score in scores])
            counts = torch.stack([patient.weights.sum() for patient in patients])
            self.deviation.copy_(deviations @ counts / counts.sum())
            scores = [
                score / self.settled(deviation, patient.count, patient.brain)
                for score, deviation, patient in zip(scores, deviations, patients, strict=True)
            ]
        fit = curve if self.relative else line
        told = scores, [p.enhancing for p in patients], [p.weights for p in patients]
        intercept, slope = fit(*(torch.cat(parts).numpy() for parts in told))
        if not slope > 0:  # NaN too, where the score is the same everywhere
            return False
        if self.relative:
            self.intercept_and_slope.copy_(torch.tensor([intercept, slope]))
        else:
            direction *= slope
            direction[0] += intercept
        self.coefficients.copy_(direction)
        return True

    def keep(self, found: Moments) -> None:
        """Store the moments that the coefficients are of."""
        for name, value in found._asdict().items():
            getattr(self, name).copy_(value)

    def join(self, other: Mapping[str, Tensor]) -> None:
        """Add the patients of another run to those that it was fitted to.

        The coefficients are those of one regression on all of them. The curve, and the deviation
        of others, which are in units of a patient, are means over the patients, but for those in
        whom none was found.

        Args:
            other: the weights of a prior of this kind, by their names in it.
        """
        own = self.state_dict()
        is_curve = self.pools and self.relative  # a line is in coefficients that no sum tells
        if not is_curve or other.keys() != own.keys():
            return
        before, new = (
            float(prior["patients"]) if prior["coefficients"].any() else 0.0
            for prior in (other, own)
        )
        pooled = Moments(*(own[name] + other[name] for name in Moments._fields))
        self.keep(pooled)
        if before or new:
            for name in ("intercept_and_slope", "deviation"):
                own[name].copy_(torch.lerp(other[name], own[name], new / (before + new)))
            self.coefficients.copy_(pooled.direction())


def maps_of(prior: nn.Module | None, slices: np.ndarray, aspect: float) -> np.ndarray | None:
    """Return what a prior finds in the slices (S, M, H, W) of a patient, (S, K, H, W).

    None: it has found nothing in training, or does not look at volumes.
    """
    find, volume = getattr(prior, "maps", None), torch.from_numpy(slices)
    if find is None:
        return None
    with calling(prior):
        found: Any = find(volume, aspect)
    if found is None:
        return None
    require_tensor(find, found, (len(volume), None, *volume.shape[2:]), volume)
    return found.float().cpu().numpy()


def build_prior(config: Config | None, facts: Mapping[str, Any]) -> nn.Module | None:
    """Return the prior that a configuration describes; None: there is none.

    Args:
        facts: what it may ask for: ``conditions``, ``target``, ``neighbours``, ``image_size``.
    """
    return config and module_from_config(
        config,
        where="model.params.prior_config",
        called="image, condition, presence, factor, sampled=, asked=, maps=",
        interface=facts,
        needs=("fit",),
    )


def informed(
    prior: nn.Module | None,
    image: Tensor,
    batch: Mapping[str, Any],
    factor: float = 1.0,
    sampled: bool = False,
) -> Tensor:
    """Return an image (B, 1, *S) with what a prior, if there is one, knows.

    Args:
        batch: ``condition``, ``presence`` and what else it may tell a prior.
        factor, sampled: see :meth:`EnhancementPrior.forward`.

    Raises:
        ConfigError: CONFIG-TARGET, CONFIG-SHAPE, see :func:`ldm.called.tensor_from`.
    """
    if prior is None:
        return image
    told = {"sampled": sampled, **prior_inputs(batch)}
    given = batch["condition"], batch["presence"], factor
    return tensor_from(prior, image.shape, image, *given, **told)


def prior_inputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what a batch tells a prior beside its conditions."""
    return {name: batch[name] for name in (ASKED, MAPS) if name in batch}


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
