"""Networks of several trainings as one backbone: its output is the mean of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

import torch
from torch import Tensor, nn

from ldm.errors import bad_value
from ldm.models.base import Config
from ldm.models.diffusion.wrapper import build_backbone
from ldm.models.network import size_divisors

BACKBONE = "model.diffusion_model."  # how the weights of a model's backbone begin
MEMBERS = "members."  # and, in it, those of the members of an ensemble


class Ensemble(nn.Module):
    """The mean of the outputs of several backbones (deep ensembles, Lakshminarayanan et al. 2017).

    Whatever a network predicts, eps, x_0 or v, is affine in x_0 given x_t and t, so the mean of the
    outputs is that of the posterior means; what single trainings get wrong by chance averages out.

    Args:
        members: ``target`` / ``params`` of each backbone, which need not be of one class.
        in_channels, out_channels, image_size, dims, stream_channels, condition_names: what each of
            them is told, see :class:`ldm.models.diffusion.wrapper.DiffusionWrapper`; passed in.
    """

    def __init__(
        self,
        members: Sequence[Config],
        in_channels: int,
        out_channels: int,
        image_size: int | Sequence[int] = 192,
        dims: int = 2,
        stream_channels: int = 1,
        condition_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        where = "model.params.unet_config.params.members"
        if not members:
            raise bad_value(f"{where} is empty: give target and params of at least one backbone")
        facts = {"in_channels": in_channels, "out_channels": out_channels, "dims": dims}
        facts |= {"image_size": image_size, "stream_channels": stream_channels}
        facts |= {"condition_names": list(condition_names)}
        self.members = nn.ModuleList(
            build_backbone(config, facts, f"{where}[{place}]")
            for place, config in enumerate(members)
        )
        each = [size_divisors(member, dims) for member in self.members]
        self.size_divisor = tuple(lcm(*of_axis) for of_axis in zip(*each, strict=True))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the mean output (B, C_out, *S) in float32 for x (B, C, *S) at timesteps t (B,)."""
        return torch.stack([member(x, t).float() for member in self.members]).mean(dim=0)
