"""What a diagnosis of a run needs to know: gradients by depth, learning rate, loss by timestep.

Both callbacks compute only in the steps that are logged, so that they cost next to nothing; what
they log is a function of that step alone, so that a resumed run logs the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ldm.callbacks.run import is_whole
from ldm.curves import BUCKETS, PLACES

HALVES = (
    ("input_blocks", "output_blocks"),
    ("encoder", "decoder"),
    ("in_blocks", "out_blocks"),
    ("down_blocks", "up_blocks"),
)


class GradientNorms(Callback):
    """Logs ``gradient/encoder_first``, ``encoder_last``, ``decoder_first`` and ``output``.

    Each is the norm of the gradients of one layer, before clipping: so this callback stands before
    :class:`ldm.callbacks.run.GradientGuard`. The layers are found for any network, in the order in
    which the first training batch runs through them, see :func:`layers_by_depth`. ``train/lr`` is
    the learning rate.
    """

    def __init__(self) -> None:
        self.layers: dict[str, nn.Module] = {}
        self._order: dict[str, nn.Module] = {}
        self._hooks: list[RemovableHandle] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Watch the first batch."""
        self._order, self.layers = {}, {}
        self._hooks = watch_order(pl_module.model.network, self._order)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log the norms in the steps that are logged."""
        if self._hooks:
            self._unwatch()
            order = self._order or dict(pl_module.model.network.named_modules())
            self.layers = layers_by_depth(order)
        if (trainer.global_step + 1) % trainer.log_every_n_steps:
            return
        for place, layer in self.layers.items():
            gradients = [p.grad for p in layer.parameters(recurse=False) if p.grad is not None]
            if gradients:
                pl_module.log(f"gradient/{place}", torch.nn.utils.get_total_norm(gradients))
        pl_module.log("train/lr", optimizer.param_groups[0]["lr"])

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave no hook behind when training ends before a step."""
        self._unwatch()

    def _unwatch(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def watch_order(network: nn.Module, order: dict[str, nn.Module]) -> list[RemovableHandle]:
    """Fill ``order`` with the layers that maps run through, by name, in the order of their calls.

    Layers that see only vectors (B, C), those of the time embedding, are left out.
    """

    def watcher(name: str) -> Any:
        def watch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim > 2:
                order.setdefault(name, module)

        return watch

    return [
        module.register_forward_hook(watcher(name))
        for name, module in network.named_modules()
        if _has_weights(module) and not isinstance(module, torch.jit.ScriptModule)  # takes none
    ]


def layers_by_depth(order: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the layer of each place in :data:`PLACES`, of layers in order of execution.

    Encoder and decoder are what a network names so (``input_blocks`` and ``output_blocks``,
    ``encoder`` and ``decoder``, ...); in a network without such names, a Transformer, they are the
    two halves of the order.
    """
    names = [name for name, module in order.items() if _has_weights(module)]
    if not names:
        return {}
    for encoder, decoder in HALVES:
        first, second = ([n for n in names if part in n.split(".")] for part in (encoder, decoder))
        if first and second:
            break
    else:
        middle = len(names) // 2
        first, second = names[:middle] or names, names[middle:]
    chosen: Sequence[str] = (first[0], first[-1], second[0], names[-1])
    return {place: order[name] for place, name in zip(PLACES, chosen, strict=True)}


def _has_weights(module: nn.Module) -> bool:
    """Whether a module itself holds a trained matrix or kernel, as a convolution does."""
    return any(p.ndim > 1 and p.requires_grad for p in module.parameters(recurse=False))


class TimestepLosses(Callback):
    """Logs the loss of a diffusion model by quarter of the timesteps, ``train/loss_t0`` to ``_t3``.

    ``t0`` is the quarter with least noise. A quarter without an item in the batch is not logged; of
    batches that are accumulated, that which makes the step is.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Log the quarters of the last batch in the steps that are logged."""
        last, step = getattr(pl_module.model, "last_fit", None), trainer.global_step
        if last is None or step % trainer.log_every_n_steps or not is_whole(trainer):
            return
        if not len(last[0]):
            return  # all of a small batch was for the mean
        quarters = (last[0] * BUCKETS // len(pl_module.model.schedule)).cpu()
        losses = last[1].cpu()
        means = {
            f"train/loss_t{bucket}": losses[quarters == bucket].mean().item()
            for bucket in quarters.unique().tolist()
        }
        for logger in trainer.loggers:  # pl_module.log would repeat the value of an absent one
            logger.log_metrics(means, trainer.global_step - 1)
