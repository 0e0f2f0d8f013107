"""Pictures of validation samples, features and the loss curve, as files in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ldm.callbacks.enhancement import enhancing_tumour
from ldm.callbacks.trackers import Tracker
from ldm.curves import read_curves
from ldm.models.base import RunModule
from ldm.plots.features import feature_figure
from ldm.plots.figures import loss_figure, strip_figure
from ldm.storage import write_file
from ldm.util import own_channels


def save_picture(trainer: pl.Trainer, name: str, image: bytes) -> None:
    """Write ``samples/NAME-000500.png`` in the run folder, and show it to the trackers."""
    path = Path(trainer.default_root_dir, "samples", f"{name}-{trainer.global_step:06d}.png")
    write_file(path, image)
    for tracker in trainer.loggers:
        if isinstance(tracker, Tracker):
            tracker.log_picture(name, image, trainer.global_step)


def plane(image: Tensor) -> np.ndarray:
    """Return (H, W), or the middle slice of (D, H, W), with the first axis downwards."""
    middle = image if image.ndim == 2 else image[len(image) // 2]
    return np.rot90(middle.float().cpu().numpy())


class Grid(Callback):
    """Keeps what is largest among the validation slices, and draws it when validation ends.

    A subclass keeps items by :meth:`keep`, and draws them in :meth:`draw`.

    Args:
        rows: largest number of slices in a picture.
    """

    def __init__(self, rows: int = 4) -> None:
        self.rows = rows
        self.shown: list[tuple[int, Any]] = []  # size and item, the largest first

    def keep(self, size: int, item: Any) -> None:
        """Keep an item while it is among the largest; of equal ones the first."""
        self.shown = sorted([*self.shown, (size, item)], key=lambda each: -each[0])[: self.rows]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        if self.shown and trainer.is_global_zero and not trainer.sanity_checking:
            self.draw(trainer, pl_module.model, [item for _, item in self.shown])
        self.shown = []

    def draw(self, trainer: pl.Trainer, model: RunModule, items: list[Any]) -> None:
        """Write the pictures of the items that were kept."""
        raise NotImplementedError


class SampleGrid(Grid):
    """Writes ``samples/step-000500.png``: inputs, synthetic, real and error of sampled slices.

    Those with most enhancing tumour come first. Of a patch of a volume, the middle slice.

    Args:
        rows: see :class:`Grid`.
    """

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep the slices with most enhancing tumour, or else the first ones."""
        data = trainer.datamodule.data
        own = own_channels(len(data.conditions), data.neighbours)
        tumour = enhancing_tumour(batch)
        for i, subject in enumerate(batch["subject"]):
            size = 0 if tumour is None else int(tumour[i].sum())
            if len(self.shown) == self.rows and size <= self.shown[-1][0]:
                continue
            images = dict(zip(data.conditions, batch["condition"][i, own], strict=True))
            images |= {"synthetic": outputs["synthetic"][i, 0], "real": batch["target"][i, 0]}
            strip = {name: plane(image) for name, image in images.items()}
            strip["error"] = np.abs(strip["synthetic"] - strip["real"])
            self.keep(size, (f"{subject} · {int(batch['slice'][i])}", strip))

    def draw(self, trainer: pl.Trainer, model: RunModule, items: list[Any]) -> None:
        """Write the picture."""
        titles, strips = zip(*items, strict=True)
        save_picture(trainer, "step", strip_figure(strips, titles))


class FeatureMaps(Callback):
    """Writes ``samples/features-step-000500.png`` where the backbone disentangles.

    The features are those of the first validation batch at the middle of the noise schedule.
    """

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *_: Any,
    ) -> None:
        """Write the picture of the first batch."""
        if batch_idx or not trainer.is_global_zero or trainer.sanity_checking:
            return
        if features := pl_module.model.features(batch):
            save_picture(trainer, "features-step", feature_figure(features))


class LossCurve(Callback):
    """Writes ``loss.svg`` from ``metrics.csv`` when training ends."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw training and validation loss over steps."""
        run = Path(trainer.default_root_dir)
        curves = read_curves(run)
        losses = {n: curves[n] for n in ("train/loss", "val/loss") if n in curves}
        if losses and trainer.is_global_zero:
            write_file(run / "loss.svg", loss_figure(losses))
