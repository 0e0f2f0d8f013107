"""What keeps a training safe: checkpoints, signals, and a stop before NaN reaches the weights."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint

from ldm.callbacks.ema import averaged_model
from ldm.callbacks.metrics_file import MetricsFile
from ldm.checkpoint import BOUND, CHECKPOINTS, EMA_WEIGHTS, LAST, WEIGHTS
from ldm.errors import CheckpointError, DsdiffError, NonFiniteError, OutputError, bad_value, one_of
from ldm.model_file import read_model, save_model
from ldm.models.base import cases_of
from ldm.storable import require_storable
from ldm.storage import MODEL_FILE

log = logging.getLogger(__name__)

SMALLER_IS_BETTER = ("loss", "mae")
MOST_FAILURES = 3  # saves in a row
MOST_SKIPPED = 20  # steps in a row whose gradient overflows: a scale of 2^16 is then below 1
ENDING = (signal.SIGINT, signal.SIGTERM)
SAVING = [getattr(signal, name) for name in ("SIGUSR1", "SIGHUP") if hasattr(signal, name)]


class RunCheckpoint(Checkpoint):
    """Saves ``checkpoints/last.ckpt`` and ``model.safetensors`` in the run folder.

    A save that fails is told and tried again after a tenth of the interval; the third failure in a
    row, or one at the end of the training, ends it. The generations before stay until then. A run
    that was stopped between a step and its validation begins with that validation.

    Args:
        every_n_steps: optimizer steps between saves; the end of training always saves.
        best_by: a logged quantity of validation, such as ``val/psnr`` or ``val/loss``;
            ``model.safetensors`` then holds the weights of the best validation so far, while
            ``last.ckpt``, from which a run resumes, holds the last.
        patience: validations without a better one after which the training ends, at the first
            validation that no step is under way at; None: never.
    """

    def __init__(
        self, every_n_steps: int = 500, best_by: str | None = None, patience: int | None = None
    ) -> None:
        if patience is not None and (best_by is None or patience < 1):
            raise bad_value(
                f"lightning.callbacks.checkpoint.params.patience is {patience} with best_by "
                f"{best_by}: give validations, 1 or more, and what they are compared by, as "
                "best_by=val/psnr"
            )
        self.every_n_steps, self.best_by, self.patience = every_n_steps, best_by, patience
        self.saved_step = self.next_step = -1
        self.is_stale = False  # a validation came after the last save
        self.is_storable = False  # what a save would hold, as far as a step tells
        self.failures = 0
        self.best: float | None = None
        self.worse = 0  # validations since the best
        self.validated: int | None = 0  # batches before the last one; None: an old file

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run compares with."""
        return {"best": self.best, "worse": self.worse, "validated": self.validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.best, self.worse = state_dict.get("best"), state_dict.get("worse", 0)
        self.validated = state_dict.get("validated")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember where a resumed run stands, and validate where it was stopped before it did.

        One that patience has ended trains no further, unless it has more patience now.
        """
        self.saved_step = trainer.global_step
        self.next_step = self.saved_step + self.every_n_steps
        if self.owes_validation(trainer):
            loop = trainer.fit_loop.epoch_loop.val_loop
            trainer.validating, loop.restarting = True, False  # as the loop of training does it
            loop.run()
            trainer.training = True
        elif self.validated in (None, batches_drawn(trainer)) and self.is_out_of_patience(trainer):
            trainer.should_stop = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Log the step under its number: Lightning's is one too high in a run made longer."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Save when the interval is over; whoever ends the training waits for a whole step."""
        if not is_whole(trainer):
            trainer.should_stop = False  # a limit of time, which asks again after each batch
            return
        if not self.is_storable:  # else it would be found when hours of steps are saved
            require_storable(trainer._checkpoint_connector.dump_checkpoint())
            self.is_storable = True
        if trainer.global_step >= self.next_step and trainer.global_step != self.saved_step:
            log_step(trainer)  # Lightning does after it: a kill in between would lose the row
            self.save(trainer, again=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights if they are the best so far; end the training if none were for long.

        Raises:
            ConfigError: CONFIG-VALUE for a quantity that validation does not log.
        """
        self.validated, self.is_stale = batches_drawn(trainer), True
        if self.best_by is None:
            return
        value = float(one_logged(trainer.callback_metrics, self.best_by))
        sign = -1 if self.best_by.endswith(SMALLER_IS_BETTER) else 1
        if not sign * value > (-math.inf if self.best is None else sign * self.best):  # NaN too
            self.worse += 1
        else:
            failure = self.save_weights(trainer, {"best": {self.best_by: value}})
            if failure := self._heard(trainer, failure, again=True):
                log.warning("the weights of the best validation so far are not saved: %s", failure)
            else:
                self.best, self.worse = value, 0
        if self.is_out_of_patience(trainer):
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last step, and that it is validated."""
        if trainer.global_step != self.saved_step or self.is_stale:
            self.save(trainer)

    def owes_validation(self, trainer: pl.Trainer) -> bool:
        """Return whether the run was stopped between a step and its validation."""
        every, drawn = trainer.val_check_batch, batches_drawn(trainer)
        is_due = isinstance(every, int) and drawn > 0 and drawn % every == 0
        return bool(is_due and trainer.limit_val_batches and self.validated not in (None, drawn))

    def is_out_of_patience(self, trainer: pl.Trainer) -> bool:
        """Return whether the validation that was just made ends the training."""
        is_over = self.patience is not None and self.worse >= self.patience
        return is_over and is_whole(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the weights of a run that is resumed at its end, where no step is left to train.

        A process that was killed between its last two files left those of the save before.
        """
        if self.saved_step >= 0 or self.best is not None:
            return
        failure = None if self._is_written(trainer) else self.save_weights(trainer, {})
        self._heard(trainer, failure, again=False)

    @staticmethod
    def _is_written(trainer: pl.Trainer) -> bool:
        """Return whether the weights beside the checkpoints are whole, and of the last step."""
        try:
            _, told = read_model(Path(trainer.default_root_dir) / MODEL_FILE)
        except CheckpointError:
            return False
        now = {"step": trainer.global_step, BOUND: trainer.strategy.checkpoint_io.bound}
        return now.items() <= told.items()

    def save(self, trainer: pl.Trainer, again: bool = False) -> None:
        """Write both files of the current step; not the model where a better one is kept.

        Args:
            again: a failure is told, and the save is tried again some steps later.

        Raises:
            OutputError: OUT-IO.
        """
        step, files = trainer.global_step, trainer.strategy.checkpoint_io
        files.failure = None  # set where the file could not be written: other ranks must hear of it
        trainer.save_checkpoint(Path(trainer.default_root_dir) / CHECKPOINTS[0])
        if files.failure is None and self.best is None:
            files.failure = self.save_weights(trainer, {})
        if failure := self._heard(trainer, files.failure, again):
            wait = max(1, self.every_n_steps // 10)
            log.warning(
                "step %d is not saved: %s; the save before is whole, tried again in %d steps",
                step,
                failure,
                wait,
            )
        else:
            self.saved_step, wait = step, self.every_n_steps
            self.is_stale = False
        self.next_step = step + wait

    def _heard(
        self, trainer: pl.Trainer, failure: DsdiffError | None, again: bool
    ) -> DsdiffError | None:
        """Return, in all processes, why a save of the first one failed, or raise it."""
        failure = trainer.strategy.broadcast(failure)
        self.failures = self.failures + 1 if failure else 0
        if failure and (not again or self.failures == MOST_FAILURES):
            raise failure
        return failure

    def save_weights(self, trainer: pl.Trainer, described: dict[str, Any]) -> OutputError | None:
        """Write ``model.safetensors``, the averaged weights; return why that failed."""
        if trainer.is_global_zero:
            model = averaged_model(trainer)
            metadata = model.facts() | model.measure(trainer.datamodule.data) | described
            metadata |= {"step": trainer.global_step, BOUND: trainer.strategy.checkpoint_io.bound}
            metadata[WEIGHTS] = LAST if model is trainer.lightning_module.model else EMA_WEIGHTS
            try:
                save_model(Path(trainer.default_root_dir), model.state_dict(), metadata)
            except OutputError as error:
                return error
        return None


def batches_drawn(trainer: pl.Trainer) -> int:
    """Return how many batches the training has drawn, those before it was resumed too."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def log_step(trainer: pl.Trainer) -> None:
    """Write what Lightning is about to log of this step to ``metrics.csv``, which keeps it once."""
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return
    values, step = connector.metrics["log"], trainer.fit_loop.epoch_loop._batches_that_stepped
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            logger.log_metrics(values, step)


def is_whole(trainer: pl.Trainer) -> bool:
    """Return whether the last batch made a step; else its gradient is accumulated, and unsaved."""
    return not trainer.fit_loop._should_accumulate()


def one_logged(metrics: Mapping[str, Any], name: str) -> Any:
    """Return a logged quantity.

    Raises:
        ConfigError: CONFIG-VALUE with the names there are.
    """
    known = sorted(key for key in metrics if key.startswith("val/"))
    one_of("lightning.callbacks.checkpoint.params.best_by", name, known)
    return metrics[name]


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

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remember the handlers that are there before Lightning puts its own in their place."""
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.getsignal(number) for number in (*ENDING, *SAVING)}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers (after Lightning's own)."""
        savers = (c for c in trainer.checkpoint_callbacks if isinstance(c, RunCheckpoint))
        self._saver = next(savers, None)
        for number in self._before:
            signal.signal(number, self._handle)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Act on a signal that came during the step, to this process or to another one."""
        if not is_whole(trainer):
            return
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
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
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
    optimizer, and because the norm is then computed once. Where losses are scaled for fp16, a
    gradient that is not finite says that the scale is too large: the scaler leaves the step out and
    halves its scale, so only the 21st in a row ends the training.

    Args:
        max_norm: largest norm of all gradients together; None: no clipping.
    """

    def __init__(self, max_norm: float | None = 1.0) -> None:
        self.max_norm = max_norm
        self._skipped = 0  # steps in a row that a scaler of losses left out
        self._places: list[dict[str, Any]] = []  # of the batches since the last step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember whom the gradient comes from."""
        self._places.append({name: batch[name] for name in ("subject", "slice")})

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure, check and clip.

        Raises:
            NonFiniteError: NONFINITE-GRADIENT.
        """
        parameters = [p for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self._skipped = 0 if torch.isfinite(norm) else self._skipped + 1
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and 0 < self._skipped <= MOST_SKIPPED:
            log.warning("step %d overflows in fp16 and is left out", trainer.global_step)
            self._places.clear()
            return
        if self._skipped:
            raise NonFiniteError(
                "NONFINITE-GRADIENT",
                f"gradient norm is {norm.item()} at step {trainer.global_step}; the checkpoint is "
                "from before; try a lower learning rate or lightning.trainer.precision=32; it is "
                f"of {', '.join(map(cases_of, self._places))}",
            )
        self._places.clear()
        if self.max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_norm, norm)
        pl_module.log("train/grad_norm", norm)
