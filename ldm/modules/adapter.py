"""Networks of other packages as backbones, by YAML alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.called import require_tensor
from ldm.errors import bad_value, calling
from ldm.modules.broadcast import per_channel
from ldm.modules.diffusionmodules.blocks import TimeEmbedding
from ldm.modules.diffusionmodules.dit import PATCH_CONV, unpatchify
from ldm.modules.diffusionmodules.util import check_image
from ldm.util import instantiate_from_config, require_dims, resolve_target

# Our name of a fact, and the names that other packages have for it
CONSTRUCTOR_NAMES = {
    "in_channels": ("in_channels", "in_chans"),
    "out_channels": ("out_channels", "classes"),
    "image_size": ("image_size", "sample_size", "img_size"),
    "context_dim": ("context_dim", "cross_attention_dim"),
    "dims": ("dims", "spatial_dims"),
}
FORWARD_NAMES = {
    "timesteps": ("timesteps", "timestep", "t", "time"),
    "context": ("context", "encoder_hidden_states"),
    "y": ("y", "class_labels"),
}
WHERE = "model.params.unet_config.params.network"  # of the network, for error messages
TIME_CHANNELS = 8
FREQUENCIES = 64


class ForeignBackbone(nn.Module):
    """A network of another package (monai, diffusers, timm, ...) behind the call of a backbone.

    ``forward(x (B, in_channels, *S), timesteps (B,), context=None, y=None)`` returns
    (B, out_channels, *S). Argument names are translated (``timestep``, ``t``, ``time``,
    ``encoder_hidden_states``, ``class_labels``, ...) and may come before the image, outputs
    unwrapped (``.sample``, the first of a tuple or a mapping). A network that takes no timestep
    gets it as further input channels, an encoder that returns tokens (B, N, num_features) of
    patches gets a linear head.

    Args:
        network: ``target`` / ``params`` of the class; channels, image size and ``dims`` (as
            ``spatial_dims`` where it is called so) are passed in.
        patch_size: side of the patches of an encoder that returns tokens; None for a network that
            returns images.
        size_divisor: number that must divide the spatial size; None means ``patch_size`` or 1.
        dims: 2, or 3 for a network that knows one of these names.

    Raises:
        ConfigError: CONFIG-VALUE for an input that the network does not take, CONFIG-SHAPE for one
            that does not fit or an output that is no image.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        *,
        in_channels: int,
        out_channels: int,
        image_size: int | Sequence[int] | None = None,
        context_dim: int | None = None,
        patch_size: int | None = None,
        size_divisor: int | None = None,
        dims: int = 2,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.patch_size = patch_size
        self.size_divisor = size_divisor or patch_size or 1
        cls = resolve_target(network, WHERE)
        require_dims(cls, dims, CONSTRUCTOR_NAMES["dims"], WHERE)
        self.names, self.image = _forward_names(cls)
        self.time_embed, network_channels = None, in_channels
        if "timesteps" not in self.names:
            self.time_embed = TimeEmbedding(FREQUENCIES, TIME_CHANNELS)
            network_channels = in_channels + TIME_CHANNELS
        facts = {
            "in_channels": network_channels,
            "out_channels": out_channels,
            "image_size": image_size,
            "context_dim": context_dim,
            "dims": dims,
        }
        self.network = instantiate_from_config(
            network, where=WHERE, interface=under_every_name(facts)
        )
        _project_patches_by_products(self.network)
        self.head = None
        if patch_size is not None:
            self.head = nn.Linear(self.network.num_features, patch_size**dims * out_channels)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        check_image(x, self.in_channels, x.ndim - 2, self.size_divisor)
        size, dtype = x.shape[2:], next(self.parameters()).dtype
        h, given = x.to(dtype), {"context": context, "y": y}
        if self.time_embed is None:
            given["timesteps"] = timesteps
        else:
            emb = per_channel(self.time_embed(timesteps), x)
            h = torch.cat([h, emb.expand(-1, -1, *size)], dim=1)  # (B, in + TIME_CHANNELS, *S)
        given, images = self._translate(given), [h]
        if self.image:
            given, images = {self.image: h, **given}, []
        with calling(self.network):
            output = _unwrap(self.network(*images, **given))
        if self.head is not None:
            grid = [side // self.patch_size for side in size]
            output = unpatchify(self.head(output), grid, self.patch_size)  # (B, out_channels, *S)
        require_tensor(self.network, output, (len(x), self.out_channels, *size), x)
        return output.to(x.dtype)

    def _translate(self, given: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        inputs = {name: value for name, value in given.items() if value is not None}
        for name in inputs.keys() - self.names.keys():
            raise bad_value(
                f"'{name}' came, but {type(self.network).__name__} has no input for it: "
                "pass none, or choose a backbone that takes it"
            )
        return {self.names[name]: value for name, value in inputs.items()}


def under_every_name(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that are known under each name a constructor may have for them."""
    return {
        alias: facts[name]
        for name, aliases in CONSTRUCTOR_NAMES.items()
        for alias in aliases
        if facts.get(name) is not None
    }


def _project_patches_by_products(network: nn.Module) -> None:
    """Make each patch embedding of a network a :class:`PatchConv2d` or its like, in place."""
    for module in network.modules():
        for dims, as_product in PATCH_CONV.items():
            if (
                type(module) is getattr(nn, f"Conv{dims}d")
                and module.stride == module.kernel_size
                and module.stride[0] > 2
                and module.groups == 1
                and not any(module.padding)
            ):
                module.__class__ = as_product  # a copy or a pickle of the network keeps it


def _forward_names(cls: type) -> tuple[dict[str, str], str | None]:
    """Return the names that a network has for the inputs that it takes, by ours.

    And that of its image where it is not the first, None where it is.
    """
    parameters = dict(list(inspect.signature(cls.forward).parameters.items())[1:])
    names = {
        name: alias
        for name, aliases in FORWARD_NAMES.items()
        for alias in reversed(aliases)
        if alias in parameters
    }
    first, *others = [name for name in parameters if name not in names.values()] or [None]
    for name in others:
        p = parameters[name]
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            known = ", ".join(alias for aliases in FORWARD_NAMES.values() for alias in aliases)
            raise bad_value(
                f"{WHERE}: {cls.__name__}.forward needs '{name}', but beside the image it is told "
                f"{known} alone: write a class that calls it (docs/add-a-backbone.md)"
            )
    return names, None if next(iter(parameters), None) == first else first


def _unwrap(output: Any) -> Tensor:
    output = getattr(output, "sample", output)
    output = next(iter(output.values())) if isinstance(output, Mapping) else output
    return output[0] if isinstance(output, tuple | list) else output
