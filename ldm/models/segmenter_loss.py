"""A frozen segmenter as a loss: on the predicted image it must find what the labels say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import read_run_config, read_weights
from ldm.errors import CheckpointError, ConfigError
from ldm.intensity import BACKGROUND
from ldm.losses.prediction import PredictedBatch
from ldm.losses.segmentation import BCEDiceLoss
from ldm.models.base import Config
from ldm.models.frozen import described_run, frozen_model, warn_of_held_out, without_run
from ldm.models.segmentation import Segmentation, require_labels
from ldm.study import Study
from ldm.util import own_channels, user_path, with_params

WHERE = "model.params.loss_config.segmenter"
ROBUST = {"target": "ldm.data.normalise.RobustNormaliser"}  # what no normaliser_config means


class SegmenterLoss(nn.Module):
    """Dice and cross-entropy of what a segmenter finds on the prediction, the term ``segmenter``.

    The segmenter is one of ``dsdiff segment train``, trained on real images that the target is
    among; it is frozen, and its gradient moves the prediction. It is saved with the weights of the
    run. Judge such a run by another segmenter than this one.

    Args:
        path: run folder of the segmenter; None in a saved run.
        weight: of the term.
        model_config: ``target`` / ``params`` of its model; None: as the run folder says.
        trust: further classes that the run folder may name.
        conditions: input contrasts, in channel order; passed in.
        target: contrast to synthesise; passed in.
        neighbours: slices on each side that are conditions too; passed in.

    Raises:
        ConfigError: CONFIG-MISSING without a run. CheckpointError: CKPT-MISMATCH for a run that is
            no segmenter of the target and some of the conditions.
    """

    def __init__(
        self,
        path: str | None = None,
        weight: float = 0.2,
        model_config: Config | None = None,
        trust: Sequence[str] = (),
        conditions: Sequence[str] = Study.conditions,
        target: str | None = Study.target,
        neighbours: int = 0,
    ) -> None:
        super().__init__()
        if path is None and model_config is None:
            raise ConfigError(
                "CONFIG-MISSING",
                f"which segmenter? Give {WHERE}.params.path=RUN, a run of `dsdiff segment train` "
                f"with data.params.conditions=[{','.join((*conditions, str(target)))}]",
            )
        self.weight, self.loss = weight, BCEDiceLoss(pos_weight=1.0)
        self.folder, self.trust = user_path(path) if path else None, trust
        self.model_config = model_config or described_run(self.folder, trust)[0]
        self.model = frozen_model(self.model_config, self.folder, f"{WHERE}.params.model_config")
        self._require(conditions, target)
        self.places = [  # among the conditions, by contrast of the segmenter; None: predicted
            None if name == target else list(conditions).index(name)
            for name in self.model.conditions
        ]
        self.first = own_channels(len(conditions), neighbours).start

    def _require(self, conditions: Sequence[str], target: str | None) -> None:
        """Refuse what is no segmenter of what there is to see."""
        seen = getattr(self.model, "conditions", ())
        strange = sorted({*seen} - {*conditions, target})
        if not isinstance(self.model, Segmentation):
            what = f"is a {type(self.model).__name__}"
        elif target not in seen or strange:
            what = f"looks at {', '.join(seen)}"
        elif self.model.neighbours:
            what = f"looks at {self.model.neighbours} neighbours, which are not predicted"
        else:
            return
        raise CheckpointError(
            "CKPT-MISMATCH",
            f"{self.folder.name if self.folder else 'the segmenter'} {what}: give a segmenter of "
            f"single slices that looks at {target} and at none but {', '.join(conditions)}",
        )

    def train(self, mode: bool = True) -> SegmenterLoss:
        """Never be in training mode."""
        return super().train(False)

    def check_start(self, data: Any) -> None:
        """Refuse what the segmenter cannot judge.

        Raises:
            DataError: DATA-MISSING for training patients without labels. CheckpointError:
                CKPT-MISMATCH for other units of intensity than the segmenter's.
        """
        require_labels(data.train_slices, "training")
        if self.folder is None:  # of a run that goes on from one with this loss
            return
        _, metadata = read_weights(self.folder)
        warn_of_held_out("the segmenter", metadata.get("train_subjects", ()), data)
        params = read_run_config(self.folder, self.trust)["data"]["params"]
        settings = params.get("normaliser_config"), data.normaliser_config
        known, used = ((node or ROBUST)["target"] for node in settings)
        if known != used:
            raise CheckpointError(
                "CKPT-MISMATCH",
                f"{self.folder.name} knows intensities of {known}, these data have those of "
                f"{used}: train the segmenter with the same data.params.normaliser_config",
            )

    def portable_config(self) -> Config:
        """Return the segmenter's configuration in place of its run folder."""
        config = without_run(self, self.model_config, self.model)
        return with_params(config, {"weight": self.weight})

    def forward(self, prediction: PredictedBatch) -> dict[str, Tensor]:
        """Return the weighted term."""
        if "seg" not in prediction.batch:
            return {}
        batch, presence = prediction.batch, prediction.batch["presence"]
        image = torch.where(prediction.brain, prediction.image, BACKGROUND)
        shown, present = [], []
        for place in self.places:
            own = place is None
            shown.append(image if own else batch["condition"][:, self.first + place, None])
            present.append(torch.ones_like(presence[:, 0]) if own else presence[:, place])
        logits, *_ = self.model.logits(torch.cat(shown, dim=1), torch.stack(present, dim=1))
        return {"segmenter": self.weight * self.loss(logits, self.model.target(batch))["loss"]}
