"""The slice viewer of a page: volumes of a few patients, small enough to travel inside it.

A volume becomes one 8-bit greyscale PNG, a sheet of its axial slices side by side, which every
browser decodes by itself; from it the page cuts axial, coronal and sagittal slices. Volumes are
cropped to the brain and averaged to a coarser grid so that the page keeps to a budget of bytes.
Errors are not stored: the page subtracts the truth from the prediction.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.data.brain import bounding_box
from ldm.evaluation.measures import MEASURES
from ldm.plots.figures import COLOUR_MAPS
from ldm.report.tables import format_cell
from ldm.util import how_many

PAGE_BYTES = 20_000_000  # of all volumes of a page, in base64
MOST_PATIENTS = 10
LONGEST_SIDE = 128  # voxels
BYTES_A_VOXEL = 0.55  # of base64, as seen on real brains in their bounding boxes; noise has 1.3


@dataclass(frozen=True)
class ViewerPatient:
    """The volumes of a patient as the page carries them."""

    id: str  # subject
    # voxels of each sheet (X, Y, Z), axes to the right, to the front and upwards (RAS+)
    shape: tuple[int, int, int]
    extent: tuple[float, float, float]  # size of the shown box along X, Y, Z, in mm
    origin: tuple[int, int, int]  # first voxel of the box along X, Y, Z in the grid of the files
    # voxels of the files along X, Y, Z that one shown voxel averages
    step: tuple[float, float, float]
    focus: tuple[int, int, int]  # shown voxel to open at
    inputs: Mapping[str, bytes]  # this, predictions, spreads: name -> PNG of encode_sheet
    truth: bytes  # PNG of the real volume
    predictions: Mapping[str, bytes]
    spreads: Mapping[str, bytes]
    # value at byte 255 of a `spread`, and the 99.5th percentile of the `error` in the brain, the
    # median over rows; `white`, at which the greys start: the 99.5th percentile of the truth in the
    # brain. All in units of the range of the truth
    limits: Mapping[str, float]
    # row -> what orders the patients; rows without a value are left out
    scores: Mapping[str, float]

    def size(self) -> int:
        """Bytes of the sheets in base64."""
        groups = (self.inputs, self.predictions, self.spreads)
        sheets = [self.truth, *(png for group in groups for png in group.values())]
        return sum(4 * math.ceil(len(png) / 3) for png in sheets)


@dataclass(frozen=True)
class Viewer:
    """Patients to scroll through."""

    patients: Sequence[ViewerPatient]  # worst first
    rows: Sequence[str]  # names of the predictions in the order of the table
    left_out: int = 0  # patients of the evaluation that are not in the viewer, the better ones
    measure: str = "psnr"  # name of what orders the patients; empty: their ids do

    def note(self) -> str:
        """How the shown volumes differ from those that the tables are about."""
        largest = np.max([patient.step for patient in self.patients], axis=0)
        coarse = " × ".join(f"{step:.2g}" for step in largest)
        note = (
            "Cropped to the brain, 8 bits a voxel"
            + ("" if coarse == "1 × 1 × 1" else f", averaged over up to {coarse} voxels")
            + "; tables and strips are of the full resolution. Error: absolute difference of the "
            "shown voxels. Error and spread are in units of the range of the truth."
        )
        if self.left_out:
            better = " with better results" if self.measure else ""
            note += f" Not in the viewer: {how_many(self.left_out, 'patient')}{better}."
        return note

    def data(self) -> dict[str, Any]:
        """What the script of the page reads, as plain values for JSON."""
        limits = {
            kind: max((p.limits[kind] for p in self.patients), default=0.0) or 1.0
            for kind in (*COLOUR_MAPS, "white")
        }
        return {
            "rows": list(self.rows),
            "ordered": bool(self.measure),
            "unit": score_unit(self.measure) if self.measure else "",
            "sign": score_sign(self.measure) if self.measure else 1,
            "maps": {kind: colour_table(name) for kind, name in COLOUR_MAPS.items()},
            "limits": limits,
            "patients": [_plain(patient) for patient in self.patients],
        }


def score_unit(measure: str) -> str:
    """Return the unit in which a measure is shown: ``dB``, or nothing."""
    return "dB" if MEASURES[measure].title.endswith(" dB") else ""


def score_sign(measure: str) -> int:
    """Return what makes of a measure one of which more is better: 1 or -1."""
    return -1 if MEASURES[measure].best == "low" else 1


def within_budget(patients: Sequence[ViewerPatient], budget: int) -> list[ViewerPatient]:
    """As many patients from the start as ``budget`` bytes hold."""
    sizes = np.cumsum([patient.size() for patient in patients])
    return list(patients[: int(np.searchsorted(sizes, budget, side="right"))])


def viewer_patient(
    id: str,
    images: Mapping[str, NDArray],
    truth: NDArray,
    predictions: Mapping[str, NDArray],
    mask: NDArray[np.bool_],
    spacing: Sequence[float],
    spreads: Mapping[str, NDArray] | None = None,
    scores: Mapping[str, float] | None = None,
    focus: Sequence[int] | None = None,
    voxels: float = math.inf,
) -> ViewerPatient:
    """Crop, average and encode the volumes of a patient.

    Args:
        images: input contrasts (X, Y, Z) in [0, 1], RAS+.
        truth, predictions: in [0, 1] between the bounds of the protocol, 0 outside the brain.
        mask: the brain (X, Y, Z), not empty.
        spacing: size of a voxel along X, Y, Z, in mm.
        spreads: row -> predicted standard deviation, in the same unit.
        scores: row -> what orders the patients.
        focus: voxel to open at; None: the middle of the box.
        voxels: the most voxels a volume may have.
    """
    box = bounding_box(mask)
    cropped = tuple(part.stop - part.start for part in box)
    shape = shown_shape(cropped, spacing, voxels, LONGEST_SIDE)
    step = tuple(c / n for c, n in zip(cropped, shape, strict=True))
    origin = tuple(part.start for part in box)

    def shown(volume: NDArray) -> NDArray:
        return reduced(volume[box], shape)

    spreads = {row: shown(volume) for row, volume in (spreads or {}).items()}
    small_truth, small = shown(truth), {row: shown(v) for row, v in predictions.items()}
    inside = shown(mask) > 0.5
    errors = [np.abs(volume - small_truth)[inside] for volume in small.values()]
    limits = _limits(errors, list(spreads.values()), small_truth[inside])
    centre = [(p.start + p.stop) / 2 for p in box] if focus is None else focus
    place = [int((f - o) / s) for f, o, s in zip(centre, origin, step, strict=True)]
    known = {row: float(v) for row, v in (scores or {}).items() if not math.isnan(v)}
    return ViewerPatient(
        id=id,
        shape=shape,
        extent=tuple(float(c * s) for c, s in zip(cropped, spacing, strict=True)),
        origin=origin,
        step=step,
        focus=tuple(int(np.clip(p, 0, n - 1)) for p, n in zip(place, shape, strict=True)),
        inputs={name: encode_sheet(shown(volume)) for name, volume in images.items()},
        truth=encode_sheet(small_truth),
        predictions={row: encode_sheet(volume) for row, volume in small.items()},
        spreads={row: encode_sheet(v, limits["spread"] or 1) for row, v in spreads.items()},
        limits=limits,
        scores=known,
    )


def _limits(
    errors: Sequence[NDArray], spreads: Sequence[NDArray], truth: NDArray
) -> dict[str, float]:
    """Return the values that are shown brightest, of errors and truth in the brain."""
    return {
        # the median, so that one bad row does not make the errors of the others dark
        "error": float(np.median([_top(e) for e in errors])) if errors else 0.0,
        "spread": float(max((v.max() for v in spreads), default=0)),
        "white": _top(truth),  # vessels alone reach the upper bound
    }


def shown_shape(
    shape: Sequence[int], spacing: Sequence[float], voxels: float, side: int
) -> tuple[int, int, int]:
    """The finest grid over a box that keeps to the limits, as isotropic as that allows.

    No axis gets more voxels than it has: thick slices stay as they are while the fine axes of the
    plane are averaged.
    """
    target = min(spacing)
    while True:
        grid = tuple(
            max(1, min(n, round(n * size / target))) for n, size in zip(shape, spacing, strict=True)
        )
        if max(grid) <= side and math.prod(grid) <= max(voxels, 1):
            return grid
        target *= 1.02


def reduced(volume: NDArray, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Average (X, Y, Z) over the voxels of a coarser grid of ``shape``."""
    from skimage.transform import resize_local_mean

    volume = np.asarray(volume, np.float32)
    return volume if volume.shape == shape else resize_local_mean(volume, shape)


