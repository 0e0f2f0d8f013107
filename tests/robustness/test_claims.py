"""Nothing that a verb did not write is lost: inputs, links, strangers' files, other verbs' folders.

The ids in the names are those of docs/reliability.md.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm import claims
from ldm.claims import claim
from ldm.errors import DataError, DsdiffError
from ldm.folders import atomic_folder
from ldm.storage import appending, atomic_path, remove, rename, write_json

DEAD = 4_000_000  # above the largest process number of Linux, 2**22, is 4_194_304: none has it


def refused(code: str, *said: str):
    return pytest.raises(DsdiffError, match=f"{code}.*{'.*'.join(said)}")


def own(path: Path, text: str = "new", **options) -> None:
    with atomic_path(path, **options) as temporary:
        temporary.write_text(text)


@pytest.fixture
def inputs(tmp_path):
    """A patient's folder with a T1ce, and the folder for outputs."""
    (tmp_path / "in/P1").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "in/P1/P1_t1ce.nii.gz").write_text("real")
    return tmp_path / "in/P1/P1_t1ce.nii.gz"


# --- OI-05: an input is never an output -----------------------------------------------------------


@pytest.mark.parametrize("way", ["same", "dots", "folder link", "hard link", "link", "case"])
def test_oi_05_an_input_is_never_an_output_even_with_overwrite(inputs, tmp_path, way):
    folder, name = inputs.parent, inputs.name
    if way == "dots":
        folder = folder / ".." / "P1"
    elif way == "folder link":
        (tmp_path / "linked").symlink_to(folder)
        folder = tmp_path / "linked"
    elif way in ("hard link", "link"):
        folder = tmp_path / "out"
        make = os.link if way == "hard link" else os.symlink
        make(inputs, folder / name)
    elif way == "case":
        name = name.upper()
    with (
        claim(folder, "sample", inputs=[inputs], replace=True),
        refused("OUT-INPUT", "is an input", "choose another output"),
    ):
        own(folder / name)
    assert inputs.read_text() == "real"


def test_oi_05_what_stands_in_an_input_folder_is_kept_though_no_layout_names_it(inputs):
    patients = inputs.parents[1]
    notes = patients / "made/P1_t1ce.json"
    notes.parent.mkdir()
    notes.write_text("of the scanner")
    with claim(notes.parent, "sample", inputs=[patients], replace=True):
        with refused("OUT-INPUT"):
            own(notes)
        own(notes.with_name("P1_new.json"))  # a new name is no loss,
        own(notes.with_name("P1_new.json"))  # and then it is our own
    assert notes.read_text() == "of the scanner"


def test_oi_05_the_folder_of_a_patient_below_an_input_is_no_output(inputs):
    own_claim = claim(inputs.parent, "evaluate", inputs=[inputs.parents[1]], replace=True)
    with refused("OUT-INPUT", "further subjects"), own_claim:
        pass
    assert not (inputs.parent / ".lock").exists()


# --- SE-12: no link is followed, nothing is emptied -----------------------------------------------


@pytest.mark.parametrize("kind", ["symbolic", "hard", "dangling", "pipe"])
def test_se_12_a_lock_follows_no_link_and_empties_nothing(tmp_path, kind):
    thesis, lock = tmp_path / "thesis.tex", tmp_path / "out" / ".lock"
    lock.parent.mkdir()
    thesis.write_text("all of it")
    if kind == "pipe":
        os.mkfifo(lock)
    elif kind == "hard":
        os.link(thesis, lock)
    else:
        lock.symlink_to(thesis if kind == "symbolic" else tmp_path / "nothing")
    with refused("OUT-LINK", "is a link"), claim(tmp_path / "out", "sample"):
        pass
    assert thesis.read_text() == "all of it"
    assert not (tmp_path / "nothing").exists()


def test_se_12_a_lock_that_is_a_text_of_someone_is_refused_and_kept(tmp_path):
    (tmp_path / ".lock").write_text("my notes")
    with refused("OUT-LINK", "no lock of dsdiff"), claim(tmp_path, "sample"):
        pass
    assert (tmp_path / ".lock").read_text() == "my notes"


