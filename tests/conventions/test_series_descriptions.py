"""Descriptions of DICOM series as scanners and hospitals write them, with the right answer."""

import pytest

from ldm.data.layouts.series import contrast_of_series, read_series

NATIVE_T1 = """
AX T1 W/O CONTRAST | T1 NON CONTRAST | T1 no contrast | AX T1 C- | T1WI C- | AX T1 - C | AX T1 PRE
AX T1 | SAG T1 | Sag T1 FLAIR | AX T1 SE | COR T1 FSE | t1_se_tra | t1_mprage_sag_p2_iso | MPRAGE
t1_mpr_sag_p2_iso | 3D MP-RAGE | MP RAGE AX | SAG 3D T1 MPRAGE | AX 3D BRAVO | Ax FSPGR 3D
IR-FSPGR | eT1W_SE | sT1W_3D_TFE | WIP sT1W_3D_TFE SENSE | T1W_SE CLEAR | 3DT1 TFE | T1W_IR_TSE
T1_FFE | AXT1 | t1_tse_tra_oKM | t1_mprage_tra_o.KM | T1 SE tra ohne KM | T1 tra vor KM | T1 nativ
T1 tra native | T1 SANS INJECTION | AX T1 sans gado | T1 AX SIN CONTRASTE | T1 SENZA MDC
T1 zonder contrast | T1 sem contraste | T1 S/C | AX T1 WO | AX T1 W/O | T1 W/O GD
AX T1 NONCONTRAST | AX T1 NON-CON | T1 non enhanced | T1 UNENHANCED | T1 PRE-GD | T1 PREGAD
T1_PRE_CONTRAST | AX T1 POST OP W/O CONTRAST | AX T1 PRE-OP | T1 MPRAGE POST-OP | AX T1 FS
AX T1 W/O FAT SAT | T1 (C-) | T1 C(-) | T1 COR-C | t1_space_sag | T1-weighted | AX T1 NO GAD
T1 without contrast | T1 w/out contrast | AX T1 PRE GADAVIST | AX T1 -C | tfl3d1 T1 | T1 CUBE
t1_vibe_tra | AX T1 POST RADIATION | T1 no IV contrast | AX T1 FLAIR PRE | T1_fl2d_tra | T1 3D GRE
T1 tse cor | OAx T1 MEMP
t1_mprage_sag_p2_iso_0.9 | t1_mpr_ns_sag_p2_iso | t1_fl2d_tra_p2 | Ax T1 FSE | SAG T1 SE
AX 3D T1 BRAVO | Sag 3D T1 FSPGR | WIP T1W_3D_TFE_SENSE | T1W_3D_FFE | T1W_FFE_tra | sT1TFE
T1_3D_TFE_SAG_ISO | Ax T1 MEMP | AXIAL T1 | AXIAL T1 SE | T1 AXIAL | T1 AX | T1_SE_TRA_5MM
3D SAG T1 MPRAGE | Accelerated Sagittal MPRAGE | MPRAGE_GRAPPA2 | MPRAGE SENSE2
Sagittal 3D Accelerated MPRAGE | SAG IR-SPGR | t1_se_sag | T1 SE SAG 448 | T1 TSE TRA
t1_tse_fs_cor | t1_vibe_dixon_tra | T1 SAG 3D PRE | AX T1 PRE-CONTRAST | PRE AX T1 | T1 NATIV TRA
T1 3D NATIV | T1 axial sin gadolinio | T1 sin contraste | AX T1 sans injection
T1 avant injection | T1 senza contrasto | T1 basale | AX T1 NC | T1 W/O CM | AX T1 UNENH
T1_tfe_3D_nativ | ax t1 flair wo | AX T1 FS W/O | eTHRIVE T1 pre | T1 FSPGR 3D ISO | AX T1 non-gad
Ax T1 Pre Gd | 3D T1 TFE SAG | CS 3D T1 TFE | 3DT1_MPRAGE_CS | T1 MPRAGE STEALTH
t1_mprage_navigation | AX T1 BRAIN LAB | Brainlab T1 3D | SAG T1 MPRAGE ADNI
T1 bef contrast | T1 N/C | T1 KM- | T1 CE- | T1 Gd- | T1 -Gd | AX T1 (-) | T1 minus contrast
T1 -ve contrast | AX T1 GD FREE | contrast free T1 | T1 senza mezzo di contrasto | T1 s/gd
T1 s/ contraste | T1 ohne Gd | T1 vor KM-Gabe | T1 kein KM | T1 造影前 | 単純 T1 | T1 平扫
T1 без контраста | T1 sans IV | T1_noC
T1 bez kontrastu | T1 bez kontrastní látky | T1 před KL | T1 przed kontrastem | T1 utan kontrast
T1 före kontrast | T1 uden kontrast | T1 før kontrast | T1 uten kontrast | T1 ilman tehostetta
T1 ennen tehostetta | T1 kontrasztanyag nélkül | T1 kontrastsız | T1 kontrastfrei | IVKM öncesi T1
T1 fără contrast | T1 χωρίς σκιαγραφικό | T1 prä KM | T1 조영 전 | T1 비조영 | T1 增强前 |
T1 造影剤なし | T1 không tiêm thuốc | T1 nativně
"""
ENHANCED_T1 = """
AX T1 +C | AX T1 C+ | T1WI C+ | T1 + C | T1+C | AX T1 POST | AX T1 POST GAD | T1 GADO
AX T1 Gadavist | t1_tse_tra_mKM | T1 tra m. KM | t1_mprage_sag_nach_KM | T1 nach KM | T1 post KM
T1 + KM | T1 mit KM | AX T1 CE | T1CE | T1C | T1-CE | T1 GD | T1GD | T1-Gd | AX T1 W/CONTRAST
T1 with contrast | T1 W CONTRAST | SAG T1 MPRAGE +GD | 3D BRAVO POST | AX FSPGR +C | eT1W_SE GADO
sT1W_3D_TFE +C | T1W_3D_TFE_GD | T1post | T1 INJECTE | T1 après injection | T1 gadolinium
T1 CON CONTRASTE | T1 CON MDC | T1 C/C | T1 pós contraste | AX T1 POSTCONTRAST
AX T1 POST CONTRAST W/O FAT SAT | COR T1 FS POST | AX T1 FLAIR +C | T1 POST STEALTH
AX T1 PRE-OP +C | T1 POST OP WITH CONTRAST | t1_vibe_tra_KM | T1 (C+) | T1 C(+) | T1_SPACE_POST_GD
T1 POSTGAD | VIBE post contrast | T1 contrast-enhanced | AX T1+ | t1_mpr_sag_p2_iso_post
T1 NO FS POST | T1W_CE
AX T1 POST GD | AX T1 GD | AXIAL T1 POST-GAD | COR T1 POST GD FSPGR | 3D AXIAL IRSPGR +C
T1_AX_POST GD | T1 AX POST | AX T1 SE POST | SAG T1 POST | AX T1 FSE +C | SAG 3D FSPGR +C
Ax 3D T1 BRAVO +C | Ax T1 FLAIR +C FS | Cor T1 +C | ORIG AX T1 MEMP GD | Ax T1 MEMP +C
T1W_3D_FFE_post Gd | T1 3D TFE GADO | WIP MPRAGE_POST | MPRAGE post Gd | t1_mprage_tra_p2_iso_KM
t1_vibe_fs_tra_p4_post | t1_mprage_sag_p2_iso_KM | t1_space_sag_p2_iso_KM | T1_se_tra_nach_KM
T1 TSE tra nach KM | T1 SE COR GD | T1W_TSE_GD | sT1W_3D_TFE_GADO | T1_3D_TFE_SAG_GADO
AX T1 GADO FS | AX T1 W/GAD | T1 W GAD | AX T1 WITH GAD | T1 axial con gadolinio | T1 3D CON GADO
AX T1 avec injection | T1 gado axial | T1 apres gado | T1 dopo mdc | T1 con contrasto
T1 met contrast | AX T1 DOTAREM | T1 GADOVIST 3D | POST AX T1 | POST T1 MPRAGE
POST-CONTRAST AX T1 FSE | AX T1 C+ FS | CE T1 MPRAGE | CE-T1 | ceT1w | AX BRAVO POST GAD
Ax T1 BRAVO+C | 3D T1 GD BRAVO | AX T1 FS +GAD | Ax T1 +Gd | SAG CUBE T1 +C | Ax VIBE +C
T1 ELUCIREM | T1 vueway | T1 DTPA | T1 Primovist | T1 feraheme | T1 ferumoxytol | T1 GBCA
T1 W CON | T1 w/ con | T1 W/CON | T1 wcon | T1 double dose | AX T1 (+) | T1 KM+ | T1 CM+ | T1 Gd+
T1 CE+ | T1 con mezzo di contrasto | T1WI造影 | T1 增强 | T1 с контрастом | T1 TRA (GD)
T1 s kontrastem | T1 po KL | T1 po kontraście | T1 po podaniu kontrastu | T1 med kontrast
T1 efter kontrast | T1 etter kontrast | T1 tehoste | T1 kontrasztanyaggal | T1 kontrastlı
IVKM sonrası T1 | T1 cu contrast | T1 με σκιαγραφικό | T1 조영 후 | T1 조영증강 | T1 sau tiêm thuốc
T1 DOTA | T1 tra +K
"""
T2 = """
AX T2 | AX T2 TSE | AX T2 FSE PROPELLER | T2W_TSE | t2_tse_tra_p2 | t2_blade_tra | Ax T2 FRFSE
T2WI | sT2W_TSE | SAG T2 CUBE | t2_space_sag | T2 3D VISTA | T2W_3D | COR T2 FS
AX T2 FSE XL | T2 AXIAL FSE | AX T2 PROPELLER | t2_tse_tra_512 | T2W_TSE_CS | T2 TSE TRA 3MM
AXIAL T2 | T2 AX | AX FSE T2 | AX T2 BLADE | T2W TSE AX | Ax T2 FS | SAG T2 FSE | COR T2 TSE
T2W_TSE_tra | T2 SPACE | sag 3d t2 space | OAx T2 FRFSE | AX T2 CUBE | T2 TSE tra native
"""
FLAIR = """
AX FLAIR | AX T2 FLAIR | Sag CUBE T2 FLAIR | t2_tirm_tra_dark-fluid | t2_space_dark-fluid_sag
3D FLAIR | T2W_FLAIR | FLAIR_longTR | T2FLAIR | t2_spc_da-fl_irprep_sag | AX FLAIR FS
T2 FLAIR W/O CONTRAST | FLAIR nativ | AX FLAIR PRE | eT2W_FLAIR
AXIAL FLAIR | FLAIR AX | Ax T2 FLAIR FS | t2_space_dark-fluid_sag_p2_iso_ns-t2prep
t2_tirm_tra_dark-fluid_fs | Sag 3D CUBE FLAIR | 3D_Brain_VIEW_FLAIR_SHC | FLAIR_longTR SENSE
Ax FLAIR mVox | T2 FLAIR AXIAL | t2_flair_tra | 3D FLAIR VISTA | SAG SPACE FLAIR | T2W_FLAIR_SPIR
FLAIR 3D SAG ISO | Ax T2 FLAIR PROPELLER | t2_spc_flair_sag | Ax T2 FLAIR W/O | FLAIR BLADE tra
AX FLAIR PRE GD
eFLAIR | sFLAIR | 3D sFLAIR sag
"""
PASSED_OVER = """
T1 SAG C-SPINE | T1 C SPINE | T2 LSPINE | SAG T1 L-SPINE POST | T1 CERVICAL SPINE +C
T1 ORBITS FS POST | T1 MAPPING | T1 rho | T1rho | T1 MAP | T2 mapping | T2 MAP | MOLLI T1
SYNTHETIC T1 | MAGiC T2 | T1 RATIO | T1 SUB | T1 SUBTRACTION | T1 POST SUB | T1_mprage_MPR_cor
T1 POST REFORMAT | T1 MIP | T2* GRE | AX T2 STAR | t2_fl2d_tra_hemo | SWI | ep2d_diff_ADC
DWI B1000 | AX PERFUSION T1 DCE | localizer t1 | 3 PLANE LOC | MRA TOF | MRV T1 | SURVEY
AX FLAIR +C | AX T2 FLAIR POST | FLAIR GD | T1 PRE/POST | T1 W/WO CONTRAST | FAT12 | STEALTH
AX PD | T2 STIR | CISS T2 | T1_mp2rage_INV1 | fMRI T1 overlay | T10 SE | SCREEN SAVE
T1 Pituitary dynamic | T1 IAC +C | R2STAR | T1 MTC | phase contrast T1
3-pl T2* FGRE | 3Plane Loc SSFSE | Ax DWI 1000b | Average DC
Apparent Diffusion Coefficient (mm2/s) | eADC | AX T2* GRE | AX GRE | MPGR | SWAN | SWI_Images
Mag_Images | Pha_Images | mIP_Images(SW) | ep2d_diff_3scan_trace_p2_TRACEW | ep2d_perf
DSC PERFUSION | rCBV | RELCBF | DTI 30 DIR | T1 3D DYN | TWIST | PCASL | 3D TOF MRA
SAG T2 C-SPINE | SAG T1 T SPINE | T1 MAP MOLLI | T1 SUB POST-PRE | AX T1 SUBTRACTED | FLAIR +C
AX FLAIR POST GAD | SAG STIR | AX PD T2 | PJN | CALIBRATION | ASSET CAL | SmartBrain | Survey_SHC
Processed Images | MPR Range[1] | T1 MPR cor reformat | COR MPR T1 POST | cor T1 reformatted
MIP T1 | T2 haste localizer | 1H MRS | Phoenix Document | AX T1 IAC POST | Sella T1 COR
T1 ORBITS | FIESTA-C | SAG CISS | QSM | MT ON T1 | AX T1 PRE AND POST | T1 TRA PRE+POST
T2 TIRM | t2_tirm_tra | SAG T2 CSP | SAG T1 CERV | T1 rachis | T2 colonna | T1 columna | T1 face
T1 sinuses | T2 IAM | T2 inner ear | T1 parotid | T1 larynx | T1 TMJ | MPRAGE setter | T1 vNav
T2 decay | T2 multi echo | T2 dual-echo
T1 soustraction | T1 sottrazione | T1 substracción | T1 resta | carte T1 | T1 mapa
"""


