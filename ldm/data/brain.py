"""Which voxels of a subject are its brain: those to learn, to synthesise and to compare.

Skull-stripped data says it by exact zeros around the brain. Whole-head data does not: its air is
noise. There the mask is the *head*, scalp and skull included, so that air is neither learned nor
synthesised; it is no brain extraction. A mask file beside the contrasts takes precedence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
from scipy import ndimage

from ldm.errors import DataError
from ldm.study import MASK_FILE

MASKS = ("auto", "nonzero", "head")
DARK = 0.1  # of the 99th percentile: air, in every contrast, is darker
STANDARDISED = 0.05  # of the range: noise and interpolation go less far below 0
ALIKE = 0.85  # of the voxels that another contrast shows: one with fewer is of something else
INVERTED = 0.99  # of a brain that is darker than what surrounds it: air is the darkest of MRI
AIR_SHARE = 0.2  # of the voxels that are not 0: from here on they are a whole head in noisy air


def subject_brain(
    inputs: Sequence[np.ndarray],
    mask_file: np.ndarray | None = None,
    rule: str = "auto",
) -> tuple[np.ndarray, str]:
    """Return the brain (X, Y, Z) bool of a subject, and what says so.

    Args:
        inputs: its input contrasts, canonical.
        mask_file: the mask beside them, on their grid, if there is one.
        rule: ``nonzero``: any input is not background; ``head``: all that the head encloses;
            ``auto``: the mask file if there is one, else ``head`` where air is noise, else
            ``nonzero``.

    Raises:
        DataError: what :func:`brain_mask` raises; DATA-CONSTANT when the mask file is empty.
    """
    nonzero = brain_mask(inputs)
    if rule == "auto" and mask_file is not None:
        if not (brain := as_mask(mask_file)).any():
            raise DataError(
                "DATA-CONSTANT", f"the mask file {MASK_FILE} is empty: repair or remove it"
            )
        return brain, "file"
    if rule == "nonzero":
        return nonzero, rule
    sizes = [_relative(array) for array in inputs]
    if rule == "head" or _is_whole_head(sizes, nonzero):
        return _head(sizes), "head"
    return nonzero, "nonzero"


def as_mask(array: np.ndarray) -> np.ndarray:
    """Return a mask file as bool, which may hold shares: where it is inside rather than not."""
    return array > 0.5


def brain_mask(inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return where any input contrast is not its background: 0, as a rule.

    Raises:
        DataError: DATA-MISSING without inputs; DATA-CONSTANT when the brain is nowhere.
    """
    if not inputs:
        raise DataError("DATA-MISSING", "no input contrast exists: one is needed at least")
    brain = reduce(np.logical_or, map(_shown, inputs))
    if not brain.any():
        raise DataError("DATA-CONSTANT", "every input contrast is 0 everywhere: check the files")
    return brain


def uneven(inputs: Mapping[str, np.ndarray]) -> str:
    """Return in words that a contrast shows much less than another; "" where all show the same."""
    shown = {name: int(_shown(array).sum()) for name, array in inputs.items()}
    least, most = min(shown, key=shown.__getitem__), max(shown, key=shown.__getitem__)
    if shown[least] >= ALIKE * shown[most]:
        return ""
    return (
        f"{least} shows {shown[least] / shown[most]:.0%} of what {most} does: is one of them "
        "stripped and the other a whole head, or cut off?"
    )


def inverted(contrasts: Mapping[str, np.ndarray], brain: np.ndarray) -> str:
    """Return in words which contrasts are darker in the brain than around it; "" where none is."""
    dark = []
    for name, array in contrasts.items():
        air = background(array)
        inside = array[brain & (array != air)] if air is not None else np.empty(0)
        dark += [name] if inside.size and (inside < air).mean() > INVERTED else []
    if not dark:
        return ""
    told = f"{', '.join(dark)}: the brain is darker than the background"
    return f"{told}, as in no MRI: is it inverted, or was a number subtracted? check the file"


def _shown(array: np.ndarray) -> np.ndarray:
    """Return where a contrast is not its background."""
    return array != (background(array) or 0)


def background(array: np.ndarray) -> float | None:
    """Return the value that most voxels of the faces of a volume share; None where air is noise.

    It is 0 as distributed, -1 in volumes that were scaled to [-1, 1], some negative number where
    the whole volume was standardised.
    """
    faces = [array.take((0, -1), axis).ravel() for axis in range(array.ndim)]
    values = np.concatenate(faces)
    value = np.median(values)
    is_shared = (values == value).mean() > 0.5 and bool((array != value).any())
    return float(value) if is_shared else None


def _is_whole_head(sizes: Sequence[np.ndarray], brain: np.ndarray) -> bool:
    """Return whether noisy air surrounds the head, by the distances from air of the contrasts.

    Then many of the voxels that are not 0 are dark in all contrasts at once. In a brain few are:
    fluid is bright in T2, and only its rim, blurred by interpolation, is dark everywhere.
    """
    dark = reduce(np.logical_and, (size < DARK for size in sizes))
    return bool((dark & brain).sum() > AIR_SHARE * brain.sum())


def largest(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected component of a mask that is not empty."""
    labels, _ = ndimage.label(mask)
    return labels == np.bincount(labels.ravel())[1:].argmax() + 1


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box that holds every true voxel, of which there is one at least."""
    return ndimage.find_objects(mask.astype(np.uint8))[0]


def _head(sizes: Sequence[np.ndarray]) -> np.ndarray:
    """Return the head (X, Y, Z) bool, without the air around it and with all that it encloses.

    Otsu's threshold (1979) on the mean of the smoothed contrasts, then the largest component with
    its holes filled. The neck opens the head downwards, so holes are filled slice by slice too.
    """
    from skimage.filters import threshold_otsu

    image = ndimage.gaussian_filter(np.mean(sizes, axis=0), 1.0)
    bright = image > threshold_otsu(image) if np.ptp(image) else image > 0
    opened = _filled(ndimage.binary_opening(bright))
    room = np.pad(largest(opened if opened.any() else bright), 2)  # to close at the border too
    return _filled(ndimage.binary_closing(room, iterations=2)[2:-2, 2:-2, 2:-2])


def _relative(array: np.ndarray) -> np.ndarray:
    """Return the distance from air (float32) relative to its 99th percentile, at most 1."""
    air = background(array)
    if air is None:  # noise about 0, unless the whole volume was standardised
        low, high = np.percentile(array, (1, 99))
        air = low if -low > STANDARDISED * (high - low) else 0
    size = array - np.float32(air)
    np.abs(size, out=size)
    size /= np.float32(np.percentile(size[size > 0], 99) if size.any() else 1)
    return np.minimum(size, 1, out=size)


def _filled(mask: np.ndarray) -> np.ndarray:
    """Fill what the mask encloses in space, then in the slices of each axis."""
    mask = ndimage.binary_fill_holes(mask)
    for axis in range(mask.ndim):
        in_slice = ndimage.generate_binary_structure(mask.ndim, 1)
        np.moveaxis(in_slice, axis, 0)[[0, 2]] = False
        outside, _ = ndimage.label(~mask, in_slice)
        others = [a for a in range(mask.ndim) if a != axis]
        open_ones = np.unique(
            np.concatenate([np.take(outside, [0, -1], a).ravel() for a in others])
        )
        mask = mask | ((outside > 0) & ~np.isin(outside, open_ones))
    return mask
