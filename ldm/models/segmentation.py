"""Training of a network that segments tumour regions or lesions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.called import module_from_config, require_tensor, terms_from
from ldm.errors import ConfigError, DataError, calling
from ldm.losses.segmentation import SegmentationLoss
from ldm.models.base import Config, RunModule, Validated
from ldm.models.draws import Draws
from ldm.models.network import require_gradient, require_network, size_divisors
from ldm.modules.adapter import CONSTRUCTOR_NAMES, under_every_name
from ldm.modules.broadcast import where_present
from ldm.modules.diffusionmodules.util import crop_to, pad_to_multiple
from ldm.modules.gates import resize
from ldm.regions import region_masks, region_names
from ldm.study import BRATS
from ldm.util import (
    accepted_parameters,
    evenly_spread,
    image_sides,
    instantiate_from_config,
    require_dims,
    resolve_target,
    shows,
    with_params,
)

WHERE = "model.params.unet_config"
MEASURED_SLICES = 2000  # whose share of foreground sets the weight of the positive voxels


class Segmentation(RunModule):
    """A network from contrasts to regions, on slices (H, W) or on patches (D, H, W) of volumes.

    Every region is a sigmoid channel of its own, because tumour regions overlap.

    Args:
        unet_config: ``target`` / ``params`` of the network, ``network(x (B, C, *S))`` -> logits
            (B, regions, *S). Channels, image size and ``dims`` are passed in, under the names that
            monai and smp have for them too.
        regions: ``tumour`` (ET, TC, WT), ``lesion`` (any label), or a list of regions.
        conditions: input contrasts, in channel order.
        image_size: side or [H, W] of slices, or [D, H, W] of patches; images that are larger are
            segmented in windows of this size.
        neighbours: slices on each side that join the conditions.
        loss_config: ``target`` / ``params`` of a :class:`ldm.losses.segmentation.SegmentationLoss`.
        supervision: weight of the predictions of the coarser levels, halved from level to level,
            for a network with ``deep_supervision``.
        threshold: probability from which a voxel is in a region.
        overlap: of the windows, along each axis, in [0, 1).
        rate_schedule, **settings: see :class:`RunModule`.
    """

    next_command = "dsdiff segment predict {run} --input {patients} --output {predictions}"

    @shows(RunModule)
    def __init__(
        self,
        unet_config: Config,
        regions: str | list[str] = "tumour",
        conditions: Sequence[str] = BRATS,
        image_size: int | list[int] = 192,
        neighbours: int = 0,
        loss_config: Config | None = None,
        supervision: float = 0.5,
        threshold: float = 0.5,
        overlap: float = 0.25,
        rate_schedule: str = "cosine",
        **settings: Any,
    ) -> None:
        super().__init__(rate_schedule=rate_schedule, **settings)
        self.regions, self.conditions = region_names(regions), tuple(conditions)
        self.window, self.neighbours = image_sides(image_size), neighbours
        self.supervision, self.threshold, self.overlap = supervision, threshold, overlap
        self.loss_config = loss_config or {"target": "ldm.losses.segmentation.BCEDiceLoss"}
        self.loss: SegmentationLoss = module_from_config(
            self.loss_config,
            where="model.params.loss_config",
            called="logits, target",
            needs=("measure",),
        )
        self.unet = self._build(unet_config)
        self.counts = torch.zeros(3, len(self.regions))  # overlap, predicted, real; of a validation

    def _build(self, config: Config) -> nn.Module:
        cls, dims = resolve_target(config, WHERE), len(self.window)
        require_dims(cls, dims, CONSTRUCTOR_NAMES["dims"], WHERE)
        steps = accepted_parameters(cls.forward)[0].get("timesteps")
        if steps is not None and steps.default is steps.empty:
            raise ConfigError(
                "CONFIG-TARGET",
                f"{WHERE}: {cls.__name__} needs timesteps, so it can only denoise: give a network "
                "of images alone, such as AttentionUNet",
            )
        facts = {
            "in_channels": len(self.conditions) * (2 * self.neighbours + 1),
            "out_channels": len(self.regions),
            "image_size": list(self.window),
            "dims": dims,
        }
        network = instantiate_from_config(config, where=WHERE, interface=under_every_name(facts))
        require_network(network, WHERE, "x", dims)
        return network

    @property
    def network(self) -> nn.Module:
        """The segmentation network."""
        return self.unet

    @property
    def size_divisor(self) -> tuple[int, ...]:
        """Numbers that must divide the sizes of what the network sees."""
        return size_divisors(self.unet, len(self.window))

    def network_inputs(self, batch: int = 1) -> Sequence[Tensor]:
        """Return blank images (B, C, *S)."""
        channels = len(self.conditions) * (2 * self.neighbours + 1)
        images = torch.zeros(batch, channels, *self.window)
        return (pad_to_multiple(images, self.size_divisor),)

    def check_start(self, data: Any) -> None:
        """Refuse data without labels; measure how rare each region is, where the loss asks for it.

        Raises:
            DataError: DATA-MISSING for patients without ``seg``, DATA-LABEL for an absent region.
        """
        require_labels(data.train_slices, "training")
        require_labels(data.val_dataset, "validation")
        shares = foreground_shares(data.train_slices, self.regions)
        for region, share in shares.items():
            if not share:
                raise DataError(
                    "DATA-LABEL",
                    f"no training slice holds any voxel of region '{region}': check the labels of "
                    "seg, or choose other model.params.regions",
                )
        self.loss.measure(list(shares.values()))

    def portable_params(self) -> dict[str, Any]:
        """Return the loss with its measured weights, so that a resumed run has the same."""
        if "pos_weight" not in accepted_parameters(type(self.loss))[0]:
            return {}
        return {"loss_config": with_params(self.loss_config, {"pos_weight": self.loss.pos_weight})}

    def facts(self) -> dict[str, Any]:
        """Return the regions, in the order of the output channels."""
        return {"regions": list(self.regions)}

    def measure(self, data: Any) -> dict[str, Any]:
        """Return the patients that the weights have seen."""
        return {"train_subjects": data.split["train"]}

    def images(self, condition: Tensor, presence: Tensor) -> Tensor:
        """Return what the network sees of condition (B, N*M, *S): padded, and an absent contrast,
        by ``presence`` (B, M), is 0 everywhere.
        """
        return pad_to_multiple(where_present(condition, presence), self.size_divisor)

    def logits(self, condition: Tensor, presence: Tensor) -> list[Tensor]:
        """Return the logits (B, R, *S), then those of coarser levels brought to the same size."""
        x, size = self.images(condition, presence), condition.shape[2:]
        coarser = []
        with calling(self.unet):
            if hasattr(self.unet, "forward_with_features"):
                finest, features = self.unet.forward_with_features(x)
                coarser = features.get("deep_supervision", [])
            else:
                finest = self.unet(x)
        coarse = [None] * len(self.window)  # which is brought to the size of the images
        require_tensor(self.unet, finest, (len(x), len(self.regions), *coarse), x)
        require_gradient(self.unet, finest)
        return [crop_to(resize(each, x.shape[2:]), size) for each in (finest, *coarser)]

    def target(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the regions (B, R, *S) bool of a batch."""
        return torch.cat(list(region_masks(batch["seg"], self.regions).values()), dim=1)

    def _losses(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        with calling(self.loss):
            terms = terms_from(self.loss, "model.params.loss_config", "loss", logits, target)
            terms["loss"]  # noqa: B018 - one that has none raises KeyError
        return terms

    def batch_loss(self, batch: Mapping[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        """Return the training loss of a batch by component; ``loss`` is what is minimised."""
        target = self.target(batch)
        finest, *coarser = self.logits(batch["condition"], batch["presence"])
        losses = self._losses(finest, target)
        if coarser:
            terms = [self._losses(each, target)["loss"] for each in coarser]
            weighted = [self.supervision * 0.5**level * term for level, term in enumerate(terms)]
            losses["loss_supervision"] = sum(weighted)
            losses["loss"] = losses["loss"] + losses["loss_supervision"]
        return losses

    def validate(self, batch: Mapping[str, Any], place: int) -> Validated:
        """Return the loss, and the probabilities for pictures; count voxels."""
        target = self.target(batch)
        logits = self.logits(batch["condition"], batch["presence"])[0]
        loss = self._losses(logits, target)["loss"]
        probability = logits.float().sigmoid()
        predicted, axes = probability > self.threshold, (0, *range(2, target.ndim))
        self.counts = self.counts.to(target.device) + torch.stack(
            [n.sum(axes).float() for n in (predicted & target, predicted, target)]
        )
        return Validated({"probability": probability}, {"val/loss": loss})

    def begin_validation(self) -> None:
        """Start counting voxels."""
        self.counts = torch.zeros(3, len(self.regions))

    def end_validation(self, summed: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the Dice of each region over all voxels that were validated, and their mean."""
        both, predicted, real = summed(self.counts)
        dice = 2 * both / (predicted + real)  # NaN where there is neither
        each = {f"val/dice_{r}": d for r, d in zip(self.regions, dice, strict=True)}
        known = {name: value for name, value in each.items() if not value.isnan()}
        return {**known, "val/dice": dice.nanmean()} if known else {}

    @torch.no_grad()
    def probabilities(self, condition: Tensor, presence: Tensor, batch_size: int) -> Tensor:
        """Return the probability (B, R, *S) of each region, in windows where S is larger than one.

        It is NaN where the network returns infinity, which is no probability of 0 or 1.

        Args:
            condition: (B, N*M, *S), each side at least that of a window.
            presence: (M,) which contrasts there are.
            batch_size: windows at once.
        """
        from monai.inferers.utils import sliding_window_inference  # takes seconds to import

        def predict(windows: Tensor) -> Tensor:
            present = presence.expand(len(windows), -1)
            logits = self.logits(windows, present)[0].float()
            return torch.where(logits.isfinite(), logits, torch.nan).sigmoid()

        return sliding_window_inference(
            condition, self.window, batch_size, predict, self.overlap, mode="gaussian"
        )

    @torch.no_grad()
    def attention_maps(self, condition: Tensor, presence: Tensor) -> dict[int, Tensor]:
        """Return alpha (B, 1, *S) by gated level, interpolated; empty for a network without gates.

        Args:
            condition: (B, N*M, *S).
            presence: (B, M).
        """
        if not hasattr(self.unet, "get_attention_maps"):
            return {}
        x, size = self.images(condition, presence), condition.shape[2:]
        maps = self.unet.get_attention_maps(x)
        return {n: crop_to(resize(alpha.float(), x.shape[2:]), size) for n, alpha in maps.items()}


def require_labels(slices: Any, part: str) -> None:
    """Refuse a data set with patients without labels; raises DataError: DATA-MISSING."""
    if bare := [s.id for s in slices.subjects if not s.has_seg]:
        raise DataError(
            "DATA-MISSING",
            f"{len(bare)} of {len(slices.subjects)} {part} patients have no seg: add it, or choose "
            "others by data.params.train, val and test",
            bare[0],
        )


def foreground_shares(slices: Any, regions: Sequence[str]) -> dict[str, float]:
    """Return the share of voxels of each region in the examples of a data set, evenly sampled."""
    totals, voxels = dict.fromkeys(regions, 0), 0
    for place in evenly_spread(MEASURED_SLICES, len(slices)):
        labels = slices[place]["seg"]
        voxels += labels.numel()
        for region, mask in region_masks(labels, regions).items():
            totals[region] += int(mask.sum())
    return {region: total / voxels for region, total in totals.items()}
