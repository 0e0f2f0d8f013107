"""One patient as each public data set writes it: its names, its folders, its numbers of labels.

A generator a convention, with what is right to read from it. Files are written by the libraries of
the format, in the way of the programs that wrote the originals.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from layout_writers import WRITERS, Head

IMAGES = ("t1", "t1ce", "t2", "flair")
BRATS = dict(zip(IMAGES, IMAGES, strict=True))
NEW = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}
UPPER = {"t1": "T1", "t1ce": "T1c", "t2": "T2", "flair": "FLAIR"}
YEAR_2023, PAEDIATRIC = {4: 3}, {1: 2, 2: 4, 4: 1}  # of the labels 1, 2 and 4 of BraTS 2017
USUAL = {"necrosis": (1,), "oedema": (2,), "enhancing": (4,)}
SINCE_2023 = {"necrosis": (1,), "oedema": (2,), "enhancing": (3,), "cavity": (4,)}
UNTIL_2016 = {"necrosis": (1,), "oedema": (2,), "nonenhancing": (3,), "enhancing": (4,)}


@dataclass(frozen=True)
class Convention:
    """How one patient is written, and what is right to read.

    Args:
        layout: that is recognised.
        write: writes the patient below a folder.
        id: of the subject.
        patient: whose examination it is; None: the id.
        parts: what the labels mean; None: cannot be known, and ``told`` says it.
        told: ``data.params.labels``, by the word of the user.
        brain: whether a mask of the brain is found too.
    """

    layout: str
    write: Callable[[Path, Head], object]
    id: str
    patient: str | None = None
    parts: Mapping[str, tuple[int, ...]] | None = field(default_factory=lambda: USUAL)
    told: str | None = None
    brain: bool = False


def files(
    pattern: str,
    names: Mapping[str, str],
    seg: str,
    labels: Mapping[int, int] | None = None,
    more: Mapping[str, str] | None = None,
) -> Callable[[Path, Head], None]:
    """Return a writer of one file a contrast.

    Args:
        pattern: path of an image, with ``{}`` for its name.
        names: contrast -> its name there.
        seg: path of the labels.
        labels: how they are renumbered.
        more: path -> contrast, of files that are none of those (maps, other spaces).
    """

    def write(root: Path, head: Head) -> None:
        for contrast, name in names.items():
            head.save(root / pattern.format(name), contrast)
        head.save(root / seg, "seg", labels=labels)
        for path, contrast in (more or {}).items():
            head.save(root / path, contrast)

    return write


def brats(subject: str, names: Mapping[str, str], separator: str, labels=None, suffix=".nii.gz"):
    """Return the writer of a challenge: ``ID/ID_t1.nii.gz``."""
    start = f"{subject}/{subject}{separator}"
    return files(start + "{}" + suffix, names, f"{start}seg{suffix}", labels)


def since_2023(subject: str, patient: str | None = None, **options) -> Convention:
    labels = options.pop("labels", YEAR_2023)
    options.setdefault("parts", SINCE_2023)
    return Convention("BraTS 2023+", brats(subject, NEW, "-", labels), subject, patient, **options)


def upenn(root: Path, head: Head) -> None:
    """Structural images, labels and diffusion maps in folders of their own."""
    i = "UPENN-GBM-00002_11"
    names = {**UPPER, "t1ce": "T1GD"}
    write = files(f"images_structural/{i}/{i}_{{}}.nii.gz", names, f"images_segm/{i}_segm.nii.gz")
    write(root, head)
    head.save(root / f"automated_segm/{i}_automated_approx_segm.nii.gz", "t2")
    head.save(root / f"images_structural_unstripped/{i}/{i}_T1_unstripped.nii.gz", "t2")
    head.save(root / f"images_DTI/{i}/{i}_DTI_FA.nii.gz", "t2")


UCSF = "UCSF-PDGM-0004_FU001d"
UCSF_MORE = ("SWI", "ASL", "ADC", "T1_bias", "T1c_bias", "FLAIR_bias", "DTI_eddy_FA")
UCSF_MORE += ("brain_parenchyma_segmentation",)
MU = "PatientID_0003"
TCGA = "TCGA-02-0006_1996.08.23"


def ucsf(root: Path, head: Head) -> None:
    """Beside the four images and the tumour, maps, images before bias correction, tissue."""
    start = f"{UCSF}_nifti/{UCSF}_"
    more = {f"{start}{name}.nii.gz": "t2" for name in UCSF_MORE}
    write = files(start + "{}.nii.gz", UPPER, f"{start}tumor_segmentation.nii.gz", more=more)
    write(root, head)
    brain = Head({"brain": (head.volumes["t1"] != 0).astype(np.int16)}, head.affine)
    brain.save(root / f"{start}brain_segmentation.nii.gz", "brain")


def bids_with_derivatives(root: Path, head: Head) -> None:
    """Raw images, an expert's lesion, and what fMRIPrep and FreeSurfer leave in every run."""
    WRITERS["BIDS"](root, head)
    start = "sub-01/ses-pre/anat/sub-01_ses-pre_"
    for name in ("dseg", "desc-aseg_dseg", "desc-aparcaseg_dseg", "label-GM_probseg"):
        head.save(root / f"derivatives/fmriprep/{start}{name}.nii.gz", "t2")
    for name in ("desc-preproc_T1w", "dseg", "label-lesion_mask"):
        space = f"{start}space-MNI152NLin2009cAsym_{name}"
        head.save(root / f"derivatives/fmriprep/{space}.nii.gz", "flair")
    head.save(root / f"derivatives/freesurfer/{start}desc-aseg_dseg.nii.gz", "t2")


