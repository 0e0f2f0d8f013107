"""How a network sees a prepared subject: its slices in batches, or the volume as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm.data.prepare import PreparedSubject, fit_size
from ldm.data.slices import asked, with_neighbours
from ldm.intensity import BACKGROUND
from ldm.study import Study


def asked_of(prepared: PreparedSubject, study: Study) -> Tensor | None:
    """Return what is asked (2M,) of a model of any contrast, see ASKED; None: of another model."""
    if not study.varies:
        return None
    place = study.conditions.index(str(prepared.target))
    return asked(place, torch.from_numpy(prepared.present))


@dataclass(frozen=True)
class Windows:
    """What a network is given of a subject.

    A network of patches gets the volume at once, and lays its windows itself.
    """

    size: tuple[int, ...]  # (H, W) of the slices it was trained on, (D, H, W) of the patches
    neighbours: int = 0  # slices on each side that join the conditions
    batch_size: int = 8  # slices at once

    @property
    def hold_volumes(self) -> bool:
        """Whether the network sees volumes."""
        return len(self.size) == 3

    def batches(self, prepared: PreparedSubject) -> list[range]:
        """Return the slices of each batch; a volume is one batch of all."""
        count = len(prepared.brain)
        size = count if self.hold_volumes else self.batch_size
        return [range(n, min(n + size, count)) for n in range(0, count, size)]

    def condition(self, prepared: PreparedSubject, places: Sequence[int]) -> Tensor:
        """Return slices (B, M*(2n+1), H, W), or the volume (1, M, S, H, W), on the CPU.

        What is smaller than a window is padded with background; nothing is cut off.
        """
        images, neighbours = prepared.slices, self.neighbours
        if self.hold_volumes:
            return self._padded(images.swapaxes(0, 1)[None], BACKGROUND)
        return self._padded(
            np.stack([with_neighbours(images, i, neighbours) for i in places]), BACKGROUND
        )

    def maps(self, prepared: PreparedSubject, places: Sequence[int]) -> Tensor | None:
        """Return its maps (B, K, H, W) as :meth:`condition`, padded with 0; None: it has none."""
        if prepared.maps is None:
            return None
        whole = prepared.maps.swapaxes(0, 1)[None]
        return self._padded(whole if self.hold_volumes else prepared.maps[places], 0)

    def _padded(self, images: np.ndarray, fill: float) -> Tensor:
        own = images.shape[-len(self.size) :]
        least = [max(pair) for pair in zip(self.size, own, strict=True)]
        return torch.from_numpy(np.ascontiguousarray(fit_size(images, least, fill)))

    def cut(self, images: np.ndarray, prepared: PreparedSubject) -> np.ndarray:
        """Return images (..., *S) less what :meth:`condition` padded."""
        return fit_size(images, prepared.brain.shape[-len(self.size) :], BACKGROUND)
