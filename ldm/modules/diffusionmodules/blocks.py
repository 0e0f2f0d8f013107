"""What U-Nets are stacked from: residual and attention blocks, and the embedding of the timestep.

State-dict keys are those of guided-diffusion and latent-diffusion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.broadcast import per_channel
from ldm.modules.diffusionmodules.util import (
    Downsample,
    Upsample,
    checkpoint,
    conv_nd,
    from_tokens,
    normalization,
    project_tokens,
    timestep_embedding,
    to_tokens,
    zero_module,
)

Context = Tensor | Sequence[Tensor] | None


class TimestepEmbedSequential(nn.Sequential):
    """Layers in a row: residual blocks also get the time embedding, transformers the context.

    With ``use_checkpoint`` the activations inside are recomputed in the backward pass.
    """

    def __init__(self, *layers: nn.Module, use_checkpoint: bool = False) -> None:
        super().__init__(*layers)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor, emb: Tensor, context: Context = None) -> Tensor:
        return checkpoint(self._forward, x, emb, context, enabled=self.use_checkpoint)

    def _forward(self, x: Tensor, emb: Tensor, context: Context) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class TimeEmbedding(nn.Sequential):
    """Timesteps (B,) to embeddings (B, embed_dim): sinusoids in float32, then two linear layers."""

    def __init__(self, frequency_dim: int, embed_dim: int) -> None:
        super().__init__(
            nn.Linear(frequency_dim, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim)
        )

    def forward(self, timesteps: Tensor) -> Tensor:
        first = self[0]
        frequencies = timestep_embedding(timesteps, first.in_features)  # (B, frequency_dim)
        return super().forward(frequencies.to(first.weight.dtype))  # (B, embed_dim)


class ResBlock(nn.Module):
    """Residual block (B, channels, *S) -> (B, out_channels, *S') with a time embedding.

    The embedding shifts the features after the first convolution or, with
    ``use_scale_shift_norm``, scales and shifts them after the second norm (Dhariwal and Nichol
    2021, section 3.1). The second convolution starts at zero, so the block starts as its skip.

    Args:
        emb_channels: width of the embedding.
        up, down: double or halve the spatial size inside, on both branches.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_scale_shift_norm: bool = False,
        dims: int = 2,
        up: bool = False,
        down: bool = False,
    ) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            normalization(channels),
            nn.SiLU(),
            conv_nd(dims, channels, out_channels, 3, padding=1),
        )
        self.resample = nn.Identity()
        if up or down:
            self.resample = (Upsample if up else Downsample)(channels, use_conv=False, dims=dims)
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, out_channels * (2 if use_scale_shift_norm else 1))
        )
        self.out_layers = nn.Sequential(
            normalization(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_module(conv_nd(dims, out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = (
            nn.Identity() if out_channels == channels else conv_nd(dims, channels, out_channels, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))  # (B, out_channels, *S')
        emb = self.emb_layers(emb)  # (B, out_channels or 2 * out_channels)
        if self.use_scale_shift_norm:
            h = self.out_layers[0](h, *emb.chunk(2, dim=1))
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + per_channel(emb, x))
        return self.skip_connection(self.resample(x)) + h


class AttentionBlock(nn.Module):
    """Self-attention over the positions of a map (B, C, *S), with a residual (Ho et al. 2020).

    Args:
        use_new_attention_order: the rows of the ``qkv`` weight are (q, k, v) of all heads;
            otherwise each head has its own (q, k, v) in turn.
    """

    def __init__(
        self, channels: int, num_heads: int = 1, use_new_attention_order: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_order = "three h" if use_new_attention_order else "h three"
        self.norm = normalization(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = project_tokens(self.qkv, to_tokens(self.norm(x)))  # (B, N, 3C)
        q, k, v = rearrange(
            qkv, f"b n ({self.qkv_order} d) -> three b h n d", three=3, h=self.num_heads
        )
        h = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, C / heads)
        h = project_tokens(self.proj_out, rearrange(h, "b h n d -> b n (h d)"))  # (B, N, C)
        return x + from_tokens(h, x.shape[2:])  # (B, C, *S)