def decathlon(root: Path, head: Head) -> None:
    """``dataset.json`` of Task01 with its own words for channels and labels."""
    WRITERS["Medical Decathlon"](root, head)
    words = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
    path = root / "dataset.json"
    described = {**json.loads(path.read_text()), "name": "BRATS", "labels": words}
    path.write_text(json.dumps(described))


def as_programs_write(root: Path, head: Head) -> None:
    """T1 by ITK, T1ce by TorchIO, T2 by MONAI, FLAIR and labels by nibabel: one patient."""
    folder = root / "p1"
    folder.mkdir(parents=True)
    write_itk(folder / "p1_t1.nii.gz", head, "t1")
    write_torchio(folder / "p1_t1ce.nii.gz", head, "t1ce")
    write_monai(folder / "p1_t2.nii.gz", head, "t2")
    for name in ("flair", "seg"):
        head.save(folder / f"p1_{name}.nii.gz", name)


def write_itk(path: Path, head: Head, name: str) -> None:
    """By SimpleITK, which counts to the left and back, and writes qform and sform."""
    lps = np.diag([-1.0, -1, 1, 1]) @ head.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(head.volumes[name].astype(np.float32).T)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    SimpleITK.WriteImage(image, str(path))


def metaimage(pattern: str, names: Mapping[str, str], seg: str) -> Callable[[Path, Head], None]:
    """Return a writer of MetaImage by SimpleITK; 3 is what of the core does not enhance."""

    def write(root: Path, head: Head) -> None:
        for contrast, name in {**names, "seg": seg}.items():
            path = root / pattern.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_itk(path, head, contrast)

    return write


def write_torchio(path: Path, head: Head, name: str) -> None:
    """After ``ToCanonical``, the place in a quaternion alone."""
    stored = nib.Nifti1Image(head.volumes[name].astype(np.float32), head.affine)
    image = nib.as_closest_canonical(stored)
    file = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    file.header["qform_code"], file.header["sform_code"] = 1, 0
    nib.save(file, path)


def write_monai(path: Path, head: Head, name: str) -> None:
    """After ``Orientationd("RAS")``, float64 with a sform alone and no units."""
    stored = nib.Nifti1Image(head.volumes[name].astype(np.float64), head.affine)
    image = nib.as_closest_canonical(stored)
    file = nib.Nifti1Image(np.asarray(image.dataobj), None)
    file.header.set_sform(image.affine, code=2)
    file.header.set_qform(None, code=0)
    nib.save(file, path)


