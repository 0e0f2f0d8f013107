"""Evaluation of folders of synthetic volumes against the real ones, patient by patient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ldm.data.layouts import Layout, Subject, detect_layout, select_subjects
from ldm.data.layouts.base import volume_stem
from ldm.errors import DataError, one_line
from ldm.evaluation.case import (
    Case,
    Prediction,
    copied,
    judged_study,
    load_case,
    read_prediction,
)
from ldm.evaluation.downstream import downstream_scores
from ldm.evaluation.measures import MEASURES
from ldm.evaluation.metrics.calibration import Reliability, reliability
from ldm.evaluation.protocol import (
    DEFAULT,
    MetricProtocol,
    evaluate_case,
    find_protocol,
    slice_features,
)
from ldm.evaluation.scores import Evaluation
from ldm.progress import Progress, silent
from ldm.study import Study

if TYPE_CHECKING:
    from ldm.evaluation.metrics.perceptual import Perceptual
    from ldm.inference.segmentation import Segmenter

Place = str | Path
Folders = Mapping[str, Place | Sequence[Place]]
Watch = Callable[[Evaluation, Case, Mapping[str, Prediction]], None]
ROW = "prediction"  # of a folder without a name
NETWORK = ("lpips", "frechet")  # measures that need weights on disk


def evaluate(
    predictions: Place | Folders,
    reference: Place,
    *,
    target: str | None = None,
    study: Study | None = None,
    subjects: Sequence[str] | None = None,
    protocols: Sequence[MetricProtocol | str] = (DEFAULT,),
    baseline: bool = True,
    segmenter: Segmenter | Place | None = None,
    lpips_weights: Place | None = None,
    layout: Any = None,
    mask: str = "auto",
    watch: Watch | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Compare each folder of synthetic volumes with the real patients.

    A patient whose files are missing or cannot be used is a failure of the row, with its reason,
    and does not stop the others.

    Args:
        predictions: row name -> folder of ``ID_TARGET.nii.gz``; several folders are the training
            seeds of one row; a folder alone is the row ROW.
        reference: folder, or CSV, of real subjects in any known layout.
        target: contrast that was synthesised; None: what the sidecars state, else the usual one.
        study: that and the contrasts it was made from, instead of ``target``.
        subjects: patients to compare; None: all that any folder predicts.
        protocols: what is compared with what, or its name; each volume is read once for all.
        baseline: add the row of the source contrast, such as T1, copied as the target.
        segmenter: what finds tumours with the synthetic volumes, or its run folder.
        lpips_weights: of the network of LPIPS; None looks where torch keeps downloads.
        layout: of ``reference``; None: recognised.
        mask: what is brain, see :func:`ldm.data.brain.subject_brain`.
        watch: called with each patient's volumes, of the first seed of each row.
        progress: shows how many patients are done.

    Returns:
        the evaluation under the first protocol; the others, and ``downstream``, are its ``others``.

    Raises:
        DataError: no patients; DATA-MISSING for one that the reference lacks; DATA-SEGMENTER for a
            segmenter that does not look at the target. CheckpointError: of ``lpips_weights``.
    """
    asked = [find_protocol(p) if isinstance(p, str) else p for p in protocols]
    segmenter, listed = _loaded(segmenter), _listed(predictions)
    study = study or judged_study([path for own in listed.values() for path in own], target)
    layout, real = detect_layout(Path(reference), layout, study.contrasts)
    folders = find_predictions(listed, study, real)
    predicted = {i for found in folders.values() for _, known in found for i in known}
    chosen = select_subjects(real, sorted(predicted if subjects is None else set(subjects)))
    results = [Evaluation(p, list(listed), [s.id for s in chosen], study=study) for p in asked]
    for result in results if baseline else ():
        result.rows.append(result.copied)
    work = _Work(layout, mask, folders, results, *_network(results, lpips_weights))
    first = work.run(chosen, baseline, watch, progress)
    if segmenter:
        told = (segmenter, folders, chosen, layout, study)
        first.others["downstream"] = downstream_scores(*told, baseline, progress)
    return first


class NamedForPatients(Layout):
    """Volumes of one contrast that are called as their patients: ``ID.nii.gz``.

    Args:
        ids: of the real patients.
        contrast: that the volumes are.
    """

    name = "ID.nii.gz"

    def __init__(self, ids: Collection[str], contrast: str) -> None:
        self.ids, self.contrast = ids, contrast

    def parse(self, path: Path) -> tuple[str, str] | None:  # noqa: D102
        stem = volume_stem(path.name)
        return (stem, self.contrast) if stem and stem in self.ids else None

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        return f"{subject}_{self.contrast}.nii.gz or {subject}.nii.gz"


def find_predictions(
    predictions: Mapping[str, Sequence[Path]], study: Study, ids: Collection[str] = ()
) -> dict[str, list[tuple[Layout, dict[str, Subject]]]]:
    """Return layout and subjects of the folders of each row; several are its training seeds.

    Args:
        ids: of the real patients, for whom files may be named without a contrast.
    """

    def found(path: Path) -> tuple[Layout, dict[str, Subject]]:
        try:
            return detect_layout(path, contrasts=study.contrasts)
        except DataError as error:
            if error.code != "DATA-LAYOUT" or not path.is_dir():
                raise
            return detect_layout(path, NamedForPatients(ids, str(study.target)), study.contrasts)

    return {row: [found(path) for path in own] for row, own in predictions.items()}


