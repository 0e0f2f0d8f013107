"""One patient in every convention of the field: read right, and judged alike to the end."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import rotation
from corpus import CONVENTIONS, IMAGES
from layout_writers import Head

import ldm
from ldm.data.contrasts import scheme_of
from ldm.data.layouts import detect_layout
from ldm.label_scheme import UNKNOWN
from ldm.phantom import make_patient
from ldm.report.segmentation import evaluate_segmentations
from ldm.study import KNOWN

every = pytest.mark.parametrize("name", CONVENTIONS)


@pytest.fixture(scope="module")
def head() -> Head:
    """A phantom that lies at an angle in the scanner."""
    patient = make_patient(size=32, seed=3)
    tilted = rotation(12, 0, 1) @ rotation(5, 1, 2) @ patient.affine
    return Head({**patient.contrasts, "seg": patient.seg}, tilted)


@every
def test_what_is_read_from_where(tmp_path, head, name):
    convention = CONVENTIONS[name]
    convention.write(tmp_path, head)
    layout, subjects = detect_layout(tmp_path)
    assert layout.name == convention.layout
    assert list(subjects) == [convention.id]
    subject = subjects[convention.id]
    assert set(subject.files) - {"brain"} == {*IMAGES, "seg"}
    assert ("brain" in subject.files) == convention.brain
    assert subject.patient == (convention.patient or convention.id)
    scheme = scheme_of(subject)
    if convention.parts is None:
        assert str(scheme) == "not known"
        assert (scheme.table[1:] == UNKNOWN).all()
    else:
        assert dict(scheme.parts) == convention.parts


def scores(folder: Path, head: Head, name: str) -> dict:
    """Judge a blurred truth and its true labels as predictions of the patient."""
    convention, data, made = CONVENTIONS[name], folder / "data", folder / "made"
    convention.write(data, head)
    made.mkdir()
    blurred = (head.volumes["t1ce"] + np.roll(head.volumes["t1ce"], 1, axis=0)) / 2
    image = nib.Nifti1Image(blurred.astype(np.float32), head.affine)
    nib.save(image, made / f"{convention.id}_t1ce.nii.gz")
    head.save(made / f"{convention.id}_seg.nii.gz", "seg")
    judged = [ldm.evaluate(made, data, labels=convention.told)]
    told = {"labels": convention.told, "prediction_labels": "brats2017"}
    judged += [evaluate_segmentations(made, data, **told)]
    return {
        (score.row, score.region, score.measure): score.value
        for result in judged
        for score in result.scores
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory, head) -> dict:
    found = scores(tmp_path_factory.mktemp("first"), head, "BraTS 2021")
    for region in ("wt", "tc", "et"):
        assert found["prediction", region, "dice"] == 1
    assert 0 < found["prediction", "tumour", "psnr"] < np.inf
    return found


@every
def test_the_same_patient_has_the_same_scores_to_the_end(tmp_path, head, expected, name):
    assert scores(tmp_path, head, name) == pytest.approx(expected, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("predicted", ["{}.nii.gz", "{}.NII.GZ", "labels/{}.nii"])
def test_a_prediction_is_called_by_the_id(tmp_path, head, predicted):
    """As segmenters write it, in the numbers of the data set that they were trained on."""
    convention = CONVENTIONS["nnU-Net conversion"]
    convention.write(tmp_path / "data", head)
    file = tmp_path / "made" / predicted.format(convention.id)
    file.parent.mkdir(parents=True)
    labels = nib.load(tmp_path / f"data/labelsTr/{convention.id}.nii.gz")
    nib.save(labels, file)
    (tmp_path / "made/plans.json").write_text("{}")
    result = evaluate_segmentations(tmp_path / "made", tmp_path / "data")
    assert {s.value for s in result.scores if s.measure == "dice"} == {1.0}
    assert result.labels["prediction"] == result.labels["reference"]


def test_a_synthetic_volume_is_called_by_the_id(tmp_path, head):
    CONVENTIONS["BraTS 2021"].write(tmp_path / "data", head)
    head.save(tmp_path / "made/BraTS2021_00002.nii.gz", "t1ce")
    result = ldm.evaluate(tmp_path / "made", tmp_path / "data", baseline=False)
    assert result.failures == {}
    assert result.values("prediction", "brain", "mae") == {"BraTS2021_00002": 0}


def test_a_result_says_what_labels_were_read_as(tmp_path, head):
    """In its file and in a line of its report."""
    for name in ("BraTS 2021", "BraTS 2018"):
        CONVENTIONS[name].write(tmp_path / "data", head)
        head.save(tmp_path / f"made/{CONVENTIONS[name].id}.nii.gz", "t1ce")
    result = ldm.evaluate(tmp_path / "made", tmp_path / "data", baseline=False)
    read = "necrosis 1, oedema 2, enhancing 4 (BraTS 2017-2021)"
    assert result.to_dict()["labels"] == {"reference": {read: 2}}
    assert result.remarks()[0] == f"Labels of the reference: {read}."
    told = ldm.evaluate(tmp_path / "made", tmp_path / "data", baseline=False, labels="decathlon")
    assert list(told.labels["reference"]) == ["oedema 1, nonenhancing 2, enhancing 3 (labels)"]


def test_where_nothing_is_recognised_the_files_are_named_and_the_ways_out(tmp_path, head):
    from ldm.errors import DataError

    head.save(tmp_path / "x/scan_one.nii.gz", "t1")
    with pytest.raises(DataError, match=r"DATA-LAYOUT: .*scan_one.nii.gz.*CSV.*docs/data.md"):
        detect_layout(tmp_path)


def test_a_contrast_that_is_not_recognised_is_named(tmp_path, head):
    from ldm.errors import DataError

    for name, file in (("t1", "t1"), ("flair", "fl3d")):
        head.save(tmp_path / f"p/p_{file}.nii.gz", name)
    layout, subjects = detect_layout(tmp_path)
    with pytest.raises(DataError, match=r"expected p_flair.nii.gz .*: p_fl3d.nii.gz"):
        subjects["p"].require(["flair"], layout)


def test_labels_by_the_word_of_the_user_outweigh_every_name(tmp_path, head):
    CONVENTIONS["BraTS-PED"].write(tmp_path, head)
    (subject,) = detect_layout(tmp_path, None, KNOWN.with_labels("ped2024"))[1].values()
    assert dict(scheme_of(subject).parts)["enhancing"] == (1,)
