"""A folder a contrast, names of SPM, visits behind the contrast, and the way out by a CSV."""

import re

import pytest
from builders import write_subject
from hypothesis import given, settings
from hypothesis import strategies as st
from test_context import ids, read

from ldm.cli.main import main
from ldm.data.layouts import detect_layout
from ldm.data.patients import patient_of
from ldm.errors import DataError

FOUR = ("t1", "t1ce", "t2", "flair")
FOLDERS = [
    ("T1", "T1ce", "T2", "FLAIR"),
    ("t1", "t1_gd", "t2", "flair"),
    ("T1_pre", "T1_post", "T2w", "T2_FLAIR"),
    ("T1_oKM", "KM_T1", "T2", "flair"),
]


@settings(max_examples=20, deadline=None)
@given(st.lists(ids, min_size=1, max_size=4, unique_by=str.lower), st.sampled_from(FOLDERS))
def test_files_of_one_name_in_folders_of_contrasts_are_of_the_patient_so_called(patients, folders):
    found = read(*(f"{folder}/{i}" for folder in (*folders, "seg") for i in patients))
    assert found == {
        i: {c: f"{folder}/{i}" for c, folder in zip((*FOUR, "seg"), (*folders, "seg"), strict=True)}
        for i in patients
    }


def test_the_folder_of_the_patient_may_lie_above():
    names = [f"{i}/{folder}/image" for i in ("P1", "P2") for folder in FOLDERS[0]]
    assert {i: set(own) for i, own in read(*names).items()} == {"P1": {*FOUR}, "P2": {*FOUR}}
    sites = [f"{site}/{folder}/P1" for site in ("A1", "B1") for folder in FOLDERS[0]]
    assert set(read(*sites)) == {"A1", "B1"}


@pytest.mark.parametrize(
    "names",
    [
        [f"{c}/{n}{c}" for n, c in enumerate(FOLDERS[0])],  # may be of four patients
        ["P1/T1/image", "P1/T2/image", "P2/T1/image", "P2/T2/image"],  # or time points
        ["T1/P1", "T1/P2", "FLAIR/P3"],
    ],
)
def test_files_that_may_be_of_others_are_not_put_together(names):
    with pytest.raises(DataError, match="DATA-LAYOUT"):
        read(*names)


@pytest.mark.parametrize("letters", ["r", "w", "m", "wr", "wm", "mr", "rw"])
@pytest.mark.parametrize("start", ["{i}/{l}", "{i}/{l}{i}_"])
def test_what_spm_writes_is_of_the_image_that_it_names(letters, start):
    """Where there is the image itself too, that is read; two of them are ambiguous."""
    images = ("T1", "T1ce", "T2", "FLAIR")
    plain, done = ([start.format(i="P1", l=x) + c for c in images] for x in ("", letters))
    expected = dict(zip(FOUR, done, strict=True))
    assert list(read(*done).values()) == [expected]
    assert read(plain[0], *done[1:]) == {"P1": {**expected, "t1": plain[0]}}
    assert read(*plain, *done) == {"P1": dict(zip(FOUR, plain, strict=True))}
    other = start.format(i="P1", l="m" if letters == "r" else "r") + "T2"
    assert read(plain[0], *done[1:], other)["P1"]["t2"] is None


@pytest.mark.parametrize("letters", ["s", "sw", "ws", "swrm", "rs"])
def test_an_s_before_every_image_is_read_before_every_one(letters):
    """Smoothed, or structural: sT1ce was read, sT1 was not. An id may begin with it too."""
    names = [f"P1/{letters}{c}" for c in ("T1", "T1ce", "T2", "FLAIR")]
    assert read(*names) == {"P1": dict(zip(FOUR, names, strict=True))}


@pytest.mark.parametrize("subject", ["s01", "sAB1", "mABC1", "rX7", "wM01", "mri_3", "wr01"])
def test_an_id_may_begin_so(subject):
    names = [f"{i}/{i}_{c}" for i in (subject, "Q2") for c in ("T1", "T2")]
    assert set(read(*names)) == {subject, "Q2"}


@pytest.mark.parametrize("visit", ["visit2", "ses-02", "week_12", "2019-01-02", "FU1", "tp3"])
def test_a_visit_behind_the_contrast_is_another_examination_of_the_patient(visit):
    images = ("T1", "T1ce", "T2", "FLAIR")
    names = [f"P1_{c}" for c in images], [f"P1_{c}_{visit}" for c in images]
    found = read(*names[0], *names[1])
    assert [list(own.values()) for own in found.values()] == [*names]
    assert {patient_of(i) for i in found} == {"P1"}
    assert [*read(*names[1])] == [f"P1_{visit}"]


@pytest.mark.parametrize("word", ["late", "2", "run2", "v2", "scan2", "postop", "b", "a"])
def test_other_words_behind_the_contrast_are_no_visit(word):
    assert read("P1_T1", f"P1_T1_{word}", f"P1_FLAIR_{word}") == {"P1": {"t1": "P1_T1"}}


def test_the_way_out_that_an_error_shows_works_to_the_letter(tmp_path, capsys):
    """The columns, the paths and the place of the CSV are those of the line."""
    write_subject(tmp_path / "made", "p0", contrasts=FOUR)
    patient = tmp_path / "scans/7"
    patient.mkdir(parents=True)
    for number, contrast in enumerate(FOUR):
        (tmp_path / f"made/p0/p0_{contrast}.nii.gz").rename(patient / f"x{number}.nii.gz")
    with pytest.raises(DataError) as refused:
        detect_layout(tmp_path / "scans")
    columns = re.search(r"a CSV with columns (\S+)", str(refused.value))[1]
    table = tmp_path / "scans/table.csv"
    table.write_text(f"{columns}\nMeyer,{','.join(f'7/x{n}.nii.gz' for n in range(4))}\n")
    everything = ["data.params.val=0", "data.params.train=1.0"]
    assert main(["prepare", str(table), "--output", str(tmp_path / "out"), *everything]) == 0
    assert "CSV: 1 subject, t1 1, t1ce 1, t2 1, flair 1" in capsys.readouterr().err
