"""What validation must beat: the source contrast copied, and a regression of the contrasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ldm.inference.baselines import ContrastRegression, design_matrix
from ldm.models.base import psnr_in_brain
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
        self.regression: ContrastRegression | None = None

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log both for a batch; the first time the regression is fitted."""
        study, subjects = trainer.datamodule.study, trainer.datamodule.train_slices.subjects
        if study.target is None:
            return
        if self.regression is None:
            chosen = [subjects[i] for i in evenly_spread(self.patients, len(subjects))]
            self.regression = ContrastRegression(2).fit(chosen)
        channels = [study.channel(contrast) for contrast in study.conditions]
        images = {
            "copy": batch["condition"][:, study.channel(study.source), None],
            "quadratic": regressed(self.regression, batch, channels),
        }
        found = {f"val/psnr_{name}": psnr_in_brain(image, batch) for name, image in images.items()}
        pl_module.log_dict(found, batch_size=len(batch["target"]), sync_dist=True)


def regressed(
    regression: ContrastRegression, batch: Mapping[str, Any], channels: list[int]
) -> Tensor:
    """Return the target (B, 1, *S) that a regression makes of a batch, inside the brain."""
    brain = batch["brain"]
    values = batch["condition"][:, channels].movedim(1, -1)[brain[:, 0]]  # (N, M)
    fitted = design_matrix(values.float().cpu().numpy(), 2) @ regression.coefficients
    image = torch.zeros_like(batch["target"])
    image[brain] = torch.from_numpy(fitted).to(image).clamp(-1, 1)
    return image
