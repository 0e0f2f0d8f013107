"""Words on an agent, or on a state of the images, in folders and ids: whose contrast is which."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.data.layouts import detect_layout
from ldm.data.patients import patient_of
from ldm.errors import DataError
from ldm.storage import write_json

GIVEN = """post_contrast | postcontrast | post-contrast | with_contrast | withContrast | contrast
Gd | gado | Gadovist | gadolinium | post_gd | postGd | KM | mKM | mit_KM | nach_KM | inj | injecte
CE | C+ | +C | enhanced | con_mdc | avec_gado | po_kontrastu | mit_Kontrast | 造影後"""
DENIED = """pre_contrast | precontrast | without_contrast | no_contrast | noncontrast | non-contrast
nativ | native | oKM | ohne_KM | vor_KM | sans_inj | sans_gado | C- | unenhanced | plain | noCE
senza_mdc | bez_kontrastu | 平扫 | pre | Pre"""
TIMES = [("pre", "post"), ("Pre", "Post"), ("before", "after"), ("vor", "nach"), ("avant", "après")]
NO_WORDS = """postop | preop | post_op | postRT | post1 | postproc2 | A | Gdansk | Gdynia | KM7
cedric | week1 | contrastive_study | visit_post | kmh | center | ceremony | injury_7x"""


def listed(text):
    return [part.strip() for part in text.replace("\n", "|").split("|")]


given_words, denied_words = st.sampled_from(listed(GIVEN)), st.sampled_from(listed(DENIED))
ids = st.from_regex(r"[A-Z][a-z]{3,6}[_-]?[0-9]{2,4}", fullmatch=True)
FORMS = {  # where the agent is named; {i} is the id, {n} and {e} the words without and with it
    "folders": ("{i}/{n}/T1", "{i}/{e}/T1", "{i}/T2", "{i}/FLAIR"),
    "one folder": ("{i}/T1", "{i}/{e}/T1", "{i}/T2", "{i}/FLAIR"),
    "all in a folder": ("{i}/{n}/T1", "{i}/{e}/T1", "{i}/{n}/T2", "{i}/{n}/FLAIR"),
    "named by id": ("{i}/{n}/{i}_T1", "{i}/{e}/{i}_T1", "{i}/{i}_T2", "{i}/{i}_FLAIR"),
    "above": ("{n}/{i}/T1", "{e}/{i}/T1", "{n}/{i}/T2", "{n}/{i}/FLAIR"),
    "above, by id": ("{n}/{i}_t1", "{e}/{i}_t1", "{n}/{i}_t2", "{n}/{i}_flair"),
    "in front": ("{i}/T1", "{i}/{e}_T1", "{i}/T2", "{i}/FLAIR"),
    "in front, both": ("{i}/{n}_T1", "{i}/{e}_T1", "{i}/T2", "{i}/FLAIR"),
    "in front, by id": ("{i}/{i}_T1", "{i}/{i}_{e}_T1", "{i}/{i}_T2", "{i}/{i}_FLAIR"),
    "in front, by id, lower case": ("{i}_t1", "{i}_{e}_t1", "{i}_t2", "{i}_flair"),
    "in front, by id, both": ("{i}_{n}_T1", "{i}_{e}_T1", "{i}_T2", "{i}_FLAIR"),
    "folders of ids": ("{i}/T1", "{i}_{e}/T1", "{i}/T2", "{i}/FLAIR"),
    "series folders above": ("T1/{i}/T1", "T1_{e}/{i}/T1", "T2/{i}/T2", "FLAIR/{i}/FLAIR"),
    "series folders": ("{i}/T1/T1", "{i}/T1_{e}/T1", "{i}/T2/T2", "{i}/FLAIR/FLAIR"),
}


def read(*names: str, remarks=None) -> dict[str, dict[str, str]]:
    """Return patient -> contrast -> file of empty files; a refused one is None."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "patients"
        for name in names:
            path = root / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        layout, subjects = detect_layout(root)
        if remarks is not None:
            remarks += layout.remarks
        return {
            i: {
                c: _name(f.path.relative_to(root)) if type(f).__name__ == "VolumeFile" else None
                for c, f in s.files.items()
            }
            for i, s in subjects.items()
        }


def _name(path):
    return str(path)[: -len(".nii.gz")]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=12, deadline=None)
@given(st.lists(ids, min_size=2, max_size=3, unique_by=str.lower), denied_words, given_words)
def test_t1_after_an_agent_is_t1ce_wherever_it_says_so(form, patients, native, enhanced):
    files = {i: [name.format(i=i, n=native, e=enhanced) for name in FORMS[form]] for i in patients}
    expected = {
        i: dict(zip(("t1", "t1ce", "t2", "flair"), names, strict=True))
        for i, names in files.items()
    }
    assert read(*sum(files.values(), [])) == expected


