"""Random changes of training images, the same for all images of an item.

A class here is a ``target`` of ``data.params.augmentation_config``; any callable on an item with
``set_random_state(seed)``, such as a monai ``Compose`` of dictionary transforms, can replace it.
monai takes seconds to import: that waits until a class is built, which applying a model never does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ldm.errors import bad_value
from ldm.intensity import BACKGROUND

if TYPE_CHECKING:
    from monai.transforms import Compose

IMAGES = ("condition", "target")
MASKS = ("brain", "seg")


class _Augmentation:
    """A random transform of the images and masks of an item, all moved together."""

    transform: Compose

    def set_random_state(self, seed: int) -> None:
        """Make the next call a function of ``seed``."""
        self.transform.set_random_state(seed)

    def moved(self, images: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the images as the transform leaves them, their background 0.

        It is -1 before, and what an affine map brings in from outside is 0: shift for it. monai
        keeps a record of each step, with which it could be undone: two fifths of the time, so it is
        off here.
        """
        from monai.data.meta_obj import get_track_meta, set_track_meta

        shifted = {n: a - BACKGROUND if n in IMAGES else a.float() for n, a in images.items()}
        is_recorded = get_track_meta()
        set_track_meta(False)
        try:
            return {name: torch.as_tensor(a) for name, a in self.transform(shifted).items()}
        finally:
            set_track_meta(is_recorded)


class SliceAugmentation(_Augmentation):
    """Left-right flip, a small rotation, scaling and shift, and a change of contrast.

    Args:
        flip: probability of a flip along the first axis of a slice (left-right in axial and
            coronal slices).
        affine: probability of an affine map; None means 0.3 for slices and 0 for patches, into
            which it would bring background where there is brain.
        rotation: largest rotation, degrees.
        scale: largest relative change of size.
        shift: largest shift, voxels.
        contrast: how far the intensities of all contrasts are stretched or shrunk together,
            ``strength`` of :class:`ldm.data.transforms.RandContrastd`.
        curves: how far each free contrast goes through a curve of its own, as of another scanner,
            ``strength`` of :class:`ldm.data.transforms.RandCurvesd`; 0: none.
        contrasts: number of the conditions; passed in.
        free: which of them may change by themselves, because the target is not compared with them;
            passed in.
        dims: 2 for slices, 3 for patches of volumes; passed in.

    Raises:
        ConfigError: CONFIG-VALUE for an affine map of patches, for curves where nothing is free.
    """

    def __init__(
        self,
        flip: float = 0.5,
        affine: float | None = None,
        rotation: float = 10.0,
        scale: float = 0.1,
        shift: float = 5.0,
        contrast: float = 0.4,
        curves: float = 0.0,
        contrasts: int = 1,
        free: Sequence[int] = (),
        dims: int = 2,
    ) -> None:
        if curves < 0:
            raise bad_value(
                f"data.params.augmentation_config.params.curves is {curves}: give 0 or more"
            )
        if curves and not free:
            raise bad_value(
                f"data.params.augmentation_config.params.curves is {curves}, but no contrast may "
                "change by itself, because the target is compared with each: give 0"
            )
        if affine and dims != 2:
            raise bad_value(
                f"data.params.augmentation_config.params.affine is {affine}, but an affine map "
                "brings background into patches of volumes: give affine=0, or two numbers as "
                "data.params.image_size"
            )
        if affine is None:
            affine = 0.3 if dims == 2 else 0.0
        from monai.transforms import Compose, RandAffined, RandFlipd

        from ldm.data.transforms import RandContrastd, RandCurvesd

        keys = (*IMAGES, *MASKS)
        self.transform = Compose(
            [
                RandFlipd(keys, prob=flip, spatial_axis=-2, allow_missing_keys=True),
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
                RandContrastd(IMAGES, contrast),
                *([RandCurvesd(IMAGES[:1], contrasts, free, curves)] if curves else []),
            ]
        )

    def __call__(self, images: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Return the images (C, *S), moved together."""
        moved = self.moved(images)
        return {n: a + BACKGROUND if n in IMAGES else a for n, a in moved.items()}


class SegmentationAugmentation(_Augmentation):
    """Flips, rotation, elastic deformation, gamma, noise and blur, to train segmenters.

    Images and labels move together. Intensities change inside the brain only; gamma and blur act on
    all contrasts alike, the noise is independent. What a movement brings into a slice is
    background, into a patch what is at its edge.

    Args:
        flip: probability of a flip along each axis but, in patches, the first.
        affine: probability of a rotation, in patches about the first axis, with a change of size.
        rotation: largest rotation, degrees.
        scale: largest relative change of size.
        elastic: probability of a smooth deformation; None: 0.2, and 0 for patches, where it takes
            longer than a training step.
        displacement: of the deformation, voxels.
        gamma: probability of an exponent between 0.7 and 1.5 of the intensities.
        noise: probability of Gaussian noise, of a standard deviation up to 0.1.
        blur: probability of a blur of a standard deviation up to 1 voxel.
        dims: 2 for slices, 3 for patches of volumes; passed in.
    """

    def __init__(
        self,
        flip: float = 0.5,
        affine: float = 0.3,
        rotation: float = 15.0,
        scale: float = 0.1,
        elastic: float | None = None,
        displacement: float = 2.0,
        gamma: float = 0.3,
        noise: float = 0.2,
        blur: float = 0.2,
        dims: int = 2,
    ) -> None:
        from monai import transforms as of

        keys = (*IMAGES, *MASKS)
        movement: dict[str, Any] = {
            "keys": keys,
            "mode": ["bilinear"] * len(IMAGES) + ["nearest"] * len(MASKS),
            "padding_mode": "zeros" if dims == 2 else "border",
            "allow_missing_keys": True,
        }
        if elastic is None:
            elastic = 0.2 if dims == 2 else 0.0
        deform = {"prob": elastic, **movement}
        if dims == 2:
            bend = of.Rand2DElasticd(
                spacing=(16, 16), magnitude_range=(displacement / 2, displacement), **deform
            )
        else:
            # monai blurs white noise, of which a kernel of 5 voxels leaves about 1 %
            magnitude = 50 * displacement
            bend = of.Rand3DElasticd(
                sigma_range=(4, 6), magnitude_range=(magnitude / 2, magnitude), **deform
            )
        angle = math.radians(rotation)
        intensity = {"keys": IMAGES, "allow_missing_keys": True}
        sigma = (0.25, 1.0)
        self.transform = of.Compose(
            [
                *(of.RandFlipd(keys, flip, axis, allow_missing_keys=True) for axis in (-2, -1)),
                of.RandAffined(
                    prob=affine,
                    rotate_range=angle if dims == 2 else (angle, 0.0, 0.0),
                    scale_range=(scale,) * dims,
                    **movement,
                ),
                bend,
                of.RandAdjustContrastd(prob=gamma, gamma=(0.7, 1.5), **intensity),
                of.RandGaussianNoised(prob=noise, std=0.1, **intensity),
                of.RandGaussianSmoothd(
                    prob=blur, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma, **intensity
                ),
            ]
        )

    def __call__(self, images: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Return the images (C, *S), moved together, with -1 outside the brain."""
        moved = self.moved(images)
        brain = moved["brain"] > 0.5
        return {
            n: torch.where(brain, (a + BACKGROUND).clamp(-1, 1), BACKGROUND) if n in IMAGES else a
            for n, a in moved.items()
        }
