"""Each layout's own rules, and how one is chosen (reading: workflow/test_all_layouts)."""

import json
import logging
import os
import sys

import h5py
import numpy as np
import pytest
from builders import INPUTS, RAS, SHAPE, head_image, write_nifti, write_subject
from test_layouts import found, refusal, touch

from ldm.cli.main import main
from ldm.config import load_config
from ldm.data.datamodule import ContrastDataModule
from ldm.data.layouts import (
    BIDS,
    HDF5,
    BraTS2021,
    Decathlon,
    HDF5Stack,
    Layout,
    NnUNet,
    VolumeFile,
    build_layout,
    detect_layout,
)
from ldm.data.layouts.series import contrast_of_series
from ldm.data.nifti import read_volume
from ldm.errors import ConfigError, DataError, UnsafeError
from ldm.storage import write_json
from ldm.study import KNOWN
from ldm.util import refuse_untrusted_targets

CHANNELS = {"channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}}


class Hospital(Layout):
    """``ID/nativ.nii.gz`` and ``ID/km.nii.gz``."""

    name = "our hospital"

    def parse(self, path):
        contrast = {"nativ.nii.gz": "t1", "km.nii.gz": "t1ce"}.get(path.name)
        return (path.parent.name, contrast) if contrast else None


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "contrast"),
    [
        *(("T1w", "t1"), ("t1n", "t1"), ("T1-weighted", "t1")),
        *(("T1gd", "t1ce"), ("T1-Gd", "t1ce"), ("t1c", "t1ce"), ("CE", "t1ce")),
        *(("T2w", "t2"), ("FLAIR", "flair"), ("t2-flair", "flair"), ("T2F", "flair")),
        *(("T1map", None), ("not_t1", None), ("", None), ("ADC", None)),
    ],
)
def test_names_of_the_field_mean_one_contrast(text, contrast):
    assert KNOWN.named(text) == contrast


@pytest.mark.parametrize(
    ("description", "agent", "contrast"),
    [
        ("AX T1 SE", "", "t1"),
        ("AX T1 SE", "Gadovist 7ml", "t1ce"),
        ("t1_mprage_tra_post_Gd", "", "t1ce"),
        ("AX T1 SE pre", "Gadovist", "t1"),  # the agent stands in every header of the session
        ("AX T1 FLAIR", "", "t1"),  # T1-weighted, whatever its name
        ("t2_tirm_tra_dark-fluid", "", "flair"),
        ("AX T2 FLAIR", "Gadovist", "flair"),  # long after the injection, and marked by it
        ("AX T2 FLAIR post", "Gadovist", None),
        ("AX T2 TSE", "", "t2"),
        ("AX T2* GRE", "", None),
        ("localizer t1", "", None),
        ("ep2d_diff ADC", "", None),
        ("FAT12", "", None),
    ],
)
def test_dicom_series_are_recognised_by_whole_words(description, agent, contrast):
    assert contrast_of_series(description, agent) == contrast


# --- BIDS -----------------------------------------------------------------------------------------


GIVEN = {"ContrastBolusIngredient": "GADOLINIUM"}