@pytest.mark.parametrize("form", [f for f in FORMS if "series" not in f])
@pytest.mark.parametrize(("before", "after"), TIMES[:2])
def test_post_is_after_an_agent_where_nothing_else_was_imaged_then(form, before, after):
    """And that it was taken so is said, because it may be an operation."""
    files = [name.format(i="P1", n=before, e=after) for name in FORMS[form]]
    remarks: list[str] = []
    found = read(*files, remarks=remarks)
    assert found == {"P1": dict(zip(("t1", "t1ce", "t2", "flair"), files, strict=True))}
    if "front" not in form or "id" in form:
        (line,) = remarks
        assert line.startswith(f"{files[1]}.nii.gz is read as t1ce")


@pytest.mark.parametrize(("before", "after"), TIMES[:2])
@pytest.mark.parametrize("start", ["P1/{}/", "P1/{}/P1_", "{}/P1/", "P1_{}/"])
def test_pre_and_post_with_images_of_their_own_are_visits(start, before, after):
    """Of which a T1 after may be either: it is pointed out, unless there is T1ce beside it."""
    images, remarks = ("T1", "T2", "FLAIR"), []
    found = read(*(start.format(w) + c for w in (before, after) for c in images), remarks=remarks)
    assert all("t1ce" not in files for files in found.values())
    assert f"{start.format(after)}T1.nii.gz is read as t1, before an agent" in remarks[0]
    complete, remarks = (*images, "T1ce"), []
    names = [start.format(w) + c for w in (before, after) for c in complete]
    assert not {None} & {*read(*names, remarks=remarks)} and not remarks


@pytest.mark.parametrize("word", listed(NO_WORDS))
@pytest.mark.parametrize("form", [f for f in FORMS if "series" not in f and "above" not in f])
def test_a_word_that_only_looks_so_makes_no_t1ce(word, form):
    found = read(*(name.format(i="P01", n="x7", e=word) for name in FORMS[form]))
    assert not any("t1ce" in files for files in found.values())


@pytest.mark.parametrize("word", ["gd", "KM", "post", "postop", "with_contrast", "pre", "raw"])
@pytest.mark.parametrize(
    "form", ["{w}/", "{w}/{w}_", "{w}_", "{w}_1/", "{w}_1/{w}_1_", "{w}_1_", "{w}/P7/", "{w}/P7_"]
)
@pytest.mark.parametrize("images", [("T1", "T2", "FLAIR"), ("T1", "T1Gd", "T2", "FLAIR")])
def test_an_id_or_a_hospital_of_such_a_name_is_as_any_other(word, form, images):
    names = [form.format(w=word) + c for c in images]
    others = [name.replace(word, "Bern").replace("P7", "P8") for name in names]
    found = read(*names, *others)
    assert len(found) == 2
    contrasts = {"T1": "t1", "T1Gd": "t1ce", "T2": "t2", "FLAIR": "flair"}
    assert sorted(tuple(files.items()) for files in found.values()) == sorted(
        tuple((contrasts[c], start) for c, start in zip(images, own, strict=True))
        for own in (names, others)
    )


def test_all_files_in_a_folder_of_all_patients_are_no_t1ce_but_it_is_said():
    remarks: list[str] = []
    names = [f"with_contrast/{p}/{p}_{c}" for p in ("P1", "P2") for c in ("T1", "T2", "FLAIR")]
    assert {i: set(own) for i, own in read(*names, remarks=remarks).items()} == {
        "P1": {"t1", "t2", "flair"},
        "P2": {"t1", "t2", "flair"},
    }
    (line,) = remarks
    assert line.startswith("with_contrast/P1/P1_T1.nii.gz (and 1 more) is read as t1")
    assert "in a CSV (columns id,t1,t1ce" in line


def test_flair_after_an_agent_is_no_flair():
    names = ("T1", "T2", "FLAIR", "KM/T1", "KM/T2", "KM/FLAIR")
    remarks: list[str] = []
    found = read(*(f"P1/{name}" for name in names), remarks=remarks)
    expected = {"t1": "P1/T1", "t1ce": "P1/KM/T1", "t2": "P1/T2", "flair": "P1/FLAIR"}
    assert found == {"P1": expected}
    assert [line.partition(" ")[0] for line in remarks] == [
        "P1/KM/FLAIR.nii.gz",
        "P1/KM/T2.nii.gz",
    ]


def test_a_t1_of_later_is_a_visit_where_the_patient_has_both():
    names = [f"P1/{c}" for c in ("T1", "T1ce", "T2", "FLAIR")]
    found = read(*names, "P1/post/T1")
    assert found["P1"] == dict(zip(("t1", "t1ce", "t2", "flair"), names, strict=True))
    assert {patient_of(i) for i in found} == {"P1"} and found["P1_post"] == {"t1": "P1/post/T1"}


def test_two_t1_before_an_agent_are_ambiguous():
    found = read("P1/T1", "P1/pre/T1", "P1/post/T1", "P1/T2")
    assert found == {"P1": {"t1": None, "t1ce": "P1/post/T1", "t2": "P1/T2"}}


