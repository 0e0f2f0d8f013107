"""Squeeze-and-excitation: channels weighed by what the whole image holds."""

from __future__ import annotations

from torch import Tensor, nn

from ldm.modules.broadcast import per_channel


class SE_Attention(nn.Module):  # noqa: N801 - the public name
    """Scale each channel of a map (B, C, *S) by a gate in (0, 1) (Hu et al. 2018, equations 2-4).

    Args:
        channels: C.
        reduction: the two linear layers, without bias, meet at C / ``reduction`` units, at least 1.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.se = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.se(x.flatten(2).mean(-1))  # (B, C)
        return x * per_channel(gate, x)  # (B, C, *S)
