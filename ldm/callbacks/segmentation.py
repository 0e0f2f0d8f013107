"""Pictures of a segmenter in training, as files in the run folder."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from ldm.callbacks.pictures import Grid, plane, save_picture
from ldm.plots.overlay import attention_figure, overlay_figure
from ldm.util import own_channels


class SegmentationGrid(Grid):
    """Writes ``samples/step-000500.png``, the validation slices with most to segment, and
    ``samples/attention-000500.png``, the gates on the first of them.

    Of a patch of a volume, the middle slice.

    Args:
        rows: see :class:`ldm.callbacks.pictures.Grid`.
    """

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep the slices with most foreground."""
        target = pl_module.model.target(batch)
        for i, subject in enumerate(batch["subject"]):
            item = {
                "title": f"{subject} · {int(batch['slice'][i])}",
                "condition": batch["condition"][i],
                "presence": batch["presence"][i],
                "brain": batch["brain"][i, 0],
                "reference": target[i],
                "prediction": outputs["probability"][i] > pl_module.model.threshold,
            }
            self.keep(int(target[i].sum()), item)

    def draw(self, trainer: pl.Trainer, model: Any, items: list[Any]) -> None:
        """Write the pictures."""
        titles, rows = [item["title"] for item in items], [_row(item, model) for item in items]
        save_picture(trainer, "step", overlay_figure(rows, titles))
        first, row = items[0], rows[0]
        if maps := model.attention_maps(first["condition"][None], first["presence"][None]):
            gates = {level: plane(alpha[0, 0]) for level, alpha in maps.items()}
            brain = plane(first["brain"]) > 0
            figure = attention_figure(*row["prediction"], gates, brain, titles[0])
            save_picture(trainer, "attention", figure)


def _row(item: dict[str, Any], model: Any) -> dict[str, Any]:
    own = item["condition"][own_channels(len(model.conditions), model.neighbours)]
    images = {n: plane(image) for n, image in zip(model.conditions, own, strict=True)}
    last = images[model.conditions[-1]]
    masks = {
        name: {r: plane(m) > 0 for r, m in zip(model.regions, item[name], strict=True)}
        for name in ("reference", "prediction")
    }
    return images | {name: (last, regions) for name, regions in masks.items()}
