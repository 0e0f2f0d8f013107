"""Label maps of a segmenter as files: NIfTI, a sidecar, and pictures to look at."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from ldm.data.layouts import Layout, Subject
from ldm.data.nifti import encode_volume, write_volume
from ldm.data.prepare import PreparedSubject
from ldm.inference.outputs import is_written, require_remade, volume_paths
from ldm.inference.segmentation import NetworkSegmenter
from ldm.plots.overlay import attention_figure, overlay_figure
from ldm.storage import atomic_path, write_json
from ldm.study import LABELS


class LabelWriter:
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

    def write(self, subject: Subject, layout: Layout, title: str) -> bool:
        """Write ``ID_seg.nii.gz`` and ``ID_seg.json``; return False if they exist already.

        Raises:
            DataError, NonFiniteError: the subject cannot be segmented.
            OutputError: OUT-EXISTS, OUT-IO.
        """
        path, sidecar = volume_paths(self.output, subject.id, LABELS)
        inputs = self.segmenter.trained.inputs(subject)
        described = {"Segmentation": True, "inputs": inputs, "request": self.request}
        if is_written(path, sidecar, described, self.overwrite):
            return False
        prepared = self.segmenter.prepare(subject, layout)
        masks = self.segmenter.masks(prepared)
        found = self.segmenter.labels(prepared, masks, layout)
        content = encode_volume(found.labels, found.geometry, dtype=np.uint8)
        values = [int(v) for v in np.unique(found.labels)]
        digest = hashlib.sha256(content).hexdigest()
        if not self.overwrite:
            require_remade(path, sidecar, digest)
        described |= {"sha256": digest, "labels": values}
        described["scheme"] = str(self.segmenter.scheme(layout))
        described |= self.segmenter.trained.said_of(subject)
        write_json(sidecar, described)
        if self.pictures:
            self._draw(prepared, masks)
        write_volume(path, content)
        return True

    def _draw(self, prepared: PreparedSubject, masks: dict[str, np.ndarray]) -> None:
        """Write ``pictures/ID_overlay.png``, and ``ID_attention.png`` of a network with gates."""
        area = sum(mask.sum((1, 2)) for mask in masks.values()) + 1e-6 * prepared.brain.sum((1, 2))
        place = int(area.argmax())  # the slice with most segmented, or else with most brain
        title = f"{prepared.id} · {self.segmenter.trained.preparation.axis} {place}"
        images = {
            name: np.rot90(prepared.slices[place, channel])
            for channel, name in enumerate(prepared.contrasts)
        }
        regions = {name: np.rot90(mask[place]) for name, mask in masks.items()}
        last = images[prepared.contrasts[-1]]
        self._save(
            prepared, "overlay", overlay_figure([images | {"prediction": (last, regions)}], [title])
        )
        maps = self.segmenter.attention(prepared, place)
        if maps:
            gates = {level: np.rot90(alpha) for level, alpha in maps.items()}
            brain = np.rot90(prepared.brain[place])
            self._save(prepared, "attention", attention_figure(last, regions, gates, brain, title))

    def _save(self, prepared: PreparedSubject, name: str, image: bytes) -> None:
        with atomic_path(self.output / "pictures" / f"{prepared.id}_{name}.png") as temporary:
            temporary.write_bytes(image)
