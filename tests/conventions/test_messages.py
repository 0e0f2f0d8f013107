"""What people give by mistake is read as they mean it, or named with the place and the cure."""

import logging
import shutil

import nibabel as nib
import numpy as np
import pytest
from builders import RAS, edit_header, head_image, write_nifti, write_subject
from layout_writers import Head, write_series

from ldm.cli.main import main
from ldm.config import load_config
from ldm.data.layouts import detect_layout
from ldm.data.nifti import encode_volume, read_volume, write_volume
from ldm.errors import ConfigError, DataError

HEAD = "id,t1,t1ce,t2,flair,seg"


def table(folder, *rows: str, head: str = HEAD):
    path = folder / "table.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def cells() -> str:
    return ",".join(f"p0/p0_{c}.nii.gz" for c in ("t1", "t1ce", "t2", "flair"))


@pytest.fixture
def patient(tmp_path):
    write_subject(tmp_path, "p0")
    return tmp_path


@pytest.mark.parametrize(
    "empty", ["", "nan", "NaN", "None", "NULL", "NA", "n/a", "<NA>", "#N/A", "-"]
)
@pytest.mark.parametrize(("start", "separator"), [("", "/"), ("", "\\"), (".\\", "\\")])
def test_a_table_of_windows_and_pandas_is_read(patient, empty, start, separator):
    paths = [f"{start}p0{separator}p0_{c}.nii.gz" for c in ("t1", "t1ce", "t2", "flair")]
    rows = [["p", *paths, empty], ["q", paths[0], *[empty] * 4]]
    subjects = detect_layout(table(patient, *map(",".join, rows)))[1]
    assert set(subjects["p"].files) == {"t1", "t1ce", "t2", "flair"}
    assert set(subjects["q"].files) == {"t1"}
    assert all(file.path.is_file() for s in subjects.values() for file in s.files.values())


@pytest.mark.parametrize("empty", ["", "  ", "nan"])
def test_a_row_without_an_id_is_named_by_its_line(patient, empty):
    """Empty lines count, as they do in an editor."""
    path = table(patient, f"p,{cells()},", "", f"{empty},{cells()},")
    with pytest.raises(DataError, match=r"DATA-ID: table.csv line 4 has no id"):
        detect_layout(path)


@pytest.mark.parametrize("start", ["C:", r"\\server"])
def test_a_drive_of_windows_is_named(patient, start):
    path = table(patient, f"p,{cells()},", rf"q,{start}\scans\q_t1.nii.gz,,,,")
    subjects = detect_layout(path)[1]
    assert subjects["p"].sha256("t1")
    with pytest.raises(DataError) as refused:
        subjects["q"].sha256("t1")
    assert rf"line 3: {start}\scans\q_t1.nii.gz is a path of Windows" in str(refused.value)


@pytest.mark.parametrize("separator", ",;\t")
def test_a_table_is_read_by_whatever_separates_its_columns(patient, separator):
    rows = [line.replace(",", separator) for line in (HEAD, f"p,{cells()},")]
    assert set(detect_layout(table(patient, rows[1], head=rows[0]))[1]["p"].files) == {
        *("t1", "t1ce", "t2", "flair")
    }


@pytest.mark.parametrize("head", ["id,t1,T1,flair,t1ce", "id,t1,t2,t1 ,t1ce"])
def test_two_columns_of_one_contrast_are_refused(patient, head):
    with pytest.raises(DataError, match=r"DATA-LAYOUT: .* has two columns t1: rename one"):
        detect_layout(table(patient, f"p,{cells()}", head=head))


def test_ids_that_yaml_takes_for_numbers_are_to_be_quoted(tmp_path):
    told = [f"data.params.root={tmp_path}", "data.params.val=[12]"]
    with pytest.raises(ConfigError, match=r"val is \[12\] .* in quotes .* as \"\['12'\]\""):
        load_config(["configs/backbone/unet_tiny.yaml"], told)


def test_the_yaml_of_the_research_code_leads_to_import(tmp_path, monkeypatch, capsys):
    (tmp_path / "cin.yaml").write_text(
        "model:\n  base_learning_rate: 1.0e-06\n"
        "  target: ldm.models.diffusion.ddpm.LatentDiffusion\n"
        "  params: {linear_start: 0.0015, timesteps: 1000, unet_config: {target: x.Y}}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["train", "cin.yaml", f"data.params.root={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "dsdiff import CHECKPOINT --config cin.yaml" in said and "unet_config" in said


def test_bytes_that_follow_the_image_are_no_damage_of_the_copy(tmp_path):
    path = write_nifti(tmp_path / "p_t1.nii", head_image())
    path.write_bytes(path.read_bytes() + b"\0\0")
    with pytest.raises(DataError, match=r"p_t1.nii goes on: .*save it anew"):
        read_volume(path)


def test_a_series_that_is_no_volume_is_named_by_its_folder(tmp_path):
    """Two echoes of one series: the converter would take any image of a place."""
    head = Head({c: head_image((8, 8, 6)).astype(np.int16) for c in ("t1", "t2")}, RAS)
    write_series(tmp_path / "p/t2", head, "t2", 1, "T2 dual echo", "")
    write_series(tmp_path / "p/later", head, "t1", 1, "T2 dual echo", "")
    for file in (tmp_path / "p/later").iterdir():
        shutil.move(file, tmp_path / f"p/t2/later-{file.name}")
    shutil.rmtree(tmp_path / "p/later")
    subject = detect_layout(tmp_path)[1]["p"]
    with pytest.raises(DataError) as refused:
        subject.files["t2"].read("p")
    assert "series t2 holds several volumes, 2 images at one place" in str(refused.value)


def test_no_warning_is_about_a_file_of_our_own(tmp_path, caplog):
    """What is odd in an input is said once, of the input."""
    path = write_nifti(tmp_path / "p_t1.nii", head_image())
    affine = RAS.copy()
    affine[0, 3] += 3
    image = nib.load(path)
    image.header.set_qform(affine, code=1)
    image.header.set_sform(RAS, code=1)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    edit_header(path, sform_code=1, qform_code=1)
    with caplog.at_level(logging.WARNING):
        volume = read_volume(path)
        write_volume(tmp_path / "out.nii.gz", encode_volume(volume.array, volume.geometry))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["p_t1.nii"]
