"""From the scanner to one grid: the contrasts of a subject, each registered and resampled once.

What is written is a folder of subjects as BraTS 2021 names them, which every verb reads, and beside
each subject where its contrasts came from, so that a volume on the common grid goes back.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from ldm.data.brain import as_mask, background, subject_brain
from ldm.data.contrasts import as_labels, scheme_of
from ldm.data.layouts import BraTS2021, Layout, Subject
from ldm.data.manifest import state
from ldm.data.nifti import Geometry, Volume, encode_volume, read_volume, write_volume
from ldm.data.outline import Outline
from ldm.data.registration import Alignment, Reference, resampled
from ldm.data.resample import Resampling
from ldm.data.synthetic import carried
from ldm.errors import ConfigError, DataError, of_case, one_of
from ldm.storage import read_json, write_json
from ldm.study import LABELS, MASK_FILE, MASKS

TRANSFORMS = "transforms.json"
BRAIN_TOOLS = ("hd-bet", "mri_synthstrip")  # both take -i IMAGE -o STRIPPED
LIMITS = (0.2, 10.0)  # mm of a voxel
STAYS = 1e-6  # of a voxel
RIM, BEYOND = 3, 0.001  # voxels that interpolation smears; share of the brain that lies further out


@dataclass(frozen=True)
class Wanted:
    """How subjects are brought to one grid.

    Args:
        to: the contrast that the others are laid on.
        contrasts: those that are looked for.
        spacing: mm of a voxel in each direction; None: as the contrast ``to`` is stored.
        mask: what is brain where there is no mask file, see :func:`ldm.data.brain.subject_brain`.
        tool: program of :data:`BRAIN_TOOLS` that finds the brain, where no file says it; or None.

    Raises:
        ConfigError: USAGE.
    """

    to: str
    contrasts: tuple[str, ...]
    spacing: float | None = None
    mask: str = "auto"
    tool: str | None = None

    def __post_init__(self) -> None:
        if self.to not in self.contrasts:
            known = ", ".join(self.contrasts)
            raise ConfigError("USAGE", f"--to is {self.to}: give one of {known}")
        least, most = LIMITS
        if self.spacing is not None and not least <= self.spacing <= most:
            told = f"--spacing is {self.spacing:g}: give {least:g} to {most:g} mm"
            raise ConfigError("USAGE", told)
        if self.tool and not shutil.which(one_of("--brain", self.tool, BRAIN_TOOLS)):
            raise ConfigError(
                "USAGE", f"--brain {self.tool}: there is no such program on the PATH; install it"
            )


@dataclass(frozen=True)
class Registered:
    """The volumes of a subject on one grid.

    Args:
        arrays: contrast, ``seg`` or ``brain`` -> (X, Y, Z) in RAS+.
        geometry: the grid.
        sources: contrast -> where its own file lies.
        alignments: contrast -> where it was found; the contrast ``to`` has none, nor has one that
            shows too little to tell.
        matrices: contrast -> (4, 4) from mm of the grid to mm of its own file.
    """

    id: str
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    geometry: Geometry
    sources: Mapping[str, Geometry]
    alignments: Mapping[str, Alignment]
    matrices: Mapping[str, np.ndarray]

    def distance(self, contrast: str) -> float:
        """Return by how many mm a contrast was moved, on average over the head."""
        found = self.alignments.get(contrast)
        return found.millimetres if found and found.is_clear else 0.0

    def beside(self, to: str) -> list[str]:
        """Return the contrasts other than ``to``, those without an alignment too."""
        return [name for name in self.arrays if name not in (to, *MASKS)]

    def to_dict(self) -> dict[str, Any]:
        """Return where every volume came from, as plain values; matrices are in mm, RAS+."""
        return {name: self._described(name) for name in self.sources}

    def _described(self, name: str) -> dict[str, Any]:
        source, found = self.sources[name], self.alignments.get(name)
        return {
            "matrix": self.matrices[name].tolist(),
            "moved_mm": round(self.distance(name), 3),
            "gain": found and round(found.gain, 4),
            "shape": list(source.canonical_shape),
            "affine": source.canonical_affine.tolist(),
        }


def register_subject(subject: Subject, layout: Layout, wanted: Wanted) -> Registered:
    """Bring the volumes of a subject to one grid; each is interpolated once.

    A contrast stays where its header puts it unless it clearly agrees better elsewhere, see
    :attr:`ldm.data.registration.Alignment.is_clear`. Labels, and a mask file, go with the contrast
    on whose grid they lie.

    Raises:
        DataError: DATA-MISSING without the contrast ``to``; what reading raises.
    """
    subject.require([wanted.to], layout)
    known = [n for n in subject.files if n in (*wanted.contrasts, *MASKS)]
    volumes = {name: subject.files[name].read(subject.id) for name in known}
    images = {n: v for n, v in volumes.items() if n not in MASKS}
    fixed = images[wanted.to]
    with of_case(subject.id):
        head, _ = subject_brain([fixed.array], rule=wanted.mask)
    reference, alignments = Reference(fixed, head), {}
    for name, volume in images.items():
        if name != wanted.to and (found := reference.register(volume)):
            alignments[name] = found
    matrices = {n: _matrix(alignments.get(n)) for n in images}
    grid = fixed.geometry if wanted.spacing is None else isotropic(fixed.geometry, wanted.spacing)
    arrays = {n: onto(v, grid, matrices[n]) for n, v in images.items()}
    for name in (n for n, found in alignments.items() if found.by_outline):
        strip_alike(arrays[name], arrays[wanted.to], grid)
    for name in (n for n in MASKS if n in volumes):
        owner = _owner(volumes[name].geometry, images, wanted.to)
        matrices[name] = matrices[owner]
        moved = resampled(volumes[name], grid, matrices[owner], "nearest")
        arrays[name] = as_labels(moved, subject.id) if name == LABELS else as_mask(moved)
    if wanted.tool and MASK_FILE not in arrays:
        arrays[MASK_FILE] = as_mask(stripped(arrays[wanted.to], grid, wanted.tool, subject.id))
    sources = {name: volume.geometry for name, volume in volumes.items()}
    return Registered(subject.id, arrays, grid, sources, alignments, matrices)


def _matrix(found: Alignment | None) -> np.ndarray:
    return found.matrix if found and found.is_clear else np.eye(4)


def _owner(geometry: Geometry, images: Mapping[str, Volume], to: str) -> str:
    """Return the contrast on whose grid labels lie: ``to`` if on that of several, or of none."""
    for name in (to, *images):
        try:
            images[name].geometry.require_same_grid(geometry, (name, LABELS), None)
        except DataError:
            continue
        return name
    return to


def onto(volume: Volume, grid: Geometry, matrix: np.ndarray) -> np.ndarray:
    """Return an image on another grid, smoothed where that is coarser: one cubic interpolation.

    What lies around a stripped brain has one value, exactly as before; an image that lies on the
    grid already is not touched.
    """
    steps = np.linalg.inv(volume.geometry.canonical_affine) @ matrix @ grid.canonical_affine
    if volume.array.shape == grid.canonical_shape and np.allclose(steps, np.eye(4), atol=STAYS):
        return volume.array
    coarser = np.abs(steps[:3, :3]).max(axis=1)
    sigmas = np.maximum(0, (coarser - 1) / 2)  # as ldm.data.resample does it
    array, air = volume.array, background(volume.array)
    smooth = ndimage.gaussian_filter(array, sigmas, mode="nearest") if max(sigmas) > 0.01 else array
    made = resampled(Volume(smooth, volume.geometry), grid, matrix, "cubic", air or 0.0)
    if air is not None:
        inside = Volume((array != air).astype(np.float32), volume.geometry)
        made[resampled(inside, grid, matrix, "nearest") == 0] = air
    return made


def strip_alike(array: np.ndarray, like: np.ndarray, grid: Geometry) -> None:
    """Set a contrast (X, Y, Z) to its air where that is around a brain that one mask stripped.

    The two interpolations since (of who moved it, and back) leave what is not air around the brain,
    which would count as brain. A contrast that shows brain further out is left as it is.

    Args:
        like: (X, Y, Z), the contrast that was not moved.
    """
    brain = ndimage.binary_fill_holes(like != background(like))
    own, near = Outline.of(array, grid), ndimage.binary_dilation(brain, iterations=RIM)
    if own and (own.mask & ~near).sum() <= BEYOND * brain.sum():
        array[~brain] = background(array)


def isotropic(own: Geometry, millimetres: float) -> Geometry:
    """Return the grid of cubes along the axes of another, with its centre and its extent."""
    plan = Resampling.plan(own.canonical_shape, own.spacing, [millimetres] * 3)
    if plan is None:
        return own
    steps = np.diag([*plan.steps, 1.0])
    old, new = (np.array(shape) - 1 for shape in (own.canonical_shape, plan.grid))
    steps[:3, 3] = old / 2 - np.array(plan.steps) * new / 2
    return grid_geometry(plan.grid, own.canonical_affine @ steps)


def grid_geometry(shape: Sequence[int], affine: np.ndarray) -> Geometry:
    """Return the geometry of a grid in RAS+."""
    header = nib.Nifti1Header()
    header.set_data_shape(tuple(shape))
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_xyzt_units("mm")
    return Geometry(tuple(shape), np.asarray(affine, float), header)


def stripped(image: np.ndarray, grid: Geometry, tool: str, case: str) -> np.ndarray:
    """Return the brain (X, Y, Z), 0 or 1, that a program of the user finds in an image.

    Raises:
        DataError: DATA-FORMAT, it failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        given, made = Path(scratch, "image.nii.gz"), Path(scratch, "stripped.nii.gz")
        write_volume(given, encode_volume(image, grid))
        command = [tool, "-i", str(given), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not made.is_file():
            said = " ".join((done.stderr or done.stdout).split())[-200:]
            raise DataError("DATA-FORMAT", f"{tool} failed ({said}): run it by itself", case)
        found = read_volume(made, case).array
    return ndimage.binary_fill_holes(found != (background(found) or 0)).astype(np.float32)


def write_registered(
    registered: Registered, subject: Subject, folder: Path, wanted: Wanted
) -> Path:
    """Write ``ID/ID_CONTRAST.nii.gz`` and where it all came from; return the folder ``ID``.

    Raises:
        OutputError: OUT-EXISTS or OUT-IO.
    """
    layout, place = BraTS2021(), folder / subject.id
    for name, array in registered.arrays.items():
        source = registered.sources.get(name)
        mark = carried(source.header, name) if source and source.is_synthetic else None
        content = encode_volume(array, registered.geometry, synthetic=mark)
        write_volume(place / layout.file_name(subject.id, name), content)
    if LABELS in registered.arrays and (scheme := scheme_of(subject)).source:
        write_json(place / f"{subject.id}_{LABELS}.json", {"scheme": str(scheme)})
    told = {"of": decided_by(subject, wanted), "to": wanted.to, "sources": registered.to_dict()}
    write_json(place / TRANSFORMS, told)  # the last: what it stands beside is whole
    return place


def decided_by(subject: Subject, wanted: Wanted) -> dict[str, Any]:
    """Return what decides the volumes of a subject: its files and what is wanted."""
    return {**vars(wanted), "contrasts": list(wanted.contrasts), "state": state(subject)}


def is_registered(subject: Subject, folder: Path, wanted: Wanted) -> bool:
    """Return whether a subject was written, from these files in this way."""
    return read_json(folder / subject.id / TRANSFORMS, torn=True).get("of") == decided_by(
        subject, wanted
    )


def put_back(volume: Volume, place: Path, contrast: str | None, are_labels: bool = False) -> Volume:
    """Return a volume of the common grid on the grid of a contrast's own file, where it lay.

    Args:
        place: folder of the subject that :func:`write_registered` returned.
        contrast: whose grid; None: of the one that the others were laid on.
        are_labels: the nearest voxel's value counts.

    Raises:
        DataError: DATA-MISSING, the subject has no such contrast; DATA-LABEL.
    """
    told = read_json(place / TRANSFORMS)
    contrast, sources = contrast or told["to"], told["sources"]
    if contrast not in sources:
        raise DataError(
            "DATA-MISSING", f"no {contrast}: give --to with one of {', '.join(sources)}", place.name
        )
    source = sources[contrast]
    grid = grid_geometry(source["shape"], np.array(source["affine"]))
    matrix = np.linalg.inv(source["matrix"])
    if are_labels:
        moved = resampled(volume, grid, matrix, "nearest")
        return Volume(as_labels(moved, place.name), grid)
    return Volume(onto(volume, grid, matrix), grid)