def listed(table: str) -> list[str]:
    return [text.strip() for text in table.replace("\n", "|").split("|") if text.strip()]


TABLE = [
    (description, contrast)
    for contrast, table in (
        ("t1", NATIVE_T1),
        ("t1ce", ENHANCED_T1),
        ("t2", T2),
        ("flair", FLAIR),
        (None, PASSED_OVER),
    )
    for description in listed(table)
]


@pytest.mark.parametrize(("description", "contrast"), TABLE)
def test_what_a_description_means(description, contrast):
    assert contrast_of_series(description) == contrast
    assert contrast_of_series(description.lower().replace(" ", "_")) == contrast


def test_the_table_is_large():
    """Descriptions that differ in more than case, spaces and lines."""
    distinct = {" ".join(text.lower().replace("_", " ").split()) for text, _ in TABLE}
    assert len(distinct) == len(TABLE) >= 400


@pytest.mark.parametrize(
    "agent",
    ["Gadavist", "MAGNEVIST 10 ml", "gd-dtpa", "7.5ml", "KM", "Yes"]
    + ["Y", "given", "GBCA", "0.1 mmol/kg", "Elucirem", "15 ml Dotarem"],
)
def test_an_agent_that_is_known_enhances_a_t1_that_says_nothing(agent):
    assert read_series("AX T1", agent) == ("t1ce", "")
    assert read_series("AX T1 +C", agent) == ("t1ce", "")
    assert read_series("AX T2 FLAIR", agent) == ("flair", "")  # it stands in every header


