"""Layouts: subjects are found by exact file-name endings, and every id names one patient."""

import json
import os
from pathlib import Path

import pytest
from builders import INPUTS, write_subject
from hypothesis import example, given
from hypothesis import strategies as st

from ldm.claims import claim
from ldm.data.layouts import (
    BraTS2021,
    BraTS2023,
    detect_layout,
    find_predictions,
    select_subjects,
    summary,
)
from ldm.data.layouts.base import MAX_ID_BYTES
from ldm.data.layouts.table import volume_at
from ldm.errors import MAX_LINE, DataError
from ldm.storage import write_file, write_json

NAMES_2023 = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f", "seg": "seg"}


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path) -> dict[str, set[str]]:
    return {i: set(s.files) for i, s in detect_layout(root)[1].items()}


def refusal(root: Path) -> str:
    """Return why a folder, or a file of one of its subjects, is not read."""
    with pytest.raises(DataError) as caught:
        for subject in detect_layout(root)[1].values():
            for contrast in subject.files:
                subject.sha256(contrast)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) <= MAX_LINE
    return line


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_both_brats_layouts_are_told_apart_and_named_alike(tmp_path, suffix):
    old = touch(tmp_path / "old", *(f"p1/p1_{c}{suffix}" for c in (*INPUTS, "t1ce", "seg")))
    new = touch(tmp_path / "new", *(f"a-1/a-1-{n}{suffix}" for n in NAMES_2023.values()))
    assert isinstance(detect_layout(old)[0], BraTS2021)
    assert isinstance(detect_layout(new)[0], BraTS2023)
    assert found(old) == {"p1": set(NAMES_2023)}
    assert found(new) == {"a-1": set(NAMES_2023)}


@given(
    st.text("abAB012._- é", min_size=1).filter(lambda s: not s.startswith(".")),
    st.sampled_from([BraTS2021(), BraTS2023()]),
    st.sampled_from(sorted(NAMES_2023)),
)
@example("0_-", BraTS2021(), "flair")
def test_a_file_name_is_parsed_to_what_made_it(subject, layout, contrast):
    assert layout.parse(Path(layout.file_name(subject, contrast))) == (subject, contrast)


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("sub-t101_t2w.nii.gz", None),  # neither T1 nor, in this layout, T2
        ("flair_t1.nii.gz", ("flair", "t1")),
        ("x_t1_t2.nii.gz", ("x_t1", "t2")),
        ("x_t1ce.nii.gz", ("x", "t1ce")),
        ("x_T1.nii.gz", None),
        ("_t1.nii.gz", None),
        ("t1.nii.gz", None),
        ("x_t1.nii.gz.part", None),
        ("x_t1.json", None),
    ],
)
def test_nothing_is_matched_by_substring(name, parsed):
    assert BraTS2021().parse(Path(name)) == parsed


def test_ids_that_look_alike_stay_apart(tmp_path):
    ids = ["a_1", "a.1", "a 1", "é", "a_t1", "=HYPERLINK(1)"]
    touch(tmp_path, *(f"{i}/{i}_t1.nii.gz" for i in ids))
    assert sorted(found(tmp_path)) == sorted(ids)


@pytest.mark.parametrize("twin", ["one/p_t2.nii.gz", "two/P_t1.nii.gz", "two/p_t1.nii"])
def test_one_id_in_two_folders_or_differing_in_case_only_is_refused(tmp_path, twin):
    touch(tmp_path, "zero/p_t1.nii.gz", twin)
    assert "DATA-ID" in refusal(tmp_path)


def test_unicode_twins_are_one_id(tmp_path):
    touch(tmp_path, "1/\u00e9_t1.nii", "2/e\u0301_t1.nii")  # composed and decomposed
    assert "DATA-ID" in refusal(tmp_path)