@pytest.mark.parametrize(
    ("t1w", "sidecars", "expected"),
    [
        (("T1w",), {"T1w": GIVEN}, {"t1ce": "T1w"}),
        (("T1w",), {"T1w": {"ContrastBolusIngredient": "none"}}, {"t1": "T1w"}),
        (
            ("run-1_T1w", "run-2_T1w"),
            {"run-2_T1w": GIVEN},
            {"t1": "run-1_T1w", "t1ce": "run-2_T1w"},
        ),
        # a name that speaks of an agent outweighs what may stand in every header of the session
        (("T1w", "ce-gd_T1w"), {"T1w": GIVEN}, {"t1": "T1w", "t1ce": "ce-gd_T1w"}),
        (("ce-none_T1w",), {"ce-none_T1w": GIVEN}, {"t1": "ce-none_T1w"}),
        (("acq-pre_T1w",), {"acq-pre_T1w": GIVEN}, {"t1": "acq-pre_T1w"}),
        (
            ("acq-se_T1w",),
            {"acq-se_T1w": {"ContrastBolusAgent": "Gadovist"}},
            {"t1ce": "acq-se_T1w"},
        ),
    ],
)
def test_the_json_of_bids_says_of_an_agent_what_no_name_does(
    tmp_path, caplog, t1w, sidecars, expected
):
    start = "sub-01/anat/sub-01_"
    touch(tmp_path, *(f"{start}{name}.nii.gz" for name in (*t1w, "T2w")))
    for name, told in sidecars.items():
        write_json(tmp_path / f"{start}{name}.json", told)
    (subject,) = detect_layout(tmp_path)[1].values()
    read = {c: f.path.name for c, f in subject.files.items() if c != "t2"}
    assert read == {c: f"sub-01_{name}.nii.gz" for c, name in expected.items()}
    is_told = "t1ce" in expected and expected["t1ce"] != "ce-gd_T1w"
    assert ("its JSON names an agent" in caplog.text) == is_told


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("sub-01_T1w.nii.gz", ("sub-01", "t1")),
        ("ses-2_sub-01_run-1_acq-x_T2w.nii", ("sub-01_ses-2", "t2")),
        ("sub-01_ce-gad_acq-3d_T1w.nii.gz", ("sub-01", "t1ce")),
        ("sub-01_acq-3d_ce-gadobutrol_T1w.nii.gz", ("sub-01", "t1ce")),
        ("sub-01_ce-gad_FLAIR.nii.gz", None),  # another image than FLAIR before the injection
        ("sub-t101_t2w.nii.gz", None),
        ("sub-t101_T2w.nii.gz", ("sub-t101", "t2")),
        ("sub-01_T1map.nii.gz", None),
        ("sub-01_desc-T1w_bold.nii.gz", None),
        ("sub-01_label-lesion_mask.nii.gz", ("sub-01", "seg")),
        ("sub-01_desc-brain_mask.nii.gz", ("sub-01", "brain")),
        ("sub-01_label-GM_mask.nii.gz", None),
        ("sub-01_dseg.nii.gz", ("sub-01", "seg")),
        ("acq-3d_T1w.nii.gz", None),
        ("sub-_T1w.nii.gz", None),
        ("sub-01_3d_T1w.nii.gz", None),
    ],
)
def test_bids_entities_stand_in_any_order_before_the_suffix(tmp_path, name, parsed):
    assert BIDS().parse(tmp_path / name) == parsed


def test_sessions_are_subjects_and_derived_images_are_passed_over(tmp_path):
    files = [f"sub-01/ses-{s}/anat/sub-01_ses-{s}_T1w.nii.gz" for s in (1, 2)]
    derived = "derivatives/prep/sub-01/ses-1/anat/sub-01_ses-1"
    lesion = f"{derived}_label-lesion_mask.nii.gz"
    touch(tmp_path, *files, f"{derived}_desc-x_T1w.nii.gz", lesion)
    assert found(tmp_path) == {"sub-01_ses-1": {"t1", "seg"}, "sub-01_ses-2": {"t1"}}
    assert found(tmp_path / "derivatives/prep") == {"sub-01_ses-1": {"t1", "seg"}}


def test_two_runs_are_ambiguous_until_one_is_chosen(tmp_path):
    touch(tmp_path, *(f"sub-01/anat/sub-01_run-0{run}_T1w.nii.gz" for run in (1, 2)))
    touch(tmp_path, "sub-01/anat/sub-01_T2w.nii.gz")
    assert "sub-01_run-01_T1w.nii.gz and sub-01_run-02_T1w.nii.gz are both t1" in refusal(tmp_path)
    config = {"target": "ldm.data.layouts.BIDS", "params": {"select": {"run": 2}}}
    files = detect_layout(tmp_path, config)[1]["sub-01"].files
    assert files["t1"].path.name == "sub-01_run-02_T1w.nii.gz"
    assert "t2" in files  # which has no runs


# --- dataset.json ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_nnunet_numbers_mean_what_dataset_json_says(tmp_path, key):
    touch(tmp_path, *(f"D1/imagesTr/p_1_000{n}.nii.gz" for n in range(3)), "D1/labelsTr/p_1.nii.gz")
    touch(tmp_path, "D1/labelsTr/other.nii.gz", "D1/imagesTs/q_0000.nii.gz")
    names = {"0": "T2", "1": "ADC", "2": "T1-Gd"}
    (tmp_path / "D1/dataset.json").write_text(json.dumps({key: names}))
    layout, subjects = detect_layout(tmp_path)
    assert isinstance(layout, NnUNet)
    assert {i: set(s.files) for i, s in subjects.items()} == {
        "p_1": {"t2", "t1ce", "seg"},
        "q": {"t2"},
    }
    assert subjects["p_1"].files["t1ce"].name == "p_1_0002.nii.gz"
    assert set(found(tmp_path / "D1/imagesTs")) == {"q"}  # dataset.json lies above


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no dataset.json says what 0000 is"),
        ("{", "names no channels"),
        ('{"channel_names": {"0": "MRI"}}', "names the channels MRI: expected"),
        ('{"channel_names": {"0": "T1", "1": "t1w"}}', "at most once"),
        ('{"modality": ["T1"]}', "names no channels"),
    ],
)
def test_numbers_without_names_are_refused(tmp_path, content, told):
    touch(tmp_path, "imagesTr/p_0000.nii.gz")
    if content:
        (tmp_path / "dataset.json").write_text(content)
    line = refusal(tmp_path)
    assert "DATA-LAYOUT" in line
    assert told in line


