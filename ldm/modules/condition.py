"""Encoders of the conditions for networks that take them as tokens or as a vector."""

from __future__ import annotations

from torch import Tensor, nn

from ldm.modules.diffusionmodules.dit import PatchEmbed, position_table
from ldm.modules.diffusionmodules.util import pad_to_multiple


class ConditionTokens(nn.Module):
    """Patches of the conditions with their positions: (B, in_channels, *S) -> (B, N, width).

    What a SpatialTransformer, or another cross-attention, looks at (Rombach et al. 2022, section
    3.3, with images in the place of text).

    Args:
        in_channels: channels of all conditions; passed in.
        width: of a token, the ``context_dim`` of the network.
        patch_size: side of a patch.
        dims: 2 or 3.
    """

    def __init__(
        self, *, in_channels: int, width: int = 128, patch_size: int = 8, dims: int = 2
    ) -> None:
        super().__init__()
        self.width, self.patch_size = width, patch_size
        self.embed = PatchEmbed(in_channels, width, patch_size, dims)

    def forward(self, condition: Tensor) -> Tensor:
        condition = pad_to_multiple(condition, self.patch_size)
        grid = [n // self.patch_size for n in condition.shape[2:]]
        tokens = self.embed(condition.to(self.embed.proj.weight.dtype))  # (B, N, width)
        return tokens + position_table(grid, self.width, tokens.device).to(tokens.dtype)


class ConditionVector(nn.Module):
    """A summary of the conditions: (B, in_channels, *S) -> (B, width).

    It knows which contrasts there are and how bright they are, not where; alone it cannot tell a
    network what to draw.

    Args:
        in_channels: channels of all conditions; passed in.
        width: of the vector, the ``adm_in_channels`` of the network.
        patch_size, dims: see :class:`ConditionTokens`.
    """

    def __init__(
        self, *, in_channels: int, width: int = 128, patch_size: int = 8, dims: int = 2
    ) -> None:
        super().__init__()
        self.width = width
        self.tokens = ConditionTokens(
            in_channels=in_channels, width=width, patch_size=patch_size, dims=dims
        )
        self.project = nn.Sequential(nn.SiLU(), nn.Linear(width, width))

    def forward(self, condition: Tensor) -> Tensor:
        return self.project(self.tokens(condition)).mean(1)  # (B, width)
