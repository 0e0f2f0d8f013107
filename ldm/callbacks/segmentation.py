"""Pictures of a segmenter in training, as files in the run folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ldm.callbacks.pictures import save_picture
from ldm.plots.overlay import attention_figure, overlay_figure
from ldm.util import own_channels


class SegmentationGrid(Callback):
    """Writes ``samples/step-000500.png``, the validation slices with most to segment, and
    ``samples/attention-000500.png``, the gates on the first of them.

    Of a patch of a volume, the middle slice.

    Args:
        rows: largest number of slices in a picture.
    """

    def __init__(self, rows: int = 4) -> None:
        self.rows = rows
        self.shown: list[dict[str, Any]] = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the slices with most foreground."""
        target = pl_module.target(batch)
        for i, subject in enumerate(batch["subject"]):
            self.shown.append(
                {
                    "size": int(target[i].sum()),
                    "title": f"{subject} · {int(batch['slice'][i])}",
                    "condition": batch["condition"][i],
                    "presence": batch["presence"][i],
                    "brain": batch["brain"][i, 0],
                    "reference": target[i],
                    "prediction": outputs["probability"][i] > pl_module.threshold,
                }
            )
        self.shown = sorted(self.shown, key=lambda item: -item["size"])[: self.rows]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the pictures."""
        if self.shown and trainer.is_global_zero and not trainer.sanity_checking:
            titles = [item["title"] for item in self.shown]
            rows = [self._row(item, pl_module) for item in self.shown]
            save_picture(trainer, "step", overlay_figure(rows, titles))
            first, row = self.shown[0], rows[0]
            maps = pl_module.attention_maps(first["condition"][None], first["presence"][None])
            if maps:
                gates = {level: _picture(alpha[0, 0]) for level, alpha in maps.items()}
                brain = _picture(first["brain"]) > 0
                figure = attention_figure(*row["prediction"], gates, brain, titles[0])
                save_picture(trainer, "attention", figure)
        self.shown = []

    def _row(self, item: dict[str, Any], model: pl.LightningModule) -> dict[str, Any]:
        own = item["condition"][own_channels(len(model.conditions), model.neighbours)]
        images = {n: _picture(image) for n, image in zip(model.conditions, own, strict=True)}
        last = images[model.conditions[-1]]
        masks = {
            name: {r: _picture(m) > 0 for r, m in zip(model.regions, item[name], strict=True)}
            for name in ("reference", "prediction")
        }
        return images | {name: (last, regions) for name, regions in masks.items()}


def _picture(image: Tensor) -> np.ndarray:
    """Return (H, W), or the middle slice of (D, H, W), with the first axis downwards."""
    plane = image if image.ndim == 2 else image[len(image) // 2]
    return np.rot90(plane.float().cpu().numpy())
