"""Groups A and C through the command line: the files of the patients stay as they are."""

import csv
import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
from workflow.conftest import SPLIT, TINY

P1, P2 = "Phantom_0001", "Phantom_0002"
QUICK = ("--steps", "1")


def tree(folder: Path) -> dict[str, tuple]:
    """Return path -> digest and time of change of every file of the patients below a folder."""
    return {
        str(p.relative_to(folder)): (hashlib.sha256(p.read_bytes()).digest(), p.stat().st_mtime_ns)
        for p in folder.rglob("*_*.nii.gz")
    }


@pytest.mark.parametrize("way", ["folder", "link to the folder", "another path"])
def test_oi_05_sample_into_the_patients_folder(dsdiff, tmp_path, run_folder, cohort, way):
    output = {
        "folder": cohort / P1,
        "link to the folder": tmp_path / "link",
        "another path": cohort / P2 / ".." / P1,
    }[way]
    (tmp_path / "link").symlink_to(cohort / P1)
    before = tree(cohort)
    for read, said in ((cohort, "holds what is read"), (cohort / P1, "is an input")):
        given = ("--input", read, "--output", output, "--overwrite", *QUICK)
        code, line = dsdiff("sample", run_folder, *given)
        assert (code, tree(cohort)) == (5, before)
        assert f"OUT-INPUT: {output}" in line and said in line


@pytest.mark.parametrize("place", [".", P1, f"{P1}/.."])
@pytest.mark.parametrize(
    "verb", ["sample", "segment predict", "train", "diagnose data", "evaluate"]
)
def test_oi_05_no_output_among_the_files_of_the_patients(
    dsdiff, tmp_path, run_folder, segmenter_run, cohort, verb, place
):
    words = {
        "sample": (run_folder, "--input", cohort),
        "segment predict": (segmenter_run, "--input", cohort),
        "train": (*TINY, *SPLIT, f"data.params.root={cohort}"),
        "diagnose data": (cohort,),
        "evaluate": ("--reference", cohort, "--prediction", f"a={tmp_path}"),
    }[verb]
    before = sorted(cohort.rglob("*"))
    code, line = dsdiff(*verb.split(), *words, "--output", cohort / place)
    assert (code, sorted(cohort.rglob("*"))) == (5, before)
    assert "OUT-INPUT" in line and "further subjects" in line


def test_ex_03_the_t1_of_a_table_is_no_output(dsdiff, tmp_path, run_folder, cohort):
    out = tmp_path / "out"
    out.mkdir()
    t1 = out / "Z_t1ce.nii.gz"
    shutil.copy(cohort / P1 / f"{P1}_t1.nii.gz", t1)
    rest = {c: cohort / P1 / f"{P1}_{c}.nii.gz" for c in ("t2", "flair")}
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "t1", *rest), ("Z", t1, *rest.values())])
    before = t1.read_bytes()
    given = ("--input", tmp_path / "rows.csv", "--output", out, "--overwrite", *QUICK)
    code, line = dsdiff("sample", run_folder, *given)
    assert (code, t1.read_bytes()) == (5, before)
    assert "OUT-INPUT" in line


def test_oi_05_segment_predict_keeps_the_doctors_labels(dsdiff, segmenter_run, cohort):
    before = tree(cohort)
    given = ("--input", cohort / P1, "--output", cohort / P1, "--overwrite")
    code, line = dsdiff("segment", "predict", segmenter_run, *given)
    assert (code, tree(cohort)) == (5, before)
    assert f"{P1}_seg.nii.gz is an input" in line


def test_se_12_a_link_as_lock_empties_nothing(dsdiff, tmp_path, run_folder, cohort, train):
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("all of it")
    for folder in (tmp_path / "out", tmp_path / "run"):
        folder.mkdir()
        (folder / ".lock").symlink_to(thesis)
    code, line = dsdiff("sample", run_folder, "--input", cohort, "--output", tmp_path / "out")
    assert code == 5
    assert "OUT-LINK" in line
    assert train(tmp_path / "run", "lightning.trainer.max_steps=1") == 5
    assert thesis.read_text() == "all of it"


def test_se_x7_foreign_temporary_files_stay(dsdiff, tmp_path, run_folder, cohort):
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / ".tmp-x").mkdir()
    (out / "deep/.tmp-notes.txt").write_text("x")
    live = out / f"sub/.tmp-{os.getpid()}-0123abcd.nii.gz"
    live.parent.mkdir()
    live.write_text("of another sampler")
    given = ("--input", cohort, "--subjects", P1, "--output", out, *QUICK)
    assert dsdiff("sample", run_folder, *given) == (0, "")
    assert (out / "deep/.tmp-notes.txt").read_text() == "x"
    assert live.read_text() == "of another sampler"


