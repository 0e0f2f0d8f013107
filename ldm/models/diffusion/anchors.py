"""Anchors: an estimate of the target that is known beforehand; what is diffused is the rest.

``x_0 = gain (target - anchor)``: a contrast (the rest is the subtraction image), the closed-form
regression of the target on the contrasts, or a trained model, frozen: its posterior mean, from
which diffusion samples the residual (CorrDiff, Mardani et al. 2023) or a flow starts
(Posterior-Mean Rectified Flow, Ohayon et al. 2024: noise of deviation ``1 / gain`` about the mean).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.called import module_from_config, tensor_from
from ldm.errors import CheckpointError, ConfigError, DataError, bad_value, one_of
from ldm.intensity import BACKGROUND, HEALTHY
from ldm.models.base import Config, wanted
from ldm.models.diffusion.noise import KeyedNoise
from ldm.models.frozen import described_run, frozen_model, without_run
from ldm.modules.broadcast import per_channel, per_item
from ldm.modules.polynomial import polynomial
from ldm.study import akin_of
from ldm.util import evenly_spread, own_channels, user_path

FITTED_SLICES = 2000  # spread evenly over the training slices: a regression has few coefficients


class Anchor(nn.Module):
    """``anchor(condition (B, N*M, *S), presence (B, M)) -> (B, 1, *S)``, in units of images.

    Args:
        conditions: input contrasts, in channel order; passed in.
        neighbours: slices on each side that are conditions too; passed in.
    """

    def __init__(self, conditions: Sequence[str], neighbours: int = 0) -> None:
        super().__init__()
        self.conditions, self.neighbours = tuple(conditions), neighbours

    def own_slice(self, condition: Tensor) -> Tensor:
        """Return the contrasts (B, M, *S) of the slice itself, without its neighbours."""
        return condition[:, own_channels(len(self.conditions), self.neighbours)]

    def latents(
        self,
        encode: Callable[[Tensor], Tensor],
        encoded: Tensor,
        batch: Mapping[str, Any],
    ) -> Tensor:
        """Return the anchor (B, C, *s) in a latent space.

        Args:
            encode: images (B, 1, *S) to latents (B, C, *s).
            encoded: (B, N*M*C, *s) latents of the conditions, an absent one 0.
            batch: what a sample is given: ``condition``, ``presence`` and more.
        """
        condition = batch["condition"]
        shape = (len(condition), 1, *condition.shape[2:])
        return encode(tensor_from(self, shape, condition, batch["presence"]))

    def fit(self, data: Any) -> None:
        """Take what training data tell, before a training starts."""

    def portable_config(self) -> Config | None:
        """Return the configuration without files elsewhere, None if it names none."""
        return None


class ContrastAnchor(Anchor):
    """One of the conditions: what is diffused is the subtraction image.

    Args:
        subtract: which.
        conditions, neighbours: see :class:`Anchor`.
    """

    def __init__(self, subtract: str, conditions: Sequence[str], neighbours: int = 0) -> None:
        super().__init__(conditions, neighbours)
        one_of("model.params.subtract", subtract, self.conditions)
        self.place = self.conditions.index(subtract)

    def extra_repr(self) -> str:
        """Return which contrast it is."""
        return self.conditions[self.place]

    def forward(self, condition: Tensor, presence: Tensor) -> Tensor:
        """Return the contrast."""
        return self.own_slice(condition)[:, self.place, None]

    def latents(
        self,
        encode: Callable[[Tensor], Tensor],
        encoded: Tensor,
        batch: Mapping[str, Any],
    ) -> Tensor:
        """Return the latents of the contrast, which is encoded already."""
        images = encoded.unflatten(1, (batch["condition"].shape[1], -1))
        return self.own_slice(images)[:, self.place]


class AkinAnchor(Anchor):
    """For a target that varies: what shows healthy tissue as the target does.

    That is T1 for T1ce and T1ce for T1, so that the subtraction image is diffused. For any other
    target, and where that contrast is absent, it is the median of healthy tissue in the brain.

    Args:
        conditions, neighbours: see :class:`Anchor`.
    """

    def __init__(self, conditions: Sequence[str], neighbours: int = 0) -> None:
        super().__init__(conditions, neighbours)
        akin = [akin_of(name, self.conditions) for name in self.conditions]
        self.akin = [self.conditions.index(name) if name else -1 for name in akin]

    def latents(
        self,
        encode: Callable[[Tensor], Tensor],
        encoded: Tensor,
        batch: Mapping[str, Any],
    ) -> Tensor:
        """Return the anchor of what each item asks for."""
        targets, presence = wanted(batch), batch["presence"]
        images = self.own_slice(batch["condition"])  # (B, M, *S)
        akin = torch.tensor(self.akin, device=images.device)[targets]  # (B,)
        items = torch.arange(len(images), device=images.device)
        is_there = (akin >= 0) & presence[items, akin]
        outside = ((images == BACKGROUND) | ~per_channel(presence, images)).all(1)
        flat = torch.where(outside, BACKGROUND, HEALTHY)
        chosen = torch.where(per_item(is_there, flat), images[items, akin], flat)
        return encode(chosen[:, None])


class RegressionAnchor(Anchor):
    """Least squares of the target on the contrasts, voxel by voxel, over the brain.

    Fitted on training slices when a training starts, and stored with the weights.

    Args:
        degree: 1, or 2 for squares and products too.
        conditions, neighbours: see :class:`Anchor`.
    """

    def __init__(self, conditions: Sequence[str], neighbours: int = 0, degree: int = 2) -> None:
        super().__init__(conditions, neighbours)
        self.degree = degree
        terms = len(polynomial([0.0] * len(self.conditions), degree))
        self.register_buffer("coefficients", torch.zeros(terms))

    def forward(self, condition: Tensor, presence: Tensor) -> Tensor:
        """Return what the coefficients make of the contrasts; an absent one is 0."""
        absent = ~per_channel(presence, condition)
        contrasts = self.own_slice(condition).masked_fill(absent, 0.0)
        terms = torch.stack(polynomial(contrasts.unbind(1), self.degree), dim=1)  # (B, K, *S)
        image = torch.einsum("bk...,k->b...", terms, self.coefficients)[:, None]
        outside = ((contrasts == BACKGROUND) | absent).all(dim=1, keepdim=True)
        return image.clamp(-1, 1).masked_fill(outside, BACKGROUND)

    def fit(self, data: Any) -> None:
        """Sum the normal equations over training slices in float64, and solve them.

        Raises:
            DataError: DATA-EMPTY without a voxel of brain.
        """
        slices = data.train_slices
        products = moments = torch.zeros(())
        for place in evenly_spread(FITTED_SLICES, len(slices)):
            item = slices[place]
            inside = item["brain"][0]
            values = self.own_slice(item["condition"][None])[0][:, inside].double()  # (M, V)
            terms = torch.stack(polynomial(values.unbind(0), self.degree))  # (K, V)
            products = products + terms @ terms.T
            moments = moments + terms @ item["target"][0][inside].double()
        if not products.any():
            raise DataError("DATA-EMPTY", "no voxel to fit the regression on: see data.params")
        solved = torch.linalg.lstsq(products, moments[:, None]).solution[:, 0]
        self.coefficients.copy_(solved)


class ModelAnchor(Anchor):
    """The posterior mean of a trained model, which is frozen and saved with the weights.

    Args:
        path: run folder of ``dsdiff train``; None in a saved run.
        model_config: ``target`` / ``params`` of its model; None: as the run folder says.
        trust: further classes that the run folder may name.
        conditions, neighbours: see :class:`Anchor`.

    Raises:
        ConfigError: CONFIG-MISSING without a run. CheckpointError: see
            :func:`ldm.checkpoint.read_weights`; CKPT-MISMATCH for other conditions.
    """

    def __init__(
        self,
        conditions: Sequence[str],
        neighbours: int = 0,
        path: str | None = None,
        model_config: Config | None = None,
        trust: Sequence[str] = (),
    ) -> None:
        super().__init__(conditions, neighbours)
        if path is None and model_config is None:
            raise ConfigError(
                "CONFIG-MISSING",
                "which model is the anchor? Give model.params.anchor_config.params.path=RUN, a "
                "run of `dsdiff train` with the same conditions",
            )
        folder = path and user_path(path)
        self.model_config = model_config or self._described(folder, trust)
        where = "model.params.anchor_config.params.model_config"
        self.model = frozen_model(self.model_config, folder, where)

    def _described(self, path: Path, trust: Sequence[str]) -> Config:
        """Return the model of a run folder, which must take the same conditions."""
        config, study = described_run(path, trust)
        if (study.conditions, study.neighbours) != (self.conditions, self.neighbours):
            raise CheckpointError(
                "CKPT-MISMATCH",
                f"{path.name} makes {study.target} of {', '.join(study.conditions)} with "
                f"{study.neighbours} neighbours, this model of {', '.join(self.conditions)} with "
                f"{self.neighbours}: train the anchor on the same",
            )
        return config

    def train(self, mode: bool = True) -> ModelAnchor:
        """Never be in training mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, condition: Tensor, presence: Tensor) -> Tensor:
        """Return the model's answer at temperature 0."""
        still = KeyedNoise([()] * len(condition), condition.device, temperature=0.0)
        return self.model.synthesise(condition, presence, still)

    def portable_config(self) -> Config:
        """Return the model's configuration in place of its run folder."""
        return without_run(self, self.model_config, self.model)


def build_anchor(
    subtract: str | None, anchor_config: Config | None, facts: Mapping[str, Any]
) -> Anchor | None:
    """Return the anchor that a configuration describes; None: the target itself is diffused.

    Args:
        subtract: short form of a :class:`ContrastAnchor`.
        anchor_config: ``target`` / ``params`` of an :class:`Anchor`.
        facts: ``conditions`` and ``neighbours``.

    Raises:
        ConfigError: CONFIG-VALUE for both.
    """
    if anchor_config is None:
        return None if subtract is None else ContrastAnchor(subtract, **facts)
    if subtract is not None:
        raise bad_value(
            f"model.params.subtract is '{subtract}' beside an anchor_config: give one of the two, "
            "the other null"
        )
    return module_from_config(
        anchor_config,
        where="model.params.anchor_config",
        called=None,
        interface=facts,
        needs=("latents", "fit", "portable_config"),
    )
