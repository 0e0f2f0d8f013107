"""A U-Net whose middle is a deep Transformer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ldm.modules.diffusionmodules.blocks import TimeEmbedding
from ldm.modules.diffusionmodules.dit import DiTBlock, position_table
from ldm.modules.diffusionmodules.openaimodel import (
    UNetDecoder,
    UNetEncoder,
    UNetSettings,
    output_head,
)
from ldm.modules.diffusionmodules.util import (
    check_image,
    checkpoint,
    from_tokens,
    refuse_unused,
    to_tokens,
)
from ldm.util import shows


class TransformerMiddle(nn.Module):
    """DiT blocks over the coarsest map, (B, C, *S) -> (B, C, *S); they start as the identity.

    ``forward(h, emb)``: ``emb`` (B, emb_channels) is the time embedding of the U-Net.
    """

    def __init__(
        self, settings: UNetSettings, depth: int, num_heads: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        channels = settings.channels[-1]
        self.use_checkpoint = settings.use_checkpoint
        self.emb_layer = nn.Linear(settings.emb_channels, channels)
        self.blocks = nn.ModuleList(DiTBlock(channels, num_heads, mlp_ratio) for _ in range(depth))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        grid, tokens = h.shape[2:], to_tokens(h)  # (B, N, C)
        tokens = tokens + position_table(grid, h.shape[1], h.device).to(h.dtype)
        c = self.emb_layer(emb)  # (B, C)
        for block in self.blocks:
            tokens = checkpoint(block, tokens, c, enabled=self.use_checkpoint)
        return from_tokens(tokens, grid)  # (B, C, *S)


class HybridUNet(nn.Module):
    """U-Net encoder, Transformer middle, U-Net decoder (after TransUNet, Chen et al. 2021).

    ``forward(x (B, in_channels, *S), timesteps (B,), context=None)`` returns (B, out_channels, *S)
    in the dtype of ``x``. What distinguishes it: convolutions carry the detail through the skips of
    a U-Net, while the long range is left to many DiT blocks where tokens are few.

    Args:
        middle_depth, middle_heads, mlp_ratio: blocks of the middle, their heads, width of the MLP;
            the width of the middle is that of the coarsest level.
        **settings: encoder and decoder, see :class:`UNetSettings`.

    Raises:
        ConfigError: CONFIG-VALUE or CONFIG-SHAPE for options or inputs that do not fit.
    """

    @shows(UNetSettings)
    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        middle_depth: int = 8,
        middle_heads: int = 8,
        mlp_ratio: float = 4.0,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.settings = own = UNetSettings(**settings)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.size_divisor = own.size_divisor
        self.time_embed = TimeEmbedding(own.model_channels, own.emb_channels)
        self.input_blocks = UNetEncoder(own, in_channels)
        self.middle_block = TransformerMiddle(own, middle_depth, middle_heads, mlp_ratio)
        self.output_blocks = UNetDecoder(own)
        self.out = output_head(own, out_channels)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        attends = self.settings.use_spatial_transformer
        refuse_unused(y=y, context=None if attends else context)
        check_image(x, self.in_channels, self.settings.dims, self.size_divisor)
        dtype = self.out[-1].weight.dtype
        emb = self.time_embed(timesteps)  # (B, emb_channels)
        context = None if context is None else context.to(dtype)
        skips = self.input_blocks(x.to(dtype), emb, context)
        h = self.middle_block(skips[-1], emb)  # (B, C, *S / size_divisor)
        h = self.output_blocks(h, skips, emb, context)  # (B, C_0, *S)
        return self.out(h).to(x.dtype)  # (B, out_channels, *S)
