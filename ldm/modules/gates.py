"""Attention gates for the skips of a U-Net, and the Transformer for its bottleneck.

A gate weighs a skip x by a map alpha in [0, 1] that it computes from x and from a gating signal g
of the decoder, which knows the wider surroundings. All gates are built from (gate_channels,
skip_channels, inter_channels, dims), are called as ``gate(g, x) -> gated x``, and show alpha by
``attention_map(g, x)``. g may have another spatial size than x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import conv_nd, from_tokens, to_tokens
from ldm.modules.diffusionmodules.vit import TransformerBlock
from ldm.modules.squeeze_excitation import SE_Attention

INTERPOLATION = {2: "bilinear", 3: "trilinear"}


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return x (B, C, *S) at another spatial size, interpolated linearly along every axis."""
    if x.shape[2:] == torch.Size(size):
        return x
    return F.interpolate(x, tuple(size), mode=INTERPOLATION[x.ndim - 2], align_corners=False)


def batch_norm(dims: int, channels: int) -> nn.Module:
    """Return the 2- or 3-D batch norm."""
    return getattr(nn, f"BatchNorm{dims}d")(channels)


class AdditiveGate(nn.Module):
    """Additive attention gate (Oktay et al. 2018, equations 1 and 2).

    ``forward(g (B, gate_channels, *S_g), x (B, skip_channels, *S))`` returns x weighed by alpha =
    sigmoid(psi(relu(W_g g + W_x x))); each of W_g, W_x and psi is a 1x1 convolution and a batch
    norm.

    Args:
        inter_channels: channels in which g and x are added.
        dims: 2 or 3.
    """

    def __init__(
        self, gate_channels: int, skip_channels: int, inter_channels: int, dims: int = 2
    ) -> None:
        super().__init__()
        self.W_g = self._project(dims, gate_channels, inter_channels)
        self.W_x = self._project(dims, skip_channels, inter_channels)
        self.psi = self._project(dims, inter_channels, 1).append(nn.Sigmoid())

    @staticmethod
    def _project(dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
        conv = conv_nd(dims, in_channels, out_channels, 1)
        return nn.Sequential(conv, batch_norm(dims, out_channels))

    def attention_map(self, g: Tensor, x: Tensor) -> Tensor:
        """Return alpha (B, 1, *S), in [0, 1]."""
        signal = resize(self.W_g(g), x.shape[2:])  # (B, inter_channels, *S)
        return self.psi(F.relu(signal + self.W_x(x)))  # (B, 1, *S)

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        return x * self.attention_map(g, x)


class StableGate(AdditiveGate):
    """Additive gate that starts open at 0.73 and can neither close nor open fully.

    What differs from :class:`AdditiveGate`: psi is a plain convolution whose bias starts at 1
    (sigmoid(1) = 0.73) and whose weights start small, alpha is limited to [0.01, 0.99], and group
    norm makes the gate of one image independent of the others in its batch.
    """

    LOWEST, HIGHEST = 0.01, 0.99

    def __init__(
        self, gate_channels: int, skip_channels: int, inter_channels: int, dims: int = 2
    ) -> None:
        super().__init__(gate_channels, skip_channels, inter_channels, dims)
        conv = conv_nd(dims, inter_channels, 1, 1)
        nn.init.normal_(conv.weight, std=0.01)
        nn.init.ones_(conv.bias)
        self.psi = nn.Sequential(conv, nn.Sigmoid())

    @staticmethod
    def _project(dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
        conv = conv_nd(dims, in_channels, out_channels, 1)
        return nn.Sequential(conv, nn.GroupNorm(1, out_channels))

    def attention_map(self, g: Tensor, x: Tensor) -> Tensor:
        """Return alpha (B, 1, *S), in [0.01, 0.99]."""
        alpha = super().attention_map(g, x)
        # scaled rather than clamped: a clamp would have no gradient where it acts
        return self.LOWEST + (self.HIGHEST - self.LOWEST) * alpha


class DualGate(AdditiveGate):
    """Additive gate over positions, then squeeze-excitation over channels of what it lets pass."""

    def __init__(
        self, gate_channels: int, skip_channels: int, inter_channels: int, dims: int = 2
    ) -> None:
        super().__init__(gate_channels, skip_channels, inter_channels, dims)
        self.channel_attention = SE_Attention(skip_channels)

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        return self.channel_attention(super().forward(g, x))


class MultiScaleGate(AdditiveGate):
    """Additive gate that looks at g at its own size and averaged over 2 and over 4 positions.

    Each scale has its own W_g; their signals are added, so that alpha can follow both a fine
    structure and its surroundings.
    """

    SCALES = (1, 2, 4)

    def __init__(
        self, gate_channels: int, skip_channels: int, inter_channels: int, dims: int = 2
    ) -> None:
        super().__init__(gate_channels, skip_channels, inter_channels, dims)
        self.W_g = nn.ModuleList(
            self._project(dims, gate_channels, inter_channels) for _ in self.SCALES
        )

    def attention_map(self, g: Tensor, x: Tensor) -> Tensor:
        """Return alpha (B, 1, *S), in [0, 1]."""
        pool = F.adaptive_avg_pool2d if g.ndim == 4 else F.adaptive_avg_pool3d
        signal = self.W_x(x)  # (B, inter_channels, *S)
        for scale, project in zip(self.SCALES, self.W_g, strict=True):
            coarse = pool(g, [-(-size // scale) for size in g.shape[2:]])  # (B, C, *S_g / scale)
            signal = signal + resize(project(coarse), x.shape[2:])
        return self.psi(F.relu(signal))  # (B, 1, *S)


GATES = {
    "additive": AdditiveGate,
    "stable": StableGate,
    "dual": DualGate,
    "multi_scale": MultiScaleGate,
}


class TransformerBottleneck(TransformerBlock):
    """A pre-norm Transformer block over the positions of a map, (B, C, *S) -> (B, C, *S)."""

    def forward(self, x: Tensor) -> Tensor:
        return from_tokens(super().forward(to_tokens(x)), x.shape[2:])  # (B, C, *S)
