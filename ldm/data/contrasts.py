"""The volumes of one subject, read together: they lie on one grid, or are refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from ldm.data.layouts import Layout, Subject
from ldm.data.nifti import Geometry
from ldm.data.volume_file import is_drawn
from ldm.errors import DataError
from ldm.label_scheme import TELL, LabelScheme, read_scheme
from ldm.study import LABELS

ROUNDING = 0.01  # of labels that a file stores by slope and intercept

log = logging.getLogger(__name__)


def load_contrasts(
    subject: Subject,
    layout: Layout,
    contrasts: Sequence[str],
    missing: Sequence[str] = (),
    nonfinite: str = "refuse",
    truth: Sequence[str] = (),
) -> tuple[dict[str, np.ndarray], Geometry]:
    """Read contrasts of one subject that lie on one grid.

    Args:
        missing: contrasts that may be absent; they are then absent from the result.
        truth: contrasts that must have been acquired, not synthesised.

    Raises:
        DataError: what :meth:`ldm.data.volume_file.VolumeFile.read` raises; DATA-MISSING;
            DATA-SHAPE; DATA-AFFINE; DATA-SYNTHETIC.
    """
    subject.require([c for c in contrasts if c not in missing], layout)
    wanted = [c for c in contrasts if c in subject.files]
    volumes = {c: subject.files[c].read(subject.id, nonfinite) for c in wanted}
    if not volumes:
        raise DataError(
            "DATA-MISSING", f"none of {', '.join(contrasts)} exists: add one", subject.id
        )
    for name in (n for n in truth if n in volumes and volumes[n].geometry.is_synthetic):
        raise DataError(
            "DATA-SYNTHETIC",
            f"{subject.files[name].name} was synthesised, as its header says: it is no "
            "truth to train on or to compare with; give the acquired image",
            subject.id,
        )
    reference, geometry = wanted[0], volumes[wanted[0]].geometry
    for name in wanted[1:]:
        geometry.require_same_grid(volumes[name].geometry, (reference, name), subject.id)
    return {name: volume.array for name, volume in volumes.items()}, geometry


def load_labels(subject: Subject, layout: Layout, geometry: Geometry) -> np.ndarray:
    """Read the segmentation of a subject, in labels inside, on the grid of its images.

    Raises:
        DataError: what :func:`load_contrasts` raises; DATA-LABEL when a label is not in 0..255.
    """
    labels, own_geometry = read_labels(subject, layout)
    geometry.require_same_grid(own_geometry, ("the image", LABELS), subject.id)
    return labels


def read_labels(subject: Subject, layout: Layout) -> tuple[np.ndarray, Geometry]:
    """Return the segmentation (X, Y, Z) of a subject, in labels inside, and where it lies.

    Raises:
        DataError: see :func:`load_labels`.
    """
    arrays, geometry = load_contrasts(subject, layout, [LABELS])
    return labels_inside(arrays[LABELS], subject), geometry


def labels_inside(array: np.ndarray, subject: Subject) -> np.ndarray:
    """Return a segmentation, as it is stored, in the labels of :mod:`ldm.regions`.

    Raises:
        DataError: see :func:`as_labels`.
    """
    labels, scheme = as_labels(array, subject.id), scheme_of(subject)
    if unknown := scheme.unknown(labels):
        log.warning(
            "%s: seg holds %s, but labels are %s: %s",
            *(subject.id, " ".join(map(str, unknown)), scheme, TELL),
        )
    return scheme.inside(labels)


def scheme_of(subject: Subject) -> LabelScheme:
    """Return what the labels of a subject mean; a sidecar beside them outweighs the naming."""
    file = subject.files[LABELS]
    told = file.described().get("scheme")
    source = "drawn by dsdiff segment predict" if is_drawn(file) else file.sidecar.name
    return read_scheme(told, source) if told else subject.scheme


def as_labels(array: np.ndarray, case: str | None = None) -> np.ndarray:
    """Return a segmentation as uint8, in the labels of its file.

    Raises:
        DataError: DATA-LABEL when a label is not in 0..255.
    """
    labels = np.rint(array)
    between = array[np.abs(array - labels) > ROUNDING]
    if between.size:
        log.warning(
            "%s: seg holds %.3g, which is no label, and is rounded: was it resampled by "
            "interpolation, or is it a probability? resample by nearest neighbour, or threshold it",
            *(case, between[0]),
        )
    if labels.min() < 0 or labels.max() > 255:
        raise DataError(
            "DATA-LABEL",
            f"seg holds labels {labels.min():g} to {labels.max():g}: expected 0 to 255",
            case,
        )
    return labels.astype(np.uint8)
