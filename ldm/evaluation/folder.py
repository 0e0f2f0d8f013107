"""Evaluation of folders of synthetic volumes against the real ones, patient by patient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ldm.data.brain import MASKS
from ldm.data.contrasts import scheme_of
from ldm.data.layouts import (
    Choice,
    Layout,
    Subject,
    VolumeFile,
    detect_layout,
    find_predictions,
    select_subjects,
)
from ldm.data.likeness import correlation
from ldm.errors import DataError, bad_value, one_of
from ldm.evaluation.case import (
    Case,
    Found,
    Prediction,
    copied,
    judged_study,
    load_case,
    nonfinite_of,
    read_prediction,
)
from ldm.evaluation.downstream import Segmenter, downstream_scores
from ldm.evaluation.measures import MEASURES
from ldm.evaluation.metrics.calibration import Reliability, reliability
from ldm.evaluation.protocol import (
    DEFAULT,
    MetricProtocol,
    evaluate_case,
    find_protocol,
    slice_features,
)
from ldm.evaluation.scores import PREDICTIONS, ROW, Evaluation
from ldm.memory import keep_freed_memory
from ldm.progress import Progress, silent
from ldm.storage import require_subjects
from ldm.study import LABELS, Study
from ldm.typed import typed
from ldm.util import listed

if TYPE_CHECKING:
    from ldm.evaluation.metrics.perceptual import Perceptual

Place = str | Path
Folders = Mapping[str, Place | Sequence[Place]]
Watch = Callable[[Evaluation, Case, Mapping[str, Prediction]], None]
SAME = 0.9999  # correlation in the brain: no model comes that near, but a copy that was rescaled
APART = 4.0  # times: further apart lie no two medians of one contrast in the same units
NETWORK = ("lpips", "frechet")  # measures that need weights on disk


@typed
def evaluate_folders(
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
    layout: Choice = None,
    labels: str | Mapping[str, Any] | None = None,
    mask: str = "auto",
    allow_seen: bool = False,
    trust: Collection[str] = (),
    watch: Watch | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Compare each folder of synthetic volumes with the real patients.

    A patient whose files cannot be used, or whom a model was trained on, is a failure of the row.

    Args:
        predictions: folders of ``ID_TARGET.nii.gz``, see :func:`listed_folders`.
        reference: folder, or CSV, of real subjects in any known layout.
        target: contrast that was synthesised; None: what the sidecars state, else the usual one.
        study: that and the contrasts it was made from, instead of ``target``.
        subjects: patients to compare; None: all that any folder predicts.
        protocols: what is compared with what, or its name; each volume is read once for all.
        baseline: add the row of the source contrast, such as T1, copied as the target.
        segmenter: what finds tumours with the synthetic volumes, or its run folder.
        lpips_weights: of the network of LPIPS; None looks where torch keeps downloads.
        layout: of ``reference``; None: recognised.
        labels: what labels mean, see :func:`ldm.label_scheme.read_scheme`; None: by the data set.
        mask: what is brain, see :func:`ldm.data.brain.subject_brain`.
        allow_seen: judge the patients of the training too.
        trust: classes of the user's own that predictions, or the segmenter's run, may name.
        watch: called with each patient's volumes, of the first seed of each row.
        progress: shows how many patients are done.

    Returns:
        the evaluation under the first protocol; the others, and ``downstream``, are its ``others``.

    Raises:
        DataError: no patients, DATA-MISSING, DATA-SEGMENTER. CheckpointError. UnsafeError.
    """
    segmenter, given = _loaded(segmenter, trust), listed_folders(predictions)
    told = study or judged_study([path for own in given.values() for path in own], target)
    study = replace(told, contrasts=told.contrasts.with_labels(labels, "labels"))
    layout, real = detect_layout(Path(reference), layout, study.contrasts)
    rows = predictions_of(given, real, study)
    chosen = select_subjects(real, _predicted(rows) if subjects is None else subjects)
    results = _empty(protocols, [*given, *([study.copied] if baseline else [])], chosen, study)
    work = _Work(layout, mask, rows, results, _network(results, lpips_weights), allow_seen, trust)
    first = work.run(chosen, baseline, watch, progress)
    if segmenter:
        options = (layout, study, baseline, allow_seen, progress)
        first.others["downstream"] = downstream_scores(segmenter, rows, chosen, *options)
    return first


def _predicted(folders: Found) -> set[str]:
    """Return the patients that any folder predicts."""
    return {subject for found in folders.values() for _, known in found for subject in known}


def _empty(
    protocols: Sequence[MetricProtocol | str],
    rows: Sequence[str],
    subjects: Sequence[Subject],
    study: Study,
) -> list[Evaluation]:
    """Return an evaluation without scores for each protocol."""
    if twice := [row for row in rows if rows.count(row) > 1]:
        raise bad_value(f"two rows are called {twice[0]}, as the copied source is: rename yours")
    asked = [find_protocol(p) if isinstance(p, str) else p for p in protocols]
    return [Evaluation(p, list(rows), [s.id for s in subjects], study=study) for p in asked]


def predictions_of(
    predictions: Mapping[str, Sequence[Path]], real: Mapping[str, Subject], study: Study
) -> dict[str, list[tuple[Layout, dict[str, Subject]]]]:
    """Return layout and subjects of the folders of each row; several are its training seeds."""
    known = study.contrasts
    return {
        row: [find_predictions(path, real, study.target or LABELS, known) for path in own]
        for row, own in predictions.items()
    }