def four_volumes(folder, **header):
    volumes = np.stack([head_image(seed=n) for n in range(4)], axis=-1)
    (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
    return write_nifti(folder / "imagesTr/p.nii", volumes, **header), volumes


def test_decathlon_channels_are_in_its_order_or_as_named(tmp_path):
    _, volumes = four_volumes(tmp_path)
    files = detect_layout(tmp_path)[1]["p"].files
    for number, contrast in enumerate(("flair", "t1", "t1ce", "t2")):
        assert np.array_equal(files[contrast].read().array, volumes[..., number])
    (tmp_path / "dataset.json").write_text(json.dumps(CHANNELS))
    layout, subjects = detect_layout(tmp_path)
    assert isinstance(layout, Decathlon)
    assert np.array_equal(subjects["p"].files["flair"].read().array, volumes[..., 3])


def test_a_channel_has_the_geometry_and_the_checks_of_its_file(tmp_path):
    path, volumes = four_volumes(tmp_path, scl_slope=2, scl_inter=-1)
    volume = read_volume(path, channel=2)
    assert np.array_equal(volume.array, 2.0 * volumes[..., 2] - 1)
    np.testing.assert_allclose(volume.geometry.affine, RAS)
    assert volume.geometry.shape == SHAPE
    with pytest.raises(DataError, match=r"DATA-NDIM.*expected three axes"):
        read_volume(path)
    with pytest.raises(DataError, match=r"DATA-NDIM.*with volume 4"):
        read_volume(path, channel=4)
    single = write_nifti(tmp_path / "one.nii", head_image())
    assert np.array_equal(read_volume(single, channel=0).array, head_image())
    with pytest.raises(DataError, match="DATA-NDIM"):
        read_volume(single, channel=1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])  # of the last volume: the file is damaged, whichever is asked for
    with pytest.raises(DataError, match="DATA-CORRUPT"):
        read_volume(path, channel=0)
    path.write_bytes(whole)
    four_volumes(tmp_path, dim=[4, 1200, 1400, 1000, 4, 1, 1, 1])
    with pytest.raises(DataError, match="DATA-TOO-LARGE"):
        read_volume(path, channel=0)


def test_nan_in_another_channel_does_not_matter(tmp_path):
    volumes = np.stack([head_image().astype(np.float32)] * 2, axis=-1)
    volumes[0, 0, 0, 1] = np.nan
    path = write_nifti(tmp_path / "p.nii.gz", volumes)
    assert np.isfinite(VolumeFile(path, 0).read().array).all()
    with pytest.raises(DataError, match="DATA-NONFINITE.*bad=1/1680"):
        VolumeFile(path, 1).read()


def test_digest_and_state_tell_the_channels_of_a_file_apart(tmp_path):
    path, _ = four_volumes(tmp_path)
    first, second, whole = (VolumeFile(path, c) for c in (0, 1, None))
    assert first.sha256() == f"{whole.sha256()}#0"
    assert len({repr(f.state()) for f in (first, second, whole)}) == 3


# --- Folders and HDF5 -----------------------------------------------------------------------------


def test_a_mask_beside_a_segmentation_is_that_of_the_brain(tmp_path):
    touch(
        tmp_path, *(f"a/{n}.nii.gz" for n in ("t1", "ce", "seg", "mask")), "b/t1.nii", "b/mask.nii"
    )
    subjects = detect_layout(tmp_path)[1]
    assert subjects["a"].files["seg"].name == "seg.nii.gz"
    assert subjects["b"].files["seg"].name == "mask.nii"
    assert found(tmp_path / "a") == {"a": {"t1", "t1ce", "seg"}}  # the patient's own folder


def write_slices(folder, count=3, **data):
    for place in range(count):
        with h5py.File(folder / f"v_slice_{place}.h5", "w") as file:
            for name, array in data.items():
                file[name] = array


