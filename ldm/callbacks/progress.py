"""What a training says while it goes on: before it, a bar or lines, and how long it still takes."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Timer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from ldm.data.prepare import fit_size, holding_size, size_override, smaller_size
from ldm.environment import device_name
from ldm.util import evenly_spread, how_many

PARTS = 20  # of the run, a line each, where there is no bar
APART = 10.0  # seconds, at least, between two of these lines
REFRESH = 0.5  # seconds between two looks at the loss, each of which waits for the device
KNOWN = (10, 5.0)  # steps and seconds after which the speed is told
MEASURED = 8  # patients whose brains are measured against the image size
BASELINES = ("val/psnr_copy", "val/psnr_quadratic")


class TrainingProgress(Callback):
    """Says what is trained on what and where, then how far it is, to the true end of the run.

    Args:
        say: takes one line of text at a time.
        is_bar: show a bar on the terminal; else a line for every twentieth of the run. Each
            validation has a line in both.
    """

    def __init__(self, say: Callable[[str], None], is_bar: bool = False) -> None:
        self.say, self.is_bar = say, is_bar
        self.bar: Progress | None = None
        self.first_step = self.last_step = 0
        self.begun = self.refreshed = 0.0  # when the first step was done, and the last one shown
        self.waited = self.ended = 0.0  # for data since then, and when the last step was done
        self.part = -1
        self.is_speed_told = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what is about to happen."""
        if not trainer.is_global_zero:
            return
        self.first_step = self.last_step = trainer.global_step
        for line in described(trainer):
            self.say(line)
        if self.is_bar:
            columns = (TextColumn("Training"), BarColumn(20), TaskProgressColumn())
            shown = (*columns, TextColumn("{task.description}"))
            self.bar = Progress(*shown, redirect_stderr=sys.stderr.isatty())
            self.bar.add_task("the first step", total=1.0)
            self.bar.start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Count what passed since the last step as waiting for data."""
        if self.begun and not self.is_speed_told:
            self.waited += time.monotonic() - self.ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Show how far it is."""
        now, step = time.monotonic(), trainer.global_step
        self.ended = now
        if not trainer.is_global_zero or step == self.last_step:
            return
        self.last_step = step
        if not self.begun:  # the first step also compiles and warms up
            self.begun = self.refreshed = now
            self.first_step = step
            self.part = int(PARTS * self.share(trainer))
            return
        if not self.is_speed_told and self.is_speed_known(now):
            self.is_speed_told = True
            took = now - self.begun
            images = (step - self.first_step) * images_a_step(trainer) / took
            self.tell(
                f"speed     {self.speed(now)}, {images:.2g} images/s, {self.waited / took:.1%} of "
                f"the time waiting for data: about {self.left(trainer)} to go"
            )
        if self.bar and now - self.refreshed >= REFRESH:
            self.refreshed = now
            self.bar.update(
                self.bar.task_ids[0],
                completed=self.share(trainer),
                description=f"{self.position(trainer)}, {self.left(trainer)} left, "
                f"{_loss(trainer.callback_metrics)}",
            )
        part = int(PARTS * self.share(trainer))
        if not self.bar and part > self.part and now - self.refreshed >= APART:
            self.part, self.refreshed = part, now
            self.tell(
                f"{self.position(trainer)}  {_loss(trainer.callback_metrics)}  "
                f"{self.speed(now)}  {self.left(trainer)} left"
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what validation found."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            copied = trainer.datamodule.data.study.copied
            told = ", ".join(validated(trainer.callback_metrics, copied))
            if told:
                self.tell(f"{self.position(trainer)}  {told}")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the bar away, however the training ended."""
        if self.bar:
            self.bar.stop()
            self.bar = None

    def tell(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.bar:
            self.bar.console.print(line, markup=False, highlight=False)
        else:
            self.say(line)

    def position(self, trainer: pl.Trainer) -> str:
        """Return the step of how many, or the time of how much where that ends the run first."""
        step, most = trainer.global_step, trainer.max_steps
        timer, limit = _time_limit(trainer)
        if limit and (most < 0 or timer / limit > step / most):
            return f"step {step}, {_clock(timer)} of {_clock(limit)}"
        return f"step {step}/{most}"

    def share(self, trainer: pl.Trainer) -> float:
        """Return how much of the run is over, by steps or by time, whichever ends it first."""
        timer, limit = _time_limit(trainer)
        by_steps = trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
        return min(1.0, max(by_steps, timer / limit if limit else 0.0))

    def left(self, trainer: pl.Trainer) -> str:
        """Return the time to the end of the run at the measured speed."""
        timer, limit = _time_limit(trainer)
        ends = [limit - timer] if limit else []
        if trainer.max_steps > 0 and trainer.global_step > self.first_step:
            took = (time.monotonic() - self.begun) / (trainer.global_step - self.first_step)
            ends.append(took * (trainer.max_steps - trainer.global_step))
        return _clock(min(ends, default=0.0))

    def is_speed_known(self, now: float) -> bool:
        """Return whether enough steps were timed."""
        return self.last_step - self.first_step >= KNOWN[0] and now - self.begun >= KNOWN[1]

    def speed(self, now: float) -> str:
        """Return the steps a second, or the seconds a step, since the first step."""
        rate = (self.last_step - self.first_step) / max(now - self.begun, 1e-9)
        return f"{rate:.2g} steps/s" if rate >= 1 or not rate else f"{1 / rate:.2g} s a step"


def images_a_step(trainer: pl.Trainer) -> int:
    """Return how many slices or patches all processes see from one step of the optimizer on."""
    per_process = trainer.datamodule.data.batch_size * trainer.accumulate_grad_batches
    return per_process * trainer.world_size


def described(trainer: pl.Trainer) -> Iterator[str]:
    """Yield lines: where it runs, on whom, on how much of them, and whether none will be judged."""
    data, folder = trainer.datamodule.data, trainer.default_root_dir
    several = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    device = device_name(trainer.strategy.root_device.type)
    yield f"device    {several}{device}, precision {trainer.precision}; run folder {folder}"
    kind = "slices" if data.study.dims == 2 else "patches"
    parts = [f"{len(data.split['train'])} to train on ({len(data.train_slices)} {kind})"]
    shown, own = min(data.val_slices, len(data.val_dataset)), len(data.split["val"])
    every, never = _validations(trainer)
    when = f"({shown} of {len(data.val_dataset)} {kind}{every})" if shown else ""
    parts.append(" ".join(filter(None, [f"{own or 'none'} to validate", when])))
    yield f"patients  {', '.join(parts)}, {len(data.split.get('test') or [])} to test"
    size = " x ".join(map(str, data.image_size))
    yield f"size      {kind} of {size}, {_cut(data)}; batches of {data.batch_size}"
    if shown and never:
        yield never


def _validations(trainer: pl.Trainer) -> tuple[str, str]:
    """Say when validation is, or why it never is: the run ends before the next one."""
    batches, most = int(trainer.val_check_interval), trainer.max_steps
    accumulated = trainer.accumulate_grad_batches
    every = max(1, batches // accumulated)
    coming = (trainer.global_step // every + 1) * every
    if most < 0 or coming <= most:
        return f", every {how_many(every, 'step')}", ""
    often = max(1, most // 4)
    return "", (
        f"Nothing is validated: the run ends at step {most}, and the next validation would be at "
        f"step {coming}. lightning.trainer.val_check_interval={often * accumulated} validates "
        f"every {f'{often} steps' if often > 1 else 'step'}."
    )


def _cut(data: Any) -> str:
    """Say what the image size leaves out, of some training patients; patches cover all."""
    subjects = data.train_slices.subjects
    if data.study.dims != 2:
        return "at random places"
    brains = [subjects[i].open("brain") for i in evenly_spread(MEASURED, len(subjects))]
    whole = sum(int(brain.sum()) for brain in brains)
    kept = sum(int(fit_size(brain, data.image_size, False).sum()) for brain in brains)
    lost = 1 - kept / max(1, whole)
    planes = [brain.shape[1:] for brain in brains]
    seen = f"slices up to {' x '.join(str(max(sides)) for sides in zip(*planes, strict=True))}"
    if lost:
        advice = f"{size_override(holding_size(planes))} holds them"
        return f"which cuts off {max(lost, 0.001):.1%} of the brain ({seen}: {advice})"
    if smaller := smaller_size(data.image_size, planes):
        fewer = math.prod(data.image_size) / math.prod(smaller)
        advice = f"{size_override(smaller)} has {fewer:.1f} times fewer pixels"
        return f"which holds every brain ({seen}: {advice})"
    return "which holds every brain"


def validated(metrics: Mapping[str, Any], copied: str) -> Iterator[str]:
    """Yield what validation logged, the PSNR beside that of the baselines without a network."""
    known = {name: float(v) for name, v in metrics.items() if name.startswith("val/")}
    if "val/psnr" in known:
        told = zip((copied, "quadratic regression"), BASELINES, strict=True)
        beside = [f"{title} {known[name]:.2f}" for title, name in told if name in known]
        told_beside = f" ({', '.join(beside)})" if beside else ""
        yield f"val/psnr {known['val/psnr']:.2f} dB{told_beside}"
    elif "val/loss" in known:
        yield f"val/loss {known['val/loss']:.4g}"
    for name, value in known.items():
        if name == "val/recovery" or name.startswith("val/dice"):
            yield f"{name} {value:.2f}"


def _loss(metrics: Mapping[str, Any]) -> str:
    loss = metrics.get("train/loss")
    return "" if loss is None else f"loss {float(loss):.4g}"


def _time_limit(trainer: pl.Trainer) -> tuple[float, float | None]:
    """Return the seconds of training so far, and those after which it ends."""
    timer = next((c for c in trainer.callbacks if isinstance(c, Timer)), None)
    if timer is None:
        return 0.0, None
    elapsed, remaining = timer.time_elapsed(), timer.time_remaining()
    return elapsed, None if remaining is None else elapsed + remaining


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
