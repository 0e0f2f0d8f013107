"""The facts that data, model and judge share, and the one table of names they are found by."""

import json

import nibabel as nib
import numpy as np
import pytest

from ldm.config import load_config
from ldm.data.datamodule import ContrastDataModule
from ldm.data.layouts import detect_layout
from ldm.data.layouts.table import SubjectTable
from ldm.errors import ConfigError, DataError
from ldm.study import KNOWN, Study, build_model, read_study

OWN = {"swi": ["susc", "T2star_swi"]}  # a contrast of one's own, and how its files are called
# naming -> the file of DWI, and of the contrast above by its second spelling
FILES = {
    "brats2021": ("{id}/{id}_dwi.nii.gz", "{id}/{id}_T2star_swi.nii.gz"),
    "brats2023": ("{id}/{id}-dwi.nii.gz", "{id}/{id}-T2star_swi.nii.gz"),
    "flat": ("{id}/dwi.nii.gz", "{id}/T2star_swi.nii.gz"),
    "bids": ("sub-{id}/dwi/sub-{id}_trace.nii.gz", "sub-{id}/anat/sub-{id}_susc.nii.gz"),
}
T1 = {
    "brats2021": "{id}/{id}_t1.nii.gz",
    "brats2023": "{id}/{id}-t1n.nii.gz",
    "flat": "{id}/t1.nii.gz",
    "bids": "sub-{id}/anat/sub-{id}_T1w.nii.gz",
}


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), path)


def files_in(root, contrasts=KNOWN):
    (subject,) = detect_layout(root, contrasts=contrasts)[1].values()
    return subject


@pytest.mark.parametrize("naming", FILES)
def test_dwi_and_a_contrast_of_ones_own_are_found_in_every_naming(tmp_path, naming):
    for name in (T1[naming], *FILES[naming]):
        write(tmp_path / name.format(id="S1"))
    assert files_in(tmp_path).images == ["t1", "dwi"]
    assert files_in(tmp_path, KNOWN.with_own(OWN)).images == ["t1", "dwi", "swi"]


@pytest.mark.parametrize("naming", FILES)
def test_the_file_that_a_message_expects_is_the_one_that_is_found(tmp_path, naming):
    write(tmp_path / T1[naming].format(id="S1"))
    layout, subjects = detect_layout(tmp_path)
    ((subject, found),) = subjects.items()
    for contrast in ("t1ce", "t2", "flair", "dwi"):
        with pytest.raises(DataError, match=f"DATA-MISSING.*no {contrast}"):
            found.require([contrast], layout)
        folder = "" if naming == "bids" or naming == "flat" else f"{subject}/"
        folder = f"{subject}/" if naming == "bids" else folder
        write(tmp_path / f"{folder}{layout.file_name(subject, contrast)}")
    assert files_in(tmp_path).images == ["t1", "t1ce", "t2", "flair", "dwi"]


def test_a_table_has_a_column_for_them(tmp_path):
    (tmp_path / "s.csv").write_text("id,t1,DWI,swi\np,a.nii.gz,b.nii.gz,c.nii.gz\n")
    subject = files_in(tmp_path / "s.csv", KNOWN.with_own(names=["swi"]))
    assert {c: f.path.name for c, f in subject.files.items()} == {
        "t1": "a.nii.gz",
        "dwi": "b.nii.gz",
        "swi": "c.nii.gz",
    }
    assert SubjectTable.contrasts is KNOWN  # what one run adds is not known to the next


def test_a_channel_is_named_as_people_write_it(tmp_path):
    """In dataset.json of nnU-Net, as in the name of a DICOM folder, the spelling is free."""
    for number in range(3):
        write(tmp_path / f"imagesTr/p_{number:04d}.nii.gz")
    names = {"0": "T1", "1": "Trace", "2": "T2-star SWI"}
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": names}))
    assert files_in(tmp_path).images == ["t1", "dwi"]
    assert files_in(tmp_path, KNOWN.with_own(OWN)).images == ["t1", "dwi", "swi"]


def test_a_series_of_directions_is_no_image(tmp_path):
    write(tmp_path / "sub-1/anat/sub-1_T1w.nii.gz")
    write(tmp_path / "sub-1/dwi/sub-1_dwi.nii.gz")
    assert files_in(tmp_path).images == ["t1", "dwi"]
    (tmp_path / "sub-1/dwi/sub-1_dwi.bval").write_text("0 1000 1000")
    assert files_in(tmp_path).images == ["t1"]