@pytest.mark.parametrize(
    "agent",
    ["", " ", "NONE", "no", "No", "N/A", "n.a.", "NA", "0", "0 ml", "0.0", "none given", "-"]
    + ["without", "w/o contrast", "No contrast", "NON CONTRAST", "unknown", "null", "not used"]
    + ["kein KM", "pre contrast", "aucun", "none administered", "nativ", "N", "off", "?"],
)
def test_a_tag_that_names_no_agent_enhances_nothing(agent):
    assert read_series("AX T1", agent) == ("t1", "")
    assert read_series("AX T1 W/O", agent) == ("t1", "")


@pytest.mark.parametrize(
    ("description", "agent", "contrast", "why"),
    [
        ("AX T1 PRE", "Gadavist", "t1", "they disagree"),
        ("T1 C-", "Magnevist", "t1", "they disagree"),
        ("AX T1 +C", "NONE", "t1ce", "they disagree"),
        ("AX T1 POST", "0", "t1ce", "they disagree"),
        ("AX T1", "see protocol", "t1", "not known"),
        ("T1 PRE/POST", "", None, "at once"),
        ("T1 강화", "", "t1", "words that are not known"),
        (
            "T1 be kontrasto",
            "",
            None,
            "a word before the agent is not known",
        ),  # Lithuanian: without
    ],
)
def test_what_does_not_fit_together_is_shown(description, agent, contrast, why):
    series = read_series(description, agent)
    assert series.contrast == contrast
    assert f"'{description}'" in series.doubt and f"'{agent}'" in series.doubt
    assert why in series.doubt


def test_a_word_that_may_mean_without_is_decided_by_the_tag():
    assert read_series("T1 sine contrast", "Gadovist") == ("t1ce", "")
    assert read_series("T1 sine contrast", "none") == ("t1", "")
