"""Label maps of a segmenter as files: NIfTI, a sidecar, and pictures to look at."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldm.claims import claim
from ldm.data.layouts import Choice, Layout, Subject
from ldm.data.nifti import encode_volume, write_volume
from ldm.data.prepare import PreparedSubject
from ldm.errors import DsdiffError
from ldm.hub import local_folder
from ldm.inference.outputs import is_written, require_remade, volume_paths
from ldm.inference.parallel import shared_among
from ldm.inference.request import Request
from ldm.inference.segmentation import NetworkSegmenter
from ldm.inference.trained import chosen_subjects
from ldm.inference.writing import Writer, Written
from ldm.plots.overlay import attention_figure, overlay_figure
from ldm.progress import unheard
from ldm.storage import write_file, write_json
from ldm.study import LABELS
from ldm.typed import typed
from ldm.util import user_path


class ToSegment(NamedTuple):
    """A subject as the network is shown it, how its files are named, and what its sidecar says."""

    prepared: PreparedSubject
    layout: Layout
    described: dict[str, Any]


class Made(NamedTuple):
    """The label map of a subject as a file, what its sidecar says, and its pictures by name."""

    id: str
    content: bytes
    described: dict[str, Any]
    pictures: dict[str, bytes]


class LabelWriter(Writer):
    """Writes the label map, its sidecar and the pictures of one subject after another.

    Args:
        segmenter: what segments.
        output: folder.
        overwrite: replace what is not of this model and input.
        pictures: draw them too.
    """

    def __init__(
        self,
        segmenter: NetworkSegmenter,
        output: Path,
        overwrite: bool = False,
        pictures: bool = True,
    ) -> None:
        self.segmenter, self.output = segmenter, output
        self.overwrite, self.pictures = overwrite, pictures
        self.request = {
            "model_digest": segmenter.digest,
            "regions": list(segmenter.regions),
            "threshold": segmenter.model.threshold,
            "overlap": segmenter.model.overlap,
        }
        if segmenter.nonfinite != Request.nonfinite:  # as Request.to_dict says it
            self.request["nonfinite"] = segmenter.nonfinite

    def on_a_device(self) -> Callable[[str], LabelWriter]:
        """Return what makes this writer in another process, on a device."""
        segmenter, trained = self.segmenter, self.segmenter.trained
        options = {name: getattr(segmenter, name) for name in ("allow_missing", "nonfinite")}
        options["batch_size"] = segmenter.windows.batch_size
        load = partial(NetworkSegmenter, trained.path, trained.trust, **options)
        return partial(_load, load, (self.output, self.overwrite, self.pictures))

    def is_written(self, subject: Subject) -> bool:
        """Return whether the label map of a subject, of this model, is in the folder.

        Raises:
            DataError: DATA-IO. OutputError: OUT-EXISTS for another one, OUT-INPUT.
        """
        places = volume_paths(self.output, subject.id, LABELS)
        return is_written(*places, self._described(subject), self.overwrite)

    def _described(self, subject: Subject) -> dict[str, Any]:
        """Return what decides the labels of a subject."""
        inputs = self.segmenter.trained.inputs(subject)
        return {"Segmentation": True, "inputs": inputs, "request": self.request}

    def read(self, subject: Subject, layout: Layout) -> ToSegment:
        """Return a subject as the network is shown it; raises DataError."""
        described = self._described(subject)
        prepared = self.segmenter.prepare(subject, layout)
        return ToSegment(prepared, layout, described | self.segmenter.trained.said_of(subject))

    def make(self, read: ToSegment, title: str) -> Made:
        """Return what is to be written of a subject.

        Raises:
            NonFiniteError: the network returned NaN or infinity.
        """
        prepared, layout, described = read
        masks = self.segmenter.masks(prepared)
        found = self.segmenter.labels(prepared, masks, layout)
        content = encode_volume(found.labels, found.geometry)
        values = [int(v) for v in np.unique(found.labels)]
        described = described | {"sha256": hashlib.sha256(content).hexdigest(), "labels": values}
        described |= {
            "scheme": str(self.segmenter.scheme(layout)),
            "geometry": found.geometry.stated,
            "weights": self.segmenter.trained.weights,
        }
        drawn = self._drawn(prepared, masks) if self.pictures else {}
        return Made(prepared.id, content, described, drawn)

    def keep(self, made: Made) -> None:
        """Write ``ID_seg.nii.gz``, ``ID_seg.json`` and the pictures.

        Raises:
            OutputError: OUT-EXISTS, OUT-IO.
        """
        path, sidecar = volume_paths(self.output, made.id, LABELS)
        if not self.overwrite:
            require_remade(path, sidecar, made.described["sha256"])
        write_json(sidecar, made.described)
        for name, image in made.pictures.items():
            write_file(self.output / "pictures" / f"{made.id}_{name}.png", image)
        write_volume(path, made.content)

    def _drawn(self, prepared: PreparedSubject, masks: dict[str, np.ndarray]) -> dict[str, bytes]:
        """Return the regions on the images, and the attention of a network with gates."""
        area = sum(mask.sum((1, 2)) for mask in masks.values()) + 1e-6 * prepared.brain.sum((1, 2))
        place = int(area.argmax())  # the slice with most segmented, or else with most brain
        title = f"{prepared.id} · {self.segmenter.trained.preparation.axis} {place}"
        images = {
            name: np.rot90(prepared.slices[place, channel])
            for channel, name in enumerate(prepared.contrasts)
        }
        regions = {name: np.rot90(mask[place]) for name, mask in masks.items()}
        last = images[prepared.contrasts[-1]]
        drawn = {"overlay": overlay_figure([images | {"prediction": (last, regions)}], [title])}
        maps = self.segmenter.attention(prepared, place)
        if maps:
            gates = {level: np.rot90(alpha) for level, alpha in maps.items()}
            brain = np.rot90(prepared.brain[place])
            drawn["attention"] = attention_figure(last, regions, gates, brain, title)
        return drawn


@typed
def segment(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    subjects: str | Sequence[str] | None = None,
    layout: Choice = None,
    overwrite: bool = False,
    pictures: bool = True,
    devices: int = 1,
    device: str = "auto",
    trust: Collection[str] = (),
    batch_size: int = Request.batch_size,
    allow_missing: Sequence[str] = (),
    nonfinite: str = Request.nonfinite,
    watch: Callable[[Layout, Mapping[str, Subject]], None] | None = None,
    report: Callable[[DsdiffError], None] | None = None,
) -> Written:
    """Write the label map of each subject of a folder, as ``dsdiff segment predict`` does.

    What is there already, of this model and input, is not made again; a subject that cannot be
    segmented does not stop the others.

    Args:
        model: run of ``dsdiff segment train``, or its ``model.safetensors``.
        source: folder of subjects in any layout, or a CSV.
        output: folder for ``ID_seg.nii.gz``, ``ID_seg.json`` and ``pictures/``.
        subjects: only these ids; ``unseen``: those that the run has not seen; None: all.
        layout: of the files; None: recognised.
        overwrite: replace other outputs of these names.
        pictures: draw the regions on the images.
        devices: processes among which the subjects are shared.
        device, trust, batch_size, allow_missing, nonfinite: see :class:`NetworkSegmenter`.
        watch: told which subjects were found.
        report: told of each subject that fails.

    Returns:
        what was written, was there already, or failed.

    Raises:
        DataError: there is no such subject. OutputError: OUT-EXISTS, OUT-INPUT, OUT-OWNER, OUT-IO.
        CheckpointError: CKPT-MISSING, CKPT-MISMATCH. ConfigError: CONFIG-VALUE.
    """
    model, source = local_folder(model), user_path(source)
    output = user_path(output)
    whom = (source, subjects, layout, watch)
    _, own_layout, chosen, inputs = chosen_subjects(model, trust, *whom)
    with claim(output, "segment", inputs=inputs, replace=overwrite):
        told = (trust, device, batch_size, allow_missing, nonfinite)
        segmenter = NetworkSegmenter(model, *told)
        own_writer = LabelWriter(segmenter, output, overwrite, pictures)
        with shared_among(own_writer, devices, device) as writer:
            done = writer.write_all(chosen, own_layout, report or unheard)
        done.write_failures(output)
    return done


def _load(
    load: Callable[..., NetworkSegmenter], told: tuple[Path, bool, bool], device: str
) -> LabelWriter:
    return LabelWriter(load(device=device), *told)
