"""One patient written in every layout, by the libraries of each format."""

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

CONTRASTS = ("t1", "t1ce", "t2", "flair")
OEDEMA_FIRST = {2: 1, 1: 2, 4: 3}  # as nnU-Net and the Decathlon number what BraTS calls 1, 2 and 4


@dataclass(frozen=True)
class Head:
    """Volumes (X, Y, Z) of one patient, with axes to the left, to the back and to the head."""

    volumes: dict[str, np.ndarray]  # t1, t1ce, t2, flair, seg; whole numbers
    affine: np.ndarray

    def save(self, path: Path, *names: str, labels: Mapping[int, int] | None = None) -> None:
        """Write one volume, or several as a 4-D file; ``labels`` are renumbered."""
        path.parent.mkdir(parents=True, exist_ok=True)
        stack = [self.volumes[name] for name in names]
        if labels:
            stack = [np.vectorize(lambda value: labels.get(value, value))(v) for v in stack]
        array = stack[0] if len(stack) == 1 else np.stack(stack, axis=-1)
        nib.save(nib.Nifti1Image(array.astype(np.int16), self.affine), path)


def write_brats2021(root: Path, head: Head) -> str:
    for name in head.volumes:
        head.save(root / "p1" / f"p1_{name}.nii.gz", name)
    return "p1"


def write_brats2023(root: Path, head: Head) -> str:
    names = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}
    for name, ending in names.items():
        head.save(root / "p-1" / f"p-1-{ending}.nii.gz", name)
    head.save(root / "p-1/p-1-seg.nii.gz", "seg", labels={4: 3})
    return "p-1"


def write_flat(root: Path, head: Head) -> str:
    for name, file in (*((n, n) for n in ("t1", "t2", "flair")), ("t1ce", "ce"), ("seg", "mask")):
        head.save(root / "p1" / f"{file}.nii.gz", name)
    return "p1"


def write_bids(root: Path, head: Head) -> str:
    anat = root / "sub-01/ses-pre/anat"
    names = {"t1": "acq-3d_T1w", "t1ce": "ce-gad_T1w", "t2": "T2w", "flair": "FLAIR"}
    for name, ending in names.items():
        head.save(anat / f"sub-01_ses-pre_{ending}.nii.gz", name)
    derived = root / "derivatives/experts/sub-01/ses-pre/anat"
    head.save(derived / "sub-01_ses-pre_label-tumor_mask.nii.gz", "seg")
    return "sub-01_ses-pre"


def write_nnunet(root: Path, head: Head) -> str:
    for number, name in enumerate(CONTRASTS):
        head.save(root / f"imagesTr/p_01_{number:04}.nii.gz", name)
    head.save(root / "labelsTr/p_01.nii.gz", "seg", labels=OEDEMA_FIRST)
    names = {str(n): name for n, name in enumerate(("T1", "T1-Gd", "T2w", "FLAIR"))}
    labels = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}
    (root / "dataset.json").write_text(json.dumps({"channel_names": names, "labels": labels}))
    return "p_01"


def write_decathlon(root: Path, head: Head) -> str:
    head.save(root / "imagesTr/BRATS_001.nii.gz", "flair", "t1", "t1ce", "t2")
    head.save(root / "labelsTr/BRATS_001.nii.gz", "seg", labels=OEDEMA_FIRST)
    names = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    (root / "dataset.json").write_text(json.dumps({"modality": names}))
    return "BRATS_001"


def write_hdf5_slices(root: Path, head: Head) -> str:
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    image = np.stack([head.volumes[name] for name in CONTRASTS], axis=-1).astype(np.float64)
    seg = head.volumes["seg"]
    mask = np.stack([seg == label for label in (1, 2, 4)], axis=-1).astype(np.uint8)
    for place in range(image.shape[2]):
        with h5py.File(root / f"volume_7_slice_{place}.h5", "w") as file:
            file["image"], file["mask"] = image[:, :, place], mask[:, :, place]
    return "volume_7"