def _listed(predictions: Place | Folders) -> dict[str, list[Path]]:
    rows = {ROW: predictions} if isinstance(predictions, str | Path) else predictions
    return {
        row: [Path(own)] if isinstance(own, str | Path) else [Path(path) for path in own]
        for row, own in rows.items()
    }


def _loaded(segmenter: Segmenter | Place | None) -> Segmenter | None:
    if not isinstance(segmenter, str | Path):
        return segmenter
    from ldm.inference.segmentation import NetworkSegmenter

    return NetworkSegmenter(segmenter)


def _network(results: Sequence[Evaluation], weights: Place | None) -> tuple[Perceptual | None]:
    """Return the network of the perceptual measures, or note why there is none."""
    asked = [r for r in results if set(NETWORK) & set(r.protocol.names())]
    if not asked:
        return (None,)
    from ldm.evaluation.metrics.perceptual import find_weights

    perceptual, reason = find_weights(weights)
    for result in asked if reason else ():
        result.notes["lpips"] = reason
    return (perceptual,)


@dataclass
class _Work:
    """What an evaluation judges, and the features of slices that it has seen."""

    layout: Layout
    mask: str
    folders: Mapping[str, Sequence[tuple[Layout, Mapping[str, Subject]]]]
    results: Sequence[Evaluation]
    perceptual: Perceptual | None
    features: dict[tuple[int, str, int], list[tuple[NDArray[Any], NDArray[Any]]]] = field(
        default_factory=dict
    )

    @property
    def copied(self) -> str:
        """The row of the copied source."""
        return self.results[0].copied

    def run(
        self, subjects: Sequence[Subject], baseline: bool, watch: Watch | None, progress: Progress
    ) -> Evaluation:
        """Judge every patient; return the first evaluation, which holds the others."""
        first, *others = self.results
        for subject in progress(subjects, "Evaluating", len(subjects)):
            shown = self.judge(subject, baseline)
            if shown and watch:
                watch(first, *shown)
        self.finish()
        first.others = {other.protocol.name: other for other in others}
        return first

    def judge(self, subject: Subject, baseline: bool) -> tuple[Case, dict[str, Prediction]] | None:
        """Score one patient in every row and protocol, or note why not; return what to show."""
        try:
            case = load_case(subject, self.layout, self.results[0].study, self.mask)
        except DataError as error:
            for row in self.folders:
                self._fail(row, subject.id, f"the real patient: {_reason(error)}")
            return None
        volumes: dict[str, Prediction] = {}
        for row, found in self.folders.items():
            for seed, (layout, predicted) in enumerate(found):
                try:
                    if subject.id not in predicted:
                        raise DataError("DATA-MISSING", "there is no prediction", subject.id)
                    volume = read_prediction(predicted[subject.id], layout, case)
                    self._score(row, seed, case, volume)
                except DataError as error:
                    told = f"seed {seed}: " if len(found) > 1 else ""
                    self._fail(row, subject.id, told + _reason(error))
                else:
                    volumes.setdefault(row, volume)
        try:
            if baseline and (copy := copied(case)):
                volumes[self.copied] = copy
                self._score(self.copied, 0, case, copy)
        except DataError as error:
            self._fail(self.copied, subject.id, _reason(error))
        return case, volumes

    def finish(self) -> None:
        """Add the measures of all slices of a row; drop the copied row if nobody has a source."""
        for (place, row, seed), features in self.features.items():
            result = self.results[place]
            whole = tuple(np.concatenate(side) for side in zip(*features, strict=True))
            for name in result.protocol.names(levels=["slices_of_row"]):
                for region in MEASURES[name].regions:
                    result.add(row, "", {region: {name: MEASURES[name].of(whole)}}, seed)
        if not any(result.found(self.copied) for result in self.results):
            for result in self.results:
                result.rows = [row for row in result.rows if row != self.copied]

    def _fail(self, row: str, subject: str, reason: str) -> None:
        for result in self.results:
            result.fail(row, subject, reason)

    def _score(self, row: str, seed: int, case: Case, predicted: Prediction) -> None:
        """Add the scores of one prediction."""
        for place, result in enumerate(self.results):
            protocol = result.protocol
            assert isinstance(protocol, MetricProtocol)
            scores = evaluate_case(case, predicted, protocol, self.perceptual)
            result.add(row, case.id, scores, seed)
            if self.perceptual and protocol.names(levels=["slices_of_row"]):
                features = slice_features(case, predicted, protocol, self.perceptual)
                if features:
                    self.features.setdefault((place, row, seed), []).append(features)
            if predicted.spread is not None and protocol.names(levels=["spread"]):
                low, high = case.bounds(protocol)
                volumes = (predicted.volume, case.reference, predicted.spread)
                groups = reliability(*volumes, case.brain, predicted.samples)
                unit = Reliability(*(values / (high - low) for values in groups))
                result.reliability[row, seed, case.id] = unit


def _reason(error: DataError) -> str:
    return one_line(f"{error.code}: {error.message}")
