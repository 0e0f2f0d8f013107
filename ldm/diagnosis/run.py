"""Why a training is stuck: what is known of a run, and the causes that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ldm.curves import BUCKETS
from ldm.data.layouts import Choice
from ldm.diagnosis.causes import CAUSES
from ldm.diagnosis.curves import plateau_start
from ldm.diagnosis.data import data_params, diagnose_data
from ldm.diagnosis.facts import Cause, RunFacts, read_facts
from ldm.errors import DataError
from ldm.progress import Progress, silent
from ldm.typed import typed
from ldm.util import user_path

EXAMINED = 24  # subjects of a run's data that are read
CLASSES = ("layout", "normaliser_config", "augmentation_config")  # may name what is not trusted


@dataclass
class RunDiagnosis:
    """The causes of trouble of a run, most likely first."""

    facts: RunFacts = field(repr=False)
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


@typed
def diagnose_run(
    folder: str | Path,
    with_data: bool = True,
    root: str | Path | None = None,
    progress: Progress = silent,
    layout: Choice = None,
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
    facts = read_facts(user_path(folder))
    diagnosis = RunDiagnosis(facts)
    if with_data:
        try:
            params = data_params(facts.config)
            named = params.get("layout")
            named = named if isinstance(named, str) and "." not in named else None
            own = {name: value for name, value in params.items() if name not in CLASSES}
            told = (own, EXAMINED, progress, layout or named)
            facts.data = diagnose_data(_root(root, params), *told)
            facts.train_subjects = len(facts.data.split.get("train", ()))
        except DataError as error:
            diagnosis.data_error = str(error)
    found = [cause for cause in (find(facts) for find in CAUSES) if cause]
    diagnosis.causes = sorted(found, key=lambda cause: -cause.score)
    return diagnosis


def _root(root: str | Path | None, params: Mapping[str, Any]) -> Path:
    if root or params.get("root"):
        return Path(root or params["root"])
    raise DataError("DATA-MISSING", "the run names no data.params.root: give --root PATIENTS")