def write_hdf5_volume(root: Path, head: Head) -> str:
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "p1.h5", "w") as file:
        file["image"] = np.stack([head.volumes[name] for name in CONTRASTS]).astype(np.float32)
        file["mask"] = head.volumes["seg"].astype(np.int64)
    return "p1"


def write_csv(root: Path, head: Head) -> str:
    """A table of files that no layout knows: two contrasts in one file, names of nobody."""
    head.save(root / "any where/both.nii.gz", "t1", "t1ce")
    cells = {"t1": "any where/both.nii.gz#0", "t1ce": "any where/both.nii.gz#1"}
    for name, file in (("t2", "b.nii"), ("flair", "c.nii"), ("seg", "d.nii")):
        head.save(root / "any where" / file, name)
        cells[name] = f"any where/{file}"
    with (root / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", *cells, "site"], delimiter=";")
        writer.writeheader()
        writer.writerow({"id": "=1", **cells, "site": "Bern"})
    return "=1"


def write_dicom(root: Path, head: Head) -> str:
    series = {
        "t1": ("1_ax", "AX T1 FLAIR pre", ""),
        "t1ce": ("2_ax", "AX T1 mprage", "Gadovist"),
        "t2": ("t2", "whatever", ""),
        "flair": ("4_ax", "AX T2 FLAIR", ""),
    }
    for number, (name, (folder, description, agent)) in enumerate(series.items(), 1):
        write_series(root / "p1" / folder, head, name, number, description, agent)
    write_series(root / "p1/5_ax", head, "t2", 5, "AX T2* GRE", "")  # no contrast of this project
    head.save(root / "p1/seg.nii.gz", "seg")
    return "p1"


def write_series(
    folder: Path,
    head: Head,
    name: str,
    number: int,
    description: str,
    agent: str,
    patient: str = "x",
) -> None:
    """Write one series of axial slices; DICOM counts millimetres to the left and to the back."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    lps = np.diag([-1.0, -1, 1, 1]) @ head.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    study, uid, frame = generate_uid(), generate_uid(), generate_uid()
    for place in range(head.volumes[name].shape[2]):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        meta.MediaStorageSOPInstanceUID = generate_uid()
        file = pydicom.Dataset()
        file.file_meta = meta
        file.SOPClassUID, file.SOPInstanceUID = (
            meta.MediaStorageSOPClassUID,
            meta.MediaStorageSOPInstanceUID,
        )
        file.Modality, file.PatientID, file.PatientName = "MR", patient, "x"
        file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = study, uid, frame
        file.SeriesNumber, file.InstanceNumber, file.SeriesDescription = (
            number,
            place + 1,
            description,
        )
        if agent:
            file.ContrastBolusAgent = agent
        columns, rows = lps[:3, 0] / spacing[0], lps[:3, 1] / spacing[1]
        file.ImageOrientationPatient = [round(float(v), 9) for v in (*columns, *rows)]
        file.ImagePositionPatient = [round(float(v), 6) for v in (lps @ [0, 0, place, 1])[:3]]
        file.PixelSpacing = [round(float(spacing[1]), 6), round(float(spacing[0]), 6)]
        file.SliceThickness = round(float(spacing[2]), 6)
        pixels = head.volumes[name][:, :, place].T.astype(np.uint16)
        file.Rows, file.Columns = pixels.shape
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
        file.PixelData = np.ascontiguousarray(pixels).tobytes()
        pydicom.dcmwrite(folder / f"{place:03}.dcm", file, enforce_file_format=True)


WRITERS: dict[str, Callable[[Path, Head], str]] = {
    "BraTS 2017-2021": write_brats2021,
    "BraTS 2023+": write_brats2023,
    "BIDS": write_bids,
    "nnU-Net": write_nnunet,
    "Medical Decathlon": write_decathlon,
    "folder per patient": write_flat,
    "HDF5": write_hdf5_slices,
    "HDF5 volume": write_hdf5_volume,
    "CSV": write_csv,
    "DICOM": write_dicom,
}