@pytest.mark.parametrize("bad", ["a\nb", "a\x1b[31m", "J\udcf6rg", "x" * 220])
def test_an_id_that_cannot_name_an_output_is_refused_and_no_other(tmp_path, bad):
    touch(tmp_path, f"{bad}_t1.nii.gz", "p/p_t1.nii.gz")
    assert "DATA-ID" in refusal(tmp_path)
    subjects = detect_layout(tmp_path)[1]
    assert subjects.pop("p").sha256("t1")
    (shown,) = subjects  # what it is called everywhere
    assert shown.isprintable()
    assert len(shown.encode()) <= MAX_ID_BYTES


def test_an_id_that_leaves_its_folder_is_refused_and_no_other(tmp_path):
    touch(tmp_path, "a.nii.gz")
    rows = [f"{i},a.nii.gz" for i in ("../p", "..", "p")]
    (tmp_path / "table.csv").write_text("\n".join(["id,t1", *rows]))
    subjects = detect_layout(tmp_path / "table.csv")[1]
    assert subjects.pop("p").sha256("t1")
    assert len(subjects) == 2
    for i, subject in subjects.items():
        assert (tmp_path / i).parent == tmp_path
        with pytest.raises(DataError, match="without slashes"):
            subject.files["t1"].read(i)


def test_two_files_of_one_contrast_are_ambiguous(tmp_path):
    touch(tmp_path, "p/p_t1.nii", "p/p_t1.nii.gz")
    assert "p_t1.nii and p_t1.nii.gz are both t1" in refusal(tmp_path)


CHANNELS = json.dumps({"channel_names": {"0": "T1"}})
SAME_NAME = {  # files of q; of p, which has two of its T1; what else makes the layout
    "brats2021": ("q_t1.nii.gz", ("p_t1.nii.gz", "p_t1.nii"), {}),
    "brats2023": ("q-t1n.nii.gz", ("p-t1n.nii.gz", "p-t1n.nii"), {}),
    "bids": (
        "sub-q/anat/sub-q_T1w.nii.gz",
        [f"sub-p/anat/sub-p_run-{run}_T1w.nii.gz" for run in (1, 2)],
        {},
    ),
    "flat": ("q/t1.nii.gz", ("p/t1.nii.gz", "p/t1.nii"), {}),
    "nnunet": (
        "imagesTr/q_0000.nii.gz",
        ("imagesTr/p_0000.nii.gz", "imagesTr/p_0000.nii"),
        {"dataset.json": CHANNELS},
    ),
    "decathlon": (
        "imagesTr/q.nii.gz",
        ("imagesTr/p.nii.gz", "imagesTr/p.nii"),
        {"dataset.json": CHANNELS},
    ),
    "CSV": (
        "q.nii.gz",
        ("p.nii.gz", "p.nii"),
        {"table.csv": "id,t1\nq,q.nii.gz\np,p.nii.gz\np,p.nii\n"},
    ),
}


@pytest.mark.parametrize("kind", SAME_NAME)
def test_an_ambiguous_patient_is_refused_when_it_is_read_and_no_other(tmp_path, kind):
    other, twins, beside = SAME_NAME[kind]
    touch(tmp_path, other, *twins)
    for name, text in beside.items():
        (tmp_path / name).write_text(text)
    is_table = kind == "CSV"
    layout = None if is_table else kind
    _, subjects = detect_layout(tmp_path / "table.csv" if is_table else tmp_path, layout)
    assert {i.removeprefix("sub-") for i in subjects} == {"p", "q"}
    for i, subject in subjects.items():
        if i.endswith("q"):
            assert subject.sha256("t1") and subject.files["t1"].state()
            continue
        file, code = subject.files["t1"], "DATA-ID" if is_table else "DATA-AMBIGUOUS"
        assert is_table or len(file.paths) == 2  # of which neither may be written to
        for read in (file.read, file.sha256, file.state):
            with pytest.raises(DataError, match=f"{code} case={i}"):
                read(i)
        with pytest.raises(DataError, match=code):  # which may be why there is no T2
            subject.require(["t2"], BraTS2021())


