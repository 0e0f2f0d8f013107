"""Encoders of the conditions for networks that take them as tokens or as a vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError
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


class AskedVector(nn.Module):
    """Which contrast is to be made, and which are there: (B, 2M) -> (B, width).

    Args:
        contrasts: M, of each of which ``(is it to be made)`` and then ``(is it there)`` are given.
        width: of the vector, as the network takes it.
    """

    def __init__(self, contrasts: int, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Linear(2 * contrasts, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, asked: Tensor) -> Tensor:
        return self.project(asked.to(self.project[0].weight.dtype))


class CovariateVector(nn.Module):
    """Numbers of a patient, such as age or field strength: (B, K) -> (B, width).

    A number that is not known is NaN, and the network is told so. Numbers enter as
    ``(value - mean) / std``.

    Args:
        covariates: names of the K numbers; passed in.
        width: of the vector, the ``adm_in_channels`` of the network.
        mean, std: of each number, by name; 0 and 1 where nothing is said.
    """

    reads = "covariates"  # of a batch

    def __init__(
        self,
        *,
        covariates: Sequence[str],
        width: int = 128,
        mean: dict[str, float] | None = None,
        std: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not covariates:
            raise ConfigError(
                "CONFIG-MISSING", "which numbers of a patient? Give data.params.covariates=[age]"
            )
        self.width, self.covariates = width, list(covariates)
        self.mean = torch.tensor([(mean or {}).get(name, 0.0) for name in covariates])
        self.std = torch.tensor([(std or {}).get(name, 1.0) for name in covariates])
        self.project = nn.Sequential(
            nn.Linear(2 * len(covariates), width), nn.SiLU(), nn.Linear(width, width)
        )

    def blank(self, batch: int) -> Tensor:
        """Return (B, K) unknown numbers."""
        return torch.full((batch, len(self.covariates)), torch.nan)

    def forward(self, covariates: Tensor) -> Tensor:
        known = ~covariates.isnan()  # (B, K)
        scaled = (covariates - self.mean.to(covariates)) / self.std.to(covariates)
        numbers = torch.cat([scaled.nan_to_num(), known], dim=1)
        return self.project(numbers.to(self.project[0].weight.dtype))  # (B, width)
