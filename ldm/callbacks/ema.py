"""Exponential moving average of the weights, with a warm-up for short trainings."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from ldm.errors import bad_value
from ldm.models.base import RunModule


class EMA(WeightAveraging):
    """Lightning's weight averaging with decay ``min(decay, (1 + n) / (10 + n))`` at update n.

    The warm-up lets the average forget the random start, so that a run of a hundred steps is not
    judged by it. Validation, the saved ``state_dict`` and ``model.safetensors`` use the average.

    Args:
        decay: decay that the warm-up ends at.
        half_life: share of the steps of the run after which weights count half in the average; in
            place of ``decay`` where the run has a number of steps.
    """

    def __init__(self, decay: float = 0.999, half_life: float | None = None) -> None:
        if half_life is not None and not 0 < half_life < 1:
            raise bad_value(
                f"lightning.callbacks.ema.params.half_life is {half_life}: give a share of the run "
                "between 0 and 1, as 0.04"
            )
        self.decay, self.half_life = decay, half_life
        super().__init__(multi_avg_fn=self.average, use_buffers=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the decay from the length of the run."""
        super().on_train_start(trainer, pl_module)
        if self.half_life and trainer.max_steps > 0:
            self.decay = 0.5 ** (1 / max(1.0, self.half_life * trainer.max_steps))

    @torch.no_grad()
    def average(self, averages: list[Tensor], values: list[Tensor], count: Tensor | int) -> None:
        """Move ``averages`` towards ``values`` in place."""
        count = int(count)
        decay = min(self.decay, (1 + count) / (10 + count))
        floating = [(a, v) for a, v in zip(averages, values, strict=True) if a.is_floating_point()]
        if floating:
            torch._foreach_lerp_(*map(list, zip(*floating, strict=True)), 1 - decay)
        for average, value in zip(averages, values, strict=True):
            if not average.is_floating_point():
                average.copy_(value)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the live weights as they are, so that a finished run can be trained further."""


def averaged_model(trainer: pl.Trainer) -> RunModule:
    """Return the model with averaged weights, or the live one where there is no average."""
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            return callback._average_model.module.model
    return trainer.lightning_module.model
