"""Primitives that every network here is made of: convolutions, norms, resampling, embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from ldm.errors import ConfigError, bad_value
from ldm.modules.broadcast import per_channel

GROUPS = 32
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by number of axes


def conv_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
    """Return a 1-, 2- or 3-D convolution; the arguments are those of ``nn.Conv2d``."""
    return getattr(nn, f"Conv{dims}d")(*args, **kwargs)


def spatial_sums(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of dy * (x - mean) * rstd and of dy, (C,) both, of one sample (1, C, *S)."""
    variance, no_weight, none_saved, training, eps = rstd**-2, None, (None, None), False, 0.0
    given = no_weight, mean, variance, *none_saved, training, eps, (False, True, True)
    return torch.ops.aten.native_batch_norm_backward(dy, x, *given)[1:]


class GroupNormLast(torch.autograd.Function):
    """Group norm of a channels-last map x (B, C, *S): xhat * weight + bias, both (B, C) or (1, C).

    torch's backward pass of such a map in bf16 is 10 to 30 times as slow on a CPU as need be, its
    forward pass of a small one 5 to 10 times (torch 2.13). Here the sums over space are those of
    batch norm with given statistics, sample by sample, and the gradient of x is, with the means
    m over a group and its n values,

        rstd * (weight * dy - m(weight * dy) - xhat * m(weight * dy * xhat)).
    """

    SMALL = 1024  # pixels, below which torch takes its slow path in bf16

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        channels, pixels = x.shape[1], x[0, 0].numel()
        slow = x.dtype == torch.bfloat16 and pixels < GroupNormLast.SMALL
        samples = (x.float() if slow else x).chunk(len(weight))  # one part if all share a weight
        parts = [
            torch.native_group_norm(part, w, b, len(part), channels, pixels, groups, eps)
            for part, w, b in zip(samples, weight, bias, strict=True)
        ]
        y, mean, rstd = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        ctx.save_for_backward(x, weight, mean, rstd)  # the last two (B, groups)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        dy = dy.contiguous(memory_format=CHANNELS_LAST[x.ndim])
        size = x.shape[1] // mean.shape[1]  # channels of a group
        mean, rstd = (each.repeat_interleave(size, 1) for each in (mean, rstd))  # (B, C)
        samples = zip(dy.split(1), x.split(1), mean, rstd, strict=True)
        sums = [spatial_sums(*sample) for sample in samples]
        d_weight, d_bias = map(torch.stack, zip(*sums, strict=True))  # (B, C)
        mean_xhat, mean_one = (
            (weight * each).unflatten(1, (-1, size)).sum(2).repeat_interleave(size, 1)
            / (size * x[0, 0].numel())
            for each in (d_weight, d_bias)
        )
        slope = -mean_xhat * rstd**2
        offset = -mean_one * rstd - slope * mean
        factor, slope, offset = (
            per_channel(each.to(x.dtype), x) for each in (weight * rstd, slope, offset)
        )
        dx = torch.addcmul(offset, x, slope).addcmul_(dy, factor)
        return dx, d_weight.sum_to_size(weight.shape), d_bias.sum_to_size(weight.shape), None, None


class GroupNorm(nn.GroupNorm):
    """Group norm, then ``* (1 + scale) + shift`` where those come, (B, C) both.

    In bf16 on a CPU, channels-last, that is :class:`GroupNormLast`.
    """

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        bf16_on_cpu = x.dtype == torch.bfloat16 and x.device.type == "cpu"
        bf16_on_cpu = bf16_on_cpu and not torch.compiler.is_compiling()  # it has passes of its own
        if bf16_on_cpu and x.ndim in CHANNELS_LAST and not x.is_contiguous():
            weight, bias = self.weight.float()[None], self.bias.float()[None]  # (1, C)
            if scale is not None:
                weight, bias = weight + weight * scale, bias + bias * scale + shift  # (B, C)
            return GroupNormLast.apply(x, weight, bias, self.num_groups, self.eps)
        y = super().forward(x)
        return y if scale is None else y * (1 + per_channel(scale, x)) + per_channel(shift, x)


