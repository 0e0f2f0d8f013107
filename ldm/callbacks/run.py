"""What keeps a training safe: checkpoints, signals, and a stop before NaN reaches the weights."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint

from ldm.callbacks.ema import averaged_module
from ldm.checkpoint import BOUND, CHECKPOINTS, save_model
from ldm.errors import NonFiniteError, OutputError

log = logging.getLogger(__name__)

MOST_FAILURES = 3  # saves in a row
ENDING = (signal.SIGINT, signal.SIGTERM)
SAVING = [getattr(signal, name) for name in ("SIGUSR1", "SIGHUP") if hasattr(signal, name)]


class RunCheckpoint(Checkpoint):
    """Saves ``checkpoints/last.ckpt`` and ``model.safetensors`` in the run folder.

    A save that fails is told and tried again after a tenth of the interval; the third failure in a
    row, or one at the end of the training, ends it. The generations before stay until then.

    Args:
        every_n_steps: optimizer steps between saves; the end of training always saves.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        self.every_n_steps = every_n_steps
        self.saved_step = self.next_step = -1
        self.failures = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember where a resumed run stands."""
        self.saved_step = trainer.global_step
        self.next_step = self.saved_step + self.every_n_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Save when the interval is over."""
        if trainer.global_step >= self.next_step and trainer.global_step != self.saved_step:
            self.save(trainer, again=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last step."""
        if trainer.global_step != self.saved_step:
            self.save(trainer)

    def save(self, trainer: pl.Trainer, again: bool = False) -> None:
        """Write both files of the current step.

        Args:
            again: a failure is told, and the save is tried again some steps later.

        Raises:
            OutputError: OUT-IO.
        """
        run, step = Path(trainer.default_root_dir), trainer.global_step
        files = trainer.strategy.checkpoint_io
        files.failure = None  # set where the file could not be written: other ranks must hear of it
        trainer.save_checkpoint(run / CHECKPOINTS[0])
        if trainer.is_global_zero and files.failure is None:
            averaged = averaged_module(trainer, trainer.lightning_module)
            metadata = {"step": step, BOUND: files.bound, **averaged.facts()}
            metadata |= averaged.measure(trainer.datamodule)
            try:
                save_model(run, averaged.state_dict(), metadata)
            except OutputError as error:
                files.failure = error
        failure = trainer.strategy.broadcast(files.failure)
        self.failures = self.failures + 1 if failure else 0
        if failure and (not again or self.failures == MOST_FAILURES):
            raise failure
        if failure:
            wait = max(1, self.every_n_steps // 10)
            log.warning(
                "step %d is not saved: %s; the save before is whole, tried again in %d steps",
                step,
                failure,
                wait,
            )
        else:
            self.saved_step, wait = step, self.every_n_steps
        self.next_step = step + wait


class StopOnSignal(Callback):
    """On SIGINT or SIGTERM saves after the current step and ends training, so that it can resume.

    It answers at once; a second signal ends at once and says what is lost. SIGUSR1, and SIGHUP when
    the terminal is lost, save and go on. A signal that only one of several processes gets holds for
    all of them.

    Attributes:
        received: number of the signal that ended training, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._save_requested = False
        self._before: dict[int, Any] = {}
        self._saver: RunCheckpoint | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers (after Lightning's own)."""
        savers = (c for c in trainer.checkpoint_callbacks if isinstance(c, RunCheckpoint))
        self._saver = next(savers, None)
        for number in (*ENDING, *SAVING):
            self._before[number] = signal.signal(number, self._handle)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Act on a signal that came during the step, to this process or to another one."""
        received, wanted = self.received or 0, self._save_requested
        if trainer.world_size > 1:
            flags = torch.tensor([received, int(wanted)], device=pl_module.device)
            received, wanted = trainer.strategy.reduce(flags, reduce_op="max").tolist()
        self._save_requested = False
        if received:
            self.received = received
            trainer.should_stop, trainer.limit_val_batches = True, 0  # no validation before the end
        if (received or wanted) and self._saver:
            self._saver.next_step = trainer.global_step  # it comes after all other callbacks

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: Any) -> None:
        name, saved = signal.Signals(number).name, self._saver.saved_step if self._saver else 0
        if number in SAVING:
            self._save_requested = True
        elif self.received is None:
            self.received = number
            log.warning("%s: saving after this step; once more ends at once", name)
        else:
            log.warning("%s again: ended; what came after step %d is lost", name, saved)
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