@pytest.mark.parametrize("shape", [(8, 9, 3), (9, 8), (8, 9, 5)])
def test_slices_of_another_shape_are_refused(tmp_path, shape):
    write_slices(tmp_path, image=np.zeros(shape))
    with pytest.raises(DataError, match="DATA-NDIM.*with 4 contrasts"):
        HDF5Stack(tmp_path / "v_slice_*.h5", 0).read("v")


def test_a_missing_or_damaged_slice_is_never_filled_in(tmp_path):
    write_slices(tmp_path, 12, image=np.ones((8, 9, 4)))
    stack = detect_layout(tmp_path)[1]["v"].files["t1"]
    assert [p.name for p in stack.paths[-2:]] == ["v_slice_10.h5", "v_slice_11.h5"]  # by number
    assert stack.read().array.shape == (8, 9, 12)
    (tmp_path / "v_slice_4.h5").unlink()
    with pytest.raises(DataError, match="DATA-MISSING.*slice 4 .*1 in all"):
        stack.read()
    (tmp_path / "v_slice_4.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match="DATA-CORRUPT.*v_slice_4"):
        stack.read()


def test_channels_of_hdf5_are_as_told(tmp_path):
    image = np.stack([np.full((4, 5), n) for n in range(4)], axis=-1)
    write_slices(tmp_path, image=image, mask=np.full((4, 5), 2))
    layout = HDF5(("flair", "t1", "t1ce", "t2"))
    files = detect_layout(tmp_path, layout)[1]["v"].files
    assert files["t1ce"].read().array.max() == 2
    assert files["seg"].read().array.min() == 2
    with pytest.raises(ConfigError, match="give t1, t1ce, t2, flair in some order"):
        build_layout({"target": "ldm.data.layouts.HDF5", "params": {"channels": ["t1"]}})


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    write_slices(tmp_path, image=np.zeros((4, 5, 4)))
    for module in ("h5py", "dicom2nifti", "pydicom"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "DATA-EXTRA" in refusal(tmp_path)
    assert "pip install 'dsdiff[hdf5]'" in refusal(tmp_path)
    touch(tmp_path / "dicom", "p/series/1.dcm")
    assert "pip install 'dsdiff[dicom]'" in refusal(tmp_path / "dicom")


# --- CSV ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no rows"),
        ("name,t1\np,a.nii\n", "has the columns name, t1: expected id"),
        ("id,age\np,40\n", "expected id"),
        ("id,t1\np,a.nii\nP,b.nii\n", "DATA-ID"),
        ("id,t1\np,a.nii\np,b.nii\n", "found in line 2 (as p) and in line 3"),
        ("id,t1\n../p,a.nii\n", "without slashes"),
        ("id,t1,split\np,a.nii,training\n", "split 'training': give train, val, test"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path, text, told):
    path = tmp_path / "table.csv"
    path.write_text(text)
    assert told in refusal(path)


def test_a_table_of_excel_is_read(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes("\ufeffID;T1;t1ce;Split\r\np;a.nii;;val\r\n;;;\r\n".encode())
    (subject,) = detect_layout(path)[1].values()
    assert (subject.id, set(subject.files), subject.split) == ("p", {"t1"}, "val")
    path.write_bytes(b"PK\x03\x04\xff\xfe")
    assert "DATA-FORMAT" in refusal(path)


@pytest.mark.parametrize("absent", ["NA", "nan", "<NA>", "None", "-", "N/A"])
def test_a_cell_that_says_nothing_is_an_empty_one_in_every_column(tmp_path, absent):
    columns = ["t2", "seg", "patient", "split", "site", "scheme", "age", "sha256_t1"]
    for name, cell in (("empty.csv", ""), ("table.csv", absent)):
        rows = [["id", "t1", *columns], *([i, f"{i}.nii", *[cell] * 8] for i in "pq")]
        (tmp_path / name).write_text("\n".join(map(",".join, rows)))
    subjects = [detect_layout(tmp_path / name)[1] for name in ("empty.csv", "table.csv")]
    assert subjects[0] == subjects[1]
    assert {s.patient for s in subjects[1].values()} == {"p", "q"}
    assert np.isnan(subjects[1]["p"].numbers(["age"])).all()


def test_the_split_of_a_table_decides_unless_parts_are_listed(tmp_path):
    write_lines = [
        "id,t1,split",
        *(f"p{n},a{n}.nii,{'val' if n < 3 else 'train'}" for n in range(5)),
    ]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(write_lines))

    def split(**options):
        module = ContrastDataModule(str(path), **options)
        module.find_subjects()
        return module.split

    assert split()["val"] == ["p0", "p1", "p2"]
    assert split(val=["p4"])["val"] == ["p4"]
    assert len(split(fold=0)["val"]) == 1


# --- Choice ---------------------------------------------------------------------------------------


def test_the_layout_of_most_files_wins_and_the_rest_is_reported(tmp_path, caplog):
    touch(tmp_path, *(f"old/p{n}_t1.nii.gz" for n in range(3)), "new/q-t1n.nii.gz")
    layout, subjects = detect_layout(tmp_path)
    assert layout.name == "BraTS 2017-2021"
    assert len(subjects) == 3
    assert "left out, because they are of BraTS 2023+: 1" in caplog.text
    assert set(detect_layout(tmp_path, "brats2023")[1]) == {"q"}


def test_files_that_two_layouts_recognise_are_reported(tmp_path, caplog):
    touch(tmp_path, "imagesTr/p_t1.nii.gz")
    assert detect_layout(tmp_path)[0].name == "BraTS 2017-2021"
    assert "files that Medical Decathlon recognises too: 1" in caplog.text


def test_a_trouble_of_another_layout_is_no_trouble(tmp_path):
    """Two runs in BIDS names beside the BraTS files that win."""
    touch(tmp_path, *(f"p/p_{c}.nii.gz" for c in INPUTS))
    touch(tmp_path, *(f"x/sub-1_run-{n}_T1w.nii.gz" for n in (1, 2)), "x/q_0000.nii.gz")
    assert found(tmp_path) == {"p": set(INPUTS)}


def test_an_own_layout_is_named_by_its_class(tmp_path):
    touch(tmp_path, "a/nativ.nii.gz", "a/km.nii.gz")
    assert "DATA-LAYOUT" in refusal(tmp_path)
    choices = ["test_layout_kinds.Hospital", {"target": "test_layout_kinds.Hospital"}, Hospital()]
    for choice in choices:
        layout, subjects = detect_layout(tmp_path, choice)
        assert (layout.name, set(subjects["a"].files)) == ("our hospital", {"t1", "t1ce"})


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ("bid", "nearest: 'bids'"),
        ("os.path.join", "no subclass of ldm.data.layouts.Layout"),
        ("no_module.Layout", "no module 'no_module'"),
        ({"params": {}}, "CONFIG-TARGET"),
    ],
)
def test_a_choice_that_is_no_layout_is_refused(choice, told):
    with pytest.raises(ConfigError, match=told):
        build_layout(choice)


