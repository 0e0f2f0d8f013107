"""Trackers of a training: TensorBoard, Weights & Biases, MLflow, a table; pictures where they can.

``lightning.logger`` lists them. They stand beside ``metrics.csv``, which is always written and of
which everything else is made, and none of them ends a training: one that fails is told once and
then left alone. Nothing leaves the machine unless the configuration says so, and what a tracker is
told of the configuration names no patient and no folder of patients.
"""

from __future__ import annotations

import io
import logging
import os
import secrets
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from ldm.binding import PATIENTS, PLACES
from ldm.curves import read_curves
from ldm.extras import optional_module
from ldm.storage import read_json, write_csv, write_json
from ldm.util import trainer_options, without_params

log = logging.getLogger(__name__)

RUNS_FILE = "trackers.json"  # which run of a tracker a run folder is, so that a resumed one goes on


class Tracker(Logger):
    """A tracker of one run. A subclass says how to begin, write, show and end.

    Args:
        pictures: also the pictures of ``samples/``, which carry the ids of their patients.
    """

    name, version = "tracker", ""
    needs: str | None = None  # module that is not always installed
    pictures, is_begun, has_failed = True, False, False

    def __init__(self, pictures: bool = True) -> None:
        super().__init__()
        self.pictures = pictures
        self.folder, self.config = Path(), {}

    def attach(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Say which run it tracks; nothing is written yet.

        Raises:
            ConfigError: CONFIG-EXTRA, its package is not installed.
        """
        self.folder, self.config = folder, told_of(config)
        if self.needs:
            optional_module(self.needs, f"{type(self).__name__} of lightning.logger")

    def begin(self) -> None:
        """Open the run."""

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Write values of a step."""

    def show(self, name: str, png: bytes, step: int) -> None:
        """Keep a picture, where the tracker can."""

    def end(self, is_whole: bool) -> None:
        """Close the run."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write values of a step."""
        self._try(self.write, metrics, step or 0)

    @rank_zero_only
    def log_picture(self, name: str, png: bytes, step: int) -> None:
        """Keep a picture."""
        if self.pictures:
            self._try(self.show, name, png, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run; ``status`` is ``success`` or what Lightning says of a failure."""
        if self.is_begun:
            self._try(self.end, status == "success")
            self.is_begun = False

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: the run is begun with its configuration."""

    def _try(self, act: Callable[..., None], *given: Any) -> None:
        if self.has_failed:
            return
        try:
            if not self.is_begun:
                self.begin()
                self.is_begun = True
            act(*given)
        except Exception as error:
            self.has_failed = True
            log.warning(
                "%s failed and is left alone (%s): the training goes on, metrics.csv has it all",
                type(self).__name__,
                " ".join(str(error).split())[:200] or type(error).__name__,
            )

    def _known(self, new: Callable[[], str]) -> str:
        """Return the id of the tracker's run that this run folder is, made once."""
        known = read_json(self.folder / RUNS_FILE, torn=True)
        if self.name not in known:
            known = {**known, self.name: new()}
            write_json(self.folder / RUNS_FILE, known)
        return known[self.name]


class TensorBoard(Tracker):
    """Events in ``tensorboard/`` of the run folder, with the pictures."""

    name = "tensorboard"

    def begin(self) -> None:  # noqa: D102
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(self.folder / "tensorboard")

    def write(self, metrics: Mapping[str, float], step: int) -> None:  # noqa: D102
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def show(self, name: str, png: bytes, step: int) -> None:  # noqa: D102
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self.writer.add_image(f"samples/{name}", pixels, step, dataformats="HWC")

    def end(self, is_whole: bool) -> None:  # noqa: D102
        self.writer.close()


class WandB(Tracker):
    """Weights & Biases, in ``wandb/`` of the run folder; ``wandb sync`` sends what is offline.

    Args:
        project, entity: of Weights & Biases; no entity: that of the login.
        mode: ``offline`` (nothing leaves the machine) or ``online``.
        pictures: see :class:`Tracker`.
    """

    name = "wandb"
    needs = "wandb"

    def __init__(
        self,
        project: str = "dsdiff",
        entity: str | None = None,
        mode: str = "offline",
        pictures: bool = True,
    ) -> None:
        super().__init__(pictures)
        self.project, self.entity, self.mode = project, entity, mode

    def begin(self) -> None:  # noqa: D102
        import wandb

        quiet = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_meta=True,  # host and command line, which names the patients
            x_disable_machine_info=True,
        )
        self.run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.folder.name,
            id=self._known(lambda: secrets.token_hex(4)),
            resume="allow" if self.mode == "online" else None,
            dir=self.folder,
            mode=self.mode,
            config=self.config,
            settings=quiet,
        )
        self.run.define_metric("*", step_metric="step")

    def write(self, metrics: Mapping[str, float], step: int) -> None:  # noqa: D102
        self.run.log({**metrics, "step": step})

    def show(self, name: str, png: bytes, step: int) -> None:  # noqa: D102
        import wandb

        self.run.log({f"samples/{name}": wandb.Image(Image.open(io.BytesIO(png))), "step": step})

    def end(self, is_whole: bool) -> None:  # noqa: D102
        self.run.finish(exit_code=0 if is_whole else 1)


