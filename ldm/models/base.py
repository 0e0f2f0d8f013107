"""What every model that ``dsdiff train`` trains has in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm.errors import ConfigError, NonFiniteError, bad_value, one_of
from ldm.models.draws import Draws
from ldm.storage import stable_seed
from ldm.study import ASKED
from ldm.util import instantiate_from_config

Config = Mapping[str, Any]
ADAMW: Config = {
    "target": "torch.optim.AdamW",
    "params": {"lr": 2.0e-4, "weight_decay": 0.01, "fused": True},
}
ENDLESS = -1  # of a training: lightning.trainer.max_steps where max_time ends it
# share of the height of the learning rate above its end, by the share of the decay that is over
RATE_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,  # Loshchilov & Hutter 2017
    "polynomial": lambda progress: (1 - progress) ** 0.9,  # Isensee et al. 2021
}


class RunModule(pl.LightningModule):
    """A LightningModule whose training is a function of its seed, and stops before NaN.

    Processes that share a batch train as one would on all of it, except for what a network draws by
    itself (dropout) and for losses of a batch as a whole.

    A subclass gives ``batch_loss``, ``validation_step``, ``network`` and ``network_inputs``.

    Args:
        optimizer_config: ``target`` / ``params`` of a torch optimizer; None: :data:`ADAMW`.
        warmup_steps: steps over which the learning rate rises linearly.
        rate_schedule: how it falls then: ``constant`` (not at all), ``cosine`` or ``polynomial``.
        decay_steps: step at which it has fallen to ``decay_to`` of its height, the length of the
            run; None, or -1 as of a run without an end: it does not fall.
        decay_to: share of its height that it has fallen to at ``decay_steps``.
        seed: seed of the training noise.

    Attributes:
        next_command: what a user types after the training of a run, with ``{run}`` for its folder,
            ``{patients}`` for its data and ``{predictions}`` for a new folder.
    """

    next_command: str

    def __init__(
        self,
        optimizer_config: Config | None = ADAMW,
        warmup_steps: int = 100,
        rate_schedule: str = "constant",
        decay_steps: int | None = None,
        decay_to: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        one_of("model.params.rate_schedule", rate_schedule, RATE_SCHEDULES)
        if decay_steps is not None and decay_steps < 1 and decay_steps != ENDLESS:
            raise bad_value(
                f"model.params.decay_steps is {decay_steps}: give a step, or {ENDLESS} for never"
            )
        self.rate_schedule, self.decay_steps = RATE_SCHEDULES[rate_schedule], decay_steps
        self.decay_to = decay_to
        self.optimizer_config = optimizer_config or ADAMW
        self.warmup_steps, self.seed = warmup_steps, seed

    def next_step(
        self, run: Any, patients: Any = "SUBJECTS", predictions: Any = "PREDICTIONS"
    ) -> str:
        """Return ``next_command`` for a run folder; what is not known stays a word in capitals."""
        return self.next_command.format(run=run, patients=patients, predictions=predictions)

    def batch_loss(self, batch: Mapping[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        """Return the training loss of a batch by component; ``loss`` is what is minimised.

        Args:
            draws: all randomness; None: of torch's global generator.
        """
        raise NotImplementedError

    @property
    def network(self) -> nn.Module:
        """The network whose parameters and FLOPs are the model's."""
        raise NotImplementedError

    def network_inputs(self, batch: int = 1) -> Sequence[Tensor]:
        """Return blank inputs of ``network`` for a batch of the images that it was built for."""
        raise NotImplementedError

    def check_start(self, data: Any) -> None:
        """Refuse or report what is wrong with a new training on ``data``; resuming skips this."""

    def portable_params(self) -> dict[str, Any]:
        """Return constructor arguments to save instead of those that name files elsewhere."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return what the weights are only valid with; a loaded model must agree."""
        return {}

    def measure(self, data: Any) -> dict[str, Any]:
        """Return what is saved beside the weights; called on the averaged model at each save."""
        return {}

    def features(self, batch: Mapping[str, Any]) -> dict[str, list[Tensor]]:
        """Return what the network disentangles of a batch, {kind: [(B, C, *S) a stream]}."""
        return {}

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch; its noise is keyed by the position of each item in the run.

        Raises:
            NonFiniteError: NONFINITE-LOSS, before any weight changes.
            ConfigError: CONFIG-TARGET for a loss of which no weight can learn.
        """
        drawn = self.trainer.fit_loop.epoch_loop.total_batch_idx  # batch_idx restarts on resume
        rank, world = self.global_rank, self.trainer.world_size
        torch.manual_seed(stable_seed(self.seed, "step", rank, drawn))  # of the network's dropout
        items = len(batch["subject"])
        draws = Draws((self.seed, "train"), items, drawn * items * world, rank, world)
        losses = {n: torch.as_tensor(v) for n, v in self.batch_loss(batch, draws).items()}
        if not losses["loss"].requires_grad:
            raise ConfigError(
                "CONFIG-TARGET",
                "the loss does not depend on a weight that is trained, so nothing is learned: look "
                "for .detach(), .item() or torch.no_grad() in networks and losses",
            )
        if not torch.isfinite(losses["loss"]):
            told = ", ".join(f"{name} is {value.item():.3g}" for name, value in losses.items())
            how = "the checkpoint is from before; try a lower learning rate or precision=32"
            if not self.global_step:
                how = "no weight has changed: look for a division by 0, a logarithm or a root"
            raise NonFiniteError(
                "NONFINITE-LOSS", f"{told} at step {self.global_step} on {cases_of(batch)}; {how}"
            )
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, prog_bar=True)
        return losses["loss"]

    def log_validation(self, loss: Tensor, images: Tensor, batch: Mapping[str, Any]) -> None:
        """Log the loss, and the quality of images (B, 1, *S) as the target, inside the brain."""
        metrics = {
            "val/loss": loss,
            "val/psnr": psnr_in_brain(images, batch),
            "val/mae": (images - batch["target"])[batch["brain"]].abs().mean(),
        }
        self.log_dict(metrics, prog_bar=True, batch_size=len(images), sync_dist=True)

    def log_each_target(
        self, images: Tensor, batch: Mapping[str, Any], names: Sequence[str]
    ) -> None:
        """Log ``val/psnr_t1`` and so on of the items of a batch that ask for T1."""
        targets = wanted(batch)
        for place in targets.unique().tolist():
            items = targets == place
            psnr = psnr_in_brain(images[items], items_of(batch, items))
            self.log(f"val/psnr_{names[place]}", psnr, batch_size=int(items.sum()))

    def rate_factor(self, step: int) -> float:
        """Return the share of the learning rate at a step: linear warm-up, then the schedule."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.decay_steps is None or self.decay_steps < 1:
            return warm
        span = max(1, self.decay_steps - self.warmup_steps)
        progress = min(1.0, max(0.0, (step - self.warmup_steps) / span))
        return warm * (self.decay_to + (1 - self.decay_to) * self.rate_schedule(progress))

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimizer, with its schedule counted in steps."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        if not trainable:
            network = getattr(self.network, "diffusion_model", self.network)
            raise ConfigError(
                "CONFIG-TARGET",
                f"{type(network).__name__} has no weight to train: give it a parameter with "
                "requires_grad=True (docs/add-a-backbone.md)",
            )
        optimizer = instantiate_from_config(
            self.optimizer_config,
            where="model.params.optimizer_config",
            needs=("param_groups", "step"),
            params=trainable,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate_factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def wanted(batch: Mapping[str, Any]) -> Tensor:
    """Return (B,) which of the contrasts is to be made of each item, where that varies."""
    asked = batch[ASKED]
    return asked[:, : asked.shape[1] // 2].argmax(dim=1)


def items_of(batch: Mapping[str, Any], items: Tensor) -> dict[str, Any]:
    """Return the items (B,) bool of a batch."""
    places = items.nonzero()[:, 0]
    return {
        name: value[places] if isinstance(value, Tensor) else [value[i] for i in places.tolist()]
        for name, value in batch.items()
    }


def psnr_in_brain(images: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Return the PSNR in dB of images (B, 1, *S) as the target, over the brain of a whole batch."""
    error = (images - batch["target"])[batch["brain"]]
    return 10 * torch.log10(4 / error.square().mean())  # the range of [-1, 1] is 2


def places(batch: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return (subject, slice) of each item of a batch."""
    return list(zip(batch["subject"], batch["slice"].tolist(), strict=True))


def cases_of(batch: Mapping[str, Any]) -> str:
    """Return subjects and slices of a batch in words."""
    return ", ".join(f"{subject} slice {index}" for subject, index in places(batch))
