"""Which patients a model has seen, by id and by content."""

import shutil

import pytest
from builders import write_subject

from ldm.data.layouts import detect_layout
from ldm.data.seen import (
    inherited,
    leaks,
    named_subjects,
    read_seen,
    refuse_leaks,
    subject_digests,
    write_seen,
)
from ldm.errors import DataError
from ldm.storage import sha256, write_json
from ldm.study import Study


@pytest.fixture
def patients(tmp_path):
    """p0 and p1 differ; p2 is p0 under another name."""
    for name, seed in (("p0", 0), ("p1", 1), ("p2", 0)):
        write_subject(tmp_path / "patients", name, seed=seed)
    return detect_layout(tmp_path / "patients")[1]


def test_digests_are_those_of_the_files_and_follow_a_change(tmp_path, patients):
    first = subject_digests(patients.values(), tmp_path / "cache")
    assert first["p1"]["t1"] == sha256(patients["p1"].files["t1"].path)
    assert subject_digests(patients.values(), tmp_path / "cache") == first
    shutil.copy(patients["p0"].files["t1"].path, patients["p1"].files["t1"].path)
    changed = subject_digests(patients.values(), tmp_path / "cache")
    assert changed["p1"]["t1"] == first["p0"]["t1"] != first["p1"]["t1"]
    assert changed["p1"]["t2"] == first["p1"]["t2"]


def test_a_patient_is_known_under_another_name(tmp_path, patients):
    digests = subject_digests(patients.values(), tmp_path / "cache")
    seen = {"p0": digests["p0"]}
    assert leaks(seen, {"p0": {}}) == [("p0", "p0", "same id")]
    assert leaks(seen, {"p2": digests["p2"]}) == [("p0", "p2", "same image")]
    assert leaks(seen, {"p1": digests["p1"]}) == []
    with pytest.raises(DataError, match=r"LEAK case=p2: .* under the name p0 \(same image\)"):
        refuse_leaks({"p2": digests["p2"]}, seen, "unet")
    with pytest.raises(DataError, match=r"LEAK case=p0: .* 'unet' was trained on it"):
        refuse_leaks({"p0": {}}, seen, "unet")
    refuse_leaks({"p1": digests["p1"]}, seen, "unet")


def test_equal_segmentations_make_no_patient(tmp_path, patients):
    """Two patients without a tumour have the same empty mask."""
    digests = subject_digests(patients.values(), tmp_path / "cache")
    seg = digests["p0"]["seg"]
    assert leaks({"p0": digests["p0"]}, {"p1": {**digests["p1"], "seg": seg}}) == []


def test_a_run_tells_whom_it_was_trained_on(tmp_path, patients):
    digests = subject_digests([patients["p0"]], tmp_path / "cache")
    write_seen(tmp_path / "run", {"train": digests, "val": {}})
    assert read_seen(tmp_path / "run") == digests
    write_json(tmp_path / "older/cost.json", {"train_subjects": ["p1"]})
    assert read_seen(tmp_path / "older") == {"p1": {}}
    assert read_seen(tmp_path) == {}


def test_a_student_and_a_latent_model_have_seen_what_they_are_built_from(tmp_path):
    """A student has its teacher's patients, a latent model those of its autoencoder."""
    for name in ("teacher", "autoencoder"):
        write_seen(tmp_path / name, {"train": {f"of {name}": {}}, "val": {"other": {}}})
    stage = {"first_stage_config": {"params": {"path": str(tmp_path / "autoencoder")}}}
    teacher = str(tmp_path / "teacher" / "model.safetensors")
    assert inherited({"params": stage}) == {"of autoencoder": {}}
    both = inherited({"params": {**stage, "teacher": teacher}})
    assert both == {"of autoencoder": {}, "of teacher": {}}
    assert inherited({"params": {"first_stage_config": {"target": "x"}}}) == inherited({}) == {}


def test_unseen_are_those_of_neither_training_nor_validation(tmp_path, patients):
    known, run = subject_digests(patients.values(), tmp_path / "cache"), tmp_path / "run"
    write_seen(run, {"train": {"renamed": known["p1"]}, "val": {}})
    study = Study()
    assert named_subjects("unseen", run, patients, study) == ["p0", "p2"]  # p1 was trained on
    other = tmp_path / "other"
    write_seen(other, {"train": {"p1": known["p1"]}, "val": {"p0": known["p0"]}})
    assert named_subjects("unseen", other, patients, study) == ["p0", "p2"]  # there is no other
    with pytest.raises(DataError, match=r"DATA-EMPTY: .*unseen by .* data\.params\.test=0\.2"):
        named_subjects(["unseen"], tmp_path / "untold", patients, study)


def test_whoever_is_named_is_named(tmp_path, patients):
    for named in (None, "p1", ["p1", "p2"], ["p1", "unseen"]):
        assert named_subjects(named, tmp_path, patients, Study()) == named
    called = {**patients, "unseen": patients["p0"]}  # a subject of that name
    assert named_subjects(["unseen"], tmp_path, called, Study()) == ["unseen"]
