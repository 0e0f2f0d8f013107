"""Diffusion Transformer, and the parts of a Transformer over patches that its relatives share."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.errors import ConfigError, bad_value
from ldm.modules.diffusionmodules.blocks import TimeEmbedding
from ldm.modules.diffusionmodules.util import (
    check_image,
    checkpoint,
    from_tokens,
    refuse_unused,
    to_tokens,
    zero_module,
)

FREQUENCIES = 256  # width of the sinusoids under the time embedding
INTERPOLATION = {2: "bicubic", 3: "trilinear"}


def grid_of(size: int | Sequence[int], patch_size: int, dims: int) -> tuple[int, ...]:
    """Return the patches along each axis that cover an image of ``size``, a side or all sides.

    Raises:
        ConfigError: CONFIG-VALUE when the number of sides is not ``dims``, or not 2 or 3.
    """
    sides = (size,) * dims if isinstance(size, int) else tuple(size)
    if dims not in INTERPOLATION or len(sides) != dims:
        raise bad_value(
            f"image of size {size} in {dims} dimensions: expected a side, or one for each axis, "
            "and 2 or 3 dimensions"
        )
    return tuple(-(-side // patch_size) for side in sides)


def position_table(
    grid: Sequence[int], dim: int, device: torch.device | str | None = None
) -> Tensor:
    """Return sinusoidal positions (1, N, dim) of a grid of N points, in float32.

    Each axis has an equal share of the width, sines then cosines at frequencies that fall from 1 to
    nearly 1 / 10000 (Vaswani et al. 2017); the last axis comes first; what is left over is zero.
    """
    frequencies = dim // len(grid) // 2
    exponents = torch.arange(frequencies, dtype=torch.float32, device=device) / frequencies
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in grid]
    waves = []
    for positions in reversed(torch.meshgrid(*axes, indexing="ij")):
        angles = positions.flatten()[:, None] * 10000.0**-exponents  # (N, frequencies)
        waves += [angles.sin(), angles.cos()]
    table = torch.cat(waves, dim=1)  # (N, 2 * axes * frequencies)
    return F.pad(table, (0, dim - table.shape[1])).unsqueeze(0)  # (1, N, dim)


def resize_positions(table: Tensor, grid: Sequence[int], new_grid: Sequence[int]) -> Tensor:
    """Return a table of positions (1, N, dim) of one grid, interpolated to another grid."""
    if tuple(grid) == tuple(new_grid):
        return table
    image = from_tokens(table, grid).float()  # (1, dim, *grid)
    image = F.interpolate(image, tuple(new_grid), mode=INTERPOLATION[len(grid)])
    return to_tokens(image).to(table.dtype)  # (1, N', dim)


class _PatchProjection:
    """Computes a convolution whose stride is its kernel size as one matrix product.

    The result is the same, and it stays right where oneDNN's is not: on CPUs with AMX its bfloat16
    kernels for strides above 2 return wrong numbers (seen in torch 2.13; pytorch issue 169688).
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        patch = weight.shape[2:]
        for axis, side in reversed(list(enumerate(patch, start=2))):
            x = x.unflatten(axis, (-1, side))  # (B, C, grid_1, patch_1, grid_2, patch_2, ...)
        n = len(patch)
        x = x.permute(0, *range(2, 2 + 2 * n, 2), 1, *range(3, 3 + 2 * n, 2))
        tokens = F.linear(x.flatten(n + 1), weight.flatten(1), bias)  # (B, *grid, out_channels)
        return tokens.movedim(-1, 1)  # (B, out_channels, *grid)


class PatchConv2d(_PatchProjection, nn.Conv2d):
    """``nn.Conv2d`` with stride = kernel size, as a matrix product."""


class PatchConv3d(_PatchProjection, nn.Conv3d):
    """``nn.Conv3d`` with stride = kernel size, as a matrix product."""


PATCH_CONV = {2: PatchConv2d, 3: PatchConv3d}