def test_a_layout_class_in_a_run_folder_is_code_and_needs_trust():
    config = load_config(["configs/backbone/unet_tiny.yaml"], ["data.params.layout=os.system"])
    with pytest.raises(UnsafeError, match=r"names the class 'os\.system'"):
        refuse_untrusted_targets(config["data"], {config["data"]["target"]} | NORMAL, "run")
    named = load_config(["configs/backbone/unet_tiny.yaml"], ["data.params.layout=bids"])
    refuse_untrusted_targets(named["data"], {named["data"]["target"]} | NORMAL, "run")


NORMAL = {
    "ldm.data.normalise.RobustNormaliser",
    "ldm.data.augmentation.SliceAugmentation",
}


def test_a_folder_is_listed_once_for_all_layouts(tmp_path, monkeypatch):
    touch(tmp_path, *(f"p{n}/p{n}_{c}.nii.gz" for n in range(5) for c in INPUTS))
    listed = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scan(path))
    detect_layout(tmp_path)
    assert len(listed) == len(set(listed)) == 6


def test_verbs_take_the_layout_and_say_what_they_found(tmp_path, capsys, caplog):
    caplog.set_level(logging.ERROR)
    write_subject(tmp_path / "data", "p0", contrasts=(*INPUTS, "t1ce"))
    arguments = ["prepare", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    everything = ["data.params.val=0", "data.params.train=1.0"]
    assert main([*arguments, "--layout", "brats2021", *everything]) == 0
    assert (
        "BraTS 2017-2021: 1 subject, t1 1, t1ce 1, t2 1, flair 1, seg 0" in capsys.readouterr().err
    )
    assert main([*arguments, "--layout", "bids", *everything]) == 3
    assert "expected files like anat/ID_T1w.nii.gz" in capsys.readouterr().err
    assert isinstance(detect_layout(tmp_path / "data")[0], BraTS2021)
