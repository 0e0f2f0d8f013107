"""The denoising U-Net of guided-diffusion, latent-diffusion and Stable Diffusion 2, and its parts.

Reading order: ``UNetSettings`` (what one network is made of), ``UNetEncoder`` / ``middle_block`` /
``UNetDecoder`` / ``output_head`` (its parts, which other backbones combine anew), ``UNetModel``.
Class path and state-dict keys are the public ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError, bad_value
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.blocks import (
    AttentionBlock,
    Context,
    ResBlock,
    TimeEmbedding,
    TimestepEmbedSequential,
)
from ldm.modules.diffusionmodules.util import (
    Downsample,
    Upsample,
    check_image,
    conv_nd,
    normalization,
    zero_module,
)
from ldm.util import shows


def _per_level(name: str, value: Any, levels: int) -> tuple:
    """Return ``value`` for every level; a sequence must have one entry for each."""
    values = (value,) * levels if isinstance(value, (int, float)) else tuple(value)
    if len(values) != levels:
        raise ConfigError(
            "CONFIG-SHAPE",
            f"{name} has {len(values)} entries but channel_mult has {levels} levels: "
            "give one number, or one for each level",
        )
    return values


@dataclass
class UNetSettings:
    """What the blocks of one U-Net have in common. Level 0 has the full resolution.

    Args:
        model_channels: channels at multiplier 1; the time embedding is four times as wide.
        num_res_blocks: residual blocks of a level (the decoder has one more), one number or a list.
        attention_resolutions: down-sampling factors (1, 2, 4, ...) at which attention follows each
            residual block; the middle always has attention.
        channel_mult: multiplier of the channels at each level.
        dropout: rate inside the residual blocks.
        conv_resample: resample between levels with a convolution.
        dims: 1, 2 or 3; 3-D networks keep the size of the first spatial axis.
        use_checkpoint: recompute activations in the backward pass: less memory, a third more time.
        num_heads, num_head_channels: heads of an attention, or channels of a head, which wins
            unless it is -1.
        num_heads_upsample: ``num_heads`` of the decoder's AttentionBlocks, unless it is -1. As in
            latent-diffusion, it counts only where ``legacy`` is set.
        use_scale_shift_norm: the time embedding scales and shifts after the norm.
        resblock_updown: resample between levels with a residual block.
        use_new_attention_order: row order of the ``qkv`` weights of AttentionBlock.
        use_spatial_transformer: SpatialTransformer, with a context, in place of AttentionBlock.
        transformer_depth: blocks of a transformer, one number or a list over levels.
        context_dim: width of the context, or a list with one width for each transformer block.
        disable_self_attentions: for each level, whether both attentions of a transformer block look
            at the context.
        disable_middle_self_attn: the same for the middle.
        num_attention_blocks: for each level, how many residual blocks are followed by attention.
        use_linear_in_transformer: linear projections in the transformers (Stable Diffusion 2).
        legacy: head rule of guided-diffusion, see ``num_heads_upsample``.

    Raises:
        ConfigError: CONFIG-VALUE or CONFIG-SHAPE for values that contradict each other.
    """

    model_channels: int
    num_res_blocks: int | Sequence[int]
    attention_resolutions: Sequence[int]
    channel_mult: Sequence[float] = (1, 2, 4, 8)
    dropout: float = 0.0
    conv_resample: bool = True
    dims: int = 2
    use_checkpoint: bool = False
    num_heads: int = 1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    use_spatial_transformer: bool = False
    transformer_depth: int | Sequence[int] = 1
    context_dim: int | Sequence[int] | None = None
    disable_self_attentions: Sequence[bool] | None = None
    num_attention_blocks: Sequence[int] | None = None
    disable_middle_self_attn: bool = False
    use_linear_in_transformer: bool = False
    legacy: bool = True

    def __post_init__(self) -> None:
        levels = len(self.channel_mult)
        self.num_res_blocks = _per_level("num_res_blocks", self.num_res_blocks, levels)
        self.transformer_depth = _per_level("transformer_depth", self.transformer_depth, levels)
        self.disable_self_attentions = _per_level(
            "disable_self_attentions", self.disable_self_attentions or False, levels
        )
        if self.num_attention_blocks is not None:
            self.num_attention_blocks = _per_level(
                "num_attention_blocks", self.num_attention_blocks, levels
            )
        if self.dims not in (1, 2, 3):
            raise bad_value(f"dims is {self.dims}: expected 1, 2 or 3")
        if min(self.num_res_blocks) < 1:
            raise bad_value(f"num_res_blocks is {self.num_res_blocks}: every level needs one")
        if self.use_spatial_transformer != (self.context_dim is not None):
            raise bad_value(
                f"use_spatial_transformer is {self.use_spatial_transformer} and context_dim is "
                f"{self.context_dim}: give both for a network with a context, or neither"
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(int(mult * self.model_channels) for mult in self.channel_mult)

    @property
    def skip_channels(self) -> list[int]:
        """Channels of each output of the encoder, in order: stem, then block by block."""
        skips = [self.channels[0]]
        for level, channels in enumerate(self.channels):
            is_last = level == len(self.channels) - 1
            skips += [channels] * (self.num_res_blocks[level] + (not is_last))
        return skips

    @property
    def emb_channels(self) -> int:
        """Width of the time embedding."""
        return 4 * self.model_channels

    @property
    def size_divisor(self) -> int | tuple[int, ...]:
        """Number that must divide the spatial size of the input; of a volume one for each axis."""
        divisor = 2 ** (len(self.channel_mult) - 1)
        return (1, divisor, divisor) if self.dims == 3 else divisor  # see resampling_factor

    def stack(self, *layers: nn.Module) -> TimestepEmbedSequential:
        """Return layers in a row, checkpointed as the settings say."""
        return TimestepEmbedSequential(*layers, use_checkpoint=self.use_checkpoint)

    def res_block(self, channels: int, out_channels: int, **resampling: bool) -> ResBlock:
        """Return a residual block; ``resampling`` is ``up=True``, ``down=True`` or nothing."""
        return ResBlock(
            channels,
            self.emb_channels,
            self.dropout,
            out_channels,
            self.use_scale_shift_norm,
            self.dims,
            **resampling,
        )

    def downsample(self, channels: int) -> nn.Module:
        """Return the layer from a level to the next coarser one."""
        if self.resblock_updown:
            return self.res_block(channels, channels, down=True)
        return Downsample(channels, self.conv_resample, self.dims)

    def upsample(self, channels: int) -> nn.Module:
        """Return the layer from a level to the next finer one."""
        if self.resblock_updown:
            return self.res_block(channels, channels, up=True)
        return Upsample(channels, self.conv_resample, self.dims)

    def has_attention(self, level: int, index: int) -> bool:
        """Whether attention follows residual block ``index`` of a level."""
        limit = self.num_attention_blocks
        return 2**level in self.attention_resolutions and (limit is None or index < limit[level])

    def attention(
        self, channels: int, level: int, disable_self_attn: bool, upsampling: bool = False
    ) -> nn.Module:
        """Return the attention of a level: SpatialTransformer or AttentionBlock."""
        if self.use_spatial_transformer:
            heads = self._heads(channels, self.num_heads)
            return SpatialTransformer(
                channels,
                heads,
                channels // heads,
                depth=self.transformer_depth[level],
                context_dim=self.context_dim,
                disable_self_attn=disable_self_attn,
                use_linear=self.use_linear_in_transformer,
                dims=self.dims,
            )
        own = upsampling and self.legacy and self.num_heads_upsample != -1
        heads = self._heads(channels, self.num_heads_upsample if own else self.num_heads)
        return AttentionBlock(channels, heads, self.use_new_attention_order)

    def _heads(self, channels: int, num_heads: int) -> int:
        by_width = self.num_head_channels != -1
        unit = self.num_head_channels if by_width else num_heads
        if unit < 1 or channels % unit:
            raise ConfigError(
                "CONFIG-SHAPE",
                f"{'num_head_channels' if by_width else 'num_heads'} is {unit}, which does not "
                f"divide the {channels} channels of an attention: choose a divisor",
            )
        return channels // unit if by_width else unit


class UNetEncoder(nn.ModuleList):
    """Stem and levels of a U-Net; returns its outputs from the finest to the coarsest.

    ``forward(x (B, in_channels, *S), emb, context)`` gives one tensor for each of
    ``settings.skip_channels``; the last is the input of the middle.
    """

    def __init__(self, settings: UNetSettings, in_channels: int) -> None:
        channels = settings.channels[0]
        blocks = [settings.stack(conv_nd(settings.dims, in_channels, channels, 3, padding=1))]
        for level, out_channels in enumerate(settings.channels):
            if level > 0:
                blocks.append(settings.stack(settings.downsample(channels)))
            for index in range(settings.num_res_blocks[level]):
                layers = [settings.res_block(channels, out_channels)]
                if settings.has_attention(level, index):
                    no_self = settings.disable_self_attentions[level]
                    layers.append(settings.attention(out_channels, level, no_self))
                blocks.append(settings.stack(*layers))
                channels = out_channels
        super().__init__(blocks)

    def forward(self, x: Tensor, emb: Tensor, context: Context = None) -> list[Tensor]:
        outputs = []
        for block in self:
            x = block(x, emb, context)
            outputs.append(x)
        return outputs


def middle_block(settings: UNetSettings) -> TimestepEmbedSequential:
    """Return the coarsest block, residual, attention, residual: (B, C, *S) -> (B, C, *S)."""
    channels = settings.channels[-1]
    return settings.stack(
        settings.res_block(channels, channels),
        settings.attention(channels, -1, settings.disable_middle_self_attn),
        settings.res_block(channels, channels),
    )


class UNetDecoder(nn.ModuleList):
    """Levels of a U-Net from the coarsest to the finest, each block with one skip connection.

    ``forward(h, skips, emb, context)`` takes the outputs of the encoder and consumes the list, so
    that without gradients their memory is free as soon as they are used.
    """

    def __init__(self, settings: UNetSettings) -> None:
        skip_channels = settings.skip_channels
        channels = settings.channels[-1]
        blocks = []
        for level, out_channels in reversed(list(enumerate(settings.channels))):
            for index in range(settings.num_res_blocks[level] + 1):
                layers = [settings.res_block(channels + skip_channels.pop(), out_channels)]
                channels = out_channels
                if settings.has_attention(level, index):
                    no_self = settings.disable_self_attentions[level]
                    layers.append(settings.attention(channels, level, no_self, upsampling=True))
                if level > 0 and index == settings.num_res_blocks[level]:
                    layers.append(settings.upsample(channels))
                blocks.append(settings.stack(*layers))
        super().__init__(blocks)

    def forward(
        self, h: Tensor, skips: list[Tensor], emb: Tensor, context: Context = None
    ) -> Tensor:
        for block in self:
            h = torch.cat([h, skips.pop()], dim=1)  # (B, C + C_skip, *S)
            h = block(h, emb, context)  # (B, C, *S), or (B, C, *2S) at the end of a level
        return h


def output_head(settings: UNetSettings, out_channels: int) -> nn.Sequential:
    """Return the last layers, (B, C, *S) -> (B, out_channels, *S); they start at zero."""
    channels = settings.channels[0]
    return nn.Sequential(
        normalization(channels),
        nn.SiLU(),
        zero_module(conv_nd(settings.dims, channels, out_channels, 3, padding=1)),
    )


def label_embedding(
    num_classes: int | str, emb_channels: int, adm_in_channels: int | None
) -> nn.Module:
    """Return the embedding of ``y``: class numbers, one continuous value, or a vector.

    Raises:
        ConfigError: CONFIG-VALUE for an unknown kind, or a vector without its width.
    """
    if isinstance(num_classes, int):
        return nn.Embedding(num_classes, emb_channels)
    if num_classes == "continuous":
        return nn.Linear(1, emb_channels)
    if num_classes == "sequential" and adm_in_channels is not None:
        layers = nn.Linear(adm_in_channels, emb_channels), nn.SiLU()
        return nn.Sequential(nn.Sequential(*layers, nn.Linear(emb_channels, emb_channels)))
    raise bad_value(
        f"num_classes is {num_classes!r} with adm_in_channels {adm_in_channels}: expected a number "
        "of classes, 'continuous', or 'sequential' with adm_in_channels"
    )


class UNetModel(nn.Module):
    """The denoising U-Net (Ho et al. 2020; Dhariwal and Nichol 2021; Rombach et al. 2022).

    ``forward(x (B, in_channels, *S), timesteps (B,), context=None, y=None)`` returns
    (B, out_channels, *S) in the dtype of ``x``; it computes in the dtype of the weights. Timesteps
    may be fractional. ``context`` is (B, M, context_dim) or a list with one tensor for each
    transformer block, ``y`` is (B,) class numbers, (B,) values or (B, adm_in_channels).

    Args:
        image_size: for information; the network takes every size that ``size_divisor`` divides.
        num_classes: number of classes, "continuous" or "sequential" (a vector); None for no ``y``.
        adm_in_channels: width of the vector ``y``.
        n_embed: predict the logits of this many codebook entries in place of ``out_channels``.
        use_fp16, use_bf16: accepted because published YAML files carry them; precision is chosen
            outside, by autocast or by casting the weights.
        **settings: see :class:`UNetSettings`.

    Raises:
        ConfigError: CONFIG-VALUE or CONFIG-SHAPE, from the constructor for settings that contradict
            each other and from ``forward`` for inputs that do not fit.
    """

    @shows(UNetSettings)
    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        image_size: int | Sequence[int] | None = None,
        num_classes: int | str | None = None,
        adm_in_channels: int | None = None,
        n_embed: int | None = None,
        use_fp16: bool = False,
        use_bf16: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.settings = UNetSettings(**settings)
        self.image_size, self.in_channels, self.out_channels = image_size, in_channels, out_channels
        self.num_classes = num_classes
        emb_channels = self.settings.emb_channels
        self.time_embed = TimeEmbedding(self.settings.model_channels, emb_channels)
        if num_classes is not None:
            self.label_emb = label_embedding(num_classes, emb_channels, adm_in_channels)
        self.input_blocks = UNetEncoder(self.settings, in_channels)
        self.middle_block = middle_block(self.settings)
        self.output_blocks = UNetDecoder(self.settings)
        self.out = output_head(self.settings, out_channels)
        self.id_predictor = None
        if n_embed is not None:
            channels = self.settings.channels[0]
            self.id_predictor = nn.Sequential(
                normalization(channels), conv_nd(self.settings.dims, channels, n_embed, 1)
            )

    @property
    def size_divisor(self) -> int | tuple[int, ...]:
        """Number that must divide the spatial size, or one for each axis."""
        return self.settings.size_divisor

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Context = None, y: Tensor | None = None
    ) -> Tensor:
        h, emb, context = self.prepare(x, timesteps, context, y)
        skips = self.input_blocks(h, emb, context)
        h = self.middle_block(skips[-1], emb, context)  # (B, C, *S / size_divisor)
        return self.decode(h, skips, emb, context).to(x.dtype)  # (B, out_channels or n_embed, *S)

    def prepare(
        self, x: Tensor, timesteps: Tensor, context: Context, y: Tensor | None
    ) -> tuple[Tensor, Tensor, Context]:
        """Check the inputs; return x, the embedding (B, emb_channels), the context in one dtype."""
        self._check_inputs(x, context, y)
        dtype = self.out[-1].weight.dtype
        emb = self.time_embed(timesteps)  # (B, 4 * model_channels)
        if y is not None:
            emb = emb + self._embed_label(y, dtype)
        if isinstance(context, Tensor):
            context = context.to(dtype)
        elif context is not None:
            context = [tokens.to(dtype) for tokens in context]
        return x.to(dtype), emb, context

    def decode(self, h: Tensor, skips: list[Tensor], emb: Tensor, context: Context) -> Tensor:
        """Return the output (B, out_channels or n_embed, *S) of the middle's h and the skips."""
        h = self.output_blocks(h, skips, emb, context)  # (B, C_0, *S)
        head = self.out if self.id_predictor is None else self.id_predictor
        return head(h)

    def _embed_label(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        if self.num_classes == "continuous":
            y = y.reshape(-1, 1)  # (B, 1)
        return self.label_emb(y.to(dtype) if isinstance(self.num_classes, str) else y)

    def _check_inputs(self, x: Tensor, context: Context, y: Tensor | None) -> None:
        check_image(x, self.in_channels, self.settings.dims, self.size_divisor)
        if (y is None) != (self.num_classes is None):
            raise bad_value(
                f"y is {'missing' if y is None else 'given'} but num_classes is "
                f"{self.num_classes}: pass y exactly if the network has num_classes"
            )
        if context is not None and not self.settings.use_spatial_transformer:
            raise bad_value(
                "a context came, but the network would ignore it: "
                "set use_spatial_transformer and context_dim, or pass no context"
            )
