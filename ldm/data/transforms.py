"""Random changes of intensities, as monai has them for items of images by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform

SMALL = 1e-6
LEAST = 1e-3  # of what is brain; 0 is background


class RandContrastd(RandomizableTransform, MapTransform):
    """Stretches or shrinks the intensities of the brain about their median, all images alike.

    The width of a normaliser varies between patients (the inter-quartile range depends on how much
    of the brain is fluid), and it varies alike in all contrasts of a patient.

    Args:
        keys: images (C, *S) with background 0; ``brain`` (1, *S) is read beside them.
        strength: the factor is log-uniform in [1 / (1 + strength), 1 + strength].
    """

    def __init__(self, keys: tuple[str, ...], strength: float) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.strength = strength

    def __call__(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the item with its images stretched."""
        factor = float(np.exp(self.R.uniform(-1, 1) * np.log1p(self.strength)))
        brain = data["brain"].bool()
        stretched = dict(data)
        for key in self.key_iterator(data):
            image = torch.as_tensor(data[key])
            inside = torch.where(brain, image, torch.nan).flatten(1)
            centre = inside.nanmedian(dim=1).values.nan_to_num()
            centre = centre.view(-1, *[1] * (image.ndim - 1))
            moved = (centre + (image - centre) * factor).clamp(0, 2)
            stretched[key] = torch.where(brain, moved, 0.0)
        return stretched


class RandCurvesd(RandomizableTransform, MapTransform):
    """Sends each contrast of the brain through a monotone curve of its own, about its median.

    ``x -> m + f s sign(z) |z|^g`` with ``z = (x - m) / s``, m the median and s twice the median
    deviation from it: what another scanner or other times of echo and inversion do to a contrast.

    Args:
        keys: images (C, *S) with background 0; ``brain`` (1, *S) is read beside them.
        contrasts: number of contrasts that follow each other in C, again for each neighbour.
        changed: which of them.
        strength: f is log-uniform in [1 / (1 + strength), 1 + strength], g with 0.6 strength.
    """

    def __init__(
        self, keys: tuple[str, ...], contrasts: int, changed: Sequence[int], strength: float
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.contrasts, self.changed = contrasts, tuple(changed)
        self.spans = np.log1p(strength), np.log1p(0.6 * strength)

    def __call__(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the item with its images changed."""
        brain, changed = data["brain"].bool()[0], dict(data)
        curves = np.exp(self.R.uniform(-1, 1, (len(self.changed), 2)) * self.spans).tolist()
        for key in self.key_iterator(data):
            image = torch.as_tensor(data[key]).clone()
            for place, (factor, power) in zip(self.changed, curves, strict=True):
                inside = image[place :: self.contrasts, brain]  # (N, V), a row for each neighbour
                if not inside.numel():
                    continue
                centre = inside.median()
                spread = 2 * (inside - centre).abs().median() + SMALL
                z = (inside - centre) / spread
                bent = centre + spread * factor * z.sign() * z.abs() ** power
                image[place :: self.contrasts, brain] = bent.clamp(LEAST, 2)
            changed[key] = image
        return changed