def listed_folders(predictions: Place | Folders) -> dict[str, list[Path]]:
    """Return row -> folders: several are the training seeds of one row, one alone is the row ROW.

    Raises:
        ConfigError: CONFIG-VALUE for a row without a folder, or with one twice.
        DataError: DATA-MISSING for a folder that is not there.
    """
    rows = {ROW: predictions} if isinstance(predictions, str | Path) else predictions
    found = {str(row): [_folder(path) for path in listed(own)] for row, own in rows.items()}
    for row, folders in found.items():
        if not folders or len({folder.resolve() for folder in folders}) < len(folders):
            told = ", ".join(map(str, folders)) or "no folder"
            raise bad_value(f"{row} is {told}: give each a folder, one for each training seed")
    return found


def _folder(path: Any) -> Path:
    if not isinstance(path, str | Path):
        raise bad_value(
            f"a prediction is a {type(path).__name__}: give the folder that it was saved in"
        )
    return require_subjects(path, PREDICTIONS)


def _loaded(segmenter: Segmenter | Place | None, trust: Collection[str]) -> Segmenter | None:
    if not isinstance(segmenter, str | Path):
        return segmenter
    from ldm.inference.segmentation import NetworkSegmenter

    return NetworkSegmenter(segmenter, trust)


def _network(results: Sequence[Evaluation], weights: Place | None) -> Perceptual | None:
    """Return the network of the perceptual measures, or note why there is none."""
    asked = [r for r in results if set(NETWORK) & set(r.protocol.names())]
    if not asked:
        return None
    from ldm.evaluation.metrics.perceptual import find_weights

    perceptual, reason = find_weights(weights)
    for result in asked if reason else ():
        result.notes["lpips"] = reason
    return perceptual


@dataclass
class _Work:
    """What an evaluation judges, and the features of slices that it has seen."""

    layout: Layout
    mask: str
    folders: Found
    results: Sequence[Evaluation]
    perceptual: Perceptual | None
    allow_seen: bool
    trust: Collection[str]
    features: dict[tuple[int, str, int], list[tuple[NDArray[Any], NDArray[Any]]]] = field(
        default_factory=dict
    )

    @property
    def copied(self) -> str:
        """The row of the copied source."""
        return self.results[0].copied

    @property
    def target(self) -> str:
        """The contrast that is judged."""
        return str(self.results[0].study.target)

    def run(
        self, subjects: Sequence[Subject], baseline: bool, watch: Watch | None, progress: Progress
    ) -> Evaluation:
        """Judge every patient; return the first evaluation, which holds the others."""
        one_of("mask", self.mask, MASKS)
        keep_freed_memory()
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
        nonfinite = nonfinite_of(self.folders, subject.id, self.target)
        try:
            case = load_case(subject, self.layout, self.results[0].study, self.mask, nonfinite)
        except DataError as error:
            for row in self.folders:
                self._fail(row, subject.id, f"the real patient: {error.reason}")
            return None
        for result in self.results if case.seg is not None else ():
            result.note_labels("reference", scheme_of(subject))
        volumes: dict[str, Prediction] = {}
        for row, found in self.folders.items():
            for seed, (layout, predicted) in enumerate(found):
                try:
                    if subject.id not in predicted:
                        raise DataError("DATA-MISSING", "there is no prediction", subject.id)
                    own = predicted[subject.id]
                    own.require([self.target], layout)
                    file = own.files[self.target]
                    for result in self.results:
                        result.check_seen(row, subject.id, file, self.allow_seen)
                    volume = read_prediction(own, layout, case, self.trust)
                    self._check_units(row, case, volume, file)
                    self._check_same(row, case, volume)
                    self._score(row, seed, case, volume)
                except DataError as error:
                    told = f"seed {seed}: " if len(found) > 1 else ""
                    self._fail(row, subject.id, told + error.reason)
                else:
                    volumes.setdefault(row, volume)
        try:
            if baseline and (copy := copied(case)):
                volumes[self.copied] = copy
                self._score(self.copied, 0, case, copy)
        except DataError as error:
            self._fail(self.copied, subject.id, error.reason)
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

    def _check_units(self, row: str, case: Case, volume: Prediction, file: VolumeFile) -> None:
        """Note predictions without a sidecar that are on another scale than the reference."""
        if file.sidecar.is_file():
            return
        own, real = (float(np.median(v[case.brain])) for v in (volume.volume, case.reference))
        if real > 0 and (volume.is_stray or not 1 / APART < own / real < APART):
            self.results[0].units.setdefault(row, own / real)

    def _check_same(self, row: str, case: Case, volume: Prediction) -> None:
        """Note a row that holds the real images: the very files, copies, or copies rescaled."""
        if row in self.results[0].same:
            return
        alike = correlation(volume.volume[case.brain], case.reference[case.brain])
        if alike and alike > SAME:
            self.results[0].same.append(row)

    def _score(self, row: str, seed: int, case: Case, predicted: Prediction) -> None:
        """Add the scores of one prediction: of all protocols, or of none.

        Raises:
            DataError: it cannot be compared.
        """
        found = []
        for result in self.results:
            protocol = result.protocol
            assert isinstance(protocol, MetricProtocol)
            scores = evaluate_case(case, predicted, protocol, self.perceptual)
            found.append((result, protocol, scores))
        for place, (result, protocol, scores) in enumerate(found):
            result.add(row, case.id, scores, seed)
            if self.perceptual and protocol.names(levels=["slices_of_row"]):
                features = slice_features(case, predicted, protocol, self.perceptual)
                if features:
                    self.features.setdefault((place, row, seed), []).append(features)
            if predicted.spread is not None and protocol.names(levels=["spread"]):
                low, high = case.bounds(protocol)
                volumes = (predicted.volume, case.reference, predicted.spread)
                told = predicted.samples, predicted.mirrored
                groups = reliability(*volumes, case.brain, *told)
                unit = Reliability(*(values / (high - low) for values in groups))
                result.reliability[row, seed, case.id] = unit
