"""A patient of an evaluation: the real volumes, and a synthetic one in the same units.

A synthetic volume is written in the units of an input contrast, which its sidecar states; the real
T1ce has units of its own. Before comparison the prediction is brought to the units of the reference
by the two scales (of the input, from the sidecar; of the reference, measured in its brain by the
normaliser that the sidecar names).
A volume without a sidecar is taken to be in the units of the reference already. A spread beside it
(``ID_t1ce_std.nii.gz``, of ``dsdiff sample --samples N``) goes through the same map.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.config import trusted_targets
from ldm.data.contrasts import load_contrasts
from ldm.data.layouts import Layout, Subject
from ldm.data.nifti import read_volume
from ldm.data.normalise import IntensityScale, Normaliser, RobustNormaliser, spread_through
from ldm.data.prepare import load_subject
from ldm.errors import DataError
from ldm.util import instantiate_from_config, refuse_untrusted_targets

log = logging.getLogger(__name__)

INPUTS = ("t1", "t2", "flair")
TARGET = "t1ce"


@dataclass(frozen=True)
class Case:
    """A patient to compare with: canonical volumes (X, Y, Z).

    Args:
        id: subject.
        inputs: the input contrasts that exist.
        reference: the real target.
        brain: as in sampling (:func:`ldm.data.brain.subject_brain`), of the input contrasts or,
            without inputs, of the reference.
        seg: tumour labels, or None.
        mask: what said which voxels are brain.
    """

    id: str
    inputs: dict[str, np.ndarray]
    reference: np.ndarray
    brain: np.ndarray
    seg: np.ndarray | None
    geometry: Any
    mask: str = "nonzero"

    def shown_slice(self) -> int:
        """Return the axial slice with most tumour, or else with most brain."""
        mask = self.brain if self.seg is None or not self.seg.any() else self.seg > 0
        return int(mask.sum(axis=(0, 1)).argmax())


@dataclass(frozen=True)
class Prediction:
    """A synthetic volume in the units of the reference.

    Args:
        volume: (X, Y, Z).
        spread: standard deviation over samples (X, Y, Z), or None.
        samples: how many samples, or None where that is not known.
    """

    volume: np.ndarray
    spread: np.ndarray | None = None
    samples: int | None = None


def load_case(subject: Subject, layout: Layout, mask: str = "auto") -> Case:
    """Read the real volumes of a patient.

    Raises:
        DataError: there is no target, or a volume cannot be used.
    """
    inputs = [c for c in INPUTS if c in subject.files] or [TARGET]
    subject.require([TARGET], layout)
    arrays, brain, rule, seg, geometry = load_subject(
        subject, layout, inputs, TARGET, mask, with_labels=True
    )
    reference = arrays.pop(TARGET)
    return Case(subject.id, arrays, reference, brain, seg, geometry, rule)


def read_prediction(subject: Subject, layout: Layout, case: Case) -> Prediction:
    """Return the synthetic volume of a patient, and its spread, in the units of the reference.

    Raises:
        DataError: it cannot be read, lies on another grid, or its sidecar is damaged.
    """
    arrays, geometry = load_contrasts(subject, layout, [TARGET])
    case.geometry.require_same_grid(geometry, ("reference", "prediction"), case.id)
    path = subject.files[TARGET].path
    stem = path.name.split(".nii")[0]
    spread = _read_spread(path.with_name(f"{stem}_std.nii.gz"), case)
    sidecar = path.with_name(f"{stem}.json")
    if not sidecar.is_file():
        return Prediction(arrays[TARGET], spread)
    try:
        described = json.loads(sidecar.read_text(encoding="utf-8"))
        scale = IntensityScale.from_dict(described["intensity"])
        config = described.get("normaliser")
        samples = described.get("request", {}).get("samples")
        mask = described.get("preparation", {}).get("mask", case.mask)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "DATA-SIDECAR",
            f"{sidecar.name} does not state the units ({error}): sample again",
            case.id,
        ) from error
    if mask != case.mask:
        log.warning(
            "%s: sampled where '%s' says brain, compared where '%s' does", case.id, mask, case.mask
        )
    normaliser = None
    if config:
        refuse_untrusted_targets(config, trusted_targets(), sidecar.name)
        normaliser = instantiate_from_config(config, where=sidecar.name)
    volume = in_reference_units(arrays[TARGET], scale, case, normaliser)
    if spread is None or samples == 1:  # one left by an earlier run, with samples
        return Prediction(volume)
    spread = in_reference_units(arrays[TARGET], scale, case, normaliser, spread)
    return Prediction(volume, spread, samples)


def _read_spread(path: Path, case: Case) -> np.ndarray | None:
    """Return a standard deviation over samples as stored, or None if there is none."""
    if not path.is_file():
        return None
    stored = read_volume(path, case.id)
    case.geometry.require_same_grid(stored.geometry, ("reference", "spread"), case.id)
    return stored.array


def in_reference_units(
    volume: np.ndarray,
    scale: IntensityScale,
    case: Case,
    normaliser: Normaliser | None = None,
    spread: np.ndarray | None = None,
) -> np.ndarray:
    """Map a volume, or a ``spread`` about it, to the units of the reference, inside the brain."""
    own = (normaliser or RobustNormaliser()).fit(case.reference, case.brain, TARGET, case.id)

    def mapped(values: np.ndarray) -> np.ndarray:
        return own.unstandardise(scale.standardise(values))

    result = mapped(volume) if spread is None else spread_through(mapped, volume, spread)
    return np.where(case.brain, result, 0).astype(np.float32)
