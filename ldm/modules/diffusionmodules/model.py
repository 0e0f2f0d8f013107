"""Encoder and decoder of the KL autoencoder, with the keys of latent-diffusion."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import bad_value
from ldm.modules.diffusionmodules.util import (
    Upsample,
    check_image,
    from_tokens,
    normalization,
    project_tokens,
    to_tokens,
)


class ResnetBlock(nn.Module):
    """Residual block (B, in_channels, H, W) -> (B, out_channels, H, W) without a time embedding."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = normalization(in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = normalization(out_channels, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, out_channels, H, W)
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Self-attention with one head over the positions of a map, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = normalization(channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = to_tokens(self.norm(x)).unsqueeze(1)  # (B, 1 head, N, C)
        q, k, v = (project_tokens(layer, tokens) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)  # (B, N, C)
        return x + from_tokens(project_tokens(self.proj_out, h), x.shape[2:])  # (B, C, H, W)


class StridedConv(nn.Module):
    """Halve the size of a map; padded below and to the right only, unlike ``util.Downsample``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # (B, C, H/2, W/2)


@dataclass
class AutoencoderSettings:
    """The ``ddconfig`` of a latent-diffusion YAML. Level 0 has the full resolution.

    Args:
        ch, ch_mult: channels at multiplier 1, and the multiplier at each level.
        num_res_blocks: residual blocks of a level (the decoder has one more).
        attn_resolutions: sizes of the map, when the image has size ``resolution``, at which
            attention follows each residual block; the middle always has attention.
        z_channels: channels of the latents.
        double_z, resamp_with_conv, tanh_out, use_linear_attn, give_pre_end: of the public class, at
            its defaults, the only kind offered here (the encoder returns mean and log-variance).
        in_channels, out_ch: channels of the image and of its reconstruction.
        dropout: rate inside the residual blocks.
        attn_type: ``vanilla`` or ``vanilla-xformers``, which are the same mathematics.

    Raises:
        ConfigError: CONFIG-VALUE for what is not offered.
    """

    ch: int
    out_ch: int
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    in_channels: int
    resolution: int
    z_channels: int
    ch_mult: Sequence[int] = (1, 2, 4, 8)
    dropout: float = 0.0
    double_z: bool = True
    attn_type: str = "vanilla"
    resamp_with_conv: bool = True
    tanh_out: bool = False
    use_linear_attn: bool = False
    give_pre_end: bool = False

    def __post_init__(self) -> None:
        offered = {f.name: f.default for f in fields(self) if isinstance(f.default, bool)}
        own = {name: getattr(self, name) for name in offered} | {"attn_type": self.attn_type}
        offered["attn_type"] = self.attn_type if self.attn_type.startswith("vanilla") else "vanilla"
        for name, value in own.items():
            if value != offered[name]:
                raise bad_value(f"ddconfig has {name} {value!r}: expected {offered[name]!r}")

    @property
    def channels(self) -> list[int]:
        """Channels of each level."""
        return [self.ch * mult for mult in self.ch_mult]

    @property
    def downsampling(self) -> int:
        """Ratio of image size to latent size."""
        return 2 ** (len(self.ch_mult) - 1)

    def level(self, index: int, in_channels: int, num_blocks: int) -> nn.Module:
        """Return the residual blocks of a level (``block``) and their attentions (``attn``)."""
        out_channels = self.channels[index]
        attends = self.resolution // 2**index in self.attn_resolutions
        widths = [in_channels] + [out_channels] * num_blocks
        level = nn.Module()
        level.block = nn.ModuleList(
            ResnetBlock(width, out_channels, self.dropout) for width in widths[:-1]
        )
        level.attn = nn.ModuleList(AttnBlock(out_channels) for _ in range(num_blocks * attends))
        return level

    def middle(self) -> nn.Sequential:
        """Return the coarsest blocks: residual, attention, residual."""
        channels = self.channels[-1]
        return nn.Sequential(
            OrderedDict(
                block_1=ResnetBlock(channels, channels, self.dropout),
                attn_1=AttnBlock(channels),
                block_2=ResnetBlock(channels, channels, self.dropout),
            )
        )


def run_level(level: nn.Module, h: Tensor) -> Tensor:
    """Apply the blocks of :meth:`AutoencoderSettings.level`, each followed by its attention."""
    for index, block in enumerate(level.block):
        h = block(h)
        if level.attn:
            h = level.attn[index](h)
    return h


class Encoder(nn.Module):
    """Images (B, in_channels, H, W) to moments (B, 2 * z_channels, H/f, W/f).

    Rombach et al. 2022, appendix G; f is ``settings.downsampling``.
    """

    def __init__(self, settings: AutoencoderSettings) -> None:
        super().__init__()
        self.settings = settings
        channels = settings.channels
        self.conv_in = nn.Conv2d(settings.in_channels, settings.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for index, in_channels in enumerate([settings.ch, *channels[:-1]]):
            level = settings.level(index, in_channels, settings.num_res_blocks)
            if index < len(channels) - 1:
                level.downsample = StridedConv(channels[index])
            self.down.append(level)
        self.mid = settings.middle()
        self.norm_out = normalization(channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[-1], 2 * settings.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, self.settings.in_channels, 2, self.settings.downsampling)
        h = self.conv_in(x)  # (B, ch, H, W)
        for level in self.down:
            h = run_level(level, h)  # (B, C, H, W)
            if hasattr(level, "downsample"):
                h = level.downsample(h)  # (B, C, H/2, W/2)
        h = self.mid(h)
        return self.conv_out(F.silu(self.norm_out(h)))  # (B, 2 * z_channels, H/f, W/f)


class Decoder(nn.Module):
    """Latents (B, z_channels, h, w) to images (B, out_ch, f*h, f*w)."""

    def __init__(self, settings: AutoencoderSettings) -> None:
        super().__init__()
        channels = settings.channels
        self.conv_in = nn.Conv2d(settings.z_channels, channels[-1], 3, padding=1)
        self.mid = settings.middle()
        # up[i] is level i, so the coarsest, which comes first, is the last of the list
        self.up = nn.ModuleList()
        for index, in_channels in enumerate([*channels[1:], channels[-1]]):
            level = settings.level(index, in_channels, settings.num_res_blocks + 1)
            if index > 0:
                level.upsample = Upsample(channels[index], use_conv=True)
            self.up.append(level)
        self.norm_out = normalization(channels[0], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[0], settings.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))  # (B, C, h, w)
        for level in reversed(self.up):
            h = run_level(level, h)  # (B, C, h, w)
            if hasattr(level, "upsample"):
                h = level.upsample(h)  # (B, C, 2h, 2w)
        return self.conv_out(F.silu(self.norm_out(h)))  # (B, out_ch, f*h, f*w)
