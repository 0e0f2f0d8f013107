"""What a further loss of a diffusion model sees, and losses that look at the predicted image.

An entry of ``model.params.loss_config`` names a class whose objects are called with a
:class:`PredictedBatch` and return weighted terms by name, each a scalar that is added to the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from ldm.called import module_from_config, terms_from
from ldm.errors import ConfigError, bad_value


@dataclass(frozen=True)
class PredictedBatch:
    """What a network made of a training batch.

    Attributes:
        x_0: (B, C, *s) clean data that the output stands for, in the space of diffusion: of the
            subtraction image times its gain where a contrast is subtracted, else of the target.
        target: (B, C, *s) the same of the truth.
        x_t, t: (B, C, *s), (B,) noisy data and timesteps that the network saw.
        features: what a backbone disentangles, {kind: [(B, C, *S) a stream]}, where a loss has
            ``needs_features``.
        batch: ``target`` and ``condition`` images, ``brain``, ``seg`` where there is one.
        to_image: from x_0 to images, see :attr:`image`.
    """

    x_0: Tensor
    target: Tensor
    x_t: Tensor
    t: Tensor
    features: Mapping[str, list[Tensor]] = field(default_factory=dict)
    batch: Mapping[str, Any] = field(default_factory=dict)
    to_image: Callable[[Tensor], Tensor] = lambda x_0: x_0

    @cached_property
    def image(self) -> Tensor:
        """(B, 1, *S) predicted images, to compare with ``batch["target"]``."""
        return self.to_image(self.x_0)

    @property
    def brain(self) -> Tensor:
        """(B, 1, *S) bool."""
        return self.batch["brain"]


class Sparsity(nn.Module):
    """The mean absolute predicted x_0, the term ``sparsity``.

    With ``subtract`` and l1 it moves the prediction from the median to the quantile
    0.5 - weight / 2 on the side of no enhancement: what is not likely to enhance is left as it is.

    Args:
        weight: of the term.
    """

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, prediction: PredictedBatch) -> dict[str, Tensor]:
        """Return the weighted term."""
        return {"sparsity": self.weight * prediction.x_0.abs().mean()}


class Expectile(nn.Module):
    """What makes of the squared error that of an expectile (Newey & Powell 1987), ``expectile``.

    With ``loss_type: l2`` an error ``r = target - x_0`` weighs ``1 + asymmetry`` where it is
    positive and ``1 - asymmetry`` where it is negative: the minimum is the expectile
    ``(1 + asymmetry) / 2`` in place of the mean.

    Args:
        asymmetry: between -1 and 1.
    """

    def __init__(self, asymmetry: float = 0.5) -> None:
        super().__init__()
        self.asymmetry = asymmetry

    def forward(self, prediction: PredictedBatch) -> dict[str, Tensor]:
        """Return the term."""
        error = prediction.target - prediction.x_0
        return {"expectile": self.asymmetry * (error.sign() * error.square()).mean()}


def build_losses(
    loss_config: Mapping[str, Any],
    sparsity: float,
    without_features: str | None,
    facts: Mapping[str, Any] | None = None,
) -> nn.ModuleDict:
    """Return the further losses of a model by name.

    Args:
        loss_config: {name: ``target`` / ``params``, or None for none}. A class whose losses look
            at the features of a backbone has the attribute ``needs_features``.
        sparsity: weight of a :class:`Sparsity` besides; 0: none.
        without_features: the class of a backbone that gives no features, None for one that does.
        facts: what a loss may ask for: ``channels`` and ``size`` of x_0, the number of condition
            ``images``, ``conditions``, ``target``, ``neighbours``.

    Raises:
        ConfigError: CONFIG-VALUE for a loss of features that the backbone does not give,
            CONFIG-TARGET for a class that is no loss.
    """
    losses = {
        name: module_from_config(
            node,
            where=f"model.params.loss_config.{name}",
            called="prediction",
            interface=facts,
        )
        for name, node in loss_config.items()
        if node
    }
    for name, loss in losses.items():
        if without_features and getattr(loss, "needs_features", False):
            raise bad_value(
                f"model.params.loss_config.{name} needs a backbone with features, which "
                f"{without_features} does not give: set it to null, or choose "
                "UNet_DS_Diff.model.DSUnetModel or guided_diffusion.unet.UNet_disc_Model, or add "
                "forward_with_features to your own class (docs/add-a-backbone.md)"
            )
    return nn.ModuleDict(losses | ({"sparsity": Sparsity(sparsity)} if sparsity else {}))


def terms_of(losses: nn.ModuleDict, prediction: PredictedBatch, fit: Tensor) -> dict[str, Tensor]:
    """Return ``fit`` and the weighted terms of all further losses by name.

    Raises:
        ConfigError: CONFIG-TARGET for a loss that raises, returns what is no term, or a term under
            a name that is taken.
    """
    terms = {"fit": fit}
    for key, loss in losses.items():
        where = f"model.params.loss_config.{key}"
        made = terms_from(loss, where, key, prediction)
        if taken := [name for name in made if name in ("loss", *terms)]:
            raise ConfigError(
                "CONFIG-TARGET",
                f"{where}: {type(loss).__name__} returned a term '{taken[0]}', which is taken: "
                "give it another name",
            )
        terms |= made
    return terms


def portable_losses(loss_config: Mapping[str, Any], losses: nn.ModuleDict) -> dict[str, Any]:
    """Return ``loss_config`` without files, where one of the losses has a ``portable_config``."""
    portable = {
        name: loss.portable_config()
        for name, loss in losses.items()
        if hasattr(loss, "portable_config")
    }
    return {"loss_config": {**loss_config, **portable}} if portable else {}
