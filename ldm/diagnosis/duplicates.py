"""Files and subjects that occur twice: equal files by digest, alike images by a perceptual hash."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from scipy import ndimage

from ldm.data.volume_file import VolumeFile

HASH_SIDE = 16
CLEAR_STEP = 0.05  # standard deviations of the thumbnail
# Of differing bits. The same image with noise, another gamma or scale: below 0.02; two patients:
# 0.15 and more (docs/diagnose.md).
ALIKE = 0.05


def equal_files(
    files: Mapping[str, Iterable[VolumeFile]],
) -> list[list[tuple[str, VolumeFile]]]:
    """Return groups of (subject, file) with the same content, of files by subject.

    Only files of one size are read.
    """
    sizes, digests = defaultdict(list), defaultdict(list)
    for subject, volumes in files.items():
        for file in volumes:
            if all(path.is_file() for path in file.paths):
                _, size, *_ = file.state(subject)
                sizes[size].append((subject, file))
    for group in sizes.values():
        for subject, file in group if len(group) > 1 else ():
            digests[file.sha256()].append((subject, file))
    return [group for group in digests.values() if len(group) > 1]


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """Return a hash (11520,) bool of a volume (X, Y, Z) that is cropped to its brain.

    Each bit says whether the next voxel of the 16 x 16 x 16 thumbnail is clearly brighter (a
    difference hash along each axis), so that noise, resampling and gain keep nearly all of them.
    """
    smooth = ndimage.gaussian_filter(
        image.astype(np.float32), [n / HASH_SIDE / 2 for n in image.shape]
    )
    places = [(np.arange(HASH_SIDE) + 0.5) * n / HASH_SIDE - 0.5 for n in image.shape]
    thumbnail = ndimage.map_coordinates(
        smooth, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest"
    )
    clear = CLEAR_STEP * thumbnail.std()
    return np.concatenate([(np.diff(thumbnail, axis=axis) > clear).ravel() for axis in range(3)])


def alike(hashes: Mapping[str, np.ndarray]) -> list[tuple[str, str, float]]:
    """Return (subject, subject, share of bits that differ) of pairs below ALIKE."""
    names = list(hashes)
    if len(names) < 2:
        return []
    stacked = np.stack([hashes[name] for name in names])
    found = []
    for row in range(len(names) - 1):
        differing = (stacked[row + 1 :] != stacked[row]).mean(axis=1)
        for offset in np.flatnonzero(differing < ALIKE):
            found.append((names[row], names[row + 1 + offset], float(differing[offset])))
    return found
