"""Training: from a configuration to a run folder that can be resumed and sampled from."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer

from ldm.binding import decisive, rate_notice, require_ahead, require_resumable
from ldm.callbacks.metrics_file import MetricsFile
from ldm.callbacks.own import built_callbacks
from ldm.callbacks.progress import TrainingProgress
from ldm.callbacks.ranks import RankGuard, is_main_process
from ldm.callbacks.run import RunCheckpoint, StopOnSignal
from ldm.callbacks.trackers import Tracker
from ldm.checkpoint import (
    holds_run,
    load_start,
    newest_checkpoint,
    read_run_config,
    step_of,
)
from ldm.claims import claim, folder_lock, permit
from ldm.compiling import make_fast
from ldm.config import PLACE_FILE, Overrides, foreign_targets, load_config, save_config
from ldm.cost.energy import EnergyMeter
from ldm.curves import METRICS_FILE, read_curves
from ldm.data.datamodule import ContrastDataModule
from ldm.data.layouts.base import stored_files
from ldm.data.seen import (
    SUBJECTS_FILE,
    UNSEEN,
    Digests,
    origins,
    refuse_split,
    require_same_patients,
    subject_digests,
    write_seen,
)
from ldm.environment import require_safe_libraries, resolve_precision
from ldm.errors import ConfigError, OutputError, bad_value, calling
from ldm.models.base import RunModule
from ldm.progress import Progress, silent, unheard
from ldm.storage import CONFIG_FILE, COST_FILE, MODEL_FILE, read_json, run_folder
from ldm.study import build_model
from ldm.training.calibration import calibrate
from ldm.training.checkpoint_io import AtomicCheckpointIO
from ldm.training.cost import write_training_cost
from ldm.training.module import TrainingData, TrainingModule
from ldm.training.rehearsal import new_trainer, quiet, rehearse
from ldm.training.run_config import portable_config, run_config, told_of_start, with_found_root
from ldm.typed import typed
from ldm.util import instantiate_from_config, trusting, user_path

log = logging.getLogger(__name__)

RUNS = Path("runs")
HELD_OUT = 3  # patients of the validation that the next command names
TENSORBOARD = "ldm.callbacks.trackers.TensorBoard"
RUN_FILES = (
    CONFIG_FILE,
    PLACE_FILE,
    MODEL_FILE,
    METRICS_FILE,
    SUBJECTS_FILE,
    COST_FILE,
    "loss.svg",
)


@dataclass(frozen=True)
class TrainedRun:
    """A run folder after training.

    Args:
        folder: the run folder, which ``Synthesiser.load`` and ``dsdiff sample`` take.
        steps: optimizer steps that it has had in all.
        stopped_by: number of the signal that ended the training early, or None.
        next_command: what to do with the run on the command line.
        resume_command: what goes on with it there.
        begun_at: optimizer steps that it had had when this call began.
        longer: override with which a run that has ended goes on.
    """

    folder: Path
    steps: int
    stopped_by: int | None
    next_command: str
    resume_command: str
    begun_at: int = 0
    longer: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the run had ended before, so that this call had nothing to train."""
        return self.steps == self.begun_at

    @property
    def model(self) -> Path:
        """The weights to sample with."""
        return self.folder / MODEL_FILE

    @property
    def curves(self) -> dict[str, tuple[list[int], list[float]]]:
        """Steps and values of each metric, such as ``train/loss``: what ``metrics.csv`` holds."""
        return read_curves(self.folder)

    @property
    def cost(self) -> dict[str, Any]:
        """Seconds, peak memory, energy and subjects of the training: ``cost.json``."""
        return read_json(self.folder / COST_FILE)


