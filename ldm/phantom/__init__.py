"""Synthetic patients: multi-contrast brain MRI with tumours, from anatomy and physics alone.

``make_patient`` draws one patient; ``write_phantoms`` writes a folder of them in the BraTS 2021
layout. Patient k of seed s depends on (s, k, size) only, never on how many are made. Enhancement in
T1ce follows from gadolinium where the blood-brain barrier leaks, so it is partly, but only partly,
predictable from T1, T2 and FLAIR.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from ldm.errors import OutputError, bad_value
from ldm.phantom.anatomy import Anatomy, build_anatomy, voxel_size
from ldm.phantom.geometry import SmoothField
from ldm.phantom.scanner import acquire, scan
from ldm.phantom.signal import Protocol, signals
from ldm.phantom.tissues import INDEX, TISSUES
from ldm.progress import Progress, silent
from ldm.regions import ENHANCING, NECROTIC_CORE, OEDEMA
from ldm.storage import write_file
from ldm.typed import typed
from ldm.util import user_path

MIN_SIZE, MAX_SIZE = 32, 240
VISIBLE_ENHANCEMENT = 0.05  # mM; about 30 % brighter on T1 than the tumour without gadolinium
WORLD_CENTRE = (-119.5, 119.5, 77.0)  # mm; centre of the BraTS field of view in RAS+


@dataclass(frozen=True)
class Patient:
    """One synthetic examination.

    Attributes:
        contrasts: ``t1``, ``t1ce``, ``t2``, ``flair``; float32 volumes (X, Y, Z) of whole numbers,
            0 outside the brain and at least 1 inside.
        seg: uint8 labels (X, Y, Z): 1 necrotic or non-enhancing core, 2 oedema, 4 enhancing tumour.
        affine: voxel to RAS+ millimetres (4, 4); voxel axes point left, back and up, as in BraTS.
        anatomy: tissue fractions and gadolinium behind the pictures.
        protocol: sequence settings.
    """

    contrasts: dict[str, np.ndarray] = field(repr=False)
    seg: np.ndarray = field(repr=False)
    affine: np.ndarray = field(repr=False)
    anatomy: Anatomy = field(repr=False)
    protocol: Protocol


def make_patient(size: int, seed: int, index: int = 0, dwi: bool = False) -> Patient:
    """Draw patient ``index`` of ``seed``.

    Args:
        size: width of the volume in voxels, 32 to 240. Voxels are cubes of 240 / size mm and the
            shape is (size, size, 155 / 240 size), the BraTS field of view.
        seed: non-negative; patients of different seeds are unrelated.
        index: number of the patient.
        dwi: a diffusion-weighted image (``dwi``) too; it changes no other volume.

    Raises:
        ConfigError: CONFIG-VALUE, if a number is out of range.
    """
    check_range("size", size, MIN_SIZE, MAX_SIZE)
    check_range("seed", seed, 0, 2**63)
    rng = np.random.default_rng([seed, index])
    protocol = Protocol.draw(rng)
    anatomy = build_anatomy(rng, size)
    texture = SmoothField(rng, 5.0)(anatomy.points)
    individual = rng.standard_normal(len(TISSUES))
    told = (anatomy.fractions, anatomy.gadolinium, texture, individual)
    ideal = signals(*told, protocol, dwi)
    voxel, motion = voxel_size(size), np.random.default_rng([seed, index, 1])
    acquired = {
        name: acquire(motion, signal, anatomy.brain, voxel, protocol.thickness.get(name, 1.0))
        for name, signal in ideal.items()
    }
    scanned = scan(rng, acquired, anatomy.points)
    return Patient(
        contrasts={name: anatomy.volume(values) for name, values in scanned.items()},
        seg=anatomy.volume(brats_labels(anatomy)),
        affine=brats_affine(anatomy.brain.shape, voxel),
        anatomy=anatomy,
        protocol=protocol,
    )


def brats_labels(anatomy: Anatomy) -> np.ndarray:
    """Return the BraTS label (N,) of every brain voxel with at least 40 % tumour or oedema."""
    parts = anatomy.fractions[[INDEX["necrosis"], INDEX["oedema"], INDEX["tumour"]]]
    labels = np.array([NECROTIC_CORE, OEDEMA, ENHANCING], dtype=np.uint8)[parts.argmax(0)]
    leaking = anatomy.gadolinium["tumour"] > VISIBLE_ENHANCEMENT
    labels[(labels == ENHANCING) & ~leaking] = NECROTIC_CORE
    labels[parts.sum(0) <= 0.4] = 0
    return labels


def brats_affine(shape: tuple[int, ...], voxel: float) -> np.ndarray:
    """Return the affine (4, 4) of BraTS, with its field of view cut into voxels of ``voxel`` mm."""
    affine = np.diag([-voxel, -voxel, voxel, 1.0])
    affine[:3, 3] = WORLD_CENTRE - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


@typed
def write_phantoms(
    output: str | Path,
    subjects: int,
    size: int = 128,
    seed: int = 0,
    dwi: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> list[str]:
    """Write ``subjects`` patients as ``Phantom_0001/Phantom_0001_{t1,t1ce,t2,flair,seg}.nii.gz``.

    Args:
        output: folder of the subjects; made if it is absent.
        subjects: number of patients.
        size: width of the volumes in voxels, see :func:`make_patient`.
        seed: the same seed and size write the same bytes.
        dwi: write ``_dwi`` too.
        overwrite: replace the files of subjects that exist.
        progress: wraps the patients that are made.

    Returns:
        The subject names.

    Raises:
        ConfigError: CONFIG-VALUE, if a number is out of range.
        OutputError: OUT-EXISTS, if a subject exists and ``overwrite`` is off; nothing is written.
    """
    check_range("subjects", subjects, 1, 9999)
    check_range("size", size, MIN_SIZE, MAX_SIZE)
    output = user_path(output)
    names = [f"Phantom_{number:04d}" for number in range(1, subjects + 1)]
    existing = [name for name in names if (output / name).exists()]
    if existing and not overwrite:
        raise OutputError(
            "OUT-EXISTS",
            f"{output / existing[0]} exists ({len(existing)} of {subjects} subjects); "
            "choose an empty folder or pass --overwrite",
        )
    for index, name in enumerate(progress(names, "Making patients", subjects)):
        write_patient(output / name, make_patient(size, seed, index, dwi), overwrite)
    return names


def write_patient(folder: Path, patient: Patient, overwrite: bool = False) -> None:
    """Write the volumes of a patient as ``FOLDER/FOLDER_{contrast,seg}.nii.gz``."""
    volumes = {name: volume.astype(np.int16) for name, volume in patient.contrasts.items()}
    for name, volume in {**volumes, "seg": patient.seg}.items():
        image = nib.Nifti1Image(volume, patient.affine)
        image.set_sform(patient.affine, code=1)
        image.set_qform(patient.affine, code=1)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = "synthetic phantom, not a patient"
        write_gzip(folder / f"{folder.name}_{name}.nii.gz", image.to_bytes(), overwrite)


def write_gzip(path: Path, content: bytes, overwrite: bool = False) -> None:
    """Write a gzip file atomically; its bytes depend on ``content`` only."""
    write_file(path, gzip.compress(content, compresslevel=6, mtime=0), overwrite)


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Refuse a value that is not a whole number in [low, high]."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | np.integer)
        or not low <= value <= high
    ):
        raise bad_value(f"{name} is {value!r}; expected a whole number from {low} to {high}")
