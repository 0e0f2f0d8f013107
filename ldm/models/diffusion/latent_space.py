"""The space in which diffusion runs: a first stage, what is subtracted, and the scale of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.called import module_from_config, require_tensor, tensor_from
from ldm.errors import ConfigError, bad_value, calling
from ldm.intensity import BACKGROUND, standard_units
from ldm.models.base import Config
from ldm.models.diffusion.anchors import build_anchor
from ldm.models.diffusion.latent_cache import LatentCache
from ldm.models.frozen import warn_of_held_out
from ldm.modules.broadcast import where_present
from ldm.modules.diffusionmodules.util import crop_to, pad_to_multiple
from ldm.study import ANY, native_of

AUTO = "auto"
ANCHOR = "anchor"  # its name among what a sample is given
PIXELS: Config = {"target": "ldm.models.autoencoder.IdentityFirstStage"}
AKIN: Config = {"target": "ldm.models.diffusion.anchors.AkinAnchor"}


def _require_for_any(subtract: str | None, anchor_config: Config | None, cached: bool) -> None:
    """Refuse what is made for one target where it varies; raises ConfigError: CONFIG-VALUE."""
    wrong = {"anchor_config": bool(anchor_config), "cache_latents=true": cached}
    wrong[f"subtract={subtract}"] = subtract not in (AUTO, None)
    if found := next((name for name, is_wrong in wrong.items() if is_wrong), None):
        raise bad_value(
            f"model.params.{found} is for one target, and data.params.target is {ANY}: leave it "
            "out, or name a target"
        )


class LatentSpace:
    """Encodes images by a frozen first stage, and gives what is diffused, ``x_0``.

    The model owns the modules.

    Args:
        conditions: input contrasts, in channel order.
        neighbours: slices on each side that are conditions too.
        target: the contrast to synthesise.
        first_stage_config: ``target`` / ``params`` of the first stage.
        scale_factor: latents are multiplied by it; None: the number that was measured when the
            first stage was trained (1 in pixel space).
        cache_latents: encode each training slice once and keep its latents in memory (of each
            process); for data without augmentation.
        subtract: a condition, such as ``t1``: what is diffused is then the subtraction image
            (target minus this contrast) times ``gain``; None: the target itself. Both contrasts
            are normalised by healthy tissue, so the subtraction image is about 0 but for what
            enhances; a network that returns 0 gives the contrast itself, and the errors of the
            network shrink by ``gain``. ``auto``: the contrast that an agent turns into the target,
            T1 for T1ce, where it is a condition, else None; of a target that varies, see
            :class:`ldm.models.diffusion.anchors.AkinAnchor`.
        gain: factor of the subtraction image, which brings it to about unit variance.
        standard_inputs: whether the network sees the conditions of pixel space in units of healthy
            tissue, background 0 (see :func:`ldm.intensity.standard_units`), and not from -1 to 1,
            where the brain is a sixth of the range and the background outweighs it.
        anchor_config: ``target`` / ``params`` of what is subtracted in place of a contrast, see
            :mod:`ldm.models.diffusion.anchors`.
    """

    def __init__(
        self,
        conditions: Sequence[str],
        neighbours: int,
        target: str | None,
        first_stage_config: Config = PIXELS,
        scale_factor: float | None = None,
        cache_latents: bool = False,
        subtract: str | None = AUTO,
        gain: float = 5.0,
        anchor_config: Config | None = None,
        standard_inputs: bool = False,
    ) -> None:
        if target is None:
            raise bad_value(
                "data.params.target is null, but the model synthesises a contrast: give one, as "
                "data.params.target=t1ce"
            )
        self.first_stage = module_from_config(
            first_stage_config or PIXELS,
            where="model.params.first_stage_config",
            called=None,
            needs=("latent_channels", "downsampling", "encode", "decode", "requires_grad_"),
        ).requires_grad_(False)
        if scale_factor is None:
            scale_factor = getattr(self.first_stage, "scale_factor", 1.0)
        self.scale_is_known, self.scale_factor = scale_factor is not None, scale_factor or 1.0
        self.cache = LatentCache() if cache_latents else None
        self.channels: int = self.first_stage.latent_channels
        self.downsampling: int = self.first_stage.downsampling
        is_auto, varies = subtract == AUTO, target == ANY
        if varies:
            _require_for_any(subtract, anchor_config, cache_latents)
            subtract, anchor_config = None, AKIN if is_auto else None
        elif is_auto:
            subtract = None if anchor_config else native_of(target, conditions)
        facts = {"conditions": list(conditions), "neighbours": neighbours}
        self.standard_inputs = standard_inputs and self.downsampling == 1
        self.anchor, self.gain = build_anchor(subtract, anchor_config, facts), gain
        self.has_no_native = is_auto and (self.anchor is None or varies)

    def latent_size(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        """Return the size of the latents of images of these sides, which are padded.

        Raises:
            ConfigError: CONFIG-VALUE for volumes in a latent space, or cached.
        """
        divisor = self.downsampling
        if len(sides) == 3 and (divisor > 1 or self.cache is not None):
            raise bad_value(
                f"image_size is {list(sides)}: volumes are diffused in pixel space and not cached; "
                "give two numbers, or the IdentityFirstStage and cache_latents=false"
            )
        return tuple(-(-n // divisor) for n in sides)

    def check_start(self, data: Any) -> None:
        """Refuse a first stage without weights, report one that has seen held-out patients.

        Then fit the anchor to the training data.

        Raises:
            ConfigError: CONFIG-MISSING (weights, scale), CONFIG-VALUE (cache of augmented slices).
        """
        if not getattr(self.first_stage, "trained", True):
            raise ConfigError(
                "CONFIG-MISSING",
                "the first stage has no weights: give "
                "model.params.first_stage_config.params.path=RUN, a trained autoencoder",
            )
        if not self.scale_is_known:
            raise ConfigError(
                "CONFIG-MISSING",
                "the scale of the first stage's latents is not known: give "
                "model.params.scale_factor, 1 / the standard deviation of its latents",
            )
        if self.cache is not None and data.augmentation_config:
            raise bad_value(
                "model.params.cache_latents keeps one version of a slice, but slices are "
                "augmented: give data.params.augmentation_config=null too"
            )
        warn_of_held_out("the first stage", getattr(self.first_stage, "train_subjects", ()), data)
        if self.anchor:
            with calling(self.anchor):
                self.anchor.fit(data)

    def portable_params(self) -> dict[str, Any]:
        """Return first stage and anchor without their files: the run's own weights hold them."""
        first = getattr(self.first_stage, "portable_config", None)
        params = {"first_stage_config": first, "scale_factor": self.scale_factor} if first else {}
        anchor = self.anchor.portable_config() if self.anchor else None
        return params | ({"anchor_config": anchor} if anchor else {})

    def facts(self) -> dict[str, Any]:
        """Return the scale, which weights are only valid with, where the space is not pixels."""
        return {"scale_factor": self.scale_factor} if self.downsampling > 1 else {}

    def diffused(self) -> dict[str, Any]:
        """Return what must agree for x_0 of two models to be the same numbers."""
        return {**self.facts(), "gain": self.gain, "anchor": repr(self.anchor)}

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents (B, M*C, *s) of images (B, M, *S), each encoded by itself.

        Sizes that the first stage cannot divide are padded.
        """
        single = images.flatten(0, 1).unsqueeze(1)  # (B*M, 1, *S)
        padded, encode = pad_to_multiple(single, self.downsampling), self.first_stage.encode
        with calling(encode):
            latents = encode(padded)
            if not isinstance(latents, Tensor) and hasattr(latents, "mode"):
                latents = latents.mode()  # means, not samples
        sides = [side // self.downsampling for side in padded.shape[2:]]
        require_tensor(encode, latents, (len(padded), self.channels, *sides), padded)
        return (latents.float() * self.scale_factor).unflatten(0, images.shape[:2]).flatten(1, 2)

    def decode(self, latents: Tensor, size: Sequence[int]) -> Tensor:
        """Return the images (B, 1, *size) of latents (B, C, *s)."""
        sides = [side * self.downsampling for side in latents.shape[2:]]
        decode = self.first_stage.decode
        images = tensor_from(decode, (len(latents), 1, *sides), latents / self.scale_factor)
        return crop_to(images, size).float()

    def encode_condition(self, condition: Tensor, presence: Tensor) -> Tensor:
        """Return the latents of condition (B, N*M, *S) of which ``presence`` (B, M) says what is.

        An absent contrast is 0 everywhere, whatever its channel held; a black image would be -1.
        """
        return self.encode(where_present(condition, presence))

    def encode_batch(self, batch: Mapping[str, Any], cached: bool) -> tuple[Tensor, Tensor]:
        """Return the latents of the conditions (B, N*M*C, *s) and of the target (B, C, *s)."""
        if cached and self.cache is not None:
            return self.cache.encode(batch, self.encode)
        condition = self.encode_condition(batch["condition"], batch["presence"])
        return condition, self.encode(batch["target"])

    def inputs(self, encoded: Tensor, presence: Tensor) -> Tensor:
        """Return what the network sees of encoded conditions (B, N*M*C, *s), presence (B, M)."""
        if not self.standard_inputs:
            return encoded
        shown = torch.where(encoded != BACKGROUND, standard_units(encoded), 0.0)
        return where_present(shown, presence)

    def anchor_of(self, encoded: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the anchor's latents (B, C, *s), by its name; nothing where there is none.

        Args:
            encoded: (B, N*M*C, *s) latents of the ``condition`` (B, N*M, *S) of a batch.
        """
        if self.anchor is None:
            return {}
        shape = (len(encoded), self.channels, *encoded.shape[2:])
        return {ANCHOR: tensor_from(self.anchor.latents, shape, self.encode, encoded, batch)}

    def to_data(self, latents: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Return what is diffused, x_0, for latents of the target and what a sample is given."""
        return (latents - given[ANCHOR]) * self.gain if ANCHOR in given else latents

    def from_data(self, x_0: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Undo :meth:`to_data`."""
        return x_0 / self.gain + given[ANCHOR] if ANCHOR in given else x_0