def encode_sheet(volume: NDArray, high: float = 1.0) -> bytes:
    """A volume (X, Y, Z) in [0, ``high``] as an 8-bit greyscale PNG, a sheet of its slices.

    Slice z lies in column ``z % n`` and line ``z // n`` of tiles, n = ceil(sqrt(Z)), with x to the
    right and y downwards, so that the pixel of a voxel is ``(z % n * X + x, z // n * Y + y)``.
    """
    from PIL import Image

    x, y, z = volume.shape
    columns = math.ceil(math.sqrt(z))
    lines = math.ceil(z / columns)
    levels = np.zeros((x, y, lines * columns), np.uint8)
    levels[..., :z] = np.rint(np.clip(volume / high, 0, 1) * 255)
    sheet = levels.reshape(x, y, lines, columns).transpose(2, 1, 3, 0)  # line, y, column, x
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet.reshape(lines * y, columns * x))).save(
        stream, "PNG", optimize=True
    )
    return stream.getvalue()


def _top(errors: NDArray) -> float:
    return float(np.percentile(errors, 99.5)) if errors.size else 0.0


def colour_table(name: str) -> str:
    """The 256 colours of a matplotlib map as base64 of RGB; 0, outside the brain, is black."""
    from matplotlib import colormaps

    colours = colormaps[name](np.arange(256), bytes=True)[:, :3]
    colours[0] = 0
    return _base64(colours.tobytes())


def _plain(patient: ViewerPatient) -> dict[str, Any]:
    def sheets(group: Mapping[str, bytes]) -> list[dict[str, str]]:
        return [{"name": name, "png": _base64(png)} for name, png in group.items()]

    return {
        "id": patient.id,
        "shape": patient.shape,
        "extent": patient.extent,
        "origin": patient.origin,
        "step": patient.step,
        "focus": patient.focus,
        "spreadLimit": patient.limits["spread"],
        # text, because JSON knows no infinity
        "scores": [{"row": row, "text": format_cell(v)} for row, v in patient.scores.items()],
        "inputs": sheets(patient.inputs),
        "truth": _base64(patient.truth),
        "predictions": sheets(patient.predictions),
        "spreads": sheets(patient.spreads),
    }


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