def test_namesakes_in_folders_of_one_name_are_told_apart(tmp_path):
    touch(tmp_path, "one/p/p_t1.nii.gz", "two/p/p_t2.nii.gz")
    assert f"in {tmp_path}/one/p (as p) and in {tmp_path}/two/p" in refusal(tmp_path)


def test_hidden_and_temporary_files_are_passed_over(tmp_path):
    touch(tmp_path, "p/p_t1.nii.gz", "p/._p_t2.nii.gz", "p/.tmp-1_t2.nii.gz")
    assert found(tmp_path) == {"p": {"t1"}}


def test_links_to_folders_are_followed_once(tmp_path):
    touch(tmp_path / "disk", "p/p_t1.nii.gz")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "p").symlink_to(tmp_path / "disk" / "p")
    (tmp_path / "disk" / "p" / "up").symlink_to(tmp_path / "root")  # a cycle
    assert found(tmp_path / "root") == {"p": {"t1"}}


def test_a_dangling_link_and_a_folder_are_listed_so_that_reading_says_why(tmp_path):
    (tmp_path / "p_t1.nii.gz").symlink_to("gone")
    (tmp_path / "p_t2.nii.gz").mkdir()
    files = detect_layout(tmp_path)[1]["p"].files
    for contrast, code in {"t1": "DATA-IO", "t2": "DATA-FORMAT"}.items():
        with pytest.raises(DataError, match=code):
            files[contrast].read()


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, caplog):
    write_subject(tmp_path, "p")
    write_subject(tmp_path, "q")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("q"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert set(found(tmp_path)) == {"p"}
    assert f"what lies in {tmp_path}/q is left out: Permission denied" in caplog.text


def test_nothing_found_says_what_was_expected(tmp_path):
    touch(tmp_path, "image.nii.gz")
    line = refusal(tmp_path)
    assert "DATA-LAYOUT" in line
    assert "ID_t1.nii.gz" in line
    assert "ID-t1n.nii.gz" in line
    assert "DATA-MISSING" in refusal(tmp_path / "nowhere")


def test_the_home_folder_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path / "data", "p_t1.nii")
    assert found(Path("~/data")) == {"p": {"t1"}}
    for cell in ("~/data/p_t1.nii", "~/series"):  # of a table, the latter a folder of DICOM
        assert volume_at(cell, Path("/elsewhere"), "t1").path == tmp_path / cell.removeprefix("~/")


@pytest.mark.parametrize(
    ("contrast", "cell", "message"),
    [
        ("t1", "p.h5", r"column t1 has p\.h5: expected p\.h5#0"),
        ("t1", "p.nii.gz#mask", r"column t1 has p\.nii\.gz#mask: expected p\.nii\.gz"),
    ],
)
def test_a_cell_names_a_channel_that_its_file_has(contrast, cell, message):
    with pytest.raises(DataError, match=message) as caught:
        volume_at(cell, Path("/elsewhere"), contrast)
    assert caught.value.code == "DATA-LAYOUT"
    assert volume_at("p.H5", Path("/elsewhere"), "seg").channel == "mask"


def test_a_row_that_ends_early_has_empty_cells(tmp_path):
    (tmp_path / "t.csv").write_text("t1,t1ce,id\na.nii.gz,b.nii.gz,A\nc.nii.gz\n")
    assert "line 3 has no id" in refusal(tmp_path / "t.csv")


def test_a_missing_contrast_names_the_expected_file(tmp_path):
    write_subject(tmp_path, "p", contrasts=("t1", "t2"))
    layout, subjects = detect_layout(tmp_path)
    with pytest.raises(DataError, match=r"case=p: no flair: expected p_flair\.nii\.gz"):
        subjects["p"].require(INPUTS, layout)


