"""A model and its data as Lightning trains them: the only place that knows both."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ldm.data.datamodule import ContrastDataModule
from ldm.errors import ConfigError, NonFiniteError
from ldm.models.base import RunModule, cases_of
from ldm.models.draws import Draws
from ldm.storage import stable_seed

INNER = "model."  # of the names of weights, which those in a checkpoint do not have


class TrainingModule(pl.LightningModule):
    """A training that is a function of the seed of its model, and stops before NaN.

    Processes that share a batch train as one would on all of it, except for what a network draws by
    itself (dropout) and for losses of a batch as a whole. The weights have the names of the model.
    """

    def __init__(self, model: RunModule) -> None:
        super().__init__()
        self.model = model
        self.register_state_dict_post_hook(_without_inner)
        self.register_load_state_dict_pre_hook(_with_inner)

    def on_fit_start(self) -> None:
        """Let the model get ready."""
        self.model.begin_training(self.trainer.datamodule.data)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch; its noise is keyed by the position of each item in the run.

        Raises:
            NonFiniteError: NONFINITE-LOSS, before any weight changes.
            ConfigError: CONFIG-TARGET for a loss of which no weight can learn.
        """
        drawn = self.trainer.fit_loop.epoch_loop.total_batch_idx  # batch_idx restarts on resume
        rank, world = self.global_rank, self.trainer.world_size
        seed = stable_seed(self.model.seed, "step", rank, drawn)
        torch.manual_seed(seed)  # of the dropout of the network
        self.model.step, items = self.global_step, len(batch["subject"])
        draws = Draws((self.model.seed, "train"), items, drawn * items * world, rank, world)
        losses = {n: torch.as_tensor(v) for n, v in self.model.batch_loss(batch, draws).items()}
        if not losses["loss"].requires_grad:
            raise ConfigError(
                "CONFIG-TARGET",
                "the loss does not depend on a weight that is trained, so nothing is learned: look "
                "for .detach(), .item() or torch.no_grad() in networks and losses",
            )
        if not torch.isfinite(losses["loss"]):
            told = ", ".join(f"{name} is {value.item():.3g}" for name, value in losses.items())
            how = "the checkpoint is from before; try a lower learning rate or precision=32"
            if not self.global_step:
                how = "no weight has changed: look for a division by 0, a logarithm or a root"
            raise NonFiniteError(
                "NONFINITE-LOSS", f"{told} at step {self.global_step} on {cases_of(batch)}; {how}"
            )
        self.log_dict({f"train/{name}": value for name, value in losses.items()})
        return losses["loss"]

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> Mapping[str, Tensor]:
        """Log what the model has measured of a batch; return its images for callbacks."""
        found, items = self.model.validate(batch, batch_idx), len(batch["subject"])
        self.log_dict(dict(found.numbers), batch_size=items, sync_dist=True)
        for name, (value, count) in found.of_some.items():  # which another process may lack
            self.log(name, value, batch_size=count)
        return found.images

    def on_validation_epoch_start(self) -> None:
        """Count anew."""
        self.model.begin_validation()

    def on_validation_epoch_end(self) -> None:
        """Log what the model has counted over all batches."""
        summed = partial(self.trainer.strategy.reduce, reduce_op="sum")
        self.log_dict(self.model.end_validation(summed))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what the model needs beside its weights."""
        checkpoint |= self.model.saved_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it."""
        self.model.restore_state(checkpoint)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimizer, with its schedule counted in steps."""
        optimizer = self.model.new_optimizer()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.model.rate_factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class TrainingData(pl.LightningDataModule):
    """Batches for each process of a training, which a resumed one goes on with."""

    def __init__(self, data: ContrastDataModule) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> DataLoader:
        """Return batches for ever, after those that the run has drawn already."""
        trainer: Any = self.trainer
        drawn = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        return self.data.train_dataloader(drawn, trainer.global_rank, trainer.world_size)

    def val_dataloader(self) -> DataLoader | list:
        """Return the slices of validation."""
        return self.data.val_dataloader()

    def on_exception(self, exception: BaseException) -> None:
        """Kill the loading processes."""
        self.data.kill_workers()


def _without_inner(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    """Take the name of the model out of the names of its weights."""
    _rename(state, prefix + INNER, prefix)


def _with_inner(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    """Put it back."""
    _rename(state, prefix, prefix + INNER)


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    """Give names that begin with ``old`` another beginning, in place; their order stays."""
    named = [(name, state.pop(name)) for name in list(state) if name.startswith(old)]
    state.update((new + name.removeprefix(old), value) for name, value in named)
