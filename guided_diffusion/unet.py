"""The disentangled multi-stream U-Net of DisC-Diff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.blocks import Context
from ldm.modules.diffusionmodules.multi_stream import (
    Features,
    MultiStreamUNet,
    apply_to_each,
    mean_of,
)
from ldm.modules.diffusionmodules.util import conv_nd
from ldm.modules.squeeze_excitation import SE_Attention
from ldm.util import shows


class UNet_disc_Model(MultiStreamUNet):  # noqa: N801 - the public name
    """U-Net with one encoder a contrast, common and distinct heads (Mao et al. 2023, DisC-Diff).

    Two heads, shared by the streams, split the coarsest map of each into what all contrasts have in
    common and what is its own. The mean of the common maps and every distinct map, weighed by
    squeeze-excitation, are reduced to one map for the middle; the skips are averaged.
    ``forward_with_features`` also returns ``common`` and ``distinct``: (B, C / 2, *S) a stream, the
    noisy one first, as :class:`guided_diffusion.losses.CommonDistinctLoss` takes them.

    Args:
        in_channels: channels of one image; x has ``in_channels * (1 + len(condition_names))``.
        condition_names: contrast of each condition, in order; any number of them.
        streams: contrasts of each encoder, ``{T1: [t1], ...}``, by default one encoder a contrast,
            named in capitals. Weights trained with other contrasts load when the names of their
            encoders are given here: ``{T1: [t1], T2: [t2], DWI: [flair]}``.
        **settings: see :class:`MultiStreamUNet` and :class:`UNetModel`.
    """

    @shows(MultiStreamUNet)
    def __init__(
        self,
        *,
        out_channels: int,
        in_channels: int = 1,
        condition_names: Sequence[str] = ("t1", "t2", "dwi"),
        streams: Mapping[str, Sequence[str]] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            out_channels=out_channels,
            in_channels=in_channels,
            condition_names=condition_names,
            streams=streams or {name.upper(): [name] for name in condition_names},
            **settings,
        )
        dims, channels = self.settings.dims, self.settings.channels[-1]
        width, n_streams = channels // 2, len(self.images)
        self.conv_common = nn.Sequential(conv_nd(dims, channels, width, 3, padding=1), nn.SiLU())
        self.conv_distinct = nn.Sequential(conv_nd(dims, channels, width, 3, padding=1), nn.SiLU())
        self.SE_Attention_com = SE_Attention(width)
        for number in range(1, n_streams + 1):
            self.add_module(f"SE_Attention_dist_{number}", SE_Attention(width))
        self.dim_reduction_non_zeros = nn.Sequential(
            conv_nd(dims, width * (1 + n_streams), channels, 1), nn.SiLU()
        )

    def bottleneck(
        self, bottoms: list[Tensor], emb: Tensor, context: Context
    ) -> tuple[Tensor, Features]:
        common = apply_to_each(self.conv_common, bottoms)  # streams x (B, C / 2, *S)
        distinct = [
            self.get_submodule(f"SE_Attention_dist_{number}")(own)
            for number, own in enumerate(apply_to_each(self.conv_distinct, bottoms), start=1)
        ]  # streams x (B, C / 2, *S)
        shared = self.SE_Attention_com(mean_of(common))
        h = self.dim_reduction_non_zeros(torch.cat([shared, *distinct], dim=1))  # (B, C, *S)
        return self.middle_block(h, emb, context), {"common": common, "distinct": distinct}
