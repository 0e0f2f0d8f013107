"""What every model that ``dsdiff train`` trains has in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError, bad_value, one_of
from ldm.models.draws import Draws
from ldm.study import ASKED
from ldm.util import instantiate_from_config

Config = Mapping[str, Any]
ADAMW: Config = {
    "target": "torch.optim.AdamW",
    "params": {"lr": 2.0e-4, "weight_decay": 0.01, "fused": True},
}
ENDLESS = -1  # of a training: lightning.trainer.max_steps where max_time ends it
# share of the height of the learning rate above its end, by the share of the decay that is over
RATE_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,  # Loshchilov & Hutter 2017
    "polynomial": lambda progress: (1 - progress) ** 0.9,  # Isensee et al. 2021
}


@dataclass(frozen=True)
class Validated:
    """What a model has shown of a batch of validation.

    Args:
        images: what callbacks draw and measure, by name.
        numbers: means over the batch, by the name under which they are logged.
        of_some: means over some of its items, and over how many.
    """

    images: Mapping[str, Tensor]
    numbers: Mapping[str, Tensor]
    of_some: Mapping[str, tuple[Tensor, int]] = field(default_factory=dict)


class RunModule(nn.Module):
    """A model as a run holds it: its loss, its validation, and the optimizer of its weights.

    It knows nothing of the loop that trains it, :class:`ldm.training.module.TrainingModule`.

    A subclass gives ``batch_loss``, ``validate``, ``network`` and ``network_inputs``.

    Args:
        optimizer_config: ``target`` / ``params`` of a torch optimizer; None: :data:`ADAMW`.
        warmup_steps: steps over which the learning rate rises linearly.
        rate_schedule: how it falls then: ``constant`` (not at all), ``cosine`` or ``polynomial``.
        decay_steps: step at which it has fallen to ``decay_to`` of its height, the length of the
            run; None, or -1 as of a run without an end: it does not fall.
        decay_to: share of its height that it has fallen to at ``decay_steps``.
        seed: seed of the training noise.

    Attributes:
        next_command: what a user types after the training of a run, with ``{run}`` for its folder,
            ``{patients}`` for its data and ``{predictions}`` for a new folder.
        step: optimizer steps that it has been trained, as far as the training tells it.
    """

    next_command: str

    def __init__(
        self,
        optimizer_config: Config | None = ADAMW,
        warmup_steps: int = 100,
        rate_schedule: str = "constant",
        decay_steps: int | None = None,
        decay_to: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        one_of("model.params.rate_schedule", rate_schedule, RATE_SCHEDULES)
        if decay_steps is not None and decay_steps < 1 and decay_steps != ENDLESS:
            raise bad_value(
                f"model.params.decay_steps is {decay_steps}: give a step, or {ENDLESS} for never"
            )
        self.rate_schedule, self.decay_steps = RATE_SCHEDULES[rate_schedule], decay_steps
        self.decay_to = decay_to
        self.optimizer_config = optimizer_config or ADAMW
        self.warmup_steps, self.seed = warmup_steps, seed
        self.step = 0

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def next_step(
        self, run: Any, patients: Any = "SUBJECTS", predictions: Any = "PREDICTIONS"
    ) -> str:
        """Return ``next_command`` for a run folder; what is not known stays a word in capitals."""
        return self.next_command.format(run=run, patients=patients, predictions=predictions)

    def batch_loss(self, batch: Mapping[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        """Return the training loss of a batch by component; ``loss`` is what is minimised.

        Args:
            draws: all randomness; None: of torch's global generator.
        """
        raise NotImplementedError

    @property
    def network(self) -> nn.Module:
        """The network whose parameters and FLOPs are the model's."""
        raise NotImplementedError

    def network_inputs(self, batch: int = 1) -> Sequence[Tensor]:
        """Return blank inputs of ``network`` for a batch of the images that it was built for."""
        raise NotImplementedError

    def check_start(self, data: Any) -> None:
        """Refuse or report what is wrong with a new training on ``data``; resuming skips this."""

    def portable_params(self) -> dict[str, Any]:
        """Return constructor arguments to save instead of those that name files elsewhere."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return what the weights are only valid with; a loaded model must agree."""
        return {}

    def measure(self, data: Any) -> dict[str, Any]:
        """Return what is saved beside the weights; called on the averaged model at each save."""
        return {}

    def features(self, batch: Mapping[str, Any]) -> dict[str, list[Tensor]]:
        """Return what the network disentangles of a batch, {kind: [(B, C, *S) a stream]}."""
        return {}

    def begin_training(self, data: Any) -> None:
        """Get ready for the steps of a training, new or resumed, on ``data``."""

    def validate(self, batch: Mapping[str, Any], place: int) -> Validated:
        """Return how good the model is on a batch of validation.

        Args:
            place: which batch it is.
        """
        raise NotImplementedError

    def begin_validation(self) -> None:
        """Forget what was counted in the validation before."""

    def end_validation(self, summed: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return what was counted over all batches, by name.

        Args:
            summed: adds a tensor over all processes.
        """
        return {}

    def saved_state(self) -> dict[str, Any]:
        """Return what a resumed training needs beside the weights."""
        return {}

    def restore_state(self, saved: Mapping[str, Any]) -> None:
        """Take what :meth:`saved_state` gave, out of a checkpoint, which may be an old one."""

    def rate_factor(self, step: int) -> float:
        """Return the share of the learning rate at a step: linear warm-up, then the schedule."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.decay_steps is None or self.decay_steps < 1:
            return warm
        span = max(1, self.decay_steps - self.warmup_steps)
        progress = min(1.0, max(0.0, (step - self.warmup_steps) / span))
        return warm * (self.decay_to + (1 - self.decay_to) * self.rate_schedule(progress))

    def new_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of all weights that learn.

        Raises:
            ConfigError: CONFIG-TARGET where none does, or for an optimizer that is none.
        """
        trainable = [p for p in self.parameters() if p.requires_grad]
        if not trainable:
            network = getattr(self.network, "diffusion_model", self.network)
            raise ConfigError(
                "CONFIG-TARGET",
                f"{type(network).__name__} has no weight to train: give it a parameter with "
                "requires_grad=True (docs/add-a-backbone.md)",
            )
        return instantiate_from_config(
            self.optimizer_config,
            where="model.params.optimizer_config",
            needs=("param_groups", "step"),
            params=trainable,
        )


def wanted(batch: Mapping[str, Any]) -> Tensor:
    """Return (B,) which of the contrasts is to be made of each item, where that varies."""
    asked = batch[ASKED]
    return asked[:, : asked.shape[1] // 2].argmax(dim=1)


def items_of(batch: Mapping[str, Any], items: Tensor) -> dict[str, Any]:
    """Return the items (B,) bool of a batch."""
    places = items.nonzero()[:, 0]
    return {
        name: value[places] if isinstance(value, Tensor) else [value[i] for i in places.tolist()]
        for name, value in batch.items()
    }


def image_quality(loss: Tensor, images: Tensor, batch: Mapping[str, Any], **more: Any) -> Validated:
    """Return the loss, and the quality of images (B, 1, *S) as the target, inside the brain.

    Args:
        **more: see :class:`Validated`.
    """
    numbers = {
        "val/loss": loss,
        "val/psnr": psnr_in_brain(images, batch),
        "val/mae": (images - batch["target"])[batch["brain"]].abs().mean(),
    }
    return Validated({"synthetic": images}, numbers, **more)


def psnr_of_each(
    images: Tensor, batch: Mapping[str, Any], names: Sequence[str]
) -> dict[str, tuple[Tensor, int]]:
    """Return ``val/psnr_t1`` and so on of the items of a batch that ask for T1, and how many do."""
    found, targets = {}, wanted(batch)
    for place in targets.unique().tolist():
        items = targets == place
        psnr = psnr_in_brain(images[items], items_of(batch, items))
        found[f"val/psnr_{names[place]}"] = psnr, int(items.sum())
    return found


def psnr_in_brain(images: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Return the PSNR in dB of images (B, 1, *S) as the target, over the brain of a whole batch."""
    error = (images - batch["target"])[batch["brain"]]
    return 10 * torch.log10(4 / error.square().mean())  # the range of [-1, 1] is 2


def places(batch: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return (subject, slice) of each item of a batch."""
    return list(zip(batch["subject"], batch["slice"].tolist(), strict=True))


def cases_of(batch: Mapping[str, Any]) -> str:
    """Return subjects and slices of a batch in words."""
    return ", ".join(f"{subject} slice {index}" for subject, index in places(batch))