def test_se_12_a_folder_of_a_run_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run/samples").symlink_to(tmp_path / "elsewhere")
    with claim(tmp_path / "run", "train"), refused("OUT-LINK", "samples in", "is a link"):
        own(tmp_path / "run/samples/step-1.png")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_se_12_a_file_that_came_while_we_wrote_is_kept(tmp_path):
    path = tmp_path / "P2_t1ce.nii.gz"
    with claim(tmp_path, "sample"):
        with refused("OUT-EXISTS", "P2_t1ce.nii.gz exists"), atomic_path(path) as temporary:
            temporary.write_text("synthetic")
            path.write_text("came in between")
        with refused("OUT-EXISTS"):  # and the next command does not take it for its own
            own(path)
    assert path.read_text() == "came in between"


def test_se_12_the_same_where_the_file_system_has_no_hard_links(tmp_path, monkeypatch):
    def link(*args, **options):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with claim(tmp_path, "sample"):
        own(tmp_path / "a")
        with refused("OUT-EXISTS"), atomic_path(tmp_path / "b") as temporary:
            temporary.write_text("new")
            (tmp_path / "b").write_text("old")
    assert [(tmp_path / name).read_text() for name in "ab"] == ["new", "old"]


def test_se_12_lines_are_not_appended_through_a_link(tmp_path):
    (tmp_path / "thesis").write_text("all of it\n")
    with claim(tmp_path / "run", "train") as run:
        run.record("metrics.csv")
        (tmp_path / "run/metrics.csv").symlink_to(tmp_path / "thesis")
        with refused("OUT-LINK"), appending(tmp_path / "run/metrics.csv") as file:
            file.write("1\n")
        (tmp_path / "run/log.txt").write_text("of someone\n")
        with refused("OUT-EXISTS"), appending(tmp_path / "run/log.txt") as file:
            file.write("1\n")
    assert (tmp_path / "thesis").read_text() == "all of it\n"


# --- SE-X7, SA-12: only own temporary files of dead processes are swept -------------------------


def test_se_x7_only_own_temporary_files_of_dead_processes_are_swept(tmp_path):
    out = tmp_path / "out"
    with claim(out, "sample"):
        own(out / "pictures/P1.png")
    (out / "deep").mkdir()
    strangers = [".tmp-notes.txt", "deep/.tmp-notes.txt", f"deep/.tmp-{DEAD}-0123abcd.json"]
    live = [f".tmp-{os.getpid()}-0123abcd.nii.gz", f".tmp-{os.getppid()}-0123abcd.json"]
    dead = [f".tmp-{DEAD}-0123abcd.nii.gz", f"pictures/.tmp-{DEAD}-89abcdef.png"]
    for name in (*strangers, *live, *dead):
        (out / name).write_text("x")
    (out / ".tmp-x").mkdir()
    (out / f".tmp-{DEAD}-00000000.json").symlink_to(out / "deep")
    with claim(out, "sample"):
        kept = {str(p.relative_to(out)) for p in out.rglob(".tmp*")}
    assert kept == {*strangers, *live, ".tmp-x", f".tmp-{DEAD}-00000000.json"}


