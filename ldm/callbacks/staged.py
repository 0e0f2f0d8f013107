"""Training in stages: a part of the model waits while the rest learns."""

from __future__ import annotations

from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from ldm.errors import bad_value
from ldm.util import nearest


class FrozenStage(Callback):
    """Keeps the weights of some submodules as they are for a number of steps, then trains all.

    Attention gates that learn from the first step on see a decoder that knows nothing yet, and may
    close over what is rare; frozen, they let all through alike until there is something to weigh.
    Their gradients are dropped rather than not computed, so that the optimizer holds all weights
    from the start, a resumed run goes on exactly, and several processes agree. Running statistics
    of batch norms follow the data meanwhile.

    Args:
        frozen: names of submodules of the model, such as ``unet.gates``.
        steps: optimizer steps for which they wait.
    """

    def __init__(self, frozen: Sequence[str] = ("unet.gates",), steps: int = 1000) -> None:
        self.frozen, self.steps = list(frozen), steps

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse names that the model does not have.

        Raises:
            ConfigError: CONFIG-VALUE.
        """
        for name in self.frozen:
            self._module(pl_module.model, name)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Drop the gradients of what waits; the optimizer passes over weights without one."""
        if trainer.global_step < self.steps:
            for name in self.frozen:
                self._module(pl_module.model, name).zero_grad(set_to_none=True)

    @staticmethod
    def _module(model: nn.Module, name: str) -> nn.Module:
        modules = dict(model.named_modules())
        if name not in modules or not any(True for _ in modules[name].parameters()):
            raise bad_value(
                f"lightning.callbacks: frozen names '{name}', which holds no weights of this model"
                f"{nearest(name, [n for n in modules if n])}"
            )
        return modules[name]