def test_time_points_called_t1_and_t2_stay_apart():
    """As in MSLesSeg."""
    names = [f"P1/{point}/{c}" for point in ("T1", "T2") for c in ("T1", "T2", "FLAIR")]
    assert set(read(*names)) == {"P1_T1", "P1_T2"}
    assert {patient_of(i) for i in ("P1_T1", "P1_T2")} == {"P1"}


@pytest.mark.parametrize("start", ["P1/", "P1/P1_", "T1/P1_"])
@pytest.mark.parametrize(
    ("name", "agent", "contrast"),
    [
        *(("T1", "Gadovist", "t1ce"), ("T1", "none", "t1"), ("T1", None, "t1")),
        *(("T1_oKM", "Gadovist", "t1"), ("pre_T1", "Gadovist", "t1")),
    ],
)
def test_a_json_that_names_an_agent_counts_where_the_name_is_silent(
    tmp_path, start, name, agent, contrast
):
    path = tmp_path / f"{start}{name}.nii.gz"
    path.parent.mkdir(parents=True)
    path.touch()
    write_json(
        path.with_name(f"{path.name.removesuffix('.nii.gz')}.json"), {"ContrastBolusAgent": agent}
    )
    layout, subjects = detect_layout(tmp_path)
    (subject,) = subjects.values()
    assert set(subject.files) == {contrast}
    assert [*layout.remarks] == [
        f"{start}{name}.nii.gz is read as t1ce: its JSON names an agent"
    ] * (contrast == "t1ce")


def test_the_json_does_not_count_where_there_is_t1ce(tmp_path):
    """The agent often stands beside each file of an examination."""
    for name in ("T1", "T1ce", "T2"):
        (tmp_path / f"P1_{name}.nii.gz").touch()
        write_json(tmp_path / f"P1_{name}.json", {"ContrastBolusAgent": "Gadovist"})
    (subject,) = detect_layout(tmp_path)[1].values()
    assert subject.files["t1"].path.name == "P1_T1.nii.gz" and len(subject.files) == 3


@pytest.mark.parametrize(("word", "is_told"), [("post", 1), ("KM", 1), ("pre", 0), ("postop", 0)])
def test_a_series_of_dicom_in_a_folder_that_says_after_an_agent_is_pointed_out(
    tmp_path, word, is_told
):
    for name in (f"P1/{word}/T1", "P2/first/T1", f"P2/{word}/T1", f"P2/{word}/T1ce"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.dcm").touch()
    layout, _ = detect_layout(tmp_path)
    assert layout.name == "DICOM"
    told = f"P1/{word}/T1 is read as t1, before an agent, but '{word}' may say that it is after one"
    assert [line.partition(":")[0] for line in layout.remarks] == [told] * is_told


# --- states of the images -------------------------------------------------------------------------

STATES = ["raw", "preproc", "preprocessed", "processed", "n4", "bet", "skull_stripped", "MNI152"]
STATE_FORMS = ["{i}/{s}/", "{i}/{s}/{i}_", "{s}/{i}/", "{s}/{i}_", "{i}_{s}_", "{i}_{s}/"]


@pytest.mark.parametrize("form", STATE_FORMS)
@settings(max_examples=8, deadline=None)
@given(
    st.lists(ids, min_size=1, max_size=3, unique_by=str.lower),
    st.lists(st.sampled_from(STATES), min_size=2, max_size=3, unique=True),
)
def test_states_of_one_patient_are_never_two_patients(form, patients, states):
    """Which is meant is not for us to guess: each contrast is refused."""
    names = [form.format(i=i, s=s) + c for i in patients for s in states for c in ("T1", "T2")]
    assert read(*names) == {i: {"t1": None, "t2": None} for i in patients}


@pytest.mark.parametrize("form", STATE_FORMS)
def test_images_without_a_state_go_first_and_it_is_said(form):
    bare = form.replace("_{s}", "").replace("{s}/", "")
    images = ("T1", "T1ce", "T2", "FLAIR")
    names = [start.format(i="P1", s="preproc") + c for start in (bare, form) for c in images]
    remarks: list[str] = []
    found = read(*names, remarks=remarks)
    assert list(found["P1"].values()) == names[:4] and len(found) == 1
    (line,) = remarks
    assert "(and 3 more) is passed over" in line


def test_a_processed_image_beside_others_is_read_and_it_is_said():
    remarks: list[str] = []
    found = read("P1/T1", "P1/T2", "P1/reg/T1ce", remarks=remarks)
    assert found == {"P1": {"t1": "P1/T1", "t1ce": "P1/reg/T1ce", "t2": "P1/T2"}}
    (line,) = remarks
    assert line.startswith("P1/reg/T1ce.nii.gz is read beside images without such a folder")


def test_two_states_are_named_by_their_folders(tmp_path):
    for state in ("raw", "preproc"):
        (tmp_path / "P1" / state).mkdir(parents=True)
        (tmp_path / "P1" / state / "T1.nii.gz").touch()
    (subject,) = detect_layout(tmp_path)[1].values()
    with pytest.raises(DataError, match=r"P1/preproc/T1.nii.gz and .*P1/raw/T1.nii.gz are both t1"):
        subject.files["t1"].read("P1")