def test_se_12_a_volume_that_came_while_sampling_is_kept(
    dsdiff, tmp_path, run_folder, cohort, monkeypatch
):
    from ldm.inference.synthesis import Synthesiser

    plain, other = Synthesiser._synthesise, tmp_path / f"out/{P2}_t1ce.nii.gz"

    def meanwhile(self, prepared, title):
        if prepared.id == P2:
            other.write_text("of someone")
        return plain(self, prepared, title)

    monkeypatch.setattr(Synthesiser, "_synthesise", meanwhile)
    given = ("--input", cohort, "--subjects", P1, P2, "--output", tmp_path / "out", *QUICK)
    for _ in range(2):  # nor is it taken for our own when the command is given again
        code, line = dsdiff("sample", run_folder, *given)
        assert (code, other.read_text()) == (5, "of someone")
        assert "OUT-EXISTS" in line
        monkeypatch.undo()
    assert not other.with_name(f"{P2}_t1ce.json").exists()


def test_oi_04_a_foreign_deviation_is_kept(dsdiff, tmp_path, run_folder, cohort):
    foreign = tmp_path / f"out/{P1}_t1ce_std.nii.gz"
    foreign.parent.mkdir()
    foreign.write_text("of someone")
    given = ("--input", cohort, "--subjects", P1, "--output", foreign.parent, *QUICK)
    code, line = dsdiff("sample", run_folder, *given)
    assert (code, foreign.read_text()) == (5, "of someone")
    assert f"OUT-EXISTS: {foreign} exists" in line


@pytest.mark.parametrize("verb", ["sample", "evaluate", "sweep", "diagnose", "prepare", "import"])
def test_ex_02_no_verb_writes_into_a_run(dsdiff, tmp_path, run_folder, cohort, verb):
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    files = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    command = {
        "sample": ("sample", run_folder, "--input", cohort, *QUICK, "--overwrite"),
        "evaluate": ("evaluate", "--prediction", cohort, "--reference", cohort),
        "sweep": ("sweep", run_folder, "--input", cohort),
        "diagnose": ("diagnose", "run", run_folder, "--no-data"),
        "prepare": ("prepare", cohort),
        "import": ("import", run / "model.safetensors", "--config", run / "config.yaml"),
    }[verb]
    code, line = dsdiff(*command, "--output", run)
    assert code == 5
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == files
    assert ("OUT-EXISTS" if verb == "import" else "OUT-OWNER") in line


def test_ex_02_evaluate_keeps_strangers_files(dsdiff, tmp_path, cohort):
    for name in ("metrics.csv", "metrics.json", "report.html"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / f"out/{name}").write_text("of someone")
        given = ("--prediction", cohort / P1, "--reference", cohort, "--output", tmp_path / "out")
        code, line = dsdiff("evaluate", *given)
        assert (code, (tmp_path / f"out/{name}").read_text()) == (5, "of someone")
        assert f"{name} exists and was not written by this command" in line
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("damage", ["deleted", "cut", "scaled"])
def test_sa_02_a_damaged_deviation_is_made_again(dsdiff, tmp_path, run_folder, cohort, damage):
    import nibabel as nib
    import numpy as np

    given = ("--input", cohort, "--subjects", P1, "--output", tmp_path / "out", "--samples", "2")
    assert dsdiff("sample", run_folder, *given, *QUICK) == (0, "")
    spread = tmp_path / f"out/{P1}_t1ce_std.nii.gz"
    whole = spread.read_bytes()
    if damage == "deleted":
        spread.unlink()
    elif damage == "cut":
        spread.write_bytes(whole[:300])
    else:
        image = nib.load(spread)
        nib.save(nib.Nifti1Image(3 * np.asarray(image.dataobj), image.affine), spread)
    assert dsdiff("sample", run_folder, *given, *QUICK) == (0, "")
    assert spread.read_bytes() == whole


@pytest.mark.parametrize("damage", ["lost", "torn"])
def test_sa_03_a_volume_without_sidecar_is_made_again_and_compared(
    dsdiff, tmp_path, run_folder, cohort, damage
):
    only = ("--input", cohort, "--subjects", P1, "--output", tmp_path / "out")
    given = (*only, *QUICK, "--steps", "2")  # one step is the mean, whatever the seed
    assert dsdiff("sample", run_folder, *given) == (0, "")
    volume, sidecar = (tmp_path / f"out/{P1}_t1ce{end}" for end in (".nii.gz", ".json"))
    before = volume.read_bytes(), sidecar.read_text()
    sidecar.unlink() if damage == "lost" else sidecar.write_text(before[1][:100])
    code, line = dsdiff("sample", run_folder, *given, "--seed", "7")
    assert (code, volume.read_bytes()) == (5, before[0])  # another volume: it is kept
    assert f"{P1}_t1ce.nii.gz exists and has no sidecar" in line
    assert dsdiff("sample", run_folder, *given) == (0, "")
    assert (volume.read_bytes(), sidecar.read_text()) == before


