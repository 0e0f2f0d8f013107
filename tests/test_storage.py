"""Storage and errors: a final name never holds a partial file; an error is one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm import errors
from ldm.claims import folder_lock
from ldm.errors import MAX_LINE, BusyError, DataError, DsdiffError, OutputError, one_line
from ldm.storage import atomic_path, run_folder, sha256, stable_seed, write_json

EXIT_CODES = {
    "ConfigError": 2,
    "DataError": 3,
    "CheckpointError": 4,
    "OutputError": 5,
    "NonFiniteError": 6,
    "OutOfMemory": 7,
    "WorkerError": 8,
    "PartialError": 9,
    "UnsafeError": 10,
    "BusyError": 11,
    "DsdiffError": 70,
}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --- Atomic files ---------------------------------------------------------------------------------


def test_the_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "a.nii.gz"
    with atomic_path(path) as temporary:
        temporary.write_text("content")
        assert temporary.parent == path.parent  # a rename across file systems would copy
        assert temporary.name.startswith(f".tmp-{os.getpid()}-")
        assert temporary.name.endswith(".nii.gz")  # writers choose the format by the ending
        assert not path.exists()
    assert path.read_text() == "content"
    assert names(path.parent) == ["a.nii.gz"]


def test_everyone_whom_the_mask_admits_can_read_the_file(tmp_path):
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.unlink()
        temporary.touch(mode=0o600)  # as some writers do
        temporary.write_text("content")
    (tmp_path / "b.txt").touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, DataError])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    (tmp_path / "a.txt").write_text("old")
    arguments = ("A", "b") if failure is DataError else ("b",)
    with pytest.raises(failure), atomic_path(tmp_path / "a.txt", replace=True) as temporary:
        temporary.write_text("half")
        raise failure(*arguments)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_what_the_system_refuses_is_an_output_error(tmp_path):
    def refused(why):
        return pytest.raises(OutputError, match=f"OUT-IO: cannot write a.txt: {why}")

    (tmp_path / "file").write_text("")
    with refused("File exists"), atomic_path(tmp_path / "file" / "a.txt"):
        pass  # the folder is a file
    with refused("No space left"), atomic_path(tmp_path / "a.txt"):
        Path("/dev/full").write_text("x")
    with refused("nothing was written"), atomic_path(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == ["file"]


def test_content_is_on_the_disk_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    order = []
    fsync, replace, link = os.fsync, Path.replace, os.link

    def recorded(descriptor):
        order.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(Path, "replace", lambda *a: (order.append("name"), replace(*a))[1])
    monkeypatch.setattr(os, "link", lambda *a, **k: (order.append("name"), link(*a, **k))[1])
    for old in (False, True):
        order.clear()
        write_json(tmp_path / "a.json", {}, replace=old)
        assert order[0].startswith(".tmp-")
        assert order[1:] == ["name", tmp_path.name]


def test_a_new_file_has_the_rights_that_the_user_asks_for(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_a_killed_writer_leaves_the_old_file_and_the_lock_sweeps(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    child = os.fork()
    if not child:
        with atomic_path(tmp_path / "a.txt", replace=True) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(names(tmp_path)) == 2  # the kill came in the middle
    with folder_lock(tmp_path):
        assert names(tmp_path) == [".lock", "a.txt"]


def test_json_is_the_same_for_the_same_content(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]})
    write_json(tmp_path / "b.json", {"a": [1.5, None], "b": 1})
    assert sha256(tmp_path / "a.json") == sha256(tmp_path / "b.json")


# --- Locks ----------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from ldm.claims import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_owner_until_that_owner_is_gone(tmp_path):
    arguments = [sys.executable, "-c", HOLD, tmp_path / "run"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, cwd=Path(__file__).parents[1], **pipes) as owner:
        assert owner.stdout.readline() == "held\n"
        with (
            pytest.raises(BusyError, match="RUN-BUSY: run is in use"),
            folder_lock(tmp_path / "run"),
        ):
            pass
        owner.kill()
    with folder_lock(tmp_path / "run"):  # the lock of a dead process is no lock
        pass


def test_a_file_is_no_folder_to_lock(tmp_path):
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(OutputError, match="OUT-IO: cannot use folder run"),
        folder_lock(tmp_path / "run"),
    ):
        pass


# --- Digests and seeds ----------------------------------------------------------------------------


def test_the_digest_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    published = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert sha256(tmp_path / "a") == published


def test_a_seed_is_the_same_in_every_process_and_on_every_machine():
    published = "62d4548c3ae17639"  # printf '0\x1forder\x1f1' | sha256sum
    assert stable_seed(0, "order", 1) == int(published, 16) >> 1
    assert stable_seed() == int("e3b0c44298fc1c14", 16) >> 1  # of nothing


@given(st.lists(st.one_of(st.integers(), st.text("ab|,")), min_size=1, max_size=4))
def test_seeds_are_63_bits_and_parts_do_not_run_together(parts):
    assert 0 <= stable_seed(*parts) < 2**63
    assert stable_seed(*parts) != stable_seed(*parts, "")
    assert stable_seed("a", "b") != stable_seed("ab")


# --- Errors ---------------------------------------------------------------------------------------


def test_exit_codes_are_those_of_the_contract():
    classes = {k: v for k, v in vars(errors).items() if isinstance(v, type)}
    classes = {k: v for k, v in classes.items() if issubclass(v, Exception)}
    assert {name: cls.exit_code for name, cls in classes.items()} == EXIT_CODES


def test_an_error_is_one_line_with_code_and_subject():
    error = DataError("DATA-SHAPE", "t1 is (1,)\nand t2\x1b[31m is (2,)", "p\t1")
    assert str(error) == "DATA-SHAPE case=p\\t1: t1 is (1,)\\nand t2\\x1b[31m is (2,)"
    assert str(DsdiffError("A", "b")) == "A: b"


@given(st.text(max_size=1000))
def test_any_text_becomes_one_printable_line(text):
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= MAX_LINE
    if text.isprintable() and len(text) <= MAX_LINE:
        assert line == text


@given(st.text(st.characters(max_codepoint=126, min_codepoint=32), min_size=MAX_LINE))
def test_a_line_too_long_keeps_what_was_seen_and_what_to_do(text):
    assert one_line(text)[:200] == text[:200]
    assert one_line(text)[-100:] == text[-100:]


@pytest.mark.parametrize("name", [".", "model.safetensors", "checkpoints/last.ckpt"])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("run", ["run", "v1.2"])
def test_the_run_of_a_model_is_named_whether_it_is_there_or_not(tmp_path, name, there, run):
    path = tmp_path / run / name
    if there:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name == "." else path.touch()
    assert run_folder(path) == tmp_path / run
