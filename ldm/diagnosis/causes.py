"""The causes that a diagnosis of a run knows: a function each, in :data:`CAUSES`.

A cause takes what is known of a run and returns a :class:`ldm.diagnosis.facts.Cause`, or None. Its
score says how sure it is: from 0.5 on it is taken for real; what masks and configuration prove
stands above what only a curve suggests. A further cause is a function and a line in the list.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ldm.data.nifti import REGISTER
from ldm.diagnosis.facts import STALLED_FALL, VALIDATION, Cause, RunFacts
from ldm.diagnosis.findings import WARNING
from ldm.diagnosis.masks import SMALL_SHARE
from ldm.losses.segmentation import positive_weight

RATE = "model.params.optimizer_config.params.lr"
LOSS_PARAMS = "model.params.loss_config.params"
NETWORK = "model.params.unet_config.params"
USUAL_RATES = {"adam": (5e-5, 5e-3), "sgd": (1e-3, 0.5)}  # networks of images from scratch
LITTLE_TRAVEL = 0.1
DOMINATES = 0.95  # of the loss
HEAVY = 5  # times the weight of the other terms
VANISHING_RATIO, VANISHING_NORM = 10, 1e-4
EXPLODING_GROWTH = 10
FEW_SUBJECTS, LARGE_NETWORK = 10, 10e6
OVERFITTED = 0.1  # rise of the validation loss over its lowest


def mask_not_binary(run: RunFacts) -> Cause | None:
    """Masks with values that are no labels."""
    broken = run.data.of_kind("labels") if run.data and run.is_segmentation else []
    if not broken:
        return None
    whole = [s.id for s in run.data.subjects if s.id not in {f.subject for f in broken}]
    return Cause(
        "a mask is not binary",
        0.95 if len(broken) > len(whole) else 0.75,
        f"{len(broken)} of {len(run.data.subjects)} subjects; {broken[0].subject}: "
        f"{broken[0].message.partition(': expected')[0]}",
        "write masks of 0 and 1 (labels of BraTS: 0 to 4)",
        train_on(run, {f.subject for f in broken}),
    )


def masks_shuffled(run: RunFacts) -> Cause | None:
    """Masks that lie on nothing in their images."""
    fit = run.data.mask_fit if run.data and run.is_segmentation else None
    if fit is None or not fit.is_by_chance:
        return None
    return Cause(
        "the masks belong to other images",
        0.9,
        f"laid on the images of a subject, {fit.mean_rank:.0%} of the masks of others stand out as "
        f"much as its own (0% if masks fit, 50% by chance; {len(fit.ranks)} subjects, "
        f"p {fit.p_value:.2f})",
        "check which mask belongs to whom; `dsdiff diagnose data` draws them",
    )


def contrasts_not_registered(run: RunFacts) -> Cause | None:
    """Contrasts of many subjects that agree better elsewhere."""
    shifted = {f.subject for f in run.data.of_kind("registration")} if run.data else set()
    if not shifted:
        return None
    worst = run.data.of_kind("registration")[0]
    return Cause(
        "contrasts are not registered",
        min(0.85, 0.3 + len(shifted) / len(run.data.subjects)),
        f"{len(shifted)} of {len(run.data.subjects)} subjects; {worst.subject}: "
        f"{worst.message.removesuffix(f': {REGISTER}')}",
        REGISTER,
        train_on(run, shifted),
    )


def leak(run: RunFacts) -> Cause | None:
    """Subjects that are on both sides of the split."""
    leaks = run.data.of_kind("leak") if run.data else []
    if not leaks:
        return None
    return Cause(
        "training and validation share subjects",
        0.6,
        f"{len(leaks)} pairs; {leaks[0].subject}: {leaks[0].message}",
        "keep each patient on one side; validation is of no worth until then",
    )


def foreground_small(run: RunFacts) -> Cause | None:
    """A rare foreground without a weight that balances it."""
    share = run.data.foreground_share if run.data and run.is_segmentation else None
    if not share or "train/loss_cross_entropy" not in run.curves:
        return None
    given = run.setting(f"{LOSS_PARAMS}.pos_weight")
    wanted = positive_weight(share)
    weight = wanted if given is None else float(np.mean(given))  # None: measured on the data
    if share > 5 * SMALL_SHARE or weight > 0.5 * wanted:
        return None
    return Cause(
        "the foreground is rare and not weighted for it",
        0.7 if share < SMALL_SHARE or run.is_stalled else 0.45,
        f"{share:.2%} of the voxels are foreground, pos_weight is {weight:.3g}, usual is "
        f"{wanted:.3g}",
        "weigh the foreground",
        f"{LOSS_PARAMS}.pos_weight={wanted:.3g}",
    )


def dice_weight_high(run: RunFacts) -> Cause | None:
    """A Dice term beside which the others do not count."""
    dice, entropy = (run.components.get(f"loss_{n}") for n in ("dice", "cross_entropy"))
    if not dice or not entropy:
        return None
    share = dice.level / (dice.level + entropy.level)
    weight = float(run.setting(f"{LOSS_PARAMS}.dice") or 1.0)
    other = next(
        (w for n in ("bce", "cross_entropy") if (w := run.setting(f"{LOSS_PARAMS}.{n}"))), 1.0
    )
    if share < DOMINATES or weight < HEAVY * other:
        return None
    return Cause(
        "the Dice term weighs too much",
        0.85,
        f"it is {share:.1%} of Dice and cross-entropy together (weights {weight:g} and {other:g}): "
        "the gradient of every voxel by itself, the cross-entropy's, is lost",
        "weigh both alike",
        f"{LOSS_PARAMS}.dice={other:g}",
    )


def term_dominates(run: RunFacts) -> Cause | None:
    """A further loss of a diffusion model that exceeds the fit to the image."""
    fit = run.components.get("fit")
    others = {n: c.level for n, c in run.components.items() if n != "fit"}
    if not fit or not others or not fit.is_long:
        return None
    name = max(others, key=others.get)
    if others[name] < fit.level:
        return None
    sparsity = run.setting("model.params.sparsity")
    return Cause(
        f"the term '{name}' weighs too much",
        min(0.8, 0.4 + 0.2 * others[name] / max(fit.level, 1e-12)),
        f"it is {others[name]:.3g}, the fit to the image {fit.level:.3g}",
        "lower its weight",
        f"model.params.sparsity={sparsity / 10:.3g}" if name == "sparsity" and sparsity else None,
    )


def rate_too_low(run: RunFacts) -> Cause | None:
    """A learning rate with which the weights cannot get anywhere."""
    rate, usual = run.setting(RATE), usual_rates(run)
    if not rate or not usual or not run.loss or rate >= usual[0]:
        return None
    travel = run.travel
    little = run.loss.is_long and travel is not None and travel < LITTLE_TRAVEL
    slow = run.loss.is_long and (run.loss.is_falling or run.loss.fall < 0.5)
    moved = f"; all steps together move a weight by {travel:.2g} of its size" if travel else ""
    return Cause(
        "the learning rate is too low",
        0.45 + 0.2 * slow + 0.2 * little,
        f"{rate:g}, usual are {usual[0]:g} to {usual[1]:g}{moved}; the loss changed by "
        f"{-run.loss.fall:+.0%}{' and still falls' if run.loss.is_falling else ''}",
        "raise it",
        f"{RATE}={rate_between(*usual):g}",
    )


def too_short(run: RunFacts) -> Cause | None:
    """A run that ended while its loss fell, before its weights moved, or before a trend shows."""
    rate, usual = run.setting(RATE), usual_rates(run)
    if run.loss and not run.loss.is_long:
        return Cause(
            "the run is too short",
            0.6,
            f"{len(run.loss.values)} values of the loss, over {run.steps} steps: too few to tell a "
            "trend",
            "train longer, then diagnose again",
            f"lightning.trainer.max_steps={10 * run.steps}",
        )
    if not run.loss or (rate and usual and rate < usual[0]):
        return None
    little = run.travel is not None and run.travel < LITTLE_TRAVEL
    if not little and not run.loss.is_falling:
        return None
    moved = f"; all steps together move a weight by {run.travel:.2g} of its size" if little else ""
    late = run.loss.late_fall[0] / abs(run.loss.level) if run.loss.level else 0.0
    return Cause(
        "the run is too short",
        0.6 if little else 0.4,
        f"the loss fell by {late:.1%} over the last quarter of {run.steps} steps{moved}",
        "train longer, or raise the learning rate",
        f"lightning.trainer.max_steps={10 * run.steps if little else 3 * run.steps}",
    )


def rate_too_high(run: RunFacts) -> Cause | None:
    """A learning rate with which the loss jumps or rises."""
    rate, usual = run.setting(RATE), usual_rates(run)
    if not rate or not usual or not run.loss:
        return None
    jumps, rise = run.loss.jumps / max(1, len(run.loss.values)), run.loss.rise
    unsteady = run.loss.is_long and (jumps > 0.02 or rise > 0.3)
    above = rate > usual[1]
    if not above and not (unsteady and rate > rate_between(*usual)):
        return None
    return Cause(
        "the learning rate is too high",
        0.45 + 0.4 * (above and unsteady),
        f"{rate:g}, usual are {usual[0]:g} to {usual[1]:g}; {run.loss.jumps} jumps of the loss, "
        f"which ends {rise:.0%} above its lowest",
        "lower it",
        f"{RATE}={min(rate / 10, rate_between(*usual)):.2g}",
    )


def gradients_vanish(run: RunFacts) -> Cause | None:
    """Gradients that do not reach the depth of the network.

    The ratio alone is a hint, no more: the skips of a healthy U-Net pass its depth by.
    """
    norms = run.gradients
    if len(norms) < 4 or not run.loss:
        return None
    deep = (norms["encoder_last"] + norms["decoder_first"]) / 2
    ratio = norms["encoder_first"] / max(deep, 1e-30)
    none = max(norms.values()) < VANISHING_NORM
    if not none and ratio < VANISHING_RATIO:
        return None
    score = 0.7 if none else 0.55 if deep < VANISHING_NORM else 0.4
    listed = ", ".join(f"{place} {norm:.1g}" for place, norm in norms.items())
    rate = run.setting(RATE)
    return Cause(
        "the gradients vanish",
        score if run.is_stalled else 0.2,
        f"{listed}; {ratio:.0f} times smaller in the depth"
        + ("" if run.is_stalled else ", though the loss is not stuck"),
        "raise the learning rate",
        f"{RATE}={3 * rate:g}" if rate else None,
    )


def gradients_explode(run: RunFacts) -> Cause | None:
    """Gradients that grow while the loss does not fall."""
    norm, clip = run.curves.get("train/grad_norm"), "lightning.callbacks.gradients.params.max_norm"
    if not norm or not run.loss or norm.first <= 0 or not (norm.is_long and run.loss.is_long):
        return None
    growth = norm.level / norm.first
    if growth < EXPLODING_GROWTH or run.loss.fall > STALLED_FALL:
        return None
    limit = run.setting(clip)
    return Cause(
        "the gradients explode",
        0.75 if run.loss.rise > 0.3 else 0.5,
        f"their norm grew {growth:.0f} times, to {norm.level:.3g}; the loss changed by "
        f"{-run.loss.fall:+.0%}",
        "clip them, and lower the learning rate",
        f"{clip}={1.0 if not limit else limit / 10:g}",
    )


def overfitted(run: RunFacts) -> Cause | None:
    """Few subjects for a large network."""
    validation, augmented = (
        run.curves.get(VALIDATION),
        run.setting("data.params.augmentation_config"),
    )
    lowest = validation.values.min() if validation else 0.0
    # a likelihood may be below 0, where a share of it says nothing
    rise = validation.values[-1] / lowest - 1 if validation and lowest > 0 else 0.0
    rises = bool(validation and len(validation.values) > 3 and rise > OVERFITTED)
    small = 0 < run.train_subjects < FEW_SUBJECTS and run.parameters > LARGE_NETWORK
    if not rises and not small:
        return None
    return Cause(
        "the network is large for the data",
        0.25 + 0.25 * rises + 0.2 * (rises and small),
        f"{run.parameters / 1e6:.1f} M parameters, {run.train_subjects} training subjects"
        + (f"; validation loss {rise:.0%} above its lowest" if rises else ""),
        "take a smaller network" if augmented else "augment, or take a smaller network",
        smaller_network(run) if augmented else augmentation(run),
    )


def timesteps_stuck(run: RunFacts) -> Cause | None:
    """A quarter of the timesteps of a diffusion model that is not learned as the others are."""
    curves = {
        n[-2:]: c for n, c in run.curves.items() if n.startswith("train/loss_t") and c.is_long
    }
    if len(curves) < 4:
        return None
    falls = {quarter: curve.fall for quarter, curve in curves.items()}
    stuck = min(falls, key=falls.get)
    others = float(np.median([fall for quarter, fall in falls.items() if quarter != stuck]))
    if falls[stuck] > 0.02 or others < 0.2:
        return None
    weighted = run.setting("model.params.loss_weight")
    return Cause(
        f"the timesteps of {stuck} are not learned",
        0.35,
        f"their loss fell by {falls[stuck]:.0%}, that of the others by {others:.0%} "
        "(t0: least noise)",
        "weigh the timesteps otherwise",
        "model.params.loss_weight=null" if weighted else "model.params.loss_weight=min_snr",
    )


def no_foreground_predicted(run: RunFacts) -> Cause | None:
    """A segmenter that ends with a Dice near 0 although its loss fell."""
    dice = run.curves.get("val/dice")
    if not dice or dice.values.max() > 0.05 or not run.is_stalled:
        return None
    return Cause(
        "nothing is segmented",
        0.5,
        f"the Dice of validation never exceeded {dice.values.max():.3f}",
        "weigh the foreground more",
        f"{LOSS_PARAMS}.pos_weight=20",
    )


def data_warnings(run: RunFacts) -> Cause | None:
    """Further faults of the data that a training may survive."""
    kinds = ("unreadable", "geometry", "missing", "slices", "background", "duplicate", "outside")
    found = [f for kind in kinds for f in (run.data.of_kind(kind) if run.data else ())]
    if not found:
        return None
    serious = any(f.severity != WARNING for f in found)
    return Cause(
        "the data have faults",
        0.45 if serious else 0.3,
        f"{len(found)} findings; {found[0].subject}: {found[0].message}",
        "see `dsdiff diagnose data`",
        train_on(run, {f.subject for f in found}) if serious else None,
    )


def usual_rates(run: RunFacts) -> tuple[float, float] | None:
    """Return the lowest and highest usual learning rate of the optimizer, if it is known."""
    target = str(run.setting("model.params.optimizer_config.target") or "AdamW").lower()
    return next((span for name, span in USUAL_RATES.items() if name in target), None)


def rate_between(low: float, high: float) -> float:
    """Return the middle of a range on a logarithmic scale, to one digit."""
    return float(f"{np.sqrt(low * high):.0e}")


def train_on(run: RunFacts, without: set[str | None]) -> str | None:
    """Return the override that trains on the other subjects, if some remain and they are few."""
    kept = [s for s in run.data.split.get("train", ()) if s not in without]
    fit = 0 < len(kept) <= 12 and len(kept) < len(run.data.split["train"])
    return f"data.params.train=[{','.join(kept)}]" if fit else None


def augmentation(run: RunFacts) -> str:
    """Return the override that augments the slices of a run."""
    name = "SegmentationAugmentation" if run.is_segmentation else "SliceAugmentation"
    return f"data.params.augmentation_config.target=ldm.data.augmentation.{name}"


def smaller_network(run: RunFacts) -> str | None:
    """Return the override that halves the width of a network, where its key is known."""
    for key in ("model_channels", "hidden_size", "channels"):
        width = run.setting(f"{NETWORK}.{key}")
        if isinstance(width, int):
            return f"{NETWORK}.{key}={width // 2}"
        if isinstance(width, list):
            return f"{NETWORK}.{key}=[{','.join(str(w // 2) for w in width)}]"
    return None


CAUSES: list[Callable[[RunFacts], Cause | None]] = [
    mask_not_binary,
    masks_shuffled,
    contrasts_not_registered,
    leak,
    foreground_small,
    dice_weight_high,
    term_dominates,
    rate_too_low,
    too_short,
    rate_too_high,
    gradients_vanish,
    gradients_explode,
    overfitted,
    timesteps_stuck,
    no_foreground_predicted,
    data_warnings,
]
