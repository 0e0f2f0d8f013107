"""The denoising U-Net of DS-Diff: style, content, anatomy and lesion, disentangled and fused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError, bad_value
from ldm.modules.diffusionmodules.blocks import Context
from ldm.modules.diffusionmodules.multi_stream import (
    Features,
    MultiStreamUNet,
    apply_to_each,
    mean_of,
)
from ldm.modules.diffusionmodules.openaimodel import UNetEncoder, UNetModel, middle_block
from ldm.modules.diffusionmodules.util import conv_nd, normalization, to_tokens
from ldm.modules.edges import check_kind, edge_map
from ldm.modules.squeeze_excitation import SE_Attention
from ldm.util import nearest, shows

ENCODER_OF_ROLE = {"anatomy": "a", "anatomy_lesion": "al", "lesion": "l"}
KINDS = ("content", "style", "anatomy", "lesion")


class FeatureHead(nn.Module):
    """One kind of feature of a map: (B, C, *S) -> (B, C / 2, *S); a residual block and a squeeze.

    Both convolutions come after a norm and an activation.
    """

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.conv_1 = nn.Sequential(
            normalization(channels), nn.SiLU(), conv_nd(dims, channels, channels, 3, padding=1)
        )
        self.conv_2 = nn.Sequential(
            normalization(channels), nn.SiLU(), conv_nd(dims, channels, channels // 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_2(x + self.conv_1(x))  # (B, C / 2, *S)


class DSUnetModel(MultiStreamUNet):
    """Four-stream U-Net that separates style from content, and anatomy from lesion (DS-Diff).

    The conditions enter by their role: contrasts that show anatomy, anatomy and lesion, or the
    lesion. Four heads take features from the coarsest maps of these three streams: ``style`` and
    ``content`` from each, ``anatomy`` from the two that show anatomy, ``lesion`` from the two that
    show the lesion. The mean of each kind is fused with the middle of the noisy stream; the shallow
    features of all streams guide the decoder as the mean of their skips.
    ``forward_with_features`` also returns the features by these names, (B, C / 2, *S) each, as the
    losses in :mod:`UNet_DS_Diff.losses` take them.

    Args:
        in_channels: channels of one image; x has ``in_channels * (1 + len(condition_names))``.
        condition_names: contrast of each condition, in order.
        roles: contrasts of ``anatomy``, ``anatomy_lesion`` and ``lesion``; those of one role are
            concatenated, and a contrast may have several roles, so two conditions are enough. By
            default three contrasts take the roles in this order.
        use_edge: further input of the anatomy stream: the edges of its images, ``sobel`` (also
            True), ``laplacian`` or ``canny``, see :func:`ldm.modules.edges.edge_map`.
        use_spatial_transformer: fuse by cross-attention: the middle is a SpatialTransformer of four
            blocks that attend to content, style, anatomy and lesion in turn. ``context_dim`` is
            then C / 2 and need not be given; encoders and decoder keep their self-attention.
        **settings: see :class:`MultiStreamUNet` and :class:`UNetModel`.

    Raises:
        ConfigError: CONFIG-VALUE or CONFIG-SHAPE for roles or options that do not fit.
    """

    @shows(UNetModel)
    def __init__(
        self,
        *,
        out_channels: int,
        in_channels: int = 1,
        condition_names: Sequence[str] = ("t1", "t2", "flair"),
        roles: Mapping[str, Sequence[str]] | None = None,
        use_edge: bool | str = False,
        use_spatial_transformer: bool = False,
        context_dim: int | Sequence[int] | None = None,
        **settings: Any,
    ) -> None:
        roles = roles or default_roles(condition_names)
        super().__init__(
            out_channels=out_channels,
            in_channels=in_channels,
            condition_names=condition_names,
            streams=streams_of_roles(roles),
            context_dim=None if use_spatial_transformer else context_dim,
            **settings,
        )
        self.edges = "sobel" if use_edge is True else use_edge
        if self.edges:
            check_kind(self.edges)
            n_images = len(self.images[1])
            self.input_blocks_a = UNetEncoder(self.settings, 2 * in_channels * n_images)
        self.cross_attention = use_spatial_transformer
        channels = self.settings.channels[-1]
        self._add_heads(channels, channels // 2)
        if use_spatial_transformer:
            self.middle_block = self._attending_middle(channels // 2, context_dim)

    def _add_heads(self, channels: int, width: int) -> None:
        dims = self.settings.dims
        for kind in KINDS:
            self.add_module(f"conv_{kind}", FeatureHead(channels, dims))
        for name in ("share_content", "style", "anatomy", "lesion"):
            projection = SE_Attention(width), conv_nd(dims, width, width, 3, padding=1)
            self.add_module(f"{name}_proj", nn.Sequential(*projection))
        if not self.cross_attention:
            self.all_proj = nn.Sequential(
                nn.SiLU(), conv_nd(dims, channels + len(KINDS) * width, channels, 1)
            )

    def _attending_middle(self, width: int, context_dim: int | Sequence[int] | None) -> nn.Module:
        widths = [width] * len(KINDS)
        given = [context_dim] * len(KINDS) if isinstance(context_dim, int) else context_dim
        if given is not None and list(given) != widths:
            raise ConfigError(
                "CONFIG-SHAPE",
                f"context_dim is {context_dim}, but the middle attends to features of {width} "
                "channels: leave context_dim out",
            )
        return middle_block(
            replace(
                self.settings,
                use_spatial_transformer=True,
                context_dim=widths,
                transformer_depth=len(KINDS),
            )
        )

    def split(self, x: Tensor) -> list[Tensor]:
        noisy, anatomy, *others = super().split(x)
        if self.edges:
            anatomy = torch.cat([anatomy, edge_map(anatomy, self.edges)], dim=1)
        return [noisy, anatomy, *others]

    def bottleneck(
        self, bottoms: list[Tensor], emb: Tensor, context: Context
    ) -> tuple[Tensor, Features]:
        h, *conditions = bottoms  # (B, C, *S), 3 x (B, C, *S)
        features = {
            "style": apply_to_each(self.conv_style, conditions),
            "content": apply_to_each(self.conv_content, conditions),
            "anatomy": apply_to_each(self.conv_anatomy, conditions[:2]),
            "lesion": apply_to_each(self.conv_lesion, conditions[1:]),
        }  # 3, 3, 2, 2 x (B, C / 2, *S)
        guides = [
            self.share_content_proj(mean_of(features["content"])),
            self.style_proj(mean_of(features["style"])),
            self.anatomy_proj(mean_of(features["anatomy"])),
            self.lesion_proj(mean_of(features["lesion"])),
        ]  # 4 x (B, C / 2, *S)
        if self.cross_attention:
            return self.middle_block(h, emb, [to_tokens(guide) for guide in guides]), features
        h = self.middle_block(h, emb)
        return self.all_proj(torch.cat([h, *guides], dim=1)), features  # (B, C, *S)


def default_roles(condition_names: Sequence[str]) -> dict[str, list[str]]:
    """Give three contrasts the roles anatomy, anatomy_lesion and lesion, in this order.

    Raises:
        ConfigError: CONFIG-VALUE for another number of contrasts.
    """
    contrasts = list(dict.fromkeys(condition_names))
    if len(contrasts) != len(ENCODER_OF_ROLE):
        raise bad_value(
            f"DSUnetModel has three roles and the conditions are {contrasts}: give roles, such as "
            "{anatomy: [t1], anatomy_lesion: [t2], lesion: [flair]}; a contrast may have several"
        )
    return {role: [contrast] for role, contrast in zip(ENCODER_OF_ROLE, contrasts, strict=True)}


def streams_of_roles(roles: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return the contrasts by name of encoder, in the order of the heads.

    Raises:
        ConfigError: CONFIG-VALUE for a role that is unknown or missing.
    """
    for role in (*roles, *ENCODER_OF_ROLE):
        if role not in ENCODER_OF_ROLE or role not in roles:
            raise bad_value(
                f"role '{role}' is {'missing' if role in ENCODER_OF_ROLE else 'not known'}"
                f"{nearest(role, ENCODER_OF_ROLE)}: name the contrasts of {list(ENCODER_OF_ROLE)}"
            )
    return {encoder: roles[role] for role, encoder in ENCODER_OF_ROLE.items()}