def test_subjects_are_selected_by_id_in_sorted_order(tmp_path):
    touch(tmp_path, *(f"{i}_t1.nii" for i in ("b", "a", "c")))
    subjects = detect_layout(tmp_path)[1]
    assert [s.id for s in select_subjects(subjects, None)] == ["a", "b", "c"]
    assert [s.id for s in select_subjects(subjects, ["c", "a", "c"])] == ["a", "c"]
    with pytest.raises(DataError, match="case=aa.*nearest: 'a'"):
        select_subjects(subjects, ["aa"])


def test_the_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    touch(tmp_path, *(f"{i}/{i}_t1.nii" for i in "bac"))
    walk = os.walk

    def backwards(*args, **options):
        for folder, below, names in walk(*args, **options):
            below.reverse()
            yield folder, below, names[::-1]

    monkeypatch.setattr(os, "walk", backwards)
    assert list(found(tmp_path)) == ["a", "b", "c"]


# --- what dsdiff wrote among the patients ---------------------------------------------------------


def written(folder: Path, verb: str, *names: str) -> Path:
    with claim(folder, verb):
        for name in names:
            write_file(folder / name, "a volume")
    return folder


def test_predictions_among_the_patients_are_none_of_them(tmp_path):
    touch(tmp_path, *(f"p1/p1_{c}.nii.gz" for c in INPUTS))
    predictions = written(tmp_path / "predictions", "sample", "p1_t1ce.nii.gz")
    assert found(tmp_path) == {"p1": set(INPUTS)}
    assert found(predictions) == {"p1": {"t1ce"}}  # unless they are what is asked for
    touch(predictions, "notes.txt")  # holds no volume
    assert found(tmp_path) == {"p1": set(INPUTS)}
    touch(predictions, "p1_t2.nii.gz")  # a stranger's, which no verb wrote
    assert "DATA-ID" in refusal(tmp_path)


def test_a_folder_of_predictions_alone_is_read_and_one_of_phantoms_too(tmp_path):
    for number in (1, 2):
        written(tmp_path / f"out/p{number}", "sample", f"p{number}_t1ce.nii.gz")
    assert found(tmp_path / "out") == {"p1": {"t1ce"}, "p2": {"t1ce"}}
    written(tmp_path / "made/more", "prepare", "q1/q1_t1.nii.gz")
    touch(tmp_path / "made", "p1/p1_t1.nii.gz")
    assert found(tmp_path / "made") == {"p1": {"t1"}, "q1": {"t1"}}


def test_a_contrast_that_was_made_in_the_folder_of_its_patient_completes_it(tmp_path):
    touch(tmp_path, *(f"p1/p1_{c}.nii.gz" for c in INPUTS))
    written(tmp_path / "p1", "sample", "p1_t1ce.nii.gz")
    assert found(tmp_path) == {"p1": {*INPUTS, "t1ce"}}


def test_predictions_are_found_by_the_id_that_their_sidecar_states(tmp_path):
    real = detect_layout(touch(tmp_path / "real", "a_1-b/a_1-b_t1.nii.gz"))[1]
    own = touch(tmp_path / "own", "sub-a1b/anat/sub-a1b_ce-gad_desc-synth_T1w.nii.gz")
    assert set(find_predictions(own, real, "t1ce")[1]) == {"sub-a1b"}
    write_json(own / "sub-a1b/anat/sub-a1b_ce-gad_desc-synth_T1w.json", {"subject": "a_1-b"})
    assert {i: s.id for i, s in find_predictions(own, real, "t1ce")[1].items()} == {
        "a_1-b": "a_1-b"
    }


def test_label_maps_that_a_network_drew_are_counted_where_subjects_are_found(tmp_path):
    touch(tmp_path, *(f"p{n}/p{n}_{c}.nii.gz" for n in (1, 2) for c in (*INPUTS, "seg")))
    assert summary(*detect_layout(tmp_path)).endswith("seg 2")
    write_json(tmp_path / "p2/p2_seg.json", {"Segmentation": True})
    told = "seg 2 (1 of them drawn by dsdiff segment predict)"
    assert summary(*detect_layout(tmp_path)).endswith(told)
