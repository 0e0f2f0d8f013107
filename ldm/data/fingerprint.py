"""The anatomy of a patient in 1.6 kB: it survives what is done to files, and tells patients apart.

A thumbnail of the brain, less its own smooth part, keeps sulci and ventricles; a bit says where it
is bright. Of 46 real patients, two differ in 25 % of the bits or more (1029 pairs, mean 36 %,
standard deviation 4 %); one patient in another resolution or intensity scale, with noise or a gain,
shifted by 3 mm or turned by 2 degrees, differs from itself in 11 % at most.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping

import numpy as np
from scipy import ndimage

from ldm.data.brain import background, subject_brain
from ldm.errors import DataError

SIDE = 32  # voxels of the thumbnail along each axis of the box around the brain
SMOOTH = 2.0  # voxels of the thumbnail; coarser structure is alike in all brains
RADIUS = 0.9  # of the ellipsoid, in the box, that is compared: it lies inside every brain
FEWEST_VOXELS = 8  # of the brain along an axis; a smaller one has no anatomy
LEAST_BALANCE = 0.25  # share of bits that are 0, and 1; else the image shows no anatomy
ALIKE = 0.14  # share of differing bits: 5 standard deviations below that of two patients
GRID = np.stack(np.meshgrid(*[(np.arange(SIDE) + 0.5) / SIDE * 2 - 1] * 3, indexing="ij"))
COMPARED = (GRID**2).sum(0) < RADIUS**2


def fingerprint(image: np.ndarray) -> str:
    """Return the fingerprint of a canonical volume (X, Y, Z), empty where it shows no anatomy."""
    try:
        constant = background(image) is not None  # else the head is looked for in noise
        brain, _ = subject_brain([image], rule="nonzero" if constant else "auto")
    except DataError:  # an empty image
        return ""
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    inside, image = brain[box], image[box]
    values = image[inside]
    low, quarter, middle, three, high = np.percentile(values, (1, 25, 50, 75, 99))
    if min(inside.shape) < FEWEST_VOXELS or not quarter < three:
        return ""
    relative = (np.clip(image, low, high) - middle) / (three - quarter)
    known = _thumbnail(inside.astype(np.float32))
    thumbnail = _thumbnail(np.where(inside, relative, 0).astype(np.float32))
    smooth = ndimage.gaussian_filter(thumbnail, SMOOTH)
    coarse = smooth / np.maximum(ndimage.gaussian_filter(known, SMOOTH), 0.05)
    bits = (thumbnail / np.maximum(known, 0.05) > coarse)[COMPARED]
    if not LEAST_BALANCE < bits.mean() < 1 - LEAST_BALANCE:
        return ""
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def difference(first: str, second: str) -> float:
    """Return the share of bits that differ between two fingerprints; 1 where one is empty."""
    return float(_differences(_bits([first]), second)[0]) if first and second else 1.0


def alike(
    some: Mapping[str, str], others: Mapping[str, str] | None = None
) -> list[tuple[str, str, float]]:
    """Return (name, name, share of differing bits) of fingerprints that show one patient.

    Args:
        some: name -> fingerprint.
        others: what they are compared with, the second of each pair; None: each other.
    """
    told = {name: text for name, text in some.items() if text}
    names, bits = list(told), _bits(told.values())
    found = []
    for place, (other, text) in enumerate((told if others is None else others).items()):
        until = len(names) if others is not None else place
        if text and until:
            shares = _differences(bits[:until], text)
            found += [(names[i], other, float(shares[i])) for i in np.flatnonzero(shares < ALIKE)]
    return found


def _thumbnail(volume: np.ndarray) -> np.ndarray:
    """Return Gaussian means (SIDE, SIDE, SIDE) of a volume, evenly spread along each axis."""
    for axis, length in enumerate(volume.shape):
        step = length / SIDE
        centres = (np.arange(SIDE) + 0.5) * step - 0.5
        distance = (np.arange(length) - centres[:, None]) / max(step / 2, 0.5)
        weights = np.exp(-0.5 * distance**2).astype(np.float32)
        weights /= weights.sum(axis=1, keepdims=True)
        volume = np.moveaxis(np.tensordot(weights, volume, (1, axis)), 0, axis)
    return volume


def _bits(texts: Iterable[str]) -> np.ndarray:
    stored = [np.frombuffer(base64.b64decode(text), np.uint8) for text in texts]
    return np.stack(stored) if stored else np.zeros((0, 1), np.uint8)


def _differences(bits: np.ndarray, text: str) -> np.ndarray:
    return np.bitwise_count(bits ^ _bits([text])[0]).sum(axis=1) / COMPARED.sum()
