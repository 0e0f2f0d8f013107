"""What the U-Nets with one encoder for each contrast have in common.

``MultiStreamUNet`` splits the input into streams, encodes each by itself and averages the skips;
a family says in ``bottleneck`` how it fuses the coarsest maps and which features it disentangles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ldm.errors import bad_value
from ldm.modules.diffusionmodules.blocks import Context
from ldm.modules.diffusionmodules.openaimodel import UNetEncoder, UNetModel
from ldm.util import shows

Features = dict[str, list[Tensor]]


def mean_of(maps: Sequence[Tensor]) -> Tensor:
    """Return the mean of maps of one shape."""
    return sum(maps) / len(maps)


def apply_to_each(layer: Callable[[Tensor], Tensor], maps: Sequence[Tensor]) -> list[Tensor]:
    """Apply one layer to several maps (B, C, *S), as one batch."""
    return list(layer(torch.cat(list(maps))).unflatten(0, (len(maps), -1)))


def images_of_streams(
    streams: Mapping[str, Sequence[str]], condition_names: Sequence[str]
) -> list[list[int]]:
    """Return, for each stream, the places of its images in x, where the noisy image is place 0.

    Raises:
        ConfigError: CONFIG-VALUE for a contrast that is no condition, a stream that reads nothing,
            or a condition that no stream reads.
    """
    wanted = {contrast for contrasts in streams.values() for contrast in contrasts}
    for name in sorted(wanted - set(condition_names)):
        raise bad_value(
            f"a stream reads '{name}', which is not among the conditions "
            f"{list(condition_names)}: correct the streams or roles of the backbone, or the "
            "conditions of the data"
        )
    for name in condition_names:
        if name not in wanted:
            raise bad_value(
                f"condition '{name}' is read by no stream ({dict(streams)}): "
                "add it to the streams or roles of the backbone, or drop the condition"
            )
    for stream, contrasts in streams.items():
        if not contrasts:
            raise bad_value(f"stream '{stream}' reads no contrast: name one")
    return [
        [place for place, name in enumerate(condition_names, start=1) if name in contrasts]
        for contrasts in streams.values()
    ]


class MultiStreamUNet(UNetModel):
    """A U-Net with an encoder for the noisy image and one more for each stream of conditions.

    ``forward(x (B, in_channels * (1 + M), *S), timesteps (B,), context=None, y=None)`` returns
    (B, out_channels, *S); x holds the noisy image, then the M conditions.
    ``forward_with_features`` also returns the features that the family disentangles, by name. The
    skips are the mean over the streams, so the decoder is that of one U-Net.

    Args:
        in_channels: channels of one image (1, or those of the latent space).
        condition_names: contrast of each of the M conditions, in their order in x. Images of one
            name (neighbouring slices) enter the same streams, concatenated.
        streams: contrasts that each further encoder ``input_blocks_NAME`` reads.
        **settings: see :class:`UNetModel`.
    """

    # Which fact of the diffusion model each constructor argument is, where the names differ.
    interface: ClassVar[dict[str, str]] = {"in_channels": "stream_channels"}

    @shows(UNetModel)
    def __init__(
        self,
        *,
        out_channels: int,
        condition_names: Sequence[str],
        streams: Mapping[str, Sequence[str]],
        in_channels: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(in_channels=in_channels, out_channels=out_channels, **settings)
        self.stream_channels = in_channels
        self.in_channels = in_channels * (1 + len(condition_names))
        self.stream_names = list(streams)
        self.images = [[0], *images_of_streams(streams, condition_names)]
        for name, own in zip(self.stream_names, self.images[1:], strict=True):
            self.add_module(
                f"input_blocks_{name}", UNetEncoder(self.settings, in_channels * len(own))
            )

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Context = None, y: Tensor | None = None
    ) -> Tensor:
        return self.forward_with_features(x, timesteps, context, y)[0]

    def forward_with_features(
        self, x: Tensor, timesteps: Tensor, context: Context = None, y: Tensor | None = None
    ) -> tuple[Tensor, Features]:
        """Return the output of ``forward`` and the disentangled feature maps by name."""
        images, emb, context = self.prepare(x, timesteps, context, y)
        bottoms, skips = self.encode(images, emb, context)
        h, features = self.bottleneck(bottoms, emb, context)  # (B, C, *S / size_divisor)
        return self.decode(h, skips, emb, context).to(x.dtype), features

    def encode(self, x: Tensor, emb: Tensor, context: Context) -> tuple[list[Tensor], list[Tensor]]:
        """Return the coarsest map of each stream, the noisy one first, and the mean skips."""
        encoders = [self.input_blocks]
        encoders += [self.get_submodule(f"input_blocks_{name}") for name in self.stream_names]
        outputs = [
            encoder(stream, emb, context)
            for encoder, stream in zip(encoders, self.split(x), strict=True)
        ]
        bottoms = [maps[-1] for maps in outputs]
        return bottoms, [mean_of(maps) for maps in zip(*outputs, strict=True)]

    def split(self, x: Tensor) -> list[Tensor]:
        """Return the input (B, images * in_channels, *S) of each encoder, the noisy one first."""
        images = x.split(self.stream_channels, dim=1)
        return [torch.cat([images[place] for place in own], dim=1) for own in self.images]

    def bottleneck(
        self, bottoms: list[Tensor], emb: Tensor, context: Context
    ) -> tuple[Tensor, Features]:
        """Fuse the coarsest maps (B, C, *S) of the streams into one; return it and the features."""
        raise NotImplementedError
