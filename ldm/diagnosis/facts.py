"""What is known of a training run, and what a cause of trouble is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ldm.config import read_saved_config
from ldm.curves import BUCKETS, METRICS_FILE, PLACES, read_curves
from ldm.diagnosis.curves import Curve
from ldm.diagnosis.data import DataDiagnosis
from ldm.errors import CheckpointError
from ldm.storage import CONFIG_FILE, COST_FILE, MODEL_FILE, read_json

LOSS, VALIDATION = "train/loss", "val/loss"
NO_COMPONENT = {"loss", "grad_norm", "lr", *(f"loss_t{bucket}" for bucket in range(BUCKETS))}
LIKELY = 0.5
STALLED_FALL = 0.2  # a flat loss that has lost less than this share has not learned much


@dataclass(frozen=True)
class Cause:
    """A likely cause of trouble.

    Args:
        score: 0 to 1; from LIKELY on it is taken for real.
        evidence: the numbers that speak for it.
        cure: what to try.
        override: the ``key=value`` that tries it; None where the data must be repaired.
    """

    name: str
    score: float
    evidence: str
    cure: str
    override: str | None = None

    @property
    def is_likely(self) -> bool:
        """Whether it is taken for real."""
        return self.score >= LIKELY


@dataclass
class RunFacts:
    """What is known of a run.

    Attributes:
        curves: {metric: curve}, never empty ones.
        data: diagnosis of its data, or None.
        parameters: of the saved model, 0 if there is none.
        weight_size: median over the saved matrices of their standard deviation.
    """

    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    curves: Mapping[str, Curve] = field(repr=False)
    data: DataDiagnosis | None = field(default=None, repr=False)
    train_subjects: int = 0
    parameters: int = 0
    weight_size: float = 0.0

    def setting(self, path: str) -> Any:
        """Return the value at a dotted path of the configuration, or None."""
        node: Any = self.config
        for key in path.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        return node

    @property
    def loss(self) -> Curve | None:
        """The training loss."""
        return self.curves.get(LOSS)

    @property
    def is_segmentation(self) -> bool:
        """Whether masks are what is learned."""
        return any(name.startswith("train/loss_dice") for name in self.curves) or (
            "segmentation" in str(self.setting("model.target"))
        )

    @property
    def is_stalled(self) -> bool:
        """Whether the loss is flat and has hardly fallen."""
        loss = self.loss
        return bool(loss and loss.is_long and loss.is_flat and loss.fall < STALLED_FALL)

    @cached_property
    def components(self) -> dict[str, Curve]:
        """The weighted terms of the training loss by name, such as ``loss_dice``."""
        names = (n.removeprefix("train/") for n in self.curves if n.startswith("train/"))
        return {n: self.curves[f"train/{n}"] for n in names if n not in NO_COMPONENT}

    @cached_property
    def gradients(self) -> dict[str, float]:
        """Median norm of each place over the last quarter of the run."""
        known = {place: self.curves.get(f"gradient/{place}") for place in PLACES}
        return {
            place: float(np.median(curve.values[-max(1, len(curve.values) // 4) :]))
            for place, curve in known.items()
            if curve
        }

    @property
    def steps(self) -> int:
        """Steps that were trained, as far as they were logged."""
        return int(self.loss.steps[-1]) + 1 if self.loss else 0

    @property
    def travel(self) -> float | None:
        """Sum of the learning rates of all steps over the size of the weights.

        Adam moves a weight by about the learning rate a step, whatever the gradient, so that a
        run whose travel is far below 1 cannot have left its initialisation.
        """
        rate = self.curves.get("train/lr")
        if not self.weight_size or rate is None or not self.uses_adam:
            return None
        return float(rate.values.mean() * self.steps / self.weight_size)

    @property
    def uses_adam(self) -> bool:
        """Whether the optimizer is Adam or one of its relatives."""
        return (
            "adam" in str(self.setting("model.params.optimizer_config.target") or "adamw").lower()
        )


def read_facts(folder: Path) -> RunFacts:
    """Read the configuration, metrics and weights of a run; nothing of it is built or imported.

    Raises:
        CheckpointError: CKPT-MISSING.
    """
    for name in (CONFIG_FILE, METRICS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(
                "CKPT-MISSING",
                f"{folder} has no {name}: give the folder of a run that has trained for "
                "lightning.trainer.log_every_n_steps at least",
            )
    curves = {n: Curve.of(*c) for n, c in read_curves(folder).items()}
    parameters, size = _weights(folder / MODEL_FILE)
    return RunFacts(
        folder,
        read_saved_config(folder / CONFIG_FILE),
        {name: curve for name, curve in curves.items() if len(curve.values)},
        train_subjects=len(read_json(folder / COST_FILE).get("train_subjects", ())),
        parameters=parameters,
        weight_size=size,
    )


def _weights(path: Path) -> tuple[int, float]:
    """Return the number of parameters, and the median standard deviation of the matrices."""
    if not path.is_file():
        return 0, 0.0
    count, spreads = 0, []
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(name)
                count += tensor.numel()
                if tensor.ndim > 1 and tensor.numel() > 1:
                    spreads.append(float(tensor.float().std()))
    except SafetensorError:
        return 0, 0.0
    return count, float(np.median(spreads)) if spreads else 0.0
