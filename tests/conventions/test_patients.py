"""Ids of public data sets, and whose examination each is."""

import numpy as np
import pytest
from layout_writers import Head, write_series

from ldm.data.layouts import detect_layout
from ldm.data.patients import patient_of
from ldm.data.split import split_subjects

EXAMINATIONS = {  # patient: ids of examinations, as they are published or as hospitals write them
    "sub-01": "sub-01_ses-pre | sub-01_ses-20190101 | sub-01_ses-1_run-2",
    "BraTS-GLI-00001": "BraTS-GLI-00001-000 | BraTS-GLI-00001-101",
    "BraTS-PED-00003": "BraTS-PED-00003-000 | BraTS-PED-00003-001",
    "BraTS-MEN-RT-0002": "BraTS-MEN-RT-0002-1 | BraTS-MEN-RT-0002-2",
    "BraTSReg_002": "BraTSReg_002_pre | BraTSReg_002_followup | BraTSReg_002_01_0106",
    "brats_tcia_pat105": "brats_tcia_pat105_0001 | brats_tcia_pat105_0075",
    "TCGA-02-0006": "TCGA-02-0006_1998.08.23 | TCGA-02-0006_1998.11.02 | TCGA-02-0006_19981102"
    " | TCGA-02-0006_08-23-1998 | TCGA-02-0006_23081998 | TCGA-02-0006_23-Aug-1998",
    "W39": "W39_1998.09.19 | W39_1999.01.02",  # Ivy GAP
    "UPENN-GBM-00001": "UPENN-GBM-00001_11 | UPENN-GBM-00001_21",
    "UCSF-PDGM-0004": "UCSF-PDGM-0004 | UCSF-PDGM-0004_FU001d",
    "UCSD-PTGBM-0002": "UCSD-PTGBM-0002_01 | UCSD-PTGBM-0002_02",
    "RHUH-0001": "RHUH-0001_0 | RHUH-0001_1 | RHUH-0001_2",
    "100101": "100101A | 100101B",  # UCSF-BMSR
    "Patient-001": "Patient-001_week-000-1 | Patient-001_week-044",  # LUMIERE
    "PatientID_0003": "PatientID_0003_Timepoint_1 | PatientID_0003_Timepoint_4",  # MU-Glioma-Post
    "OAS30001": "OAS30001_MR_d0129 | OAS30001_MR_d2430",  # OASIS-3
    "002_S_0295": "002_S_0295_2006-04-18 | 002_S_0295_m06 | 002_S_0295_bl"
    " | 002_S_0295_sc | 002_S_0295_I12345",  # ADNI
    "training01": "training01_01 | training01_04",  # ISBI 2015
    "P1": "P1_T1 | P1_T2",  # MSLesSeg
    "013": "013_time01 | 013_time02",  # MSSEG-2
    "P07": "P07_t0 | P07_t1 | P07_tp2 | P07-v3 | P07_visit1 | P07_visit-02 | P07_scan2 | P07_exam1",
    "PGBM-001": "PGBM-001_04-02-1992 | PGBM-001_2020-01-05_1 | PGBM-001_20200105T1200"
    " | PGBM-001_2020-01-05T12-00-00",
    "ID01": "ID01_visit1_2020-01-01 | ID01_study2 | ID01_MRI1 | ID01_POD1 | ID01_3m | ID01_relapse"
    " | ID01_24h | ID01_2y | ID01_yr2 | ID01_100days | ID01_scanA | ID01_sess-1 | ID01_visita1"
    " | ID01_Verlauf2",
    "case12": "case12_preop | case12_post-op | case12_baseline | case12_followup | case12_FU2"
    " | case12_early-postop | case12_late_followup | case12_preop1 | case12_acute | case12_fup1",
    "pat_3": "pat_3_week12 | pat_3_month_6 | pat_3_6months | pat_3_w24 | pat_3_day1 | pat_3_12mo",
}
PATIENTS = """BraTS2021_00003 | BraTS20_Training_001 | Brats18_CBICA_ABM_1 | Brats17_TCIA_624_1
BRATS_001 | BraTS-GoAT-00010 | OpenMS_07 | IXI002-Guys-0828 | case_0001 | UCSF-PDGM-0004
Phantom_0001 | patient_001 | patient07 | EGD-0001 | W39 | TCGA-02-0006
MU-Glioma-Post_0003 | HF1538 | volume_7 | NC01-0123 | sub-01"""


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.replace("\n", "|").split("|")]


PAIRS = [(i, patient) for patient, ids in EXAMINATIONS.items() for i in listed(ids)]


@pytest.mark.parametrize(("subject", "patient"), PAIRS)
def test_an_examination_belongs_to_its_patient(subject, patient):
    assert patient_of(subject) == patient


@pytest.mark.parametrize("subject", listed(PATIENTS))
def test_a_number_of_a_patient_is_no_examination(subject):
    assert patient_of(subject) == subject


@pytest.mark.parametrize("fold", range(3))
def test_no_patient_is_on_both_sides_of_any_split(fold):
    """Of all data sets in one folder."""
    split = split_subjects([i for i, _ in PAIRS], val=0.34, seed=fold)
    sides = [{patient_of(i) for i in split[part]} for part in ("train", "val")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_a_pattern_and_a_column_say_what_no_convention_does(tmp_path):
    assert patient_of("Meyer_A2", r"(.+)_\w\d") == "Meyer"
    assert patient_of("Meyer_A2") == "Meyer_A2"
    table = tmp_path / "table.csv"
    table.write_text("id,t1,patient\nscan1,a.nii.gz,Meyer\nscan2,b.nii.gz,Meyer\nscan3,c.nii.gz,\n")
    subjects = detect_layout(table)[1]
    assert [s.patient for s in subjects.values()] == ["Meyer", "Meyer", "scan3"]


@pytest.mark.parametrize(
    ("tags", "patients"),
    [
        (("7", "7", "8"), ("NA-BRAIN-1", "NA-BRAIN-1", "NA-HEAD-3")),
        (("7", "7", "7"), ("NA-BRAIN-1", "NA-HEAD-2", "NA-HEAD-3")),  # an anonymiser's, of all
        (("ANON", "anon ", "8"), ("NA-BRAIN-1", "NA-HEAD-2", "NA-HEAD-3")),
    ],
)
def test_studies_in_folders_of_their_own_belong_to_the_patient_of_their_header(
    tmp_path, tags, patients
):
    """A download of TCIA: PATIENT/STUDY/SERIES, where only the header joins two studies."""
    studies = ("A/NA-BRAIN-1", "A/NA-HEAD-2", "B/NA-HEAD-3")
    head = Head({"t1": np.ones((4, 4, 2))}, np.eye(4))
    for study, tag in zip(studies, tags, strict=True):
        write_series(tmp_path / study / "t1", head, "t1", 1, "AX T1", "", tag)
    assert [s.patient for s in detect_layout(tmp_path)[1].values()] == list(patients)


def test_studies_of_one_name_are_called_by_the_folder_above(tmp_path):
    head = Head({"t1": np.ones((4, 4, 2))}, np.eye(4))
    for place in ("A/MRI", "B/MRI"):
        write_series(tmp_path / place / "t1", head, "t1", 1, "AX T1", "")
    assert list(detect_layout(tmp_path)[1]) == ["A_MRI", "B_MRI"]
