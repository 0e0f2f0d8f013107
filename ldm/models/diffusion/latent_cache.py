"""Latents of training slices, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.models.base import places


class LatentCache:
    """Keeps the latents of each slice that it has seen, in float16 in main memory.

    A slice is encoded by itself, so that its latents do not depend on the batch it first came in
    and a resumed training equals an uninterrupted one. An absent contrast is an image of zeros
    before encoding, so its latents are those of such an image, which are kept once.
    """

    def __init__(self) -> None:
        self.slices: dict[tuple[str, int], Tensor] = {}
        self.blank: Tensor | None = None

    @torch.no_grad()
    def encode(
        self, batch: Mapping[str, Any], encode: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the latents of conditions (B, N*M*C, h, w) and target (B, C, h, w) of a batch.

        Args:
            batch: slices without augmentation; ``presence`` may differ between visits.
            encode: images (1, K, H, W) to latents (1, K*C, h, w).
        """
        images = torch.cat([batch["condition"], batch["target"]], dim=1)  # (B, N*M+1, H, W)
        if self.blank is None:
            self.blank = encode(torch.zeros_like(images[:1, :1]))[0].half().cpu()  # (C, h, w)
        for key, stack in zip(places(batch), images, strict=True):
            if key not in self.slices:
                self.slices[key] = encode(stack[None])[0].half().cpu()
        # float32 before stacking: autocast to bf16 refuses to stack float16
        latents = torch.stack([self.slices[key].float() for key in places(batch)])
        latents = latents.to(images.device)
        condition, target = latents.split([len(latents[0]) - len(self.blank), len(self.blank)], 1)
        absent = ~batch["presence"].repeat(1, (images.shape[1] - 1) // batch["presence"].shape[1])
        condition = condition.unflatten(1, (images.shape[1] - 1, -1))  # (B, N*M, C, h, w)
        blank = self.blank.to(images.device).float()
        condition = torch.where(absent[:, :, None, None, None], blank, condition)
        return condition.flatten(1, 2), target