@typed
def train(
    config: str | Path | Sequence[str | Path] | None = None,
    overrides: Overrides = (),
    output: str | Path | None = None,
    *,
    resume: str | Path | None = None,
    start: str | Path | None = None,
    trust: Collection[str] = (),
    allow_data_change: bool = False,
    say: Callable[[str], None] | None = None,
    progress: Progress = silent,
) -> TrainedRun:
    """Train a network.

    Args:
        config: YAML, or several that are merged left to right.
        overrides: ``key=value``, such as ``data.params.root=PATIENTS``, or ``{key: value}``.
        output: run folder; None: ``runs/NAME``.
        resume: run folder to continue exactly, in place of ``config``.
        start: run folder whose weights the new run starts with (fine-tuning); without ``config``
            its configuration too, see :func:`ldm.training.run_config.run_config`.
        trust: classes accepted in that folder beside those that the shipped YAMLs name.
        allow_data_change: go on though the files of the patients, or who they are, changed.
        say: told one line at a time what is trained, how far it is and what validation found.
        progress: wraps the subjects that are decoded; given, a terminal shows a bar of the steps.

    Returns:
        the run; ``stopped_by`` says whether a signal, such as Ctrl-C, ended it early.

    Raises:
        ConfigError: USAGE, and what is wrong, with its key path. DataError: a subject cannot be
            used. OutputError: OUT-EXISTS when the folder holds a run already. NonFiniteError.
            CheckpointError: CKPT-MISMATCH, an override that a resumed run does not take; CKPT-DATA.
    """
    if resume is not None:
        folder = user_path(resume)
        if given := config or output or start:
            raise ConfigError("USAGE", f"--resume has its own YAML and folder, not {given}")
        checkpoint, before = newest_checkpoint(folder), read_run_config(folder, trust)
        resolved = load_config([before], overrides)
        require_resumable(before, resolved, str(folder))
        require_ahead(before, resolved, step_of(checkpoint), str(folder))
        if (notice := rate_notice(before, resolved)) and is_main_process():
            (say or log.warning)(notice)
        resolved = with_found_root(resolved, folder)
        kept = None if allow_data_change else read_json(folder / SUBJECTS_FILE)
        if kept == {}:
            log.warning("%s holds no %s: the data are taken to be the same", folder, SUBJECTS_FILE)
        return run_training(resolved, folder, checkpoint, kept, say=say, progress=progress)
    resolved = run_config(config, overrides, start, trust)
    folder = user_path(output) if output else RUNS / str(resolved.get("name", "run"))
    first = None if start is None else user_path(start)
    if first and say and is_main_process():
        say(told_of_start(resolved, first))
    return run_training(resolved, folder, start=first, say=say, progress=progress)


@quiet("pytorch_lightning")
def run_training(
    config: Mapping[str, Any],
    folder: Path,
    checkpoint: Path | None = None,
    kept: Mapping[str, Any] | None = None,
    *,
    start: Path | None = None,
    say: Callable[[str], None] | None = None,
    progress: Progress = silent,
) -> TrainedRun:
    """Run one training of a resolved configuration in ``folder``, from ``checkpoint`` if given.

    Args:
        kept: ``subjects.json`` of the run, which the data must still be; None: they may differ.
        start: run folder, or model file, whose weights a new training starts with.

    Raises:
        ConfigError, DataError, OutputError, NonFiniteError: see :func:`train`.
        CheckpointError: CKPT-DATA; CKPT-MISMATCH, also for weights of another model.
    """
    require_safe_libraries()
    is_main, is_resumed = is_main_process(), checkpoint is not None
    begun_at = step_of(checkpoint) if checkpoint else 0  # which is replaced as it goes
    if not is_resumed and is_main:
        _refuse_begun(folder)
        rehearse(config, say or unheard)
    data = _data(config, progress if is_main else silent, say if is_main else None)
    known = _known_patients(data) if is_main else {}
    built_from = [*origins(config["model"]), *([run_folder(start)] if start else [])]
    model = _first_model(config, None if is_resumed else data)
    require_same_patients(kept or {}, known)
    if start is not None:
        load_start(model, start, config)
    config = portable_config(config, model, data)
    is_bar = progress is not silent and sys.stdout.isatty()
    shown = [TrainingProgress(say or unheard, is_bar)] if say or is_bar else []
    trainer, stop = build_trainer(config, folder, data, shown)
    is_compiled = bool((config.get("lightning") or {}).get("compile"))
    device = trainer.strategy.root_device
    make_fast(model, trainer.precision, device.type, is_compiled)
    owned = _claimed(folder, data, is_resumed) if is_main else nullcontext()
    with owned:
        if is_main:
            permit(folder / "tensorboard" / "events", replace=False)  # that is no link
            save_config(config, folder / CONFIG_FILE)
            write_seen(folder, known, built_from)
        meter = EnergyMeter(device)
        _fit(trainer, model, data, checkpoint, stop)
        if is_main:
            write_training_cost(folder, trainer, data, meter, is_resumed, not stop.received)
            if not stop.received:
                calibrate(folder, model, data, device, foreign_targets(config), say or unheard)
    commands = _commands(model, data, folder, foreign_targets(config))
    return TrainedRun(
        folder, trainer.global_step, stop.received, *commands, begun_at, _longer(trainer)
    )