class PatchEmbed(nn.Module):
    """Patches of an image to tokens: (B, C, *S) -> (B, N, hidden_size)."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int, dims: int = 2) -> None:
        super().__init__()
        self.proj = PATCH_CONV[dims](in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(self.proj(x))  # (B, N, hidden_size)


def unpatchify(tokens: Tensor, grid: Sequence[int], patch_size: int) -> Tensor:
    """Return the image (B, C, *S) of tokens (B, N, patch_size^dims * C), channels last in each."""
    dims = len(grid)
    x = tokens.unflatten(1, tuple(grid))  # (B, *grid, patch_size^dims * C)
    x = x.unflatten(-1, (*[patch_size] * dims, -1))  # (B, *grid, *patch, C)
    axes = [axis for d in range(1, dims + 1) for axis in (d, dims + d)]
    x = x.permute(0, -1, *axes)  # (B, C, grid_1, patch, grid_2, patch, ...)
    return x.reshape(*x.shape[:2], *[n * patch_size for n in grid])  # (B, C, *S)


def check_heads(hidden_size: int, num_heads: int) -> None:
    """Refuse a number of heads that does not divide the width.

    Raises:
        ConfigError: CONFIG-SHAPE.
    """
    if num_heads < 1 or hidden_size % num_heads:
        raise ConfigError(
            "CONFIG-SHAPE",
            f"num_heads is {num_heads}, which does not divide the width {hidden_size}: "
            "choose a divisor",
        )


class SelfAttention(nn.Module):
    """Multi-head attention among tokens (B, N, dim)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads
        )
        h = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, dim / heads)
        return self.proj(rearrange(h, "b h n d -> b n (h d)"))  # (B, N, dim)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift tokens (B, N, D) by one vector (B, D) an item; scale 0 changes nothing."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class DiTBlock(nn.Module):
    """Attention and feed-forward whose norms and gates follow the condition c (adaLN-zero).

    ``forward(x (B, N, hidden_size), c (B, hidden_size))``; Peebles and Xie 2023, figure 3. The
    modulation starts at zero, so the block starts as the identity.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        inner = int(hidden_size * mlp_ratio)
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = SelfAttention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(hidden_size, inner),
                act=nn.GELU(approximate="tanh"),
                fc2=nn.Linear(inner, hidden_size),
            )
        )
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), zero_module(nn.Linear(hidden_size, 6 * hidden_size))
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_modulation(c).chunk(6, 1)
        x = x + gate_1.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_1, scale_1))
        return x + gate_2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_2, scale_2))


class FinalLayer(nn.Module):
    """Modulated norm, then tokens (B, N, hidden_size) to patches (B, N, out_features)."""

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.linear = zero_module(nn.Linear(hidden_size, out_features))
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), zero_module(nn.Linear(hidden_size, 2 * hidden_size))
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))  # (B, N, out_features)


class LabelEmbedder(nn.Module):
    """Class numbers (B,) to embeddings (B, hidden_size).

    In training a label becomes "no class" (the last row) with probability ``dropout_prob``, which
    is what classifier-free guidance needs (Ho and Salimans 2022).
    """

    def __init__(self, num_classes: int, hidden_size: int, dropout_prob: float) -> None:
        super().__init__()
        self.num_classes, self.dropout_prob = num_classes, dropout_prob
        self.embedding_table = nn.Embedding(num_classes + (dropout_prob > 0), hidden_size)

    def forward(self, y: Tensor) -> Tensor:
        if self.training and self.dropout_prob > 0:
            dropped = torch.rand(len(y), device=y.device) < self.dropout_prob
            y = torch.where(dropped, self.num_classes, y)
        return self.embedding_table(y)  # (B, hidden_size)


class DiT(nn.Module):
    """Diffusion Transformer (Peebles and Xie 2023): timestep and class modulate every block.

    ``forward(x (B, in_channels, *S), timesteps (B,), y=None)`` returns (B, out_channels, *S) in the
    dtype of ``x``, twice the channels with ``learn_sigma``. Image conditions are further channels
    of ``x`` after the noisy ones. What distinguishes it: no convolution but the patch embedding, no
    resolution levels, and conditioning by adaLN-zero, so that the network starts as zero.

    Args:
        input_size: side, or one size for each axis, of the images it is trained on; other sizes
            that ``patch_size`` divides work too, the table of positions is then interpolated.
        patch_size: side of a patch; cost goes with its inverse squared and more.
        hidden_size, depth, num_heads, mlp_ratio: width, blocks, heads, width inside the MLP.
        class_dropout_prob: share of labels dropped in training; above 0 there is a "no class" row.
        num_classes: number of classes of ``y``; 0 or None for a network without labels.
        learn_sigma: predict a variance beside the mean; a denoiser here needs ``false``.
        out_channels: channels of the noisy image and of the prediction; None means in_channels.
        image_size: the same as ``input_size``, by the name under which models pass it down.
        condition_tokens: the conditions become tokens of their own beside those of the noisy image
            (in-context conditioning, section 3.2) rather than channels of the same tokens.
        dims: 2 or 3.
        use_checkpoint: recompute the activations of the blocks in the backward pass.

    Raises:
        ConfigError: CONFIG-VALUE or CONFIG-SHAPE for options or inputs that do not fit.
    """

    def __init__(
        self,
        input_size: int | Sequence[int] = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int | None = 1000,
        learn_sigma: bool = True,
        out_channels: int | None = None,
        image_size: int | Sequence[int] | None = None,
        condition_tokens: bool = False,
        dims: int = 2,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        noisy_channels = out_channels or in_channels
        if condition_tokens and in_channels <= noisy_channels:
            raise bad_value(
                f"condition_tokens is set, but of {in_channels} input channels {noisy_channels} "
                "are the noisy image: add conditions, or delete condition_tokens"
            )
        self.grid = grid_of(input_size if image_size is None else image_size, patch_size, dims)
        self.in_channels, self.dims, self.use_checkpoint = in_channels, dims, use_checkpoint
        self.out_channels = noisy_channels * (2 if learn_sigma else 1)
        self.size_divisor = self.patch_size = patch_size
        self.x_channels = noisy_channels if condition_tokens else in_channels
        self.x_embedder = PatchEmbed(self.x_channels, hidden_size, patch_size, dims)
        self.c_embedder = None
        if condition_tokens:
            conditions = in_channels - noisy_channels
            self.c_embedder = PatchEmbed(conditions, hidden_size, patch_size, dims)
        # "mlp" only names the keys as public checkpoints have them
        self.t_embedder = nn.ModuleDict({"mlp": TimeEmbedding(FREQUENCIES, hidden_size)})
        self.y_embedder = None
        if num_classes:
            self.y_embedder = LabelEmbedder(num_classes, hidden_size, class_dropout_prob)
        self.register_buffer("pos_embed", position_table(self.grid, hidden_size))
        self.blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size**dims * self.out_channels)
        self._initialise()

    def _initialise(self) -> None:
        # Every block starts as the identity and the output as zero: their constructors see to it.
        # Linear layers of the blocks are Xavier-uniform with zero bias.
        for block in self.blocks:
            for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        # A patch embedding is a linear layer on flat patches, and starts like one.
        for embedder in filter(None, (self.x_embedder, self.c_embedder)):
            nn.init.xavier_uniform_(embedder.proj.weight.flatten(1))
            nn.init.zeros_(embedder.proj.bias)
        # The embeddings of timestep and label start small, so that all of them start alike.
        for layer in (self.t_embedder["mlp"][0], self.t_embedder["mlp"][2]):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        if self.y_embedder is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        refuse_unused(context=context)
        check_image(x, self.in_channels, self.dims, self.patch_size)
        grid = [size // self.patch_size for size in x.shape[2:]]
        c = self._condition(timesteps, y)  # (B, hidden)
        tokens = self._tokens(x.to(c.dtype), grid)  # (B, N or 2N, hidden)
        for block in self.blocks:
            tokens = checkpoint(block, tokens, c, enabled=self.use_checkpoint)
        tokens = tokens[:, : math.prod(grid)]  # (B, N, hidden)
        patches = self.final_layer(tokens, c)  # (B, N, patch_size^dims * out_channels)
        return unpatchify(patches, grid, self.patch_size).to(x.dtype)  # (B, out_channels, *S)

    def _condition(self, timesteps: Tensor, y: Tensor | None) -> Tensor:
        if (y is None) != (self.y_embedder is None):
            raise bad_value(
                f"y is {'missing' if y is None else 'given'}, but the network has "
                f"{'' if self.y_embedder else 'no '}classes: pass y, or set num_classes: 0"
            )
        c = self.t_embedder["mlp"](timesteps)  # (B, hidden)
        return c if y is None else c + self.y_embedder(y)

    def _tokens(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        positions = resize_positions(self.pos_embed, self.grid, grid)  # (1, N, hidden)
        tokens = self.x_embedder(x[:, : self.x_channels]) + positions  # (B, N, hidden)
        if self.c_embedder is None:
            return tokens
        # the bias of each embedding tells the two kinds of tokens apart
        conditions = self.c_embedder(x[:, self.x_channels :]) + positions  # (B, N, hidden)
        return torch.cat([tokens, conditions], dim=1)  # (B, 2N, hidden)