def test_se_x7_the_sweep_follows_no_link(tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    with claim(out, "sample"):
        own(out / "pictures/P1.png")
    (out / "pictures").rename(other)
    (out / "pictures").symlink_to(other)
    (other / f".tmp-{DEAD}-89abcdef.png").write_text("x")
    with claim(out, "sample"):
        assert (other / f".tmp-{DEAD}-89abcdef.png").exists()


# --- OI-04, EX-02: a file has one owner -----------------------------------------------------------


def test_oi_04_a_strangers_file_is_neither_replaced_nor_removed(tmp_path):
    (tmp_path / "S1_t1ce_std.nii.gz").write_text("of someone")
    with claim(tmp_path, "sample"):
        with refused("OUT-EXISTS"):
            own(tmp_path / "S1_t1ce_std.nii.gz")
        with refused("OUT-EXISTS"):
            remove(tmp_path / "S1_t1ce_std.nii.gz")
    with claim(tmp_path, "sample", replace=True):  # --overwrite
        own(tmp_path / "S1_t1ce_std.nii.gz")
    assert (tmp_path / "S1_t1ce_std.nii.gz").read_text() == "new"
    with claim(tmp_path, "sample"):  # now it is our own
        own(tmp_path / "S1_t1ce_std.nii.gz", "newer")
        remove(tmp_path / "S1_t1ce_std.nii.gz")
    assert not (tmp_path / "S1_t1ce_std.nii.gz").exists()


def test_ex_02_a_verb_refuses_the_folder_of_another(tmp_path):
    with claim(tmp_path / "run", "train"):
        write_json(tmp_path / "run/cost.json", {"steps": 4})
    before = (tmp_path / "run/cost.json").read_bytes()
    for verb in ("sample", "evaluate", "sweep"):
        with (
            refused("OUT-OWNER", f"dsdiff train, and dsdiff {verb}"),
            claim(tmp_path / "run", verb),
        ):
            pass
    assert (tmp_path / "run/cost.json").read_bytes() == before
    with claim(tmp_path / "run/predictions", "sample"):  # a folder of its own, below
        pass


def test_ex_02_a_run_of_an_earlier_version_is_known_by_its_files(tmp_path):
    for name in (".lock", "config.yaml", "model.safetensors", "cost.json"):
        (tmp_path / name).touch()
    with refused("OUT-OWNER"), claim(tmp_path, "evaluate"):
        pass
    with claim(tmp_path, "train", adopt=True):
        own(tmp_path / "config.yaml")
    with refused("OUT-OWNER", "dsdiff train"), claim(tmp_path, "evaluate"):
        pass


def test_ex_02_what_will_be_in_the_way_is_said_before_any_work(tmp_path):
    (tmp_path / "metrics.csv").write_text("of someone")
    with (
        refused("OUT-EXISTS", "metrics.csv exists"),
        claim(tmp_path, "evaluate", writes=["metrics.csv", "metrics.json"]),
    ):
        raise AssertionError("the block is not entered")
    with claim(tmp_path, "sample"):  # which of the two it is does not stay with the folder
        own(tmp_path / "S1_t1ce.nii.gz")


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_ex_02_what_wrote_nothing_leaves_nothing(tmp_path, there, shared):
    folder = tmp_path / "out"
    if there:
        folder.mkdir()
    with refused("DATA-MISSING"), claim(folder, "sample", shared=shared):
        raise DataError("DATA-MISSING", "no patient")
    assert [p.name for p in tmp_path.rglob("*")] == (["out"] if there else [])
    with claim(folder, "train"):  # nor is it the folder of that verb
        own(folder / "config.yaml")
    with refused("DATA-MISSING"), claim(folder, "train"):
        raise DataError("DATA-MISSING", "no patient")
    assert (folder / "config.yaml").is_file() and (folder / ".lock").is_file()


def test_a_lock_that_its_owner_withdrew_is_not_held(tmp_path, monkeypatch):
    taken, withdrawn = claims.open_own, []

    def opened(path):
        descriptor = taken(path)
        if not withdrawn:  # between opening and locking it
            withdrawn.append(path.unlink())
        return descriptor

    monkeypatch.setattr(claims, "open_own", opened)
    with claim(tmp_path, "sample"), refused("RUN-BUSY"), claims.folder_lock(tmp_path):
        pass
    assert withdrawn


def test_a_generation_is_kept_under_another_name(tmp_path):
    with claim(tmp_path, "train"):
        own(tmp_path / "last.ckpt", "1")
        rename(tmp_path / "last.ckpt", tmp_path / "previous.ckpt")
        own(tmp_path / "last.ckpt", "2")
        rename(tmp_path / "last.ckpt", tmp_path / "previous.ckpt")
    assert (tmp_path / "previous.ckpt").read_text() == "2"


def test_two_processes_share_a_claim_and_know_each_others_files(tmp_path):
    script = (
        "import sys; from pathlib import Path; from ldm.storage import write_json\n"
        "from ldm.claims import claim\n"
        "folder = Path(sys.argv[1])\n"
        "with claim(folder, 'benchmark', shared=True): write_json(folder / 'cell.json', {})"
    )
    with claim(tmp_path, "benchmark", shared=True):
        subprocess.run([sys.executable, "-c", script, tmp_path], check=True)
        write_json(tmp_path / "cell.json", {"state": "done"})


# --- SE-18: nobody else reads what is not published ----------------------------------------------


def test_se_18_a_temporary_file_is_private_until_it_has_its_name(tmp_path):
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
        assert temporary.stat().st_mode & 0o777 == 0o600
    with atomic_folder(tmp_path / "entry") as temporary:
        (temporary / "slices.npy").write_text("x")
        assert temporary.stat().st_mode & 0o777 == 0o700
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "entry").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert [p.name for p in (tmp_path / "entry").iterdir()] == ["slices.npy"]


def test_a_folder_that_another_process_published_first_is_kept(tmp_path):
    with atomic_folder(tmp_path / "entry") as temporary:
        (temporary / "a").write_text("second")
        (tmp_path / "entry").mkdir()
        (tmp_path / "entry/a").write_text("first")
    assert (tmp_path / "entry/a").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["entry"]


def test_no_claim_is_left_behind():
    assert claims._claims == []
