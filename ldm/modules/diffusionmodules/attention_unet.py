"""Attention U-Net and its relatives, as segmenters or, when given timesteps, as denoisers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import bad_value, one_of
from ldm.modules.broadcast import per_channel
from ldm.modules.diffusionmodules.blocks import TimeEmbedding
from ldm.modules.diffusionmodules.util import (
    check_image,
    conv_nd,
    normalization,
    refuse_unused,
)
from ldm.modules.gates import GATES, TransformerBottleneck
from ldm.modules.squeeze_excitation import SE_Attention


class DoubleConv(nn.Module):
    """Twice convolution, norm, ReLU: (B, in_channels, *S) -> (B, out_channels, *S).

    Args:
        emb_channels: width of the time embedding, which shifts the features between the two; None
            for a network without timesteps.
    """

    def __init__(
        self, in_channels: int, out_channels: int, emb_channels: int | None, dims: int
    ) -> None:
        super().__init__()
        self.conv1 = conv_nd(dims, in_channels, out_channels, 3, padding=1)
        self.norm1 = normalization(out_channels)
        self.conv2 = conv_nd(dims, out_channels, out_channels, 3, padding=1)
        self.norm2 = normalization(out_channels)
        self.emb_layer = None if emb_channels is None else nn.Linear(emb_channels, out_channels)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))  # (B, out_channels, *S)
        if emb is not None:
            h = h + per_channel(self.emb_layer(F.silu(emb)), x)
        return F.relu(self.norm2(self.conv2(h)))


class ResidualSEBlock(DoubleConv):
    """Two convolutions, channels weighed by squeeze-excitation, and a residual (Hu et al. 2018)."""

    def __init__(
        self, in_channels: int, out_channels: int, emb_channels: int | None, dims: int
    ) -> None:
        super().__init__(in_channels, out_channels, emb_channels, dims)
        self.channel_attention = SE_Attention(out_channels)
        self.skip_connection = conv_nd(dims, in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        h = self.channel_attention(super().forward(x, emb))  # (B, out_channels, *S)
        return self.skip_connection(x) + h


BLOCKS = {"double_conv": DoubleConv, "residual_se": ResidualSEBlock}


class AttentionUNet(nn.Module):
    """U-Net with attention gates on its skips (Oktay et al. 2018).

    ``forward(x (B, in_channels, *S), timesteps=None)`` returns (B, out_channels, *S) in the dtype
    of ``x``: a denoiser when given timesteps (B,), a segmenter (logits) without. Unlike UNetModel
    it has two convolutions a level, max pooling, ConvTranspose, and attention only in the gates,
    by which the decoder chooses what the skips let through. Its relatives are options:

    - the plain U-Net (Ronneberger et al. 2015): ``gated_levels: []``;
    - the residual U-Net with channel attention: ``block: residual_se``, ``gated_levels: []``;
    - UNet_Transformer (Transformer blocks at the bottleneck): ``transformer_depth: 2``.

    Args:
        channels: channels of each level, level 0 has the full resolution.
        block: ``double_conv`` or ``residual_se``.
        gate: kind of gate, a name in ``ldm.modules.gates.GATES``.
        gated_levels: levels whose skip has a gate; None for all but the coarsest, which has none.
        transformer_depth, num_heads: Transformer blocks over the positions of the coarsest map.
        timestep_conditioning: ``false`` leaves out the layers that only timesteps use.
        deep_supervision: a further prediction at every level of the decoder, see
            :meth:`forward_with_features`.
        dims: 2 or 3; every axis of a volume is resampled.

    Raises:
        ConfigError: CONFIG-VALUE or CONFIG-SHAPE for options or inputs that do not fit.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512, 1024),
        block: str = "double_conv",
        gate: str = "additive",
        gated_levels: Sequence[int] | None = None,
        transformer_depth: int = 0,
        num_heads: int = 8,
        timestep_conditioning: bool = True,
        deep_supervision: bool = False,
        dims: int = 2,
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise bad_value(f"channels is {list(channels)}: expected two levels or more")
        self.in_channels, self.out_channels, self.dims = in_channels, out_channels, dims
        self.size_divisor = 2 ** (len(channels) - 1)
        emb_channels, self.time_embed = None, None
        if timestep_conditioning:
            emb_channels = 4 * channels[0]
            self.time_embed = TimeEmbedding(channels[0], emb_channels)
        make_block = BLOCKS[one_of("block", block, BLOCKS)]
        widths, skips = [in_channels, *channels[:-1]], channels[:-1]
        self.pool = getattr(nn, f"MaxPool{dims}d")(2)
        self.encoder = nn.ModuleList(
            make_block(width, out, emb_channels, dims)
            for width, out in zip(widths, channels, strict=True)
        )
        self.bottleneck = nn.Sequential(
            *(TransformerBottleneck(channels[-1], num_heads) for _ in range(transformer_depth))
        )
        transposed = getattr(nn, f"ConvTranspose{dims}d")
        self.up = nn.ModuleList(
            transposed(coarser, width, 2, stride=2)
            for coarser, width in zip(channels[1:], skips, strict=True)
        )
        self.gates = skip_gates(gate, gated_levels, skips, dims)
        self.decoder = nn.ModuleList(
            make_block(2 * width, width, emb_channels, dims) for width in skips
        )
        supervised = skips if deep_supervision else skips[:1]
        self.heads = nn.ModuleList(conv_nd(dims, width, out_channels, 1) for width in supervised)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        finest = self._decode(x, timesteps, context, y)[0]  # (B, channels[0], *S)
        return self.heads[0](finest).to(x.dtype)  # (B, out_channels, *S)

    def forward_with_features(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        y: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Return the prediction, and as ``deep_supervision`` those of the coarser levels.

        They are (B, out_channels, *S / 2), (B, out_channels, *S / 4), ... and exist only in a
        network that was built with ``deep_supervision``.
        """
        maps = self._decode(x, timesteps, context, y)
        predictions = [head(h).to(x.dtype) for head, h in zip(self.heads, maps, strict=False)]
        return predictions[0], {"deep_supervision": predictions[1:]}

    def _decode(
        self, x: Tensor, timesteps: Tensor | None, context: Tensor | None, y: Tensor | None
    ) -> list[Tensor]:
        """Return the map (B, channels[i], *S / 2^i) of each level of the decoder."""
        self._check_inputs(x, timesteps, context, y)
        emb = None if timesteps is None else self.time_embed(timesteps)  # (B, emb_channels)
        h, skips = x.to(self.heads[0].weight.dtype), []
        for level, block in enumerate(self.encoder):
            h = block(self.pool(h) if level else h, emb)  # (B, channels[i], *S / 2^i)
            skips.append(h)
        h = self.bottleneck(skips.pop())
        maps = []
        for level in reversed(range(len(skips))):
            h, skip = self.up[level](h), skips[level]  # 2 x (B, channels[i], *S / 2^i)
            if str(level) in self.gates:
                skip = self.gates[str(level)](h, skip)
            h = self.decoder[level](torch.cat([skip, h], dim=1), emb)
            maps.insert(0, h)
        return maps

    def _check_inputs(
        self, x: Tensor, timesteps: Tensor | None, context: Tensor | None, y: Tensor | None
    ) -> None:
        refuse_unused(context=context, y=y)
        check_image(x, self.in_channels, self.dims, self.size_divisor)
        if timesteps is not None and self.time_embed is None:
            raise bad_value(
                "timesteps came, but the network has no timestep_conditioning: "
                "set it to true for a denoiser, or pass no timesteps"
            )

    @torch.no_grad()
    def get_attention_maps(
        self, image: Tensor, timesteps: Tensor | None = None
    ) -> dict[int, Tensor]:
        """Return alpha (B, 1, *S / 2^level) by gated level for ``image`` (B, in_channels, *S)."""
        maps = {}

        def recorder(level: int) -> Callable[[nn.Module, tuple[Tensor, Tensor]], None]:
            def record(gate: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
                maps[level] = gate.attention_map(*inputs)

            return record

        hooks = [
            gate.register_forward_pre_hook(recorder(int(level)))
            for level, gate in self.gates.items()
        ]
        try:
            self(image, timesteps)
        finally:
            for hook in hooks:
                hook.remove()
        return dict(sorted(maps.items()))


def skip_gates(
    gate: str, gated_levels: Sequence[int] | None, skips: Sequence[int], dims: int
) -> nn.ModuleDict:
    """Return the gates by level, of which ``skips`` gives the channels.

    Raises:
        ConfigError: CONFIG-VALUE for an unknown gate, or a level without a skip.
    """
    make_gate = GATES[one_of("gate", gate, GATES)]
    levels = range(len(skips)) if gated_levels is None else gated_levels
    if not set(levels) <= set(range(len(skips))):
        raise bad_value(
            f"gated_levels is {list(levels)}: expected levels from 0 to {len(skips) - 1}, "
            "the coarsest has no skip"
        )
    return nn.ModuleDict(
        {str(i): make_gate(skips[i], skips[i], skips[i] // 2, dims) for i in levels}
    )