@pytest.mark.parametrize("content", ["", "mine", "id,age\nA,7\n"])
@pytest.mark.parametrize("inside", [True, False])
def test_ex_02_a_manifest_that_is_none_is_kept(dsdiff, tmp_path, cohort, content, inside):
    out = cohort / P1 if inside else tmp_path / "out"
    out.mkdir(exist_ok=True)
    (out / "manifest.csv").write_text(content)
    code, line = dsdiff("prepare", cohort, "--output", out, "data.params.image_size=32")
    assert (code, (out / "manifest.csv").read_text()) == (
        5 if inside or "," not in content else 3,
        content,
    )


def test_di_14_a_manifest_that_is_a_pipe_is_not_waited_for(dsdiff, tmp_path, cohort):
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out/manifest.csv")
    for given in (
        (cohort, "--output", tmp_path / "out"),
        ("--verify", tmp_path / "out/manifest.csv"),
    ):
        code, line = dsdiff("prepare", *given)
        assert (code, "DATA-FORMAT: manifest.csv is a pipe" in line) == (3, True), line


def test_sa_04_a_job_that_does_not_fit_is_refused_before_it_begins(
    dsdiff, tmp_path, run_folder, cohort, monkeypatch
):
    """The estimate is near what is written: a job that does fit is not refused."""
    out, plain, free = tmp_path / "out", shutil.disk_usage, {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: plain(path)._replace(**free))

    def sampled(*options: object) -> tuple[int, str, int]:
        given = ("--input", cohort, "--output", out, "--temperature", "1", *QUICK)
        code, line = dsdiff("sample", run_folder, *given, *options)
        return code, line, sum(p.stat().st_size for p in out.glob("*.nii.gz"))

    total = sampled()[2]
    one = (out / f"{P1}_t1ce.nii.gz").stat().st_size
    shutil.rmtree(out)
    free["free"] = total // 2
    code, line, written = sampled()
    assert (code, written) == (5, 0)
    needed = int(re.search(r"OUT-SPACE: about (\d+) bytes are needed for 3 subjects", line)[1])
    assert 0.75 * total < needed < 1.25 * total and f"{total // 2} are free" in line
    assert sampled("--subjects", P1)[:2] == (0, "")  # which fits
    free["free"] = one
    assert sampled("--subjects", P2, "--samples", "2")[0] == 5  # the deviation needs as much
    free["free"] = total - one
    assert sampled() == (0, "", total)  # the first is there and needs nothing


@pytest.mark.parametrize(("form", "files"), [("--bids", "*.nii.gz"), ("--dicom", "*.dcm")])
def test_sa_04_room_is_asked_for_in_the_form_that_is_written(
    dsdiff, tmp_path, run_folder, cohort, monkeypatch, form, files
):
    out, plain, free = tmp_path / "out", shutil.disk_usage, {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: plain(path)._replace(**free))
    given = ("--input", cohort, "--output", out, form, "--temperature", "1", *QUICK)
    assert dsdiff("sample", run_folder, *given) == (0, "")
    total = sum(p.stat().st_size for p in out.rglob(files))
    free["free"] = 1
    assert dsdiff("sample", run_folder, *given) == (0, "")  # all are there, and need nothing
    shutil.rmtree(out)
    code, line = dsdiff("sample", run_folder, *given)
    needed = int(re.search(r"OUT-SPACE: about (\d+) bytes are needed for 3 subjects", line)[1])
    assert code == 5 and 0.75 * total < needed < 1.25 * total


def test_sa_04_a_patient_that_cannot_be_used_is_told_in_its_turn(
    dsdiff, tmp_path, run_folder, cohort, monkeypatch
):
    plain = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: plain(path)._replace(free=10**9))
    (cohort / f"{P1}/{P1}_t2.nii.gz").write_bytes(b"damaged")
    code, _ = dsdiff("sample", run_folder, "--input", cohort, "--output", tmp_path / "out", *QUICK)
    assert code == 9
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_sa_04_a_disk_that_is_full_at_the_second_of_three_says_how_much_is_needed(
    dsdiff, tmp_path, run_folder, cohort, monkeypatch
):
    plain, asked = shutil.disk_usage, []

    def usage(path):
        asked.append(path)
        return plain(path)._replace(free=10) if len(asked) == 3 else plain(path)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    given = ("--input", cohort, "--output", tmp_path / "out", *QUICK)
    code, line = dsdiff("sample", run_folder, *given)
    assert (code, len(asked)) == (5, 3)  # for all of them, then for each
    assert f"cannot write {P2}_t1ce.nii.gz" in line and "bytes are needed, 10 are free" in line
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == [f"{P1}_t1ce.nii.gz"]
    assert not list((tmp_path / "out").glob(".tmp-*"))
    first = (tmp_path / f"out/{P1}_t1ce.nii.gz").read_bytes()
    assert dsdiff("sample", run_folder, *given) == (0, "")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3
    assert (tmp_path / f"out/{P1}_t1ce.nii.gz").read_bytes() == first