def test_two_spellings_of_one_contrast_are_ambiguous(tmp_path):
    for name in ("t1", "dwi", "adc"):
        write(tmp_path / f"S1_{name}.nii.gz")
    with pytest.raises(DataError, match=r"DATA-AMBIGUOUS.*both dwi"):
        files_in(tmp_path, KNOWN.with_own({"dwi": ["adc"]})).sha256("dwi")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"swi": ["T1-Gd"]}, r"swi is written 'T1-Gd', which means t1ce"),
        ({"swi": ["a/b"]}, r"'a/b' is no part of a file name"),
        ({"": []}, r"'' is no part of a file name"),
    ],
)
def test_a_spelling_that_no_file_can_have_is_refused(own, message):
    with pytest.raises(ConfigError, match=message):
        KNOWN.with_own(own)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"target": "t1"}, r"target is 't1', which is a condition too"),
        ({"conditions": ["t1", "t2", "t1"]}, r"conditions is \[t1, t2, t1\]"),
        ({"conditions": []}, r"conditions is \[\]"),
        ({"neighbours": -1}, r"neighbours is -1"),
        ({"image_size": [8, 8, 8], "neighbours": 1}, r"neighbours is 1, but patches"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(params, message):
    for make in (lambda: Study.of(**params), lambda: ContrastDataModule(**params)):
        with pytest.raises(ConfigError, match=f"CONFIG-VALUE.*data.params.{message}"):
            make()


def test_the_data_module_has_the_study_of_its_configuration():
    params = {"conditions": ["t1", "swi"], "target": None, "image_size": 8, "contrasts": OWN}
    study = read_study({"data": {"params": params}})
    assert study == ContrastDataModule(**params).study
    assert study.image_size == (8, 8) and study.needed == ("t1", "swi", "seg")
    assert Study() == ContrastDataModule().study == read_study({"data": {}})


@pytest.mark.parametrize(
    ("target", "conditions", "native", "source"),
    [
        ("t1ce", ["t2", "t1"], "t1", "t1"),
        ("t1ce", ["t2", "dwi"], None, "t2"),
        ("flair", ["t2", "t1", "t1ce"], None, "t2"),
        (None, ["t1", "t1ce"], None, "t1"),
    ],
)
def test_only_an_enhanced_contrast_has_a_native_one(target, conditions, native, source):
    study = Study(tuple(conditions), target)
    assert (study.native, study.source) == (native, source)


TINY = ("configs/backbone/unet_tiny.yaml", ["data.params.conditions=[t2,t1]"])


def with_model_params(config, **params):
    model = {**config["model"], "params": {**config["model"]["params"], **params}}
    return {**config, "model": model}


def test_the_facts_stand_once_in_a_configuration_and_the_model_has_them():
    config = load_config([TINY[0]], [*TINY[1], "data.params.image_size=[16,24]"])
    told = config["model"]["params"]
    assert not {"conditions", "image_size", "neighbours"} & set(told)
    model = build_model(config)
    assert model.conditions == ("t2", "t1")
    x_t, _, condition = model.network_inputs(3)
    assert x_t.shape == (3, 1, 16, 24) and condition.shape == (3, 2, 16, 24)


def test_an_older_configuration_repeats_them(tmp_path):
    """Up to the study, run folders held the same facts under ``data`` and under ``model``."""
    config = load_config([TINY[0]], [*TINY[1], "data.params.image_size=16"])
    older = with_model_params(config, conditions=["t2", "t1"], image_size=16, neighbours=0)
    assert build_model(older).state_dict().keys() == build_model(config).state_dict().keys()
    for wrong in ({"conditions": ["t1", "t2"]}, {"image_size": 24}, {"neighbours": 1}):
        with pytest.raises(ConfigError, match=r"CONFIG-SHAPE.*model.params.*delete the line"):
            build_model(with_model_params(config, **wrong))


def test_numbers_of_a_patient_travel_in_the_batch(brats_folder, tmp_path):
    """A column is a number, an empty cell is not known; what is no number is refused."""

    def module(ages):
        lines = [f"{i},{brats_folder}/{i}/{i}_t1.nii.gz,{a},3" for i, a in ages.items()]
        (tmp_path / "s.csv").write_text("\n".join(["id,t1,Age,field", *lines]))
        return ContrastDataModule(
            str(tmp_path / "s.csv"),
            conditions=["t1"],
            target=None,
            covariates=["Age", "field"],
            image_size=16,
            val=None,
            num_workers=0,
            min_brain=0.0,
            cache=str(tmp_path / "cache"),
        )

    data = module({"p0": 63.5, "p1": ""})
    data.setup()
    assert data.study.facts()["covariates"] == ["Age", "field"]
    seen = {}
    for item in (data.train_slices[i] for i in range(len(data.train_slices))):
        seen[item["subject"]] = item["covariates"].tolist()
    assert seen["p0"] == [63.5, 3.0] and np.isnan(seen["p1"][0]) and seen["p1"][1] == 3.0
    with pytest.raises(DataError, match=r"DATA-FORMAT case=p1: age is 'old'"):
        module({"p0": 1, "p1": "old"}).setup()