class MLflow(Tracker):
    """MLflow, by default a file store in ``mlruns/`` of the run folder.

    Args:
        tracking_uri: of a server or a store; None: ``mlruns/`` of the run folder.
        experiment: of MLflow, made if there is none.
        pictures: see :class:`Tracker`.
    """

    name = "mlflow"
    needs = "mlflow"

    def __init__(
        self, tracking_uri: str | None = None, experiment: str = "dsdiff", pictures: bool = True
    ) -> None:
        super().__init__(pictures)
        self.tracking_uri, self.experiment = tracking_uri, experiment

    def begin(self) -> None:  # noqa: D102
        if self.tracking_uri is None:  # since MLflow 3.7 a store of files must be asked for
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        uri = self.tracking_uri or (self.folder / "mlruns").absolute().as_uri()
        self.client = MlflowClient(tracking_uri=uri)
        self.id = self._known(self._create)
        self.client.update_run(self.id, status="RUNNING")
        params = [Param(key, str(value)[:500]) for key, value in flat(self.config).items()]
        known = self.client.get_run(self.id).data.params
        new = [param for param in params if param.key not in known]  # it takes no second value
        for first in range(0, len(new), 100):
            self.client.log_batch(self.id, params=new[first : first + 100])

    def _create(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        experiment = (
            found.experiment_id if found else self.client.create_experiment(self.experiment)
        )
        return self.client.create_run(experiment, run_name=self.folder.name).info.run_id

    def write(self, metrics: Mapping[str, float], step: int) -> None:  # noqa: D102
        for name, value in metrics.items():
            self.client.log_metric(self.id, name, value, step=step)

    def show(self, name: str, png: bytes, step: int) -> None:  # noqa: D102
        path = self.folder / "samples" / f"{name}-{step:06d}.png"
        self.client.log_artifact(self.id, str(path), "samples")

    def end(self, is_whole: bool) -> None:  # noqa: D102
        self.client.set_terminated(self.id, "FINISHED" if is_whole else "FAILED")


class WideTable(Tracker):
    """``metrics_wide.csv`` when the training ends: a row a step, a column a metric. No pictures."""

    name = "table"

    def end(self, is_whole: bool) -> None:  # noqa: D102
        curves = read_curves(self.folder)
        rows: dict[int, dict[str, float]] = {}
        for name, (steps, values) in curves.items():
            for step, value in zip(steps, values, strict=True):
                rows.setdefault(step, {})[name] = value
        table = [(step, *(rows[step].get(name) for name in curves)) for step in sorted(rows)]
        write_csv(self.folder / "metrics_wide.csv", ("step", *curves), table)


def told_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a tracker is told of a configuration: neither patients nor where they are."""
    data = without_params(config.get("data") or {}, (*PLACES, *PATIENTS))
    trainer = trainer_options(config)
    told = {name: config.get(name) for name in ("name", "seed", "model")}
    return {**told, "data": data, "lightning": {"trainer": trainer}}


def flat(config: Any, path: str = "") -> dict[str, Any]:
    """Return ``{"model.params.steps": 4, ...}`` of nested mappings."""
    if not isinstance(config, Mapping):
        return {path: config}
    return {
        key: value
        for name, inner in config.items()
        for key, value in flat(inner, f"{path}.{name}" if path else str(name)).items()
    }
