"""The border between the diffusion process and a backbone: conditioning, sizes and precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.called import module_from_config, require_tensor, tensor_from
from ldm.errors import ConfigError, bad_value, calling, one_of
from ldm.models.base import Config
from ldm.models.network import require_gradient, require_network
from ldm.modules.broadcast import per_item
from ldm.modules.condition import AskedVector
from ldm.modules.diffusionmodules.util import crop_to, pad_to_multiple
from ldm.study import ASKED
from ldm.util import accepted_parameters, instantiate_from_config, require_dims, resolve_target

Conditions = Mapping[str, Tensor]  # what a sample is given, by the names of a batch
IMAGES = "condition"  # the name of the contrasts among them
ENCODER_FACTS = ("in_channels", "dims", "covariates")

# How a network gets the conditions: whether they follow the noisy channels, and the argument and
# encoder of what it gets beside them (the names are latent-diffusion's).
CONDITIONING: dict[str, tuple[bool, str | None, str | None]] = {
    "concat": (True, None, None),
    "crossattn": (False, "context", "ldm.modules.condition.ConditionTokens"),
    "hybrid": (True, "context", "ldm.modules.condition.ConditionTokens"),
    "adm": (False, "y", "ldm.modules.condition.ConditionVector"),
    "concat-adm": (True, "y", "ldm.modules.condition.CovariateVector"),
}
WIDTH_NAMES = {"context": "context_dim", "y": "adm_in_channels"}
ASKED_WIDTH = 64  # of what is asked, where nothing else is a vector


def build_backbone(unet_config: Config, facts: Mapping[str, Any], where: str) -> nn.Module:
    """Return the backbone that a configuration describes.

    Args:
        facts: for its constructor, see :class:`DiffusionWrapper`. A class may know a fact by
            another name: a multi-stream network counts channels a stream.
        where: key path of the configuration, for error messages.

    Raises:
        ConfigError: see :func:`ldm.util.instantiate_from_config` and
            :func:`ldm.models.network.require_network`; CONFIG-SHAPE for volumes.
    """
    cls = resolve_target(unet_config, where)
    renamed = getattr(cls, "interface", {})
    known_as = ["dims", *(own for own, fact in renamed.items() if fact == "dims")]
    require_dims(cls, facts.get("dims", 2), known_as, where)
    told = {**facts, **{own: facts[fact] for own, fact in renamed.items()}}
    network = instantiate_from_config(unet_config, where=where, interface=told)
    require_network(network, where, "x, timesteps", facts.get("dims", 2))
    return network


class DiffusionWrapper(nn.Module):
    """Calls a backbone: gives it the conditions, pads to a size it can divide, keeps fp32 outside.

    Args:
        unet_config: ``target`` / ``params`` of the backbone.
        interface: facts for its constructor: ``out_channels``, ``image_size``, ``dims`` (number of
            spatial axes), ``stream_channels`` (of one contrast), ``condition_names`` (in channel
            order), ``in_channels``, and where conditions are encoded ``context_dim`` or
            ``adm_in_channels``. A class that uses other names says so in its attribute
            ``interface``: {own name: fact}. For volumes a class must know ``dims``. ``covariates``
            (names of numbers of a patient) are for what encodes the conditions. Where the target
            is any of the contrasts, ``asked`` is their number: what is asked for joins ``y`` or
            ``context`` of a backbone that takes one of them. Another sees it from the contrast that
            is not there.
        conditioning_key: ``concat``: the conditions follow the noisy channels; ``crossattn``: they
            are tokens, the backbone's ``context``; ``hybrid``: both; ``adm``: a vector, its ``y``;
            ``concat-adm``: images as channels, numbers of the patient as ``y``.
        cond_stage_config: ``target`` / ``params`` of what encodes the conditions, trained with the
            backbone: a module that takes ``in_channels`` (of the images), ``dims`` or
            ``covariates`` and has an attribute ``width``. One that encodes something else than the
            images names it in an attribute ``reads``, the key of a batch, and gives a ``blank`` of
            it, see :class:`ldm.modules.condition.CovariateVector`. By default
            :class:`ldm.modules.condition.ConditionTokens`, ``ConditionVector`` or
            ``CovariateVector``.
    """

    def __init__(
        self,
        unet_config: Config,
        interface: Config,
        conditioning_key: str = "concat",
        cond_stage_config: Config | None = None,
    ) -> None:
        super().__init__()
        one_of("model.params.conditioning_key", conditioning_key, CONDITIONING)
        self.concatenates, self.encoded_as, encoder = CONDITIONING[conditioning_key]
        facts, self.cond_stage_model, self.reads = dict(interface), None, IMAGES
        self.out_channels = interface["out_channels"]
        noisy = interface.get("stream_channels", self.out_channels)
        dims = interface.get("dims", 2)
        if self.encoded_as:
            where = "model.params.cond_stage_config"
            config = cond_stage_config or {"target": encoder}
            images = interface["in_channels"] - noisy
            cls, of_encoder = resolve_target(config, where), facts | {"in_channels": images}
            self.reads = getattr(cls, "reads", IMAGES)
            if self.reads == IMAGES:
                require_dims(cls, dims, ["dims"], where)
            own = {name: of_encoder.get(name) for name in ENCODER_FACTS}
            needs = ["width"] if self.reads == IMAGES else ["width", "blank"]
            self.cond_stage_model = module_from_config(
                config, where=where, called=self.reads, interface=own, needs=needs
            )
            if not isinstance(width := self.cond_stage_model.width, int) or width < 1:
                name = type(self.cond_stage_model).__name__
                raise bad_value(f"{where}: {name}.width is {width!r}: give a whole number from 1")
            facts[WIDTH_NAMES[self.encoded_as]] = width
        if not self.concatenates:
            facts["in_channels"] = noisy
        where = "model.params.unet_config"
        self.asked_as = self._asked(resolve_target(unet_config, where), facts)
        self.asked_model = None
        if self.asked_as:
            self.asked_model = AskedVector(facts["asked"], facts[WIDTH_NAMES[self.asked_as]])
        self.diffusion_model = build_backbone(unet_config, facts, where)
        self.size_divisor = getattr(self.diffusion_model, "size_divisor", 1)
        self.contrasts = interface.get("asked", 0)  # of which any may be asked for

    def _asked(self, cls: type, facts: dict[str, Any]) -> str | None:
        """Return as which argument a class takes what is asked for, of which the facts then are."""
        if not facts.get("asked") or self.encoded_as:
            return self.encoded_as if facts.get("asked") else None
        if not {"num_classes", WIDTH_NAMES["y"]} <= accepted_parameters(cls)[0].keys():
            return None
        facts |= {"num_classes": "sequential", WIDTH_NAMES["y"]: ASKED_WIDTH}
        return "y"

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Tensor, others: Conditions | None = None
    ) -> Tensor:
        """Return the backbone's float32 output (B, C_out, *S) for x_t (B, C, *S) at t (B,).

        Args:
            condition: (B, M, *S) images.
            others: other conditions by name, see :meth:`others`.
        """
        x, encoded = self.inputs(x_t, condition, others)
        with calling(self.diffusion_model):
            output = self.diffusion_model(x, t, **encoded)
        return self.image(output, x_t, x)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the backbone in place, see :meth:`torch.nn.Module.compile`.

        Not what is around it, whose hooks look at single calls.
        """
        self.diffusion_model.compile(*args, **kwargs)

    def forward_with_features(
        self, x_t: Tensor, t: Tensor, condition: Tensor, others: Conditions | None = None
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Return the output of ``forward`` and the features of a backbone that disentangles."""
        x, encoded = self.inputs(x_t, condition, others)
        with calling(self.diffusion_model):
            output, features = self.diffusion_model.forward_with_features(x, t, **encoded)
        return self.image(output, x_t, x), features

    @property
    def gives_features(self) -> bool:
        """Whether the backbone has ``forward_with_features``."""
        return hasattr(self.diffusion_model, "forward_with_features")

    def others(self, batch: Mapping[str, Any]) -> Conditions:
        """Return what a batch holds of the conditions beside the images, by name.

        Raises:
            ConfigError: CONFIG-MISSING where the network needs what the batch does not hold.
        """
        found = {ASKED: batch[ASKED]} if self.contrasts else {}
        if self.reads == IMAGES:
            return found
        if self.reads not in batch:
            raise ConfigError(
                "CONFIG-MISSING",
                f"the network is conditioned on '{self.reads}', which the data do not give: give "
                f"data.params.{self.reads}; an encoder of the images has no attribute 'reads'",
            )
        return found | {self.reads: batch[self.reads]}

    def blank_others(self, batch: int) -> Conditions:
        """Return unknown values of them, for a batch of a size."""
        blank = {ASKED: torch.zeros(batch, 2 * self.contrasts)} if self.contrasts else {}
        if self.reads == IMAGES:
            return blank
        return blank | {self.reads: self.cond_stage_model.blank(batch)}

    def absent(self, given: Conditions) -> Conditions:
        """Return conditions with none there: images of 0, unknown values of the others."""
        images = given[IMAGES]
        others = self.blank_others(len(images)).items()
        return {IMAGES: torch.zeros_like(images), **{k: v.to(images.device) for k, v in others}}

    def kept(self, given: Conditions, kept: Tensor) -> Conditions:
        """Return conditions without those of the items that ``kept`` (B,) does not name."""
        kept, absent = kept.to(given[IMAGES].device), self.absent(given)
        return {
            name: torch.where(per_item(kept, value), value, absent.get(name, value))
            for name, value in given.items()
        }

    def inputs(
        self, x_t: Tensor, condition: Tensor, others: Conditions | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the image that the backbone takes, and ``context`` or ``y``, in its dtype."""
        x = torch.cat([x_t, condition], dim=1) if self.concatenates else x_t
        dtype = next(self.diffusion_model.parameters(), x).dtype
        encoded, given = {}, {IMAGES: condition, **(others or {})}
        if self.encoded_as:
            tokens = [None] if self.encoded_as == "context" else []
            shape = (x.shape[0], *tokens, self.cond_stage_model.width)
            seen = tensor_from(self.cond_stage_model, shape, given[self.reads])
            encoded[self.encoded_as] = seen.to(dtype)
        if self.asked_as:
            vector = self.asked_model(given[ASKED]).to(dtype)  # (B, width)
            if self.asked_as == "context":
                encoded["context"] = torch.cat([encoded["context"], vector[:, None]], dim=1)
            else:
                encoded["y"] = encoded.get("y", 0) + vector
        return pad_to_multiple(x, self.size_divisor).to(dtype), encoded

    def image(self, output: Any, x_t: Tensor, x: Tensor) -> Tensor:
        """Return the backbone's output for the padded x in the size of x_t, in float32.

        Raises:
            ConfigError: CONFIG-SHAPE; a loss would broadcast another shape and train on nonsense.
        """
        # not len(x_t), which an export takes for a number
        expected = (x_t.shape[0], self.out_channels, *x.shape[2:])
        require_tensor(self.diffusion_model, output, expected, x)
        require_gradient(self.diffusion_model, output)
        # a copy: what a CUDA graph returns is overwritten by its next call
        return crop_to(output, x_t.shape[2:]).to(torch.float32, copy=True)
