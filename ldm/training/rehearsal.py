"""A first step of training that is taken before anything is read or written.

Networks, losses, encoders, normalisers and augmentations that anyone has written fail in as many
ways as there are: what they do in a step of training, and in one of validation, shows most of them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.utilities import move_data_to_device
from lightning_fabric.utilities.exceptions import MisconfigurationException

from ldm.callbacks.own import built_callbacks
from ldm.compiling import make_fast
from ldm.config import foreign_targets
from ldm.environment import resolve_precision
from ldm.errors import (
    ConfigError,
    DataError,
    NonFiniteError,
    as_known_error,
    bad_value,
    calling,
)
from ldm.models.diffusion.error_model import residuals_of
from ldm.progress import unheard
from ldm.storable import require_storable
from ldm.study import build_model
from ldm.training.calibration import is_calibrated
from ldm.training.kept import require_kept
from ldm.training.module import TrainingData, TrainingModule
from ldm.util import SESSION, instantiate_from_config, trainer_options

log = logging.getLogger(__name__)

STEPS = 2  # of sampling, in the step of validation
KEPT = ("accelerator", "gradient_clip_val", "gradient_clip_algorithm", "detect_anomaly")


def rehearse(config: Mapping[str, Any], say: Callable[[str], None] = unheard) -> None:
    """Train for a step, and validate, on noise in the size of the images; nothing is written.

    That is for classes of one's own: a configuration that names none is taken to be right.

    Args:
        config: resolved and checked.
        say: told what is tried, which may take a minute on a CPU.

    Raises:
        ConfigError: CONFIG-TARGET for a class that fails, or gives what it should not.
        OutOfMemory: the step needs more than there is.
    """
    if not (foreign := foreign_targets(config)):
        return
    if passing := [target for target in foreign if target.startswith(f"{SESSION}.")]:
        log.warning(
            "%s is known in this notebook or script alone, and so is what is trained with it: "
            "import it from a file, such as my_net.py, for other programs to find it",
            ", ".join(passing),
        )
    say(f"First a step on noise, to try {', '.join(foreign)}")
    try:
        with quiet("pytorch_lightning", "ldm"), torch.random.fork_rng(), calling():
            model, data, device = _first_step(config)
            batch = move_data_to_device(next(iter(data.val_dataloader())), device)
            told = require_kept(config, model, data, batch), _other_size(model, device)
            if is_calibrated(model):
                residuals_of(model, batch)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # which Lightning makes it of
            raise error.__context__ from None
        raise
    except Exception as error:
        known = as_known_error(error)
        if known and not isinstance(known, DataError | NonFiniteError):
            raise
        said = known or f"{type(error).__name__}: {error}"
        raise ConfigError(
            "CONFIG-TARGET", f"in a first step, on noise, of {', '.join(foreign)}: {said}"
        ) from error
    for warning in filter(None, told):
        log.warning("%s", warning)


def _first_step(config: Mapping[str, Any]) -> tuple[Any, Any, torch.device]:
    """Return the model after it, the data, and the device on which it was."""
    options = trainer_options(config)
    kept = {name: options[name] for name in KEPT if name in options}
    asked = options.get("precision", "auto"), options.get("accelerator", "auto")
    trainer = new_trainer(
        **{**kept, "precision": resolve_precision(*asked), "devices": 1},
        **{"max_steps": 1, "max_epochs": -1, "val_check_interval": 1, "limit_val_batches": 1},
        **{"check_val_every_n_epoch": None, "logger": False, "enable_checkpointing": False},
        plugins=[LightningEnvironment()],  # whatever else has started this process
    )
    data: Any = instantiate_from_config(config["data"], where="data")
    data.rehearse()
    model = build_model(config)
    with suppress(DataError):  # noise has not what patients have
        model.check_start(data)
    if hasattr(model, "sampling_steps"):
        model.sampling_steps = min(model.sampling_steps, STEPS)
    device = trainer.strategy.root_device
    make_fast(model, trainer.precision, device.type, is_compiled=False)
    trainer.fit(TrainingModule(model), datamodule=TrainingData(data))
    own = built_callbacks(config.get("lightning") or {})  # whose hooks may do anything
    saved = trainer._checkpoint_connector.dump_checkpoint()
    require_storable({**saved, "callbacks": {c.state_key: c.state_dict() for c in own}})
    return model.to(device).eval(), data, device


@torch.no_grad()
def _other_size(model: Any, device: torch.device) -> str:
    """Return what keeps a network of slices from a row more, as a larger brain has; else nothing.

    Volumes are seen in windows, and segmented slices too.
    """
    if getattr(model, "tiling", True):
        return ""
    x_t, t, condition, *others = move_data_to_device(model.network_inputs(), device)
    more, condition = (F.pad(images, (0, 0, 0, 1)) for images in (x_t, condition))
    try:
        model.network(more, t, condition, *others)
    except Exception as error:
        sizes = (" x ".join(map(str, images.shape[2:])) for images in (x_t, more))
        return (
            "{} takes images of {} but not of {}, so no patient whose brain is larger than those "
            "of its training ({}); if a number must divide their size, give it size_divisor"
        ).format(type(model.network.diffusion_model).__name__, *sizes, error.__cause__ or error)
    return ""


def new_trainer(**options: Any) -> pl.Trainer:
    """Return a trainer of Lightning that shows and checks nothing by itself.

    Raises:
        ConfigError: CONFIG-VALUE for options that it refuses.
    """
    own = {
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    try:
        return pl.Trainer(**{**own, **options})
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise bad_value(f"lightning.trainer: {' '.join(str(error).split())}") from error


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Keep back what loggers, and Lightning by warnings, say of no use to the user."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for text in (".*num_workers.*", ".*No device id.*", ".*treespec.*", ".*litlogger.*"):
            warnings.filterwarnings("ignore", text)
        warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
