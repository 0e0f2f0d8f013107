"""Why a training is stuck: what is known of a run, and the causes that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ldm.callbacks.gradients import BUCKETS, PLACES
from ldm.callbacks.metrics_file import METRICS_FILE, read_curves
from ldm.checkpoint import CONFIG_FILE, MODEL_FILE
from ldm.config import read_saved_config
from ldm.diagnosis.curves import Curve, plateau_start
from ldm.diagnosis.data import DataDiagnosis, Progress, data_params, diagnose_data
from ldm.errors import CheckpointError, DataError
from ldm.storage import read_json

LOSS, VALIDATION = "train/loss", "val/loss"
NO_COMPONENT = {"loss", "grad_norm", "lr", *(f"loss_t{bucket}" for bucket in range(BUCKETS))}
EXAMINED = 24  # subjects of a run's data that are read
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
    config: Mapping[str, Any]
    curves: Mapping[str, Curve]
    data: DataDiagnosis | None = None
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


@dataclass
class RunDiagnosis:
    """The causes of trouble of a run, most likely first."""

    facts: RunFacts
    causes: list[Cause] = field(default_factory=list)
    data_error: str | None = None

    @property
    def likely(self) -> list[Cause]:
        """The causes that are taken for real."""
        return [cause for cause in self.causes if cause.is_likely]

    @property
    def summary(self) -> list[str]:
        """What was looked at, in a few lines."""
        facts = self.facts
        lines = [
            f"{facts.folder.name}: {facts.steps} steps, {facts.parameters / 1e6:.2f} M parameters"
        ]
        if loss := facts.loss:
            start = plateau_start(loss)
            state = f"flat since step {start}" if start is not None else "not flat"
            lines.append(f"loss {loss.first:.4g} -> {loss.level:.4g} ({-loss.fall:+.0%}), {state}")
        if terms := facts.components:
            lines.append("terms " + ", ".join(f"{n} {c.level:.3g}" for n, c in terms.items()))
        buckets = [(b, facts.curves.get(f"train/loss_t{b}")) for b in range(BUCKETS)]
        if any(curve for _, curve in buckets):
            known = (f"t{b} {c.first:.3g} -> {c.level:.3g}" for b, c in buckets if c)
            lines.append("loss by timestep (t0: least noise) " + ", ".join(known))
        if facts.gradients:
            norms = ", ".join(f"{n} {v:.2g}" for n, v in facts.gradients.items())
            lines.append(f"gradient norms {norms}")
        if self.data_error:
            lines.append(f"data not examined: {self.data_error}")
        elif facts.data:
            lines.append(f"data: {len(facts.data.subjects)} subjects examined in {facts.data.root}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        loss = self.facts.loss
        return {
            "run": str(self.facts.folder),
            "steps": self.facts.steps,
            "parameters": self.facts.parameters,
            "causes": [asdict(c) | {"likely": c.is_likely} for c in self.causes],
            "healthy": not self.likely,
            "loss": loss
            and {
                "first": loss.first,
                "last": loss.level,
                "variance_of_last_windows": loss.variance,
                "fall_over_last_windows": loss.late_fall[0],
                "flat": loss.is_flat,
                "flat_since_step": plateau_start(loss),
            },
            "components": {n: c.level for n, c in self.facts.components.items()},
            "gradients": self.facts.gradients,
            "travel": self.facts.travel,
            "data": self.facts.data.to_dict() if self.facts.data else None,
            "data_error": self.data_error,
        }


def diagnose_run(
    folder: Path,
    with_data: bool = True,
    root: Path | None = None,
    progress: Progress = lambda items, total: items,
    layout: Any = None,
) -> RunDiagnosis:
    """Rank the likely causes of trouble of a run from its configuration, metrics and data.

    Args:
        with_data: also examine up to EXAMINED subjects of its data.
        root: where they are now; None: where the run found them.
        layout: of them; None: as the run says by a name, or recognised. A class that the run names
            is not imported.

    Raises:
        CheckpointError: CKPT-MISSING for a folder that holds no run, or one without metrics.
    """
    from ldm.diagnosis.causes import CAUSES

    facts = read_facts(folder)
    diagnosis = RunDiagnosis(facts)
    if with_data:
        try:
            params = data_params(facts.config)
            named = params.get("layout")
            named = named if isinstance(named, str) and "." not in named else None
            told = (params, EXAMINED, progress, layout or named)
            facts.data = diagnose_data(_root(root, params), *told)
            facts.train_subjects = len(facts.data.split.get("train", ()))
        except DataError as error:
            diagnosis.data_error = str(error)
    found = [cause for cause in (find(facts) for find in CAUSES) if cause]
    diagnosis.causes = sorted(found, key=lambda cause: -cause.score)
    return diagnosis


def _root(root: Path | None, params: Mapping[str, Any]) -> Path:
    if root or params.get("root"):
        return root or Path(params["root"])
    raise DataError("DATA-MISSING", "the run names no data.params.root: give --root FOLDER")


def read_facts(folder: Path) -> RunFacts:
    """Read the configuration, metrics and weights of a run; nothing of it is built or imported.

    Raises:
        CheckpointError: CKPT-MISSING.
    """
    for name in (CONFIG_FILE, METRICS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(
                "CKPT-MISSING", f"{folder} has no {name}: give the folder of a run"
            )
    curves = {n: Curve.of(*c) for n, c in read_curves(folder).items()}
    parameters, size = _weights(folder / MODEL_FILE)
    return RunFacts(
        folder,
        read_saved_config(folder / CONFIG_FILE),
        {name: curve for name, curve in curves.items() if len(curve.values)},
        train_subjects=len(read_json(folder / "cost.json").get("train_subjects", ())),
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
