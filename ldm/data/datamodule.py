"""Patients in a folder as batches of slices or patches: the ``data`` section of a configuration."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, default_collate

from ldm.data.cache import CachedSubject, cached_subject
from ldm.data.layouts import Subject, build_layout, detect_layout, name_patients, summary
from ldm.data.noise_subject import noise_subject
from ldm.data.prepare import Preparation, load_subject
from ldm.data.slices import (
    Drawing,
    EndlessShuffle,
    Example,
    PatchDataset,
    SliceDataset,
    abnormality_of,
)
from ldm.data.split import split_subjects
from ldm.errors import ConfigError, DataError, bad_value
from ldm.intensity import ABNORMAL_IN, clearest
from ldm.progress import Progress, in_threads, silent
from ldm.ranges import check_ranges
from ldm.study import BATCH_SIZE, Study
from ldm.util import evenly_spread, instantiate_from_config, shows, taken

KILLED_WITHIN = 5.0  # seconds
REHEARSED = 2  # slices of a step that is rehearsed: a batch norm needs two
ENOUGH_PATIENTS = 10  # of validation, to judge a model by them alone
JUDGED_PATIENTS, JUDGED_SLICES = 32, 3  # most of them, and of their slices

log = logging.getLogger(__name__)


class ContrastDataModule:
    """Slices, or patches of the volumes, of the subjects below a folder, in any known layout.

    Args:
        root: folder of subjects, or CSV file.
        train: patients to train on: ids, or a fraction (see :func:`ldm.data.split.split_subjects`);
            None: all that ``val`` and ``test`` leave.
        val: patients on whom validation watches the training: ids, or a fraction.
        test: patients whom the training never sees, to judge it by: ids, or a fraction.
        fold: which of the ``folds`` parts, from 0, is ``val``, in place of a fraction.
        folds: number of parts of a cross-validation.
        patient: a regular expression whose first group is, of an id, the patient; None: a column
            ``patient`` of a CSV, or the conventions of the field (:mod:`ldm.data.patients`).
        seed: seed of split, order and augmentation.
        batch_size: slices or patches a step and process.
        val_slices: number of slices or patches, spread evenly over the validation subjects, that
            are sampled.
        augmentation_config: ``target`` / ``params`` of an augmentation; None: none.
        num_workers: processes that load slices; None: 4 beside an accelerator, else 0.
        worker_timeout: seconds that such a process may take for a batch, after which the training
            ends; None: 30, or 120 where a process is not forked and imports everything first.
        cache: folder of decoded subjects; None: ``$DSDIFF_CACHE`` or the user's cache folder.
        layout: naming of the files, see :func:`ldm.data.layouts.build_layout`; None: recognised.
        **settings: the study (:meth:`ldm.study.Study.of`: conditions, target, size, ...), the
            preparation of its volumes (:meth:`ldm.data.prepare.Preparation.of`) and what is drawn
            of them (:class:`ldm.data.slices.Drawing`).
    """

    @shows(Study.of, Preparation.of, Drawing)
    def __init__(
        self,
        root: str | None = None,
        train: list[str] | float | None = None,
        val: list[str] | float | None = 0.1,
        test: list[str] | float | None = None,
        fold: int | None = None,
        folds: int = 5,
        patient: str | None = None,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        val_slices: int = 8,
        augmentation_config: Mapping[str, Any] | None = None,
        num_workers: int | None = None,
        worker_timeout: int | None = None,
        cache: str | None = None,
        layout: str | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        is_forked = multiprocessing.get_start_method() == "fork"
        self.worker_timeout = (
            (30 if is_forked else 120) if worker_timeout is None else worker_timeout
        )
        drawing = Drawing(**taken(settings, Drawing))
        told = {"batch_size": batch_size, "val_slices": val_slices, "num_workers": num_workers}
        told |= {"worker_timeout": self.worker_timeout, **asdict(drawing)}
        check_ranges(told, "data.params")
        self.drawing = drawing
        self.root = Path(root) if root else None
        self.normaliser_config = settings.get("normaliser_config")
        self.study = Study.of(**taken(settings, Study.of))
        self.preparation = Preparation.of(**settings)
        self.preparation.require_known(self.study)
        self.conditions, self.target = list(self.study.conditions), self.study.appended
        self.parts = {"train": train, "val": val, "test": test}
        self.fold, self.folds, self.seed, self.patient = fold, folds, seed, patient
        self.image_size, self.neighbours = self.study.image_size, self.study.neighbours
        self.batch_size, self.val_slices = batch_size, val_slices
        self.augmentation_config = augmentation_config
        on_accelerator = torch.accelerator.is_available()
        self.num_workers = (4 if on_accelerator else 0) if num_workers is None else num_workers
        self.cache = Path(cache) if cache else None
        self.layout_choice = layout
        self.split: dict[str, list[str]] = {}
        self.is_split = False  # the table, the folds or the configuration say who is tested
        self.subjects: dict[str, Subject] = {}
        self.progress: Progress = silent  # wraps subjects that are decoded
        self._loaders: list[DataLoader] = []

    def find_subjects(self) -> dict[str, Subject]:
        """Return the subjects below the root; fill ``subjects``, ``layout``, ``found``, ``split``.

        A table that has a split decides it, unless parts are lists or there are folds.

        Raises:
            DataError: no subject, or the split is not possible.
        """
        if self.root is None:
            raise ConfigError(
                "CONFIG-MISSING", "data.params.root is not set: give data.params.root=PATIENTS"
            )
        self.layout, subjects = detect_layout(self.root, self.layout_choice, self.study.contrasts)
        if self.patient and subjects:
            subjects = name_patients(subjects, self.patient)
        self.found, self.subjects = summary(self.layout, subjects), subjects
        told = {part: [s.id for s in subjects.values() if s.split == part] for part in self.parts}
        listed = any(isinstance(part, Sequence) for part in self.parts.values())
        use_told = any(told.values()) and not listed and self.fold is None
        test = self.parts["test"]
        self.is_split = any(told.values()) or self.fold is not None or test is not None
        if use_told and test is not None:
            log.warning(
                "%s says who is tested (%d): data.params.test=%s is not used",
                self.root,
                len(told["test"]),
                test,
            )
        parts = told if use_told else self.parts
        self.split = split_subjects(
            list(subjects),
            **parts,
            seed=self.seed,
            fold=self.fold,
            folds=self.folds,
            patients={i: subject.patient for i, subject in subjects.items()},
        )
        return subjects

    def setup(self) -> None:
        """Find and split the subjects, decode those of training and validation once.

        Raises:
            DataError: a subject that cannot be used, or no slice with enough brain.
        """
        if self.split:
            return
        augmentation, subjects = self.augmentation(), self.find_subjects()
        self.learn_normaliser(subjects)
        chosen = [subjects[i] for part in ("train", "val") for i in self.split[part]]
        decoded = in_threads(self.decode, chosen, self.progress, "Decoding patients")
        cached = {c.id: c for c in decoded}
        deepest = max((len(c.brain_share) for c in cached.values()), default=1)
        if deepest <= self.neighbours:
            raise bad_value(
                f"data.params.neighbours is {self.neighbours}, and the volumes have {deepest} "
                f"slices at most: give less than {deepest}"
            )
        self.train_slices = self._dataset([cached[i] for i in self.split["train"]], augmentation)
        self.val_dataset = self._dataset([cached[i] for i in self.split["val"]])
        if not len(self.train_slices):
            raise DataError(
                "DATA-EMPTY",
                f"no {'slice' if len(self.image_size) == 2 else 'patch'} has "
                f"{self.drawing.min_brain:.0%} brain: lower data.params.min_brain",
            )

    def rehearse(self) -> None:
        """Have a patient of noise in place of those below the root, and small batches.

        Raises:
            ConfigError: CONFIG-TARGET for a layout, normaliser or augmentation that cannot be.
        """
        build_layout(self.layout_choice)
        self.batch_size = self.val_slices = min(self.batch_size, REHEARSED)
        self.num_workers, self.drawing = 0, replace(self.drawing, min_brain=0.0)
        names, sides = [*self.conditions, *([self.target] if self.target else [])], self.image_size
        if len(sides) == 2:
            sides = (2 * self.neighbours + 2, *sides)
        given = self.preparation.normaliser, self.normaliser_config
        made = noise_subject(names, sides, *given)
        numbers = {name.lower(): "" for name in self.study.covariates}
        self.subjects = {made.id: Subject(made.id, {}, columns=numbers)}
        self.split = {"train": [made.id], "val": [made.id], "test": []}
        self.train_slices = self._dataset([made], self.augmentation())
        self.val_dataset = self._dataset([made])

    def augmentation(self) -> Callable | None:
        """Return a new augmentation, or None; raises ConfigError: CONFIG-TARGET."""
        return self.augmentation_config and instantiate_from_config(
            self.augmentation_config,
            where="data.params.augmentation_config",
            interface={
                "dims": len(self.image_size),
                "contrasts": len(self.study.conditions),
                "free": self.study.free,
            },
            needs=("set_random_state", "__call__"),
        )

    def portable_params(self) -> dict[str, Any]:
        """Return the parameters that were learned from the training subjects."""
        if not self.normaliser_config:
            return {}
        learned = self.preparation.normaliser.learned_config(self.normaliser_config)
        return {"normaliser_config": learned}

    def train_dataloader(self, drawn: int = 0, rank: int = 0, world: int = 1) -> DataLoader:
        """Return batches for ever.

        Args:
            drawn: batches of each process that a resumed run has drawn already.
            rank: which of the processes this is.
            world: number of processes that share a batch.
        """
        start = drawn * self.batch_size * world
        sampler = EndlessShuffle(
            len(self.train_slices), self.seed, start, rank, world, *self._abnormal()
        )
        return self._loader(self.train_slices, sampler=sampler)

    def _abnormal(self) -> tuple[np.ndarray | None, float]:
        """Return how abnormal each training example is, and the share that is drawn by it."""
        if not self.drawing.abnormal_share:
            return None, 0.0
        guide = clearest(self.conditions)
        if guide is None:
            log.warning(
                "no condition shows what is abnormal (%s): all slices are drawn alike",
                " or ".join(ABNORMAL_IN),
            )
            return None, 0.0
        abnormal = abnormality_of(self.train_slices, self.study.channel(guide))
        return abnormal, self.drawing.abnormal_share

    def patients_to_judge(
        self, find: Callable[[np.ndarray, float], np.ndarray | None] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield a batch of three slices, or a patch, of each of some patients, as they are.

        They are those of validation and, where these are fewer than ten, those of training too.

        Args:
            find: see :meth:`show_maps`.
        """
        few = len(self.val_dataset.subjects) < ENOUGH_PATIENTS
        sources = [self.val_dataset, *([self.train_slices] if few else [])]
        patients = [(data, n) for data in sources for n in range(len(data.subjects))]
        chosen = [patients[place] for place in evenly_spread(JUDGED_PATIENTS, len(patients))]
        targets, each = max(1, len(self.study.targets)), JUDGED_SLICES
        each = each if len(self.image_size) == 2 else 1
        for data, number in self.progress(chosen, "Judging patients", len(chosen)):
            own = [place for place, (subject, _) in enumerate(data.places) if subject == number]
            examples = [own[place] for place in evenly_spread(each, len(own))]
            if not examples:
                continue
            if find:
                data.show_maps(number, find)
            items = [data[Example(e, target=i % targets)] for i, e in enumerate(examples)]
            data.maps.pop(number, None)
            yield default_collate(items)

    def _val_places(self) -> list[int]:
        return evenly_spread(self.val_slices, len(self.val_dataset))

    def show_maps(self, find: Callable[[np.ndarray, float], np.ndarray | None]) -> None:
        """Let validation show what a prior finds in the volumes of its examples.

        Args:
            find: slices (S, C, H, W) and their aspect, see
                :meth:`ldm.data.slices.SliceDataset.volume`, to maps (S, K, H, W), or None.
        """
        for number in {self.val_dataset.places[place][0] for place in self._val_places()}:
            self.val_dataset.show_maps(number, find)

    def val_dataloader(self) -> DataLoader | list:
        """Return a few slices spread over the validation subjects, in one order."""
        if not len(self.val_dataset):
            return []
        places = self._val_places()
        targets = max(1, len(self.study.targets))
        shown = [Example(place, target=i % targets) for i, place in enumerate(places)]
        return self._loader(Subset(self.val_dataset, shown))  # type: ignore[arg-type]

    def _dataset(
        self,
        subjects: Sequence[CachedSubject],
        augmentation: Callable | None = None,
    ) -> SliceDataset:
        """Return the examples of subjects; plain ones, as of validation, have nothing hidden."""
        dataset = SliceDataset if len(self.image_size) == 2 else PatchDataset
        names = self.study.covariates
        numbers = {s.id: self.subjects[s.id].numbers(names) for s in subjects} if names else None
        return dataset(
            subjects,
            self.image_size,
            self.drawing.min_brain,
            self.neighbours,
            self.drawing.condition_dropout,
            augmentation,
            has_target=self.target is not None,
            covariates=numbers,
            covariate_dropout=self.drawing.covariate_dropout,
            varies=self.study.varies,
        )

    def _loader(self, dataset: Dataset, sampler: Sampler | None = None) -> DataLoader:
        loader = DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=torch.accelerator.is_available(),
            persistent_workers=self.num_workers > 0,
            timeout=self.worker_timeout if self.num_workers else 0,
        )
        self._loaders.append(loader)
        return loader

    def kill_workers(self) -> None:
        """Kill the loading processes: one that is stopped would be waited for at the end."""
        for loader in self._loaders:
            for worker in getattr(loader._iterator, "_workers", ()):
                worker.kill()
                with suppress(RuntimeError):  # by which torch reports a process that was killed
                    worker.join(KILLED_WITHIN)

    def learn_normaliser(self, subjects: Mapping[str, Subject]) -> None:
        """Let the normaliser look at the training subjects, if it has anything to learn."""
        normaliser = self.preparation.normaliser
        wanted = normaliser.to_learn([*self.conditions, self.target])

        def profiles(subject: Subject) -> list[np.ndarray]:
            loaded = load_subject(
                subject, self.layout, self.conditions, self.target, self.preparation.mask
            )
            own = (loaded.arrays[c] for c in wanted)
            return [
                normaliser.profile(array, loaded.brain, c, subject.id)
                for c, array in zip(wanted, own, strict=True)
            ]

        if not wanted:
            return
        training = [subjects[i] for i in self.split["train"]]
        done = in_threads(profiles, training, self.progress, "Learning intensities")
        for contrast, values in zip(wanted, zip(*done, strict=True), strict=True):
            normaliser.learn(contrast, values)

    def decode(self, subject: Subject) -> CachedSubject:
        """Return the cache entry of one subject, made if there is none.

        Raises:
            DataError: the subject cannot be used. OutputError: the cache cannot be written.
        """
        return cached_subject(
            subject,
            self.layout,
            self.conditions,
            self.target,
            self.preparation,
            self.cache,
            self.study.targets,
        )