def normalization(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """Return a group norm of 32 groups; on bf16 input torch accumulates its statistics in fp32.

    Raises:
        ConfigError: CONFIG-SHAPE when 32 does not divide ``channels``.
    """
    if channels % GROUPS:
        raise ConfigError(
            "CONFIG-SHAPE",
            f"{channels} channels cannot be normalised in {GROUPS} groups: "
            f"give numbers of channels (model_channels, channel_mult, ...) that {GROUPS} divides",
        )
    return GroupNorm(GROUPS, channels, eps=eps)


def check_image(x: Tensor, in_channels: int, dims: int, divisor: int | Sequence[int]) -> None:
    """Refuse an input that is not (B, in_channels, *S) with ``dims`` sizes S that divide evenly.

    Args:
        divisor: number that must divide every spatial size, or one number for each axis.

    Raises:
        ConfigError: CONFIG-SHAPE.
    """
    if x.ndim != dims + 2 or x.shape[1] != in_channels:
        raise ConfigError(
            "CONFIG-SHAPE",
            f"input of shape {tuple(x.shape)}: expected (batch, {in_channels} channels) "
            f"and {dims} spatial axes; check in_channels, dims and the conditions",
        )
    sizes = x.shape[2:]
    divisors = [divisor] * dims if isinstance(divisor, int) else divisor
    if any(size % each for size, each in zip(sizes, divisors, strict=True)):
        raise ConfigError(
            "CONFIG-SHAPE",
            f"input of spatial size {tuple(sizes)}: expected multiples of {divisor}; "
            "pad the input, or choose fewer levels or smaller patches",
        )


def pad_to_multiple(x: Tensor, divisor: int | Sequence[int]) -> Tensor:
    """Return x (B, C, *S) with its far edges repeated until ``divisor`` divides every size.

    Args:
        divisor: one number, or one for each axis.
    """
    sizes = x.shape[2:]
    divisors = [divisor] * len(sizes) if isinstance(divisor, int) else divisor
    sides = list(zip(sizes, divisors, strict=True))
    padding = [p for size, each in reversed(sides) for p in (0, -size % each)]
    return F.pad(x, padding, mode="replicate") if any(padding) else x


def crop_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the first ``size`` pixels of x (B, C, *S) along each spatial axis."""
    return x[(..., *(slice(0, n) for n in size))]


def to_channels_last(module: nn.Module) -> nn.Module:
    """Lay the weights of 2-D and 3-D convolutions out channels-last, in place."""
    for parameter in module.parameters():
        if layout := CHANNELS_LAST.get(parameter.ndim):
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return module


def refuse_unused(**inputs: Tensor | None) -> None:
    """Refuse an input that the network would silently ignore.

    Raises:
        ConfigError: CONFIG-VALUE, for the first of ``inputs`` that is not None.
    """
    for name, value in inputs.items():
        if value is not None:
            raise bad_value(
                f"'{name}' came, but this network has no input for it: pass none, "
                "or choose a backbone that takes it"
            )


def zero_module(module: nn.Module) -> nn.Module:
    """Set the parameters of ``module`` to zero, so that its residual branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def fill_zeros(module: nn.Module) -> nn.Module:
    """Draw the parameters of ``module`` that are all zero, so that its output shows every layer."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return module


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Return sinusoidal embeddings (B, dim) in float32: cosines first, then sines, zero-padded.

    The frequencies fall geometrically from 1 to nearly 1 / ``max_period`` (Vaswani et al. 2017,
    section 3.5, in the order of Ho et al. 2020).

    Args:
        timesteps: (B,), integer or fractional, in steps.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(max_period) * exponents)  # (B, half)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, 2 * half)
    return F.pad(embedding, (0, dim % 2))


def to_tokens(x: Tensor) -> Tensor:
    """Return a feature map (B, C, *S) as tokens (B, N, C); no copy if it is channels-last."""
    return x.flatten(2).transpose(1, 2)


def from_tokens(tokens: Tensor, spatial: Sequence[int]) -> Tensor:
    """Return tokens (B, N, C) as a channels-last feature map (B, C, *spatial), without a copy."""
    return tokens.transpose(1, 2).unflatten(2, spatial)


def project_tokens(layer: nn.Module, tokens: Tensor) -> Tensor:
    """Apply a linear layer, or a convolution of size 1, to tokens (B, N, C) -> (B, N, C_out)."""
    return F.linear(tokens, layer.weight.flatten(1), layer.bias)


def checkpoint(function: Callable[..., Tensor], *args: Any, enabled: bool) -> Tensor:
    """Call ``function``; if ``enabled``, recompute its activations in the backward pass."""
    if enabled and torch.is_grad_enabled():
        return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False)
    return function(*args)


def resampling_factor(dims: int) -> int | tuple[int, ...]:
    """Return the factor of one level; 3-D networks keep the first axis (slices or frames)."""
    return (1, 2, 2) if dims == 3 else 2


class Downsample(nn.Module):
    """Halve the spatial size: (B, C, *S) -> (B, C, *S/2).

    Args:
        use_conv: a strided 3x3 convolution; otherwise average pooling.
    """

    def __init__(self, channels: int, use_conv: bool, dims: int = 2) -> None:
        super().__init__()
        stride = resampling_factor(dims)
        self.op = (
            conv_nd(dims, channels, channels, 3, stride=stride, padding=1)
            if use_conv
            else getattr(nn, f"AvgPool{dims}d")(stride, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)  # (B, C, *S/2)


class Upsample(nn.Module):
    """Double the spatial size by nearest neighbours: (B, C, *S) -> (B, C, *2S).

    Args:
        use_conv: follow with a 3x3 convolution.
    """

    def __init__(self, channels: int, use_conv: bool, dims: int = 2) -> None:
        super().__init__()
        self.scale_factor = resampling_factor(dims)
        self.conv = conv_nd(dims, channels, channels, 3, padding=1) if use_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=self.scale_factor, mode="nearest")  # (B, C, *2S)
        return self.conv(x)
