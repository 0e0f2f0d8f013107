"""What keeps a training safe: checkpoints, signals, and a stop before NaN reaches the weights."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint

from ldm.callbacks.ema import averaged_module
from ldm.checkpoint import CHECKPOINTS, save_model
from ldm.errors import NonFiniteError


class RunCheckpoint(Checkpoint):
    """Saves ``checkpoints/last.ckpt`` and ``model.safetensors`` in the run folder.

    Args:
        every_n_steps: optimizer steps between saves; the end of training always saves.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        self.every_n_steps = every_n_steps
        self.saved_step = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember where a resumed run stands."""
        self.saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Save when the interval is over."""
        if trainer.global_step - self.saved_step >= self.every_n_steps:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last step."""
        if trainer.global_step != self.saved_step:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Write both files of the current step."""
        run = Path(trainer.default_root_dir)
        trainer.save_checkpoint(run / CHECKPOINTS[0])
        if trainer.is_global_zero:
            averaged = averaged_module(trainer, trainer.lightning_module)
            metadata = averaged.facts() | averaged.measure(trainer.datamodule)
            save_model(run, averaged.state_dict(), {"step": trainer.global_step, **metadata})
        self.saved_step = trainer.global_step


class StopOnSignal(Callback):
    """On SIGINT or SIGTERM ends training after the current step, so that it saves and can resume.

    A second signal ends at once. SIGUSR1 saves and goes on.

    Attributes:
        received: number of the signal that ended training, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._save_requested = False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers (after Lightning's own)."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._handle)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Act on a signal that came during the step."""
        if self.received is not None:
            trainer.should_stop = True
        if self._save_requested:
            self._save_requested = False
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, RunCheckpoint):
                    callback.save(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: Any) -> None:
        if number == signal.SIGUSR1:
            self._save_requested = True
        elif self.received is None:
            self.received = number
        else:
            raise SystemExit(128 + number)


class GradientGuard(Callback):
    """Logs the gradient norm, clips it, and stops before a step that would make weights NaN.

    Clipping is here rather than in the trainer because Lightning refuses to clip for a fused
    optimizer, and because the norm is then computed once.

    Args:
        max_norm: largest norm of all gradients together; None: no clipping.
    """

    def __init__(self, max_norm: float | None = 1.0) -> None:
        self.max_norm = max_norm

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure, check and clip.

        Raises:
            NonFiniteError: NONFINITE-GRADIENT.
        """
        parameters = [p for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if not torch.isfinite(norm):
            raise NonFiniteError(
                "NONFINITE-GRADIENT",
                f"gradient norm is {norm.item()} at step {trainer.global_step}; the checkpoint is "
                "from before; try a lower learning rate or lightning.trainer.precision=32",
            )
        if self.max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_norm, norm)
        pl_module.log("train/grad_norm", norm)
