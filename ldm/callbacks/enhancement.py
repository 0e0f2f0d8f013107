"""How much of the tumour's enhancement a model in training recovers."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ldm.models.base import wanted
from ldm.regions import ENHANCING
from ldm.study import native_of


def enhancing_tumour(batch: Any) -> Tensor | None:
    """Return the enhancing tumour (B, 1, *S) bool of a batch; None without labels."""
    return batch["seg"] == ENHANCING if "seg" in batch else None


class ValidationRecovery(Callback):
    """Logs ``val/recovery``: enhancement in the enhancing tumour, sum of predicted over true.

    Of the validation images as the network sees them, the target less its native contrast; 0 is a
    copy of that, 1 the truth. Nothing is logged where the target has no native contrast, or no
    validation image has enhancing tumour. ``dsdiff evaluate`` says the same of whole patients.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)  # predicted, true

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin anew."""
        self.sums = torch.zeros(2, dtype=torch.float64)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Add the images of a batch."""
        study = trainer.datamodule.data.study
        mask = enhancing_tumour(batch)
        if study.enhanced is None or mask is None:
            return
        if study.varies:
            asks = wanted(batch) == study.conditions.index(study.enhanced)
            mask = mask & asks.view(-1, *[1] * (mask.ndim - 1))
        source = native_of(study.enhanced, study.conditions)
        native = batch["condition"][:, study.channel(str(source)), None]
        pair = (outputs["synthetic"], batch["target"])
        self.sums += torch.stack([(image - native)[mask].double().sum().cpu() for image in pair])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the ratio over all processes."""
        gathered = pl_module.all_gather(self.sums.float().to(pl_module.device))
        predicted, true = gathered.reshape(-1, 2).sum(0)
        if true > 0 and not trainer.sanity_checking:
            pl_module.log("val/recovery", predicted / true, prog_bar=True)