def _longer(trainer: Any) -> str:
    """Return the override with which a run that has ended goes on, by what has ended it."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return f"lightning.trainer.max_steps={2 * trainer.global_step}"
    left = [c.time_remaining() for c in trainer.callbacks if isinstance(c, Timer)]
    if any(seconds is not None and seconds <= 0 for seconds in left):
        return "lightning.trainer.max_time=DD:HH:MM:SS"
    return "lightning.callbacks.checkpoint.params.patience=null"


def _refuse_begun(folder: Path) -> None:
    """Refuse a folder that holds a run; one that is trained at this moment is busy.

    Raises:
        OutputError: OUT-EXISTS. BusyError: RUN-BUSY.
    """
    if holds_run(folder):
        with folder_lock(folder):
            raise OutputError(
                "OUT-EXISTS",
                f"{folder} holds a run: continue it with --resume={folder}, or choose another "
                "--output",
            )


def _first_model(config: Mapping[str, Any], data: ContrastDataModule | None) -> Any:
    """Return the model with its first weights, checked and fitted to the data of a new training."""
    torch.manual_seed(config.get("seed", 0))
    model = build_model(config)
    if data is not None:
        model.check_start(data)
        model.new_optimizer()  # what it refuses would be found in a run that has begun
        if hasattr(model, "network_calls"):  # steps without a grid would be found when sampling
            model.network_calls(model.sampling_steps, model.sampler)
    return model


def _commands(
    model: Any, data: ContrastDataModule, folder: Path, foreign: Sequence[str]
) -> tuple[str, str]:
    """Return what to do with a run, and what goes on with it."""
    trust = "".join(f" {word}" for word in trusting(foreign))
    resume = f"dsdiff train --resume {shlex.quote(str(folder))}{trust}"
    return _next_command(model, data, folder) + trust, resume


def _next_command(model: Any, data: ContrastDataModule, folder: Path) -> str:
    """Return what to do with a run, on the patients that its training did not see."""
    predictions = Path("predictions", folder.name)
    places = (folder, data.root, predictions)
    command = model.next_step(*(shlex.quote(str(place)) for place in places))
    if "--input" not in command:
        return command
    if data.study.varies:  # and these patients lack none
        command += f" --target {data.study.enhanced or data.study.conditions[0]}"
    few = [UNSEEN] if data.split["test"] else data.split["val"][:HELD_OUT]
    return f"{command} --subjects {shlex.join(few)}" if few else command


def _data(
    config: Mapping[str, Any], progress: Progress, say: Callable[[str], None] | None
) -> ContrastDataModule:
    """Return the data of a configuration with its subjects found, split and decoded."""
    data: ContrastDataModule = instantiate_from_config(config["data"], where="data")
    data.progress = progress
    data.setup()
    if say:
        say(data.found)
    return data


def _fit(
    trainer: pl.Trainer,
    model: RunModule,
    data: ContrastDataModule,
    checkpoint: Path | None,
    stop: StopOnSignal,
) -> None:
    """Train; a run that was stopped before its last validation has no step left, but that."""
    module, batches = TrainingModule(model), TrainingData(data)
    with calling():  # callbacks of one's own
        trainer.fit(module, datamodule=batches, ckpt_path=checkpoint, weights_only=True)
    savers = (c for c in trainer.checkpoint_callbacks if isinstance(c, RunCheckpoint))
    owes = any(saver.owes_validation(trainer) for saver in savers)
    if checkpoint and owes and not stop.received:
        trainer.validate(module, datamodule=batches, verbose=False)


def _claimed(
    folder: Path, data: ContrastDataModule, is_resumed: bool
) -> AbstractContextManager[Any]:
    """Return the claim of a training on its run folder; what it reads is never written."""
    inputs = [Path(data.root or ""), *stored_files(data.subjects.values())]
    return claim(folder, "train", inputs=inputs, writes=RUN_FILES, adopt=is_resumed)


def build_trainer(
    config: Mapping[str, Any],
    folder: Path,
    data: ContrastDataModule,
    shown: Sequence[pl.Callback] = (),
) -> tuple[pl.Trainer, StopOnSignal]:
    """Return the Lightning trainer of a run and the callback that knows why it stopped."""
    lightning = config.get("lightning") or {}
    options = dict(lightning.get("trainer") or {})
    where = options.get("accelerator", "auto")
    options["precision"] = resolve_precision(options.get("precision", "auto"), where)
    _count_in_steps(options, data)
    stop, guard = StopOnSignal(), RankGuard(data.worker_timeout)
    callbacks: list[Any] = [guard, stop]
    callbacks += built_callbacks(lightning)
    callbacks += [Timer(options.pop("max_time", None), verbose=False), *shown]
    trackers = _trackers(lightning, folder, config)
    given = {
        "default_root_dir": folder,
        "logger": [MetricsFile(folder), *trackers],
        "callbacks": callbacks,
        "plugins": [AtomicCheckpointIO(decisive(config))],
        "check_val_every_n_epoch": None,
        **options,
    }
    trainer = new_trainer(**given)
    guard.attach(trainer)
    return trainer, stop


def _trackers(
    lightning: Mapping[str, Any], folder: Path, config: Mapping[str, Any]
) -> list[Tracker]:
    """Return the trackers of ``lightning.logger``; TensorBoard for a run that does not say."""
    told = lightning.get("logger")
    nodes = [{"target": TENSORBOARD}] if told is None else told
    found = [
        instantiate_from_config(n, where=f"lightning.logger[{i}]") for i, n in enumerate(nodes)
    ]
    for tracker in found:
        tracker.attach(folder, config)
    return found


def _count_in_steps(options: dict[str, Any], data: ContrastDataModule) -> None:
    """Make a training one endless pass that steps or time end, with validation by batches."""
    if (epochs := options.pop("max_epochs", None)) not in (None, -1):
        batches = -(-len(data.train_slices) // data.batch_size)
        raise bad_value(
            f"lightning.trainer.max_epochs is {epochs}: a training, and the fall of its rate, are "
            f"counted in steps: give lightning.trainer.max_steps (an epoch has {batches} batches)"
        )
    if options.get("max_steps", -1) == -1 and not options.get("max_time"):
        raise bad_value("training has no end: give lightning.trainer.max_steps or max_time")
    options["max_epochs"] = -1
    if not len(data.val_dataset):
        options["limit_val_batches"] = 0
    options.setdefault("val_check_interval", 1000)


def _known_patients(data: ContrastDataModule) -> dict[str, Digests]:
    """Return what the patients of each part are known by; none is on both sides."""
    known = {
        part: subject_digests((data.subjects[i] for i in data.split[part]), data.cache)
        for part in ("train", "val")
    }
    refuse_split(**known)
    return known
