"""A volume as a derived DICOM series: one MR image a slice, to the left, the back and the head.

Attributes are those of the MR Image Storage of DICOM PS3.3, with what it has for images that nobody
acquired: ImageType DERIVED\\SECONDARY, Synthetic Data YES, Content Qualification RESEARCH and a
Derivation Description. Needs ``dsdiff[dicom]``.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_UP, Context, Decimal
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation as turned
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

import ldm
from ldm.data.nifti import Geometry
from ldm.data.synthetic import WARNING
from ldm.errors import DataError, NonFiniteError
from ldm.extras import optional_module

MOST = 2**16 - 1  # the largest stored value
SLOPE_DIGITS = 5  # so that its multiples, too, fit into the 16 characters of a decimal string
SQUARE = 1e-4  # cosine between two axes, at most
LEFT_BACK_HEAD = axcodes2ornt("LPS")
KEPT = (  # of the examination that the inputs are of: Patient, Study and Frame of Reference modules
    *("SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate"),
    *("PatientSex", "PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved"),
    *("DeidentificationMethod", "DeidentificationMethodCodeSequence", "PatientPosition"),
    *("LongitudinalTemporalInformationModified", "StudyInstanceUID", "StudyDate", "StudyTime"),
    *("StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "BodyPartExamined"),
)
EMPTY = (  # type 2: stated, and not known
    *("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "PatientPosition", "PositionReferenceIndicator"),
    *("ScanOptions", "MRAcquisitionType", "EchoTrainLength"),
)


@dataclass(frozen=True)
class SeriesFacts:
    """What a derived series says beside its voxels.

    Args:
        subject: stands for a PatientID that the inputs do not have.
        description: SeriesDescription, at most 64 characters.
        derivation: how it was made, in words.
        seed: texts that the new UIDs depend on and nothing else, of the study first: the same
            request gives the same bytes.
        number: SeriesNumber.
        sources: files of the inputs; those of DICOM give the examination.
    """

    subject: str
    description: str
    derivation: str
    seed: tuple[str, ...]
    number: int
    sources: tuple[Path, ...] = ()


def dicom_library() -> Any:
    """Return pydicom; raises DataError, DATA-EXTRA."""
    return optional_module("pydicom", "DICOM", reads_data=True)


def encode_series(volume: np.ndarray, geometry: Geometry, facts: SeriesFacts) -> dict[str, bytes]:
    """Return the files of a series, name -> content, from the feet to the head.

    Values are stored in 16 bits; RescaleSlope and RescaleIntercept give them back to half a slope,
    about 1/131,000 of their range, and 0 as 0.

    Args:
        volume: (X, Y, Z) in RAS+.
        geometry: where it lies.

    Raises:
        DataError: DATA-EXTRA; DATA-AFFINE for axes that are not at right angles, which a series
            cannot have. NonFiniteError: OUT-NONFINITE.
    """
    if not np.isfinite(volume).all():
        raise NonFiniteError("OUT-NONFINITE", "voxels are NaN or Inf: nothing was written")
    pydicom = dicom_library()
    turn = ornt_transform(io_orientation(geometry.canonical_affine), LEFT_BACK_HEAD)
    affine = geometry.canonical_affine @ inv_ornt_aff(turn, volume.shape)
    affine = np.diag([-1.0, -1, 1, 1]) @ affine  # millimetres to the left, the back and the head
    stored, slope, intercept = quantised(turned(volume, turn))
    common = _common(pydicom, facts, slope)
    _place(common, affine, stored.shape, facts.subject)
    _values(common, volume, slope, intercept)
    files = {}
    for place in range(stored.shape[2]):
        image = common.copy()
        image.SOPInstanceUID = _uid("instance", *facts.seed, place)
        image.InstanceNumber = place + 1
        image.ImagePositionPatient = _decimals((affine @ (0, 0, place, 1))[:3])
        image.PixelData = np.ascontiguousarray(stored[:, :, place].T).astype("<u2").tobytes()
        files[f"{place + 1:04}.dcm"] = _encoded(pydicom, image)
    return files


def quantised(volume: np.ndarray) -> tuple[np.ndarray, Decimal, Decimal]:
    """Return (stored, slope, intercept): ``stored * slope + intercept`` is within half a slope.

    ``stored`` is uint16, and 0 is among the values that are met exactly.
    """
    low, high = min(0.0, float(volume.min())), max(0.0, float(volume.max()))
    step = Decimal((high - low) / (MOST - 1)) or Decimal(1)
    slope = Context(prec=SLOPE_DIGITS, rounding=ROUND_UP).plus(step)
    zero = int((-Decimal(low) / slope).to_integral_value(ROUND_UP))
    stored = np.rint(volume.astype(np.float64) / float(slope)) + zero
    return np.clip(stored, 0, MOST).astype(np.uint16), slope, -zero * slope


def decimal_string(value: Decimal) -> str:
    """Return a number of at most ten digits in at most 16 characters, exactly."""
    return min(str(value), f"{value:E}", key=len)


def examination(pydicom: Any, sources: Iterable[Path]) -> Any:
    """Return what is kept of the DICOM examination that the inputs are of; empty without one."""
    for path in sources:
        try:
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(KEPT))
        except (OSError, pydicom.errors.InvalidDicomError):
            continue
    return pydicom.Dataset()


def _common(pydicom: Any, facts: SeriesFacts, slope: Decimal) -> Any:
    """Return what every image of the series says."""
    source, image = examination(pydicom, facts.sources), pydicom.Dataset()
    for name in EMPTY:
        setattr(image, name, None)
    image.PatientID = facts.subject
    image.StudyInstanceUID = _uid("study", facts.seed[0])
    image.FrameOfReferenceUID = _uid("frame", facts.seed[0])
    image.BodyPartExamined = "BRAIN"
    for name in KEPT:
        if name in source:
            image[name] = source[name]
    told = {
        "SOPClassUID": pydicom.uid.MRImageStorage,
        "SeriesInstanceUID": _uid("series", *facts.seed),
        "Modality": "MR",
        "SeriesNumber": facts.number,
        "SeriesDescription": facts.description[:64],
        "ImageType": ["DERIVED", "SECONDARY", "OTHER"],
        "SyntheticData": "YES",
        "ContentQualification": "RESEARCH",
        "DerivationDescription": f"{facts.derivation} Values are rounded to multiples of {slope}.",
        "ImageComments": WARNING,
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
        "ScanningSequence": "RM",  # research mode: no sequence was played
        "SequenceVariant": "NONE",
        "RepetitionTime": 0,  # may be empty by the standard, and converters stumble over that
        "EchoTime": 0,
        "Manufacturer": "dsdiff",
        "ManufacturerModelName": "dsdiff",
        "SoftwareVersions": ldm.__version__,
    }
    for name, value in told.items():
        setattr(image, name, value)
    return image


def _place(image: Any, affine: np.ndarray, shape: tuple[int, ...], case: str) -> None:
    """State where the images lie, of stored voxels (to the left, the back and the head)."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :3] / spacing
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > SQUARE:
        raise DataError(
            "DATA-AFFINE",
            "the axes are not at right angles, which a DICOM series cannot say: sample without "
            "--dicom, or bring the subject onto a grid with dsdiff prepare --register --spacing",
            case,
        )
    image.ImageOrientationPatient = _decimals(cosines[:, :2].T.ravel())
    image.PixelSpacing = _decimals(spacing[[1, 0]])  # between rows, then between columns
    image.SliceThickness, image.SpacingBetweenSlices = _decimals(spacing[[2, 2]])
    image.Columns, image.Rows = shape[:2]


def _values(image: Any, volume: np.ndarray, slope: Decimal, intercept: Decimal) -> None:
    """State what the stored values mean, and how to show them."""
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = 0
    image.RescaleSlope, image.RescaleIntercept = decimal_string(slope), decimal_string(intercept)
    image.RescaleType = "US"  # units are not specified
    shown = volume[volume != 0]
    low, high = np.percentile(shown, (1, 99)) if shown.size else (0, 1)
    image.WindowCenter, image.WindowWidth = _decimals([(low + high) / 2, max(high - low, 1e-6)])


def _decimals(values: Iterable[float]) -> list[str]:
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value)) for value in values]


def _uid(*parts: Any) -> str:
    """Return a UID made of a UUID (PS3.5, B.2), which depends on ``parts`` only."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(map(str, parts))).int}"


def _encoded(pydicom: Any, image: Any) -> bytes:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = image.SOPClassUID
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta, stream = meta, io.BytesIO()
    image.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def says_synthetic(header: Mapping[str, Any]) -> bool:
    """Return whether a DICOM header says that its image was made, not acquired."""
    told = f"{header.get('DerivationDescription')} {header.get('ImageComments')}"
    return str(header.get("SyntheticData")) == "YES" or WARNING in told
