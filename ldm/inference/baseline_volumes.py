"""Predictions of the baselines without a network, in folders as ``dsdiff sample`` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ldm.claims import claim
from ldm.data.datamodule import ContrastDataModule
from ldm.data.layouts import Subject
from ldm.data.layouts.base import stored_files
from ldm.data.nifti import Geometry
from ldm.data.normalise import RobustNormaliser
from ldm.data.prepare import load_subject, prepare_subject
from ldm.inference.baselines import Baseline, fit_baseline
from ldm.inference.outputs import SyntheticVolume
from ldm.util import instantiate_from_config

Made = tuple[np.ndarray, Geometry, dict[str, Any]]  # volume, where it lies, and its units


def write_baseline(
    name: str, output: Path, config: Mapping[str, Any], train: Sequence[str], test: Sequence[str]
) -> None:
    """Fit a baseline on training patients and write its volume of each test patient.

    Equal input gives equal bytes.

    Args:
        name: a key of :data:`ldm.benchmark.plan.BASELINES`.
        output: folder of the synthetic volumes.
        config: the ``data`` section: contrasts, normaliser, cache.
        train, test: ids.

    Raises:
        DataError: a patient cannot be used. OutputError: OUT-IO.
    """
    data = instantiate_from_config(config, where="data")
    subjects = data.find_subjects()
    with claim(output, "sample", inputs=stored_files(subjects.values())):
        make = _copied
        if name != "copy":
            make = partial(
                _predicted, fit_baseline(name, [data.decode(subjects[i]) for i in train])
            )
        for i in test:
            volume, geometry, units = make(subjects[i], data)
            inputs = {c: subjects[i].sha256(c) for c in data.conditions}
            described = {"Synthetic": True, "request": {"baseline": name}, "inputs": inputs}
            described |= units | data.study.sidecar()
            target = str(data.target)
            SyntheticVolume(i, target, geometry, volume, None, described).write(output)


def _copied(subject: Subject, data: ContrastDataModule) -> Made:
    """Return the source contrast as it is, in the brain: the row that ``dsdiff evaluate`` shows."""
    source, mask = data.study.source, data.preparation.mask
    arrays, brain, rule, _, geometry = load_subject(
        subject, data.layout, data.conditions, None, mask
    )
    scale = RobustNormaliser().fit(arrays[source], brain, source, subject.id)
    volume = np.where(brain, arrays[source], 0).astype(np.float32)
    units = {"intensity": {"contrast": source, **scale.to_dict()}, "normaliser": None}
    return volume, geometry, {**units, "preparation": {"mask": rule}}


def _predicted(model: Baseline, subject: Subject, data: ContrastDataModule) -> Made:
    prepared = prepare_subject(subject, data.layout, data.conditions, None, data.preparation)
    unit = data.conditions[0]
    scale = prepared.scales[unit]
    units = {
        "intensity": {"contrast": unit, **scale.to_dict()},
        "normaliser": data.normaliser_config,
        "preparation": prepared.to_dict(),
    }
    return prepared.to_volume(scale.restore(model.predict(prepared))), prepared.geometry, units
