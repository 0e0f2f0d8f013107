"""A plain Transformer over the feature map of a convolutional stem."""

from __future__ import annotations

from torch import Tensor, nn

from ldm.modules.diffusionmodules.blocks import TimeEmbedding
from ldm.modules.diffusionmodules.dit import position_table
from ldm.modules.diffusionmodules.util import (
    check_image,
    checkpoint,
    conv_nd,
    from_tokens,
    normalization,
    refuse_unused,
    to_tokens,
    zero_module,
)
from ldm.modules.diffusionmodules.vit import TransformerBlock


class Transformer(nn.Module):
    """Encoder of Vaswani et al. 2017 (pre-norm) between a convolutional stem and its mirror.

    ``forward(x (B, in_channels, *S), timesteps (B,))`` returns (B, out_channels, *S) in the dtype
    of ``x``. What distinguishes it: overlapping convolutions make the tokens in place of patches
    (Xiao et al. 2021), all blocks work at one resolution, nothing skips them, the timestep is added
    to every token, and positions are sinusoids, so that no parameter depends on the image size.

    Args:
        stem_channels: channels at full resolution; they double with every halving of the size.
        num_downsamplings: halvings between image and tokens.
        hidden_size, depth, num_heads, mlp_ratio: width, blocks, heads, width inside the MLP.
        dims: 2 or 3.
        use_checkpoint: recompute the activations of the blocks in the backward pass.

    Raises:
        ConfigError: CONFIG-VALUE or CONFIG-SHAPE for options or inputs that do not fit.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        stem_channels: int = 64,
        num_downsamplings: int = 3,
        hidden_size: int = 768,
        depth: int = 16,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        dims: int = 2,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.dims = in_channels, out_channels, dims
        self.size_divisor = 2**num_downsamplings
        self.use_checkpoint = use_checkpoint
        widths = [stem_channels * 2**level for level in range(num_downsamplings)] + [hidden_size]
        self.time_embed = TimeEmbedding(hidden_size, hidden_size)
        self.stem = nn.Sequential(conv_nd(dims, in_channels, widths[0], 3, padding=1))
        for width, coarser in zip(widths, widths[1:], strict=False):
            conv = conv_nd(dims, width, coarser, 3, stride=2, padding=1)
            self.stem.extend([normalization(width), nn.SiLU(), conv])
        self.blocks = nn.ModuleList(
            TransformerBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Sequential()
        for coarser, width in zip(widths[:0:-1], widths[-2::-1], strict=True):
            conv = conv_nd(dims, coarser, width, 3, padding=1)
            self.head.extend([nn.Upsample(scale_factor=2), conv, normalization(width), nn.SiLU()])
        self.out = zero_module(conv_nd(dims, widths[0], out_channels, 3, padding=1))

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        refuse_unused(context=context, y=y)
        check_image(x, self.in_channels, self.dims, self.size_divisor)
        h = self.stem(x.to(self.out.weight.dtype))  # (B, hidden, *S / size_divisor)
        grid, tokens = h.shape[2:], to_tokens(h)  # (B, N, hidden)
        positions = position_table(grid, tokens.shape[2], x.device)  # (1, N, hidden)
        emb = self.time_embed(timesteps).unsqueeze(1)  # (B, 1, hidden)
        tokens = tokens + positions.to(tokens.dtype) + emb
        for block in self.blocks:
            tokens = checkpoint(block, tokens, enabled=self.use_checkpoint)
        h = from_tokens(self.norm(tokens), grid)  # (B, hidden, *S / size_divisor)
        return self.out(self.head(h)).to(x.dtype)  # (B, out_channels, *S)
