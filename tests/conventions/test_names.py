"""Names of files in public data sets: which is which contrast, and which is none."""

import pytest

from ldm.data.layouts import detect_layout
from ldm.study import KNOWN

FOUR = ("t1", "t1ce", "t2", "flair")


def found(root, *names: str) -> dict[str, dict[str, str]]:
    """Return subject -> contrast -> file name, of empty files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    subjects = detect_layout(root)[1]
    return {i: {c: f.path.name for c, f in s.files.items()} for i, s in subjects.items()}


def scheme(root) -> str:
    (subject,) = detect_layout(root)[1].values()
    return str(subject.scheme)


@pytest.mark.parametrize(
    ("start", "endings"),
    [
        ("P/P_", ("t1.NII.GZ", "T1CE.nii.gz", "T2.nii", "FLAIR.NII", "SEG.nii.gz")),
        ("P/P_", ("T1.nii.gz", "T1ce.nii.gz", "T2.nii.gz", "Flair.nii.gz", "Seg.nii.gz")),
        ("P/P_", ("T1pre.nii.gz", "T1post.nii.gz", "T2.nii.gz", "FLAIR.nii.gz", "seg.nii.gz")),
        ("P/P_", ("T1w.nii.gz", "T1Gd.nii.gz", "T2w.nii.gz", "T2_FLAIR.nii.gz", "label.nii.gz")),
        ("P/P_", ("t1n.nii.gz", "t1c.nii.gz", "t2w.nii.gz", "t2f.nii.gz", "tumorseg.nii.gz")),
        ("P/P_", ("t1.nii.gz", "T1_post.nii.gz", "t2.nii.gz", "fla.nii.gz", "truth.nii.gz")),
        ("P/P_", ("t1_pre.nii.gz", "t1_post.nii.gz", "t2.nii.gz", "t2_flair.nii.gz", "gt.nii.gz")),
        ("P/P_", ("T1.nii.gz", "T1+C.nii.gz", "T2.nii.gz", "FLAIR.nii.gz", "tumor.nii.gz")),
        ("P/P_", ("t1.nii.gz", "t1_km.nii.gz", "t2.nii.gz", "flair.nii.gz", "seg_manual.nii.gz")),
        ("P/P_", ("T1.nii.gz", "T1_contrast.nii.gz", "T2.nii.gz", "FLAIR.nii.gz", "ROI.nii.gz")),
        ("P/P-", ("t1n.nii.gz", "t1c.nii.gz", "t2w.nii.gz", "t2f.nii.gz", "seg.nii.gz")),
        ("P/P-", ("T1N.NII.GZ", "T1C.NII.GZ", "T2W.NII.GZ", "T2F.NII.GZ", "SEG.NII.GZ")),
        ("P/P-", ("T1.nii.gz", "T1-Gd.nii.gz", "T2.nii.gz", "FLAIR.nii.gz", "segm.nii.gz")),
        ("P/P ", ("T1.nii.gz", "T1 KM.nii.gz", "T2.nii.gz", "T2 FLAIR.nii.gz", "Seg.nii.gz")),
        ("P/P.", ("t1.nii.gz", "t1ce.nii.gz", "t2.nii.gz", "flair.nii.gz", "seg.nii.gz")),
        ("P/P_", ("T1W.nii.gz", "T1WKS.nii.gz", "T2W.nii.gz", "FLAIR.nii.gz", "consensus_gt.nii")),
        ("P/", ("T1.nii.gz", "T1Gd.nii.gz", "T2.nii.gz", "FLAIR.nii.gz", "segmentation.nii.gz")),
        ("P/", ("t1.NII.GZ", "CE.nii.gz", "t2.nii", "Flair.nii.gz", "mask.nii.gz")),
        ("P/", ("T1.nii.gz", "CT1.nii.gz", "T2.nii.gz", "FLAIR.nii.gz", "tumor_mask.nii.gz")),
    ],
)
def test_words_of_the_field_in_any_case(tmp_path, start, endings):
    names = [start + ending for ending in endings]
    files = [name.rpartition("/")[2] for name in names]
    assert found(tmp_path, *names) == {"P": dict(zip((*FOUR, "seg"), files, strict=True))}


@pytest.mark.parametrize("start", ["P/P_", "P/P ", "P/"])
@pytest.mark.parametrize(
    ("native", "enhanced"),
    [
        *(("T1_oKM", "T1_mKM"), ("T1 ohne KM", "T1 mit KM"), ("T1_nativ", "T1_Kontrast")),
        *(("T1_without_Gd", "T1_Gd"), ("T1_no_contrast", "T1_with_contrast"), ("T1_C-", "T1_C+")),
        *(("t1_pre_gd", "t1_post_gd"), ("T1_sans_gado", "T1_gado")),
    ],
)
def test_what_a_name_says_of_an_agent_in_words(tmp_path, start, native, enhanced):
    names = [f"{start}{name}.nii.gz" for name in (native, enhanced, "T2", "FLAIR")]
    expected = [name.rpartition("/")[2] for name in names]
    assert found(tmp_path, *names) == {"P": dict(zip(FOUR, expected, strict=True))}


@pytest.mark.parametrize("name", ["T1_postop", "T1_post_op", "T1_dose", "T1_z", "T1_contrast_mask"])
def test_other_words_after_t1_are_no_agent(tmp_path, name):
    assert found(tmp_path, f"P/P_{name}.nii.gz", "P/P_T2.nii.gz") == {"P": {"t2": "P_T2.nii.gz"}}


@pytest.mark.parametrize("start", ["P/P_", "P/"])
@pytest.mark.parametrize(
    "done",
    ["_to_t1", "_in_T1", "toT1", "2t1", "_reg", "_reg_to_MNI152", "_r2s_bet_reg", "_stripped"],
)
def test_a_processed_image_is_of_its_own_contrast_and_not_of_its_grid(tmp_path, start, done):
    """Where the folder has the same image without such words, that is read."""
    names = ["t1", *(f"{c}{done}" for c in FOUR[1:])]
    expected = {
        c: f"{start}{n}.nii.gz".rpartition("/")[2] for c, n in zip(FOUR, names, strict=True)
    }
    assert found(tmp_path, *(f"{start}{n}.nii.gz" for n in names)) == {"P": expected}
    plain = expected["t2"].replace(done, "")
    assert found(tmp_path, f"P/{plain}") == {"P": {**expected, "t2": plain}}


@pytest.mark.parametrize("subject", ["Brats18_2013_2", "site_to", "left_in", "P_reg"])
def test_an_id_may_end_in_such_words(tmp_path, subject):
    names = [f"{subject}_{c}.nii.gz" for c in FOUR]
    assert found(tmp_path, *names) == {subject: dict(zip(FOUR, names, strict=True))}


@pytest.mark.parametrize("name", ["T1 C-", "T1_C-", "T1 -C", "T1 - C", "T1 Gd-", "KM- T1"])
def test_a_minus_separates_no_words(name):
    """Such a folder of a DICOM series is read by its description."""
    assert KNOWN.named(name) is None
    assert KNOWN.named("T1-Gd") == KNOWN.named("t1_c") == KNOWN.named("T1 C+") == "t1ce"


@pytest.mark.parametrize("kind", ["GLI", "MET", "SSA", "PED", "MEN", "GoAT"])
def test_every_challenge_since_2023(tmp_path, kind):
    i = f"BraTS-{kind}-00004-000"
    files = found(tmp_path, *(f"{i}/{i}-{c}.nii.gz" for c in ("t1n", "t1c", "t2w", "t2f", "seg")))
    assert set(files) == {i} and set(files[i]) == {*FOUR, "seg"}
    assert scheme(tmp_path).startswith("not known" if kind == "PED" else "necrosis 1, oedema 2")


def test_t1_flair_is_no_flair(tmp_path):
    """Of a time point P_T1 it is, as in MSLesSeg."""
    files = found(tmp_path, *(f"P/P_{c}.nii.gz" for c in ("T1_FLAIR", "T1", "T2", "T2_FLAIR")))
    assert files == {"P": {"t1": "P_T1.nii.gz", "t2": "P_T2.nii.gz", "flair": "P_T2_FLAIR.nii.gz"}}
    point = found(tmp_path / "point", *(f"Q_T1_{c}.nii.gz" for c in ("T1", "T2", "FLAIR")))
    assert {i: set(own) for i, own in point.items()} == {"Q_T1": {"t1", "t2", "flair"}}
    assert set(found(tmp_path / "one", "Q_T1_FLAIR.nii.gz")) == {"Q_T1"}


@pytest.mark.parametrize("place", ["", "train/{p}/{v}/", "{p}/"])
@pytest.mark.parametrize("contrasts", [("T1", "T2", "FLAIR"), ("FLAIR",)])
def test_time_points_that_are_called_as_contrasts(tmp_path, contrasts, place, caplog):
    """MSLesSeg: P1/T2/P1_T2_FLAIR is the FLAIR of time point 2, no T2-FLAIR of P1."""
    points = [(p, v) for p in ("P1", "P2") for v in ("T1", "T2", "T3")]
    names = (f"{place.format(p=p, v=v)}{p}_{v}_{c}" for p, v in points for c in contrasts)
    files = found(tmp_path, *(f"{name}.nii.gz" for name in names))
    assert files == {
        f"{p}_{v}": {c.lower(): f"{p}_{v}_{c}.nii.gz" for c in contrasts} for p, v in points
    }
    assert not caplog.records


def test_a_mask_of_mslesseg_is_named(tmp_path, caplog):
    """It does not say of what; T1 is a time point, and its folder not that of one contrast."""
    found(tmp_path, *(f"P1/T1/P1_T1_{c}.nii.gz" for c in ("T1", "T2", "FLAIR", "MASK")))
    assert "P1/T1/P1_T1_MASK.nii.gz may be of tumour, brain or tissue" in caplog.text


def test_meningioma_before_radiotherapy_has_one_image_and_one_target(tmp_path):
    i = "BraTS-MEN-RT-0002-1"
    files = found(tmp_path, f"{i}/{i}_t1c.nii.gz", f"{i}/{i}_gtv.nii.gz")
    assert files == {i: {"t1ce": f"{i}_t1c.nii.gz", "seg": f"{i}_gtv.nii.gz"}}
    assert scheme(tmp_path) == "lesion 1"


def test_maps_and_masks_of_anatomy_are_no_contrasts(tmp_path):
    names = ("T1", "T1_bias", "ADC", "SWI", "DTI_eddy_FA", "T1_unstripped", "rCBV", "T2Synth")
    names += ("brain_parenchyma_segmentation", "subtraction", "brain_mask")
    files = found(tmp_path, *(f"P/P_{name}.nii.gz" for name in names))
    assert files == {"P": {"t1": "P_T1.nii.gz", "brain": "P_brain_mask.nii.gz"}}


def test_the_name_of_the_challenge_goes_before_another_word(tmp_path):
    """A raw image beside the prepared one is no second T1."""
    files = found(tmp_path, "P/P_t1.nii.gz", "P/P_T1w.nii.gz", "P/P_t2.nii.gz", "P/P_T2W.nii.gz")
    assert files == {"P": {"t1": "P_t1.nii.gz", "t2": "P_t2.nii.gz"}}


def test_labels_in_a_folder_of_their_own(tmp_path):
    files = found(tmp_path, "a/P_T1.nii.gz", "a/Q_T1.nii.gz", "b/P_segm.nii.gz", "b/Q_segm.nii.gz")
    assert {i: set(own) for i, own in files.items()} == dict.fromkeys("PQ", {"t1", "seg"})


def test_one_label_map_of_another_name_is_that_of_its_folder(tmp_path):
    """Not where the folder has labels of its own, or two such maps."""
    start = [f"P{n}/P{n}_t1.nii.gz" for n in (1, 2, 3)]
    odd = ["P1/W39_Segm.nii", "P2/P2_seg.nii.gz", "P2/W40_Segm.nii"]
    files = found(tmp_path, *start, *odd, "P3/W41_Segm.nii", "P3/W42_Segm.nii")
    assert {i: own.get("seg") for i, own in files.items()} == {
        "P1": "W39_Segm.nii",
        "P2": "P2_seg.nii.gz",
        "P3": None,
    }


def test_time_points_of_one_name_are_told_apart_by_their_patient(tmp_path):
    places = ("Patient-001/week-000-1", "Patient-001/week-044", "Patient-002/week-044")
    names = [f"{place}/{c}.nii.gz" for place in places for c in ("CT1", "T1", "T2", "FLAIR")]
    assert set(found(tmp_path, *names)) == {place.replace("/", "_") for place in places}


def test_folders_of_one_name_are_told_apart_by_the_folder_above(tmp_path):
    names = [f"{place}/t1.nii.gz" for place in ("site A/p1", "site B/p1", "site B/p2")]
    assert set(found(tmp_path, *names)) == {"site A_p1", "site B_p1", "site B_p2"}


def test_visits_of_a_patient_are_called_alike(tmp_path):
    """Whatever other patients have: a number says nothing without the folder above."""
    visits = ("PatA/1", "PatA/2", "PatB/1", "PatC/1")
    assert set(found(tmp_path, *(f"{visit}/t1.nii.gz" for visit in visits))) == {
        *("PatA_1", "PatA_2", "PatB_1", "PatC_1")
    }


@pytest.mark.parametrize("name", ["seg", "tumor", "segmentation", "GT", "labels"])
def test_a_mask_beside_labels_is_no_label_map(tmp_path, name):
    files = found(tmp_path, *(f"P/{stem}.nii.gz" for stem in (*FOUR, "mask", name)))
    assert files["P"]["seg"] == f"{name}.nii.gz"
    alone = found(tmp_path / "alone", *(f"P/{stem}.nii.gz" for stem in (*FOUR, "mask")))
    assert alone["P"]["seg"] == "mask.nii.gz"


def test_labels_of_a_longer_id_are_of_nobody(tmp_path, caplog):
    """Of whom, is not for us to guess: there may be labels of the patient beside them."""
    files = found(tmp_path, *(f"P/P_{c}.nii.gz" for c in FOUR), "P/P_final_seg.nii.gz")
    assert files == {"P": {c: f"P_{c}.nii.gz" for c in FOUR}}
    assert "P_final_seg.nii.gz is passed over: no image of this id, but of P" in caplog.text
    only = found(tmp_path / "labels", "P_seg.nii.gz", "P_final_seg.nii.gz")
    assert set(only) == {"P", "P_final"}


def test_each_contrast_may_have_a_folder_of_its_own(tmp_path):
    names = {"t1": "T1", "t1ce": "T1Gd", "t2": "T2", "flair": "FLAIR", "seg": "labels"}
    paths = [f"{name}/{i}_{name}.nii.gz" for name in names.values() for i in ("P1", "P2")]
    files = found(tmp_path, *paths)
    assert files == {i: {c: f"{i}_{n}.nii.gz" for c, n in names.items()} for i in ("P1", "P2")}


def test_a_stripped_image_is_no_mask_of_the_brain(tmp_path):
    """FSL and others write ID_t1_brain; of time points P_t1, that is the mask beside P_t1_t1."""
    names = [f"P/P_{c}_brain.nii.gz" for c in FOUR]
    files = found(tmp_path, *names, "P/P_seg.nii.gz")
    assert files == {"P": {**{c: f"P_{c}_brain.nii.gz" for c in FOUR}, "seg": "P_seg.nii.gz"}}
    found(tmp_path, "P/P_t1.nii.gz")
    assert found(tmp_path)["P"]["t1"] == "P_t1.nii.gz"
    points = [f"{p}/{p}_{c}.nii.gz" for p in ("Q_t1", "Q_t2") for c in ("t1", "brain")]
    files = found(tmp_path / "points", *points)
    assert {i: set(own) for i, own in files.items()} == {
        "Q_t1": {"t1", "brain"},
        "Q_t2": {"t1", "brain"},
    }


def test_a_mask_of_the_brain_alone_is_no_subject(tmp_path):
    """LUMIERE: programs leave theirs in folders of their own."""
    visit = "Patient-001/week-044"
    names = [f"{visit}/{c}.nii.gz" for c in ("CT1", "T1", "T2", "FLAIR")]
    names += [f"{visit}/DeepBraTumIA-segmentation/atlas/skull_strip/brain_mask.nii.gz"]
    assert set(found(tmp_path, *names)) == {"Patient-001_week-044"}


def test_bids_is_read_as_bids(tmp_path):
    start = "sub-01/anat/sub-01_"
    names = ("T1w", "ce-gad_T1w", "T2w", "FLAIR")
    found(tmp_path, *(f"{start}{name}.nii.gz" for name in names))
    layout, subjects = detect_layout(tmp_path)
    assert layout.name == "BIDS" and set(subjects["sub-01"].files) == set(FOUR)


@pytest.mark.parametrize(
    ("year", "labels"),
    [("VSD.Brain.XX.O", "VSD.Brain_3more.XX.O"), ("VSD.Brain.XX.X.X", "VSD.Brain_2more.XX.XX")],
)
@pytest.mark.parametrize("below", ["{0}/{0}.mha", "{0}.mha", "{0}.mhd"])
def test_names_of_the_virtual_skeleton_database(tmp_path, year, labels, below):
    """BraTS 2013 to 2016: high and low grades number their patients anew."""
    said = {"t1": "MR_T1", "t1ce": "MR_T1c", "t2": "MR_T2", "flair": "MR_Flair"}
    names = {c: f"{year}.{text}.{n}" for n, (c, text) in enumerate(said.items(), 700)}
    names["seg"] = f"{labels}.OT.6560"
    paths = [below.format(name) for name in names.values()]
    files = found(tmp_path, *(f"{grade}/0001/{path}" for grade in ("HG", "LG") for path in paths))
    read = {c: path.rpartition("/")[2] for c, path in zip(names, paths, strict=True)}
    assert files == {"HG_0001": read, "LG_0001": read}
    assert "nonenhancing 3, enhancing 4" in {str(s.scheme) for s in subjects(tmp_path)}.pop()


def test_maps_in_names_of_that_database_are_passed_over(tmp_path):
    folder = "LGG/brats_2013_pat0001_1"
    names = [f"{folder}/VSD.Brain.XX.O.MR_{c}.1.mha" for c in ("T1", "T2", "ADC", "T1rho")]
    assert {i: set(own) for i, own in found(tmp_path, *names).items()} == {
        "brats_2013_pat0001_1": {"t1", "t2"}
    }


def subjects(root):
    return detect_layout(root)[1].values()
