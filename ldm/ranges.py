"""What a number in a configuration may be: a table of the parameters that the shipped YAMLs give.

A value that cannot be meant, such as a negative learning rate, is refused before anything is built,
read or written; without the table many would train, and say nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ldm.errors import bad_value, one_of


@dataclass(frozen=True)
class Range:
    """Numbers from ``least`` to ``most``; ``above`` leaves out ``least``, ``below`` ``most``."""

    least: float
    most: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        enough = value > self.least if self.above else value >= self.least
        below = value < self.most if self.below else value <= self.most
        return enough and below and math.isfinite(value)

    def __str__(self) -> str:
        low = f"above {self.least}" if self.above else f"{self.least} or more"
        if self.most == math.inf:
            return low
        most = f"and below {self.most}" if self.below else f"and {self.most} at most"
        return f"{low} {most}" if self.above or self.below else f"{self.least} to {self.most}"


POSITIVE, NOT_NEGATIVE, COUNT = Range(0, above=True), Range(0), Range(1)
SHARE, INSIDE = Range(0, 1), Range(0, 1, above=True, below=True)
_NAMES = {
    POSITIVE: "lr gain max_norm eps channel_mult val_check_interval limit_train_batches",
    COUNT: "batch_size worker_timeout val_slices image_size every_n_steps sampling_steps substeps "
    "steps model_channels num_res_blocks num_head_channels attention_resolutions patch_size "
    "hidden_size depth num_heads middle_heads width embed_dim stem_channels channels "
    "block_out_channels decoder_channels layers_per_block attention_head_dim size_divisor "
    "log_every_n_steps num_nodes "
    "accumulate_grad_batches norm_num_groups transformer_depth z_channels resolution in_channels "
    "out_ch ch ch_mult disc_channels disc_num_layers",
    NOT_NEGATIVE: "sparsity temperature warmup_steps weight_decay neighbours num_workers weight "
    "content_style style_anatomy_lesion kl_weight perceptual_weight disc_start disc_weight degree "
    "num_classes middle_depth num_downsamplings supervision fold abnormal enhancing "
    "limit_val_batches overfit_batches gradient_clip_val momentum strength",
    SHARE: "min_brain mean_share visited decay_to abnormal_share shrink",
    INSIDE: "linear_start linear_end half_life",
    Range(-1, 1, above=True, below=True): "asymmetry",
    Range(0, 1, below=True): "decay betas condition_dropout covariate_dropout drop_all dropout",
    Range(2): "timesteps folds",
    Range(0, 100): "low high",
    Range(0, 10): "spread",
    Range(0, 2**63 - 1): "seed",
}
RANGES = {name: span for span, names in _NAMES.items() for name in names.split()}

OWNED = ("default_root_dir", "logger", "callbacks", "plugins")  # of lightning.trainer
TRAINER_NAMES = {
    "deterministic": ("True", "False", "warn"),
    "accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    # weights stay in 32 bit: their moving average, and Adam, would lose what a step adds
    "precision": ("auto", "32", "32-true", "16", "16-mixed", "bf16", "bf16-mixed"),
}


def check_ranges(params: Mapping[str, Any], path: str) -> None:
    """Refuse a number, or a number in a list, that its parameter cannot have.

    Args:
        params: parameters by name; those that the table does not have may be anything.
        path: of their mapping in the configuration.

    Raises:
        ConfigError: CONFIG-VALUE.
    """
    for name, value in params.items():
        span = RANGES.get(name)
        for number in _numbers(value) if span else ():
            if number not in span:
                raise bad_value(f"{path}.{name} is {number}: give {span}")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Refuse what Lightning finds too late, or what is not for a configuration to say.

    Raises:
        ConfigError: CONFIG-VALUE.
    """
    for name in OWNED:
        if trainer.get(name) is not None:
            raise bad_value(
                f"lightning.trainer.{name} is decided by the run, whose folder is --output: "
                "delete the line"
            )
    for name, known in TRAINER_NAMES.items():
        if trainer.get(name) is not None:
            one_of(f"lightning.trainer.{name}", str(trainer[name]), known)
    check_ranges(trainer, "lightning.trainer")
    devices, time = trainer.get("devices", 1), trainer.get("max_time")
    if isinstance(devices, int) and devices < 1 and devices != -1:
        raise bad_value(f"lightning.trainer.devices is {devices}: give 1 or more, or -1 for all")
    if trainer.get("fast_dev_run"):
        raise bad_value(
            "lightning.trainer.fast_dev_run trains no run: leave it out, with max_steps=1"
        )
    is_time = isinstance(time, str) and re.fullmatch(r"\d+(:\d\d){3}", time)
    if isinstance(time, str) and not (is_time and re.search("[1-9]", time)):
        raise bad_value(
            f"lightning.trainer.max_time is '{time}': give DAYS:HH:MM:SS in quotes, above 0"
        )
