"""Transformer blocks over the positions of a feature map, with cross-attention to a context."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.modules.diffusionmodules.util import (
    conv_nd,
    from_tokens,
    normalization,
    project_tokens,
    to_tokens,
    zero_module,
)


class GEGLU(nn.Module):
    """Gated linear unit with a GELU gate (Shazeer 2020, equation 6)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)  # 2 x (B, N, dim_out)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Position-wise GEGLU network, (B, N, dim) -> (B, N, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # public networks have a dropout in the middle: it counts in the keys of what follows
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class CrossAttention(nn.Module):
    """Multi-head attention of x (B, N, query_dim) to a context (B, M, context_dim).

    Args:
        context_dim: width of the context tokens; None for self-attention, where no context comes.
    """

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
    ) -> None:
        super().__init__()
        inner_dim = heads * dim_head
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, query_dim))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            rearrange(t, "b n (h d) -> b h n d", h=self.heads)
            for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, dim_head)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward; pre-norm, each with a residual.

    Args:
        context_dim: width of the context; None makes the second attention a self-attention.
        disable_self_attn: the first attention looks at the context too.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        d_head: int,
        context_dim: int | None = None,
        disable_self_attn: bool = False,
    ) -> None:
        super().__init__()
        self.disable_self_attn = disable_self_attn
        first_dim = context_dim if disable_self_attn else None
        self.attn1 = CrossAttention(dim, first_dim, n_heads, d_head)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, n_heads, d_head)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x), context if self.disable_self_attn else None)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer over the positions of a map (B, C, *S) in 1 to 3 dimensions, with a residual.

    Rombach et al. 2022, section 3.3. The output projection starts at zero.

    Args:
        context_dim: width of the context tokens, or one width a block; None for no context.
        use_linear: keep the projections as linear layers (Stable Diffusion 2) rather than as 1x1
            convolutions (latent-diffusion): the same mathematics, other shapes of the weights.

    ``forward`` takes the context (B, M, context_dim), shared by all blocks, or a list with one
    tensor a block.

    Raises:
        ConfigError: CONFIG-SHAPE when contexts do not match ``context_dim`` or ``depth``.
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        context_dim: int | Sequence[int] | None = None,
        disable_self_attn: bool = False,
        use_linear: bool = False,
        dims: int = 2,
    ) -> None:
        super().__init__()
        shared = context_dim is None or isinstance(context_dim, int)
        self.context_dims = [context_dim] * depth if shared else list(context_dim)
        if len(self.context_dims) != depth:
            raise ConfigError(
                "CONFIG-SHAPE",
                f"context_dim has {len(self.context_dims)} entries for {depth} transformer blocks: "
                "give one number, or one for each block",
            )
        inner_dim = n_heads * d_head
        self.norm = normalization(in_channels, eps=1e-6)
        self.proj_in = (
            nn.Linear(in_channels, inner_dim)
            if use_linear
            else conv_nd(dims, in_channels, inner_dim, 1)
        )
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner_dim, n_heads, d_head, width, disable_self_attn)
            for width in self.context_dims
        )
        self.proj_out = zero_module(
            nn.Linear(inner_dim, in_channels)
            if use_linear
            else conv_nd(dims, inner_dim, in_channels, 1)
        )

    def forward(self, x: Tensor, context: Tensor | Sequence[Tensor] | None = None) -> Tensor:
        contexts = self._one_context_a_block(context)
        h = to_tokens(self.norm(x))  # (B, N, C)
        h = project_tokens(self.proj_in, h)  # (B, N, inner)
        for block, tokens in zip(self.transformer_blocks, contexts, strict=True):
            h = block(h, tokens)
        h = project_tokens(self.proj_out, h)  # (B, N, C)
        return x + from_tokens(h, x.shape[2:])  # (B, C, *S)

    def _one_context_a_block(
        self, context: Tensor | Sequence[Tensor] | None
    ) -> Sequence[Tensor | None]:
        depth = len(self.context_dims)
        shared = context is None or isinstance(context, Tensor)
        contexts = [context] * depth if shared else context
        widths = [None if c is None else c.shape[-1] for c in contexts]
        if widths != self.context_dims:
            raise ConfigError(
                "CONFIG-SHAPE",
                f"contexts of width {widths} came, the transformer blocks expect "
                f"{self.context_dims}: pass one (B, M, width) tensor, or one for each block",
            )
        return contexts
