"""The scanner of the phantom: slices, motion between sequences, coil shading, noise and gain."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.ndimage import gaussian_filter, shift

from ldm.phantom.geometry import SmoothField

POINT_SPREAD = 0.5  # mm; standard deviation in the plane of a slice, with registration's resampling
SLICE_SPREAD = 0.36  # of the thickness: a slice's profile, then interpolation between slices
MOTION = 0.4  # mm; standard deviation of what registration leaves along each axis


def acquire(
    rng: np.random.Generator, ideal: np.ndarray, brain: np.ndarray, voxel: float, thickness: float
) -> np.ndarray:
    """Return signals (N,) as slices of ``thickness`` mm see them, resampled to the voxels.

    Bone and air around the ``brain`` (X, Y, Z) give no signal, and a little of them shows at its
    edge, as in any skull-stripped image.
    """
    volume = np.zeros(brain.shape, dtype=np.float32)
    volume[brain] = ideal
    through = max(POINT_SPREAD, SLICE_SPREAD * thickness)
    spread = np.array([POINT_SPREAD, POINT_SPREAD, through])
    if thickness > 1 and rng.random() < 0.15:
        spread = spread[::-1]  # sagittal slices; most are axial
    blurred = gaussian_filter(volume, spread / voxel, truncate=3.0)
    return shift(blurred, rng.normal(0, MOTION, 3) / voxel, order=1)[brain]


def scan(
    rng: np.random.Generator, ideal: Mapping[str, np.ndarray], points: np.ndarray
) -> dict[str, np.ndarray]:
    """Turn ideal signals into scanner values: coil shading, Rician noise, an arbitrary gain.

    Args:
        rng: source of the noise.
        ideal: noise-free signals (N,) by contrast.
        points: positions (3, N) in mm.

    Returns:
        Whole numbers >= 1 (float32) by contrast, so that 0 is free to mean background.
    """
    coil = 0.06 * SmoothField(rng, 90.0)(points)
    scanned = {}
    for name, signal in ideal.items():
        own = rng.uniform(0.03, 0.1)  # coils and patient move between sequences
        shading = np.exp(coil + own * SmoothField(rng, 60.0)(points))
        median = np.median(signal)
        level = median / rng.uniform(45, 110)
        noise = level * rng.standard_normal((2, signal.size), dtype=np.float32)
        magnitude = np.hypot(signal * shading + noise[0], noise[1])  # Rician: |S + complex noise|
        gain = rng.uniform(150, 900) / median
        scanned[name] = np.maximum(np.rint(magnitude * gain), 1).astype(np.float32)
    return scanned
