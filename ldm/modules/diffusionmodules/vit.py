"""Vision Transformer as a denoiser: everything is a token, and long skips join the two halves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.errors import bad_value
from ldm.modules.diffusionmodules.blocks import TimeEmbedding
from ldm.modules.diffusionmodules.dit import (
    PatchEmbed,
    check_heads,
    grid_of,
    resize_positions,
    unpatchify,
)
from ldm.modules.diffusionmodules.util import check_image, checkpoint, conv_nd, refuse_unused


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and feed-forward, tokens (B, N, dim) -> (B, N, dim).

    Dosovitskiy et al. 2021, equations 2 and 3, with the parameters of ``nn.MultiheadAttention``.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        inner = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class SkipBlock(TransformerBlock):
    """A block of the second half: first joins ``skip`` (B, N, dim), the output of its mirror."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__(dim, num_heads, mlp_ratio)
        self.skip_linear = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return super().forward(self.skip_linear(torch.cat([x, skip], dim=-1)))  # (B, N, dim)


class ViT(nn.Module):
    """Vision Transformer for diffusion after U-ViT (Bao et al. 2023).

    ``forward(x (B, in_channels, *S), timesteps (B,))`` returns (B, out_channels, *S) in the dtype
    of ``x``. The first ``out_channels`` channels of ``x`` are the noisy image, the others its
    conditions. What distinguishes it: timestep, conditions and noisy image are one sequence of
    tokens (1, N and N of them), no block is modulated, and block i is joined to block -i by a skip.

    Args:
        image_size: side, or one size for each axis, of the images it is trained on; other sizes
            that ``patch_size`` divides work too, the learned positions are then interpolated.
        patch_size: side of a patch.
        hidden_size, num_heads, mlp_ratio: width, heads, width inside the MLP.
        depth: number of blocks, odd: two halves around a middle block.
        dims: 2 or 3.
        use_checkpoint: recompute the activations of the blocks in the backward pass.

    Raises:
        ConfigError: CONFIG-VALUE or CONFIG-SHAPE for options or inputs that do not fit.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        in_channels: int,
        out_channels: int,
        patch_size: int = 8,
        hidden_size: int = 528,
        depth: int = 11,
        num_heads: int = 11,
        mlp_ratio: float = 4.0,
        dims: int = 2,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if depth % 2 == 0:
            raise bad_value(f"depth is {depth}: expected an odd number of blocks")
        self.grid = grid_of(image_size, patch_size, dims)
        self.in_channels, self.out_channels, self.dims = in_channels, out_channels, dims
        self.size_divisor = self.patch_size = patch_size
        self.use_checkpoint = use_checkpoint
        self.x_embedder = PatchEmbed(out_channels, hidden_size, patch_size, dims)
        self.c_embedder = None
        if in_channels > out_channels:
            conditions = in_channels - out_channels
            self.c_embedder = PatchEmbed(conditions, hidden_size, patch_size, dims)
        self.time_embed = TimeEmbedding(hidden_size, hidden_size)
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid), hidden_size))
        nn.init.normal_(self.pos_embed, std=0.02)
        block = (hidden_size, num_heads, mlp_ratio)
        self.in_blocks = nn.ModuleList(TransformerBlock(*block) for _ in range(depth // 2))
        self.mid_block = TransformerBlock(*block)
        self.out_blocks = nn.ModuleList(SkipBlock(*block) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, patch_size**dims * out_channels)
        # smooths the borders of patches
        self.final_conv = conv_nd(dims, out_channels, out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        refuse_unused(context=context, y=y)
        check_image(x, self.in_channels, self.dims, self.patch_size)
        grid = [size // self.patch_size for size in x.shape[2:]]
        tokens = self._tokens(x.to(self.head.weight.dtype), timesteps, grid)  # (B, 1 + 2N, hidden)
        skips = []
        for block in self.in_blocks:
            tokens = checkpoint(block, tokens, enabled=self.use_checkpoint)
            skips.append(tokens)
        tokens = checkpoint(self.mid_block, tokens, enabled=self.use_checkpoint)
        for block in self.out_blocks:
            tokens = checkpoint(block, tokens, skips.pop(), enabled=self.use_checkpoint)
        patches = self.head(self.norm(tokens[:, -math.prod(grid) :]))  # (B, N, patch^dims * C_out)
        image = unpatchify(patches, grid, self.patch_size)  # (B, out_channels, *S)
        return self.final_conv(image).to(x.dtype)

    def _tokens(self, x: Tensor, timesteps: Tensor, grid: Sequence[int]) -> Tensor:
        positions = resize_positions(self.pos_embed, self.grid, grid)  # (1, N, hidden)
        sequence = [self.time_embed(timesteps).unsqueeze(1)]  # (B, 1, hidden)
        if self.c_embedder is not None:
            sequence.append(self.c_embedder(x[:, self.out_channels :]) + positions)
        sequence.append(self.x_embedder(x[:, : self.out_channels]) + positions)
        return torch.cat(sequence, dim=1)  # (B, 1 + 2N or 1 + N, hidden)
