"""What validation must beat: the source contrast copied, and a regression of the contrasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ldm.inference.baselines import ContrastRegression
from ldm.models.base import items_of, psnr_in_brain, wanted
from ldm.study import Study
from ldm.util import evenly_spread


class ValidationBaselines(Callback):
    """Logs ``val/psnr_copy`` and ``val/psnr_quadratic``: ``val/psnr`` of what needs no network.

    The copied source, such as T1, and the quadratic regression of the contrasts, on the validation
    images as the network sees them. Nothing is logged where no contrast is synthesised.

    Args:
        patients: of the training, spread evenly, on which the regression is fitted.
    """

    def __init__(self, patients: int = 8) -> None:
        self.patients = patients
        self.regressions: list[ContrastRegression] = []  # of each target

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Log both for a batch; the first time the regression is fitted."""
        data = trainer.datamodule.data
        study, subjects = data.study, data.train_slices.subjects
        if study.target is None:
            return
        if not self.regressions:
            chosen = [subjects[i] for i in evenly_spread(self.patients, len(subjects))]
            places = range(len(study.targets)) if study.varies else [-1]
            self.regressions = [ContrastRegression(2).fit(chosen, place) for place in places]
        images = self.images(batch, study)
        found = {f"val/psnr_{name}": psnr_in_brain(image, batch) for name, image in images.items()}
        pl_module.log_dict(found, batch_size=len(batch["target"]), sync_dist=True)

    def images(self, batch: Mapping[str, Any], study: Study) -> dict[str, Tensor]:
        """Return what each baseline makes of a batch, (B, 1, *S)."""
        targets = wanted(batch) if study.varies else torch.zeros(len(batch["target"]), dtype=int)
        images = {name: torch.zeros_like(batch["target"]) for name in ("copy", "quadratic")}
        for place, regression in enumerate(self.regressions):
            own, items = study.making(study.targets[place]), targets == place
            part = items_of(batch, items)
            images["copy"][items] = part["condition"][:, study.channel(own.source), None]
            channels = [study.channel(contrast) for contrast in own.conditions]
            images["quadratic"][items] = regressed(regression, part, channels)
        return images


def regressed(
    regression: ContrastRegression, batch: Mapping[str, Any], channels: list[int]
) -> Tensor:
    """Return the target (B, 1, *S) that a regression makes of a batch, inside the brain."""
    brain = batch["brain"]
    values = batch["condition"][:, channels].movedim(1, -1)[brain[:, 0]]  # (N, M)
    fitted = regression.of(values.float().cpu().numpy())
    image = torch.zeros_like(batch["target"])
    image[brain] = torch.from_numpy(fitted).to(image).clamp(-1, 1)
    return image
