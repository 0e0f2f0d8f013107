"""``imagesTr`` and ``labelsTr`` with a ``dataset.json``: Medical Decathlon and nnU-Net."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.data.layouts.base import Entry, Layout, Tree
from ldm.data.nifti import volume_stem
from ldm.data.volume_file import VolumeFile
from ldm.errors import DataError
from ldm.label_scheme import NOT_TOLD, SCHEMES, TELL, LabelScheme, scheme_of_json
from ldm.study import DECATHLON, LABELS, Contrasts

log = logging.getLogger(__name__)

IMAGES = {"imagesTr": "labelsTr", "imagesTs": "labelsTs", "imagesVal": "labelsVal"}
NUMBERED = re.compile(r"(.+)_(\d{4})")


def channel_contrasts(folder: Path, contrasts: Contrasts) -> dict[int, str] | None:
    """Return the contrast of each channel that ``dataset.json`` names, or None without the file.

    ``channel_names`` is nnU-Net's key, ``modality`` that of its version 1 and of the Decathlon.

    Raises:
        DataError: DATA-LAYOUT, the file cannot be read or names no contrast.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    try:
        described = _described(path)
        listed = described.get("channel_names") or described["modality"]
        channels = {int(number): str(name) for number, name in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "DATA-LAYOUT",
            f'{folder.name}/dataset.json names no channels ({error!r}): write "channel_names": '
            '{"0": "T1", "1": "T2", ...}',
        ) from error
    named = {n: contrasts.named(name) for n, name in channels.items()}
    known = {n: contrast for n, contrast in named.items() if contrast in contrasts.names}
    if not known or len(set(known.values())) < len(known):
        raise DataError(
            "DATA-LAYOUT",
            f"{folder.name}/dataset.json names the channels {', '.join(channels.values())}: "
            f"expected each of {', '.join(contrasts.names)} at most once; correct the names",
        )
    return known


def label_scheme(folder: Path) -> LabelScheme | None:
    """Return what the labels mean by ``labels`` of a ``dataset.json``; None where it does not say.

    Raises:
        DataError: DATA-LAYOUT, ``labels`` is there and cannot be understood.
    """
    path = folder / "dataset.json"
    try:
        labels = _described(path).get("labels") if path.is_file() else None
        scheme = scheme_of_json(labels, f"{folder.name}/dataset.json") if labels else None
    except (OSError, ValueError, TypeError, AttributeError):
        labels, scheme = "what cannot be read", None
    if labels and scheme is None:
        log.warning("%s/dataset.json has labels %s: %s", folder.name, labels, TELL)
        return NOT_TOLD
    return scheme


def _described(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


class Decathlon(Layout):
    """Medical Segmentation Decathlon, Task01: ``imagesTr/ID.nii.gz`` of four volumes, ``labelsTr``.

    The order is FLAIR, T1w, T1gd, T2w, or what ``dataset.json`` says (Antonelli et al. 2022).
    """

    name = "Medical Decathlon"
    scheme = SCHEMES["decathlon"]

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        return f"{'labelsTr' if contrast == LABELS else 'imagesTr'}/{subject}.nii.gz"

    def find(self, tree: Tree) -> Iterator[Entry]:  # noqa: D102
        for folder, paths in tree.folders.items():
            images = {
                p: i for p in paths if (i := volume_stem(p.name)) and not NUMBERED.fullmatch(i)
            }
            if folder.name not in IMAGES or not images:
                continue
            named = channel_contrasts(folder.parent, self.contrasts)
            channels = dict(enumerate(DECATHLON)) if named is None else named
            self.scheme = label_scheme(folder.parent) or self.scheme
            for path, subject in images.items():
                for channel, contrast in channels.items():
                    yield Entry(subject, contrast, VolumeFile(path, channel), folder)
            labels = folder.parent / IMAGES[folder.name]
            yield from _labels(tree, folder, labels, {*images.values()})


class NnUNet(Layout):
    """nnU-Net: ``imagesTr/ID_0000.nii.gz``, ``ID_0001``, ... and ``labelsTr/ID.nii.gz``.

    ``dataset.json`` beside ``imagesTr`` (or among the images) says which contrast a number is:
    ``channel_names``, or ``modality`` in version 1.
    """

    name = "nnU-Net"
    scheme = NOT_TOLD

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        if contrast == LABELS:
            return f"labelsTr/{subject}.nii.gz"
        return f"imagesTr/{subject}_NNNN.nii.gz with dataset.json naming NNNN {contrast}"

    def find(self, tree: Tree) -> Iterator[Entry]:
        """Yield what is numbered.

        Raises:
            DataError: DATA-LAYOUT, without a ``dataset.json``.
        """
        for folder, paths in tree.folders.items():
            numbered = {p: NUMBERED.fullmatch(volume_stem(p.name) or "") for p in paths}
            images = {path: match.groups() for path, match in numbered.items() if match}
            if not images:
                continue
            places = (folder, folder.parent)
            told = (channel_contrasts(place, self.contrasts) for place in places)
            channels = next((channels for channels in told if channels), None)
            schemes = (label_scheme(place) for place in places)
            self.scheme = next((scheme for scheme in schemes if scheme), self.scheme)
            if channels is None:
                raise DataError(
                    "DATA-LAYOUT",
                    f"{next(iter(images)).name} is numbered as of nnU-Net, but no dataset.json "
                    'says what 0000 is: write {"channel_names": {"0": "T1", "1": "T2", ...}} to '
                    f"{folder.name}/dataset.json",
                )
            for path, (subject, number) in images.items():
                if contrast := channels.get(int(number)):
                    yield Entry(subject, contrast, VolumeFile(path), folder)
            subjects = {subject for subject, _ in images.values()}
            labels = folder.parent / IMAGES.get(folder.name, "labels")
            yield from _labels(tree, folder, labels, subjects)


def _labels(tree: Tree, owner: Path, folder: Path, subjects: set[str]) -> Iterator[Entry]:
    for path in tree.folders.get(folder, ()):
        if (subject := volume_stem(path.name)) in subjects:
            yield Entry(subject, LABELS, VolumeFile(path), owner)
