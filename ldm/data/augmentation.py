"""Random flips and affine maps of training slices, by monai, the same for all images of an item.

The class is a ``target`` of ``data.params.augmentation_config``; any callable on an item with
``set_random_state(seed)``, such as a monai ``Compose`` of dictionary transforms, can replace it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.transforms import Compose, RandAffined, RandFlipd

from ldm.data.normalise import BACKGROUND

IMAGES = ("condition", "target")
MASKS = ("brain", "seg")


class SpatialAugmentation:
    """Left-right flip and a small rotation, scaling and shift.

    Args:
        flip: probability of a flip along the first axis (left-right in axial and coronal slices).
        affine: probability of an affine map.
        rotation: largest rotation, degrees.
        scale: largest relative change of size.
        shift: largest shift, voxels.
    """

    def __init__(
        self,
        flip: float = 0.5,
        affine: float = 0.3,
        rotation: float = 10.0,
        scale: float = 0.1,
        shift: float = 5.0,
    ) -> None:
        keys = (*IMAGES, *MASKS)
        self.transform = Compose(
            [
                RandFlipd(keys, prob=flip, spatial_axis=0, allow_missing_keys=True),
                RandAffined(
                    keys,
                    prob=affine,
                    rotate_range=math.radians(rotation),
                    scale_range=(scale, scale),
                    translate_range=(shift, shift),
                    mode=["bilinear"] * len(IMAGES) + ["nearest"] * len(MASKS),
                    padding_mode="zeros",
                    allow_missing_keys=True,
                ),
            ]
        )

    def set_random_state(self, seed: int) -> None:
        """Make the next call a function of ``seed``."""
        self.transform.set_random_state(seed)

    def __call__(self, images: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Return the images (C, H, W), moved together."""
        # Background is -1, and what an affine map brings in from outside is 0: shift around it.
        shifted = {n: a - BACKGROUND if n in IMAGES else a.float() for n, a in images.items()}
        moved = {n: torch.as_tensor(a) for n, a in self.transform(shifted).items()}
        return {n: a + BACKGROUND if n in IMAGES else a for n, a in moved.items()}
