"""A first step of training that is taken before anything is read or written.

Networks, losses, encoders, normalisers and augmentations that anyone has written fail in as many
ways as there are: what they do in a step of training, and in one of validation, shows most of them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException

from ldm.compiling import make_fast
from ldm.config import foreign_targets
from ldm.environment import resolve_precision
from ldm.errors import (
    ConfigError,
    DataError,
    NonFiniteError,
    as_known_error,
    bad_value,
    of_foreign_code,
)
from ldm.study import build_model
from ldm.util import instantiate_from_config, trainer_options

STEPS = 2  # of sampling, in the step of validation
KEPT = ("accelerator", "gradient_clip_val", "gradient_clip_algorithm", "detect_anomaly")


def rehearse(config: Mapping[str, Any]) -> None:
    """Train for a step, and validate, on noise in the size of the images; nothing is written.

    That is for classes of one's own: a configuration that names none is taken to be right.

    Args:
        config: resolved and checked.

    Raises:
        ConfigError: CONFIG-TARGET for a class that fails, or gives what it should not.
        OutOfMemory: the step needs more than there is.
    """
    if not (foreign := foreign_targets(config)):
        return
    options = trainer_options(config)
    trainer = new_trainer(
        **{name: options[name] for name in KEPT if name in options},
        precision=resolve_precision(
            options.get("precision", "auto"), options.get("accelerator", "auto")
        ),
        **{"devices": 1, "max_steps": 1, "max_epochs": -1, "plugins": [LightningEnvironment()]},
        **{"check_val_every_n_epoch": None, "val_check_interval": 1, "limit_val_batches": 1},
        **{"logger": False, "enable_checkpointing": False},
    )
    try:
        with quiet_lightning(), torch.random.fork_rng():
            _first_step(config, trainer)
    except Exception as error:
        known = as_known_error(error)
        if known and not isinstance(known, DataError | NonFiniteError):
            raise
        said = known or f"{type(error).__name__}: {error}"
        raise of_foreign_code(error) or ConfigError(
            "CONFIG-TARGET", f"in a first step, on noise, of {', '.join(foreign)}: {said}"
        ) from error


def _first_step(config: Mapping[str, Any], trainer: pl.Trainer) -> None:
    data: Any = instantiate_from_config(config["data"], where="data")
    data.rehearse()
    model = build_model(config)
    with suppress(DataError):  # noise has not what patients have
        model.check_start(data)
    if hasattr(model, "sampling_steps"):
        model.sampling_steps = min(model.sampling_steps, STEPS)
    make_fast(model, trainer.precision, trainer.strategy.root_device.type, is_compiled=False)
    trainer.fit(model, datamodule=data)


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
def quiet_lightning() -> Iterator[None]:
    """Keep back what Lightning says of no use to the user."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for text in (".*num_workers.*", ".*No device id.*", ".*treespec.*", ".*litlogger.*"):
            warnings.filterwarnings("ignore", text)
        warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning")
        try:
            yield
        finally:
            logger.setLevel(level)
