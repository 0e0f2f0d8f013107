"""DICOM series, converted to NIfTI once: a folder a patient, a sub-folder a series."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from ldm.data.dicom_series import dicom_library, says_synthetic
from ldm.data.layouts.base import Entry, Layout, Tree, named_folders
from ldm.data.layouts.context import doubts
from ldm.data.layouts.series import read_series
from ldm.data.nifti import Volume, read_volume, volume_stem
from ldm.data.patients import patient_of
from ldm.data.synthetic import mark, statement
from ldm.data.volume_file import VolumeFile
from ldm.errors import DataError, of_case
from ldm.extras import optional_module
from ldm.storage import atomic_path, cache_root, require_regular, sha256
from ldm.study import LABELS

log = logging.getLogger(__name__)

ENDINGS = (".dcm", ".ima")
PREAMBLE = 128  # bytes before the mark DICM
NOBODY = re.compile(r"[0x?*._ -]*|.*(?:anon|unknown|removed|none|patient|subject|test)[^0-9]*")
DICOM_AXES = axcodes2ornt("LPS")
READ = ("SOPInstanceUID", "ImagePositionPatient", "EchoTime")  # of each file that is converted
READ += ("SyntheticData", "DerivationDescription", "ImageComments")


@dataclass(frozen=True)
class DicomSeries(VolumeFile):
    """One series: ``path`` is the folder of its files.

    The NIfTI file that is made of it lies in the cache, in a folder under the id of the subject
    (``ID-dicom``), along the axes of DICOM (to the left, to the back, to the head).
    """

    @property
    def paths(self) -> tuple[Path, ...]:  # noqa: D102
        if not self.path.is_dir():
            return (self.path,)  # its state says why it cannot be read
        files = sorted(p for p in self.path.iterdir() if not p.is_dir() and p.name[0] != ".")
        return tuple(files) or (self.path,)

    def read(self, case: str | None = None, nonfinite: str = "refuse") -> Volume:  # noqa: D102
        state = repr(self.state(case)).encode()
        key = hashlib.sha256(state).hexdigest()[:16]
        owner = case or self.path.parent.name  # whoever ends a study finds the patient by it
        folder = cache_root() / f"{owner[:32]}-dicom"
        converted = folder / f"{self.path.name[:32]}-{key}.nii.gz"
        if not converted.is_file():
            with of_case(case):
                self._convert(converted)
        try:
            return read_volume(converted, case, nonfinite)
        except DataError as error:
            told = error.message.replace(converted.name, f"series {self.path.name}")
            raise DataError(error.code, told, case) from error

    def _convert(self, output: Path) -> None:
        dicom2nifti: Any = optional_module("dicom2nifti", "DICOM", reads_data=True)
        for path in self.path.rglob("*"):  # the library opens all of them
            if not path.is_dir():
                require_regular(path)
        found = [h for path in self.paths if (h := _header(path, *READ)) is not None]
        self._require_one_volume(found)
        with tempfile.TemporaryDirectory() as scratch:  # several threads convert at once
            made = Path(scratch) / f"{secrets.token_hex(4)}.nii.gz"
            try:
                dicom2nifti.dicom_series_to_nifti(str(self.path), str(made), reorient_nifti=False)
                image = nib.load(made)
                turn = ornt_transform(io_orientation(image.affine), DICOM_AXES)
                content = image.as_reoriented(turn)
                if any(map(says_synthetic, found)):
                    mark(content.header, statement({"request": {"baseline": "DICOM series"}}))
            except Exception as error:  # the library raises its own kinds, and pydicom's
                raise DataError(
                    "DATA-FORMAT",
                    f"series {self.path.name} cannot be converted ({error}): expected one volume "
                    "of parallel slices; convert it with dcm2niix",
                ) from error
            with atomic_path(output, replace=True) as temporary:
                nib.save(content, temporary)

    def _require_one_volume(self, found: list[Any]) -> None:
        """Refuse several images of one place, of which the converter would take any.

        Raises:
            DataError: DATA-NDIM.
        """
        images = {str(h.SOPInstanceUID): h for h in found if "SOPInstanceUID" in h}.values()
        places = Counter(str(h.get("ImagePositionPatient")) for h in images)
        if len(images) > 1 and max(places.values()) > 1:
            echoes = sorted({str(h.get("EchoTime")) for h in images})
            several = f"echo times {', '.join(echoes)}" if len(echoes) > 1 else "several volumes"
            raise DataError(
                "DATA-NDIM",
                f"series {self.path.name} holds {several}, {max(places.values())} images at one "
                "place: give each volume a folder of its own, or convert it with dcm2niix",
            )

    def _digest(self) -> str:
        parts = sorted(sha256(path) for path in self.paths)
        return hashlib.sha256("".join(parts).encode()).hexdigest()


class Dicom(Layout):
    """``ID/SERIES/*.dcm``: series named as a contrast, or recognised by their description.

    A series folder named as a contrast (``t1``, ``T1-Gd``) is what it says; another is read from
    ``SeriesDescription`` and ``ContrastBolusAgent`` of its first file, and passed over if they
    name no contrast. ``ID/seg.nii.gz`` is the segmentation, on the grid of the series with axes to
    the left, to the back and to the head (as ITK writes DICOM). Needs ``dsdiff[dicom]``.
    """

    name = "DICOM"
    ambiguous = "name the folder of the right one as the contrast, or give a CSV"

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        return f"{subject}/{contrast}/*.dcm"

    def find(self, tree: Tree) -> Iterator[Entry]:  # noqa: D102
        series = [(f, first) for f, paths in tree.folders.items() if (first := _first(paths))]
        named = {folder: self.contrasts.named(folder.name) for folder, _ in series}
        told = {(folder.parent, contrast) for folder, contrast in named.items() if contrast}
        found: list[tuple[str, Path]] = []
        patients: dict[Path, Path] = {}
        for folder, first in series:
            contrast = named[folder] or _described(first)
            if contrast is None or (not named[folder] and (folder.parent, contrast) in told):
                log.info("series %s is passed over", folder.name)
                continue
            patients.setdefault(folder.parent, first)
            found.append((contrast, folder))
        ids = named_folders(patients, tree.root)
        self.examined = _examined({ids[folder]: first for folder, first in patients.items()})
        series_found = [Entry(ids[f.parent], c, DicomSeries(f), f.parent) for c, f in found]
        self.remarks = doubts(series_found, tree.root)
        yield from series_found
        for patient in patients:
            for path in tree.folders.get(patient, ()):
                if volume_stem(path.name) == LABELS:
                    yield Entry(ids[patient], LABELS, VolumeFile(path), patient)


def _examined(files: Mapping[str, Path]) -> dict[str, str]:
    """Return whose examination a subject is, of those that share a ``PatientID`` with another.

    The patient is called by the first of them, because the tag may be a number of the hospital. A
    tag that all share, or that names nobody, is one of an anonymiser.
    """
    same: dict[str, list[str]] = {}
    for subject, file in files.items() if len(files) > 1 else ():
        header = _header(file, "PatientID")
        tag = str(header.get("PatientID") or "").strip().casefold() if header else ""
        same.setdefault(tag, []).append(subject)
    groups = {} if len(same) == 1 else same
    return {
        subject: patient_of(subjects[0])
        for tag, subjects in groups.items()
        for subject in subjects
        if len(subjects) > 1 and not NOBODY.fullmatch(tag)
    }


def _first(paths: list[Path]) -> Path | None:
    """Return the first file if the files of a folder are DICOM."""
    first = next((p for p in paths if p.name.lower() not in ("dicomdir", "version")), None)
    if first is None or not first.is_file():
        return None
    if first.suffix.lower() in ENDINGS:
        return first
    if first.suffix and not first.suffix[1:].isdigit():  # 1.2.840.113619 is a common name
        return None
    try:
        with first.open("rb") as stream:
            return first if stream.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM" else None
    except OSError:
        return None


def _header(path: Path, *tags: str) -> Any:
    """Return some tags of a DICOM file; None where it is none."""
    pydicom = dicom_library()
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
    except (OSError, pydicom.errors.InvalidDicomError):
        return None


def _described(path: Path) -> str | None:
    tags = ("SeriesDescription", "ContrastBolusAgent")
    header = _header(path, *tags)
    if header is None:
        return None
    series = read_series(*(str(header.get(tag) or "") for tag in tags))
    if series.doubt:
        log.warning("series %s: %s", path.parent.name, series.doubt)
    return series.contrast