PED, GLI, MET, SSA = (f"BraTS-{kind}-00002-000" for kind in ("PED", "GLI", "MET", "SSA"))
YEAR_2012 = "brats_2013_pat0001_1"
B355 = "BraTS20_Training_355"
YEAR_2015 = "brats_tcia_pat105_0075"
VSD = {"t1": "MR_T1", "t1ce": "MR_T1c", "t2": "MR_T2", "flair": "MR_Flair"}
LUMIERE = {"t1": "T1", "t1ce": "CT1", "t2": "T2", "flair": "FLAIR"}
CONVENTIONS = {
    "BraTS 2013-2016": Convention(
        "BraTS 2017-2021",
        brats(YEAR_2012, UPPER, "_", suffix=".nii"),
        YEAR_2012,
        "brats_2013_pat0001",
        parts=UNTIL_2016,
    ),
    "BraTS 2015, .mha": Convention(
        "BraTS 2013-2016",
        metaimage(
            f"HGG/{YEAR_2015}/VSD.Brain.XX.O.{{0}}.35536/VSD.Brain.XX.O.{{0}}.35536.mha", VSD, "OT"
        ),
        YEAR_2015,
        "brats_tcia_pat105",
        parts=UNTIL_2016,
    ),
    "BraTS 2012, .mha": Convention(
        "BraTS 2017-2021",
        metaimage("BRATS_HG0001/BRATS_HG0001_{}.mha", {**UPPER, "t1ce": "T1C"}, "truth"),
        "BRATS_HG0001",
        parts=None,
        told="brats2017",
    ),
    "BraTS 2018": Convention(
        "BraTS 2017-2021", brats("Brats18_CBICA_ABM_1", BRATS, "_"), "Brats18_CBICA_ABM_1"
    ),
    "BraTS 2020, patient 355": Convention(
        "BraTS 2017-2021",
        files(f"{B355}/{B355}_{{}}.nii", BRATS, f"{B355}/W39_1998.09.19_Segm.nii"),
        B355,
    ),
    "BraTS 2021": Convention(
        "BraTS 2017-2021", brats("BraTS2021_00002", BRATS, "_"), "BraTS2021_00002"
    ),
    "BraTS 2021, names in capitals": Convention(
        "BraTS 2017-2021",
        files("P1/P1_{}.NII.GZ", {**UPPER, "t1ce": "T1CE", "flair": "Flair"}, "P1/P1_SEG.NII.GZ"),
        "P1",
    ),
    "BraTS 2023": since_2023(GLI, "BraTS-GLI-00002"),
    "BraTS 2024": since_2023("BraTS-GLI-02062-101", "BraTS-GLI-02062"),
    "BraTS-MET": since_2023(MET, "BraTS-MET-00002"),
    "BraTS-SSA": since_2023(SSA, "BraTS-SSA-00002"),
    "BraTS-PED": since_2023(PED, "BraTS-PED-00002", labels=PAEDIATRIC, parts=None, told="ped2024"),
    "UPENN-GBM": Convention("BraTS 2017-2021", upenn, "UPENN-GBM-00002_11", "UPENN-GBM-00002"),
    "UCSF-PDGM": Convention("BraTS 2017-2021", ucsf, UCSF, "UCSF-PDGM-0004", brain=True),
    "TCGA-GBM, time points": Convention(
        "BraTS 2017-2021",
        files(
            f"{TCGA}/{TCGA}_{{}}.nii.gz",
            {**BRATS, "t1ce": "t1Gd"},
            f"{TCGA}/{TCGA}_GlistrBoost_ManuallyCorrected.nii.gz",
            more={f"{TCGA}/{TCGA}_GlistrBoost.nii.gz": "t2"},
        ),
        TCGA,
        "TCGA-02-0006",
    ),
    "MU-Glioma-Post": Convention(
        "BraTS 2017-2021",
        files(
            f"{MU}/Timepoint_1/{MU}_Timepoint_1_brain_{{}}.nii.gz",
            NEW,
            f"{MU}/Timepoint_1/{MU}_Timepoint_1_tumorMask.nii.gz",
            YEAR_2023,
        ),
        f"{MU}_Timepoint_1",
        MU,
        parts=SINCE_2023,
    ),
    "LUMIERE, weeks": Convention(
        "folder per patient",
        files("Patient-001/week-044/{}.nii.gz", LUMIERE, "Patient-001/week-044/seg.nii.gz"),
        "Patient-001_week-044",
        "Patient-001",
    ),
    "MSD Task01": Convention(
        "Medical Decathlon",
        decathlon,
        "BRATS_001",
        parts={"oedema": (1,), "nonenhancing": (2,), "enhancing": (3,)},
    ),
    "nnU-Net conversion": Convention(
        "nnU-Net",
        WRITERS["nnU-Net"],
        "p_01",
        parts={"necrosis": (2,), "oedema": (1,), "enhancing": (3,)},
    ),
    "BIDS": Convention("BIDS", WRITERS["BIDS"], "sub-01_ses-pre", "sub-01"),
    "BIDS with fMRIPrep and FreeSurfer": Convention(
        "BIDS", bids_with_derivatives, "sub-01_ses-pre", "sub-01"
    ),
    "DICOM": Convention("DICOM", WRITERS["DICOM"], "p1"),
    "files of ITK, TorchIO and MONAI": Convention("BraTS 2017-2021", as_programs_write, "p1"),
}
