"""CK of docs/reliability.md: a damaged or hostile checkpoint is refused, never half used."""

import os
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from ldm import checkpoint as files
from ldm.checkpoint import (
    CHECKPOINTS,
    newest_checkpoint,
    read_checkpoint,
    verify_archive,
)
from ldm.claims import claim
from ldm.errors import CheckpointError, DsdiffError, OutputError, UnsafeError
from ldm.model_file import read_model, save_model
from ldm.training import checkpoint_io
from ldm.training.checkpoint_io import AtomicCheckpointIO

LAST, PREVIOUS = CHECKPOINTS
CANARY = "canary"


def state(step: int) -> dict:
    """A checkpoint as small as its damage needs: each byte of the weights is part of one number."""
    weights = torch.arange(600, dtype=torch.float32) + step
    return {"state_dict": {"a": weights, "b": weights.double()}, "global_step": step}


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder with two generations: steps 1 and 2."""
    (tmp_path / "config.yaml").write_text("model: {}\n")
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint(state(step), tmp_path / LAST)
    return tmp_path


def step_of(path: Path) -> int:
    return read_checkpoint(path)["global_step"]


def places(size: int, count: int, seed: int = 0) -> list[int]:
    """Offsets in a file: its ends and those drawn between."""
    ends = [n for n in (0, 1, 7, 8, size // 2, size - 8, size - 4, size - 1) if n < size]
    return ends + np.random.default_rng(seed).integers(size, size=count - len(ends)).tolist()


# --- CK-01, CK-02: truncation and bit rot ---------------------------------------------------------


def test_ck_01_every_truncation_falls_back_to_the_generation_before(run):
    whole = (run / LAST).read_bytes()
    for size in places(len(whole), 300):
        (run / LAST).write_bytes(whole[:size])
        assert newest_checkpoint(run) == run / PREVIOUS, size
    assert step_of(run / PREVIOUS) == 1


def test_ck_01_the_only_generation_that_is_cut_is_refused(run):
    (run / PREVIOUS).unlink()
    os.truncate(run / LAST, 500)
    with pytest.raises(CheckpointError, match="CKPT-CORRUPT: no checkpoint of .* is intact"):
        newest_checkpoint(run)


def changed(read, path: Path, content: bytes, known) -> bool:
    """Return whether a damaged file was read as something else, without a word."""
    path.write_bytes(content)
    try:
        return str(read(path)) != known
    except DsdiffError:
        return False


@pytest.mark.parametrize("kind", ["last.ckpt", "model.safetensors"])
def test_ck_02_no_flipped_bit_and_no_lost_page_is_silent(tmp_path, kind):
    path, tensors = tmp_path / kind, state(0)["state_dict"]

    def read(path):
        if kind == "last.ckpt":
            return [(k, v.tolist()) for k, v in read_checkpoint(path)["state_dict"].items()]
        return [(k, v.tolist()) for k, v in sorted(read_model(path)[0].items())]

    torch.save(state(0), path) if kind == "last.ckpt" else save_model(tmp_path, tensors, {})
    whole, known = path.read_bytes(), str(read(path))
    rng = np.random.default_rng(1)
    silent = 0
    for place in places(len(whole), 1000):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        silent += changed(read, path, bytes(flipped), known)
    for place in places(len(whole), 300, seed=2):
        page = whole[:place] + bytes(min(64, len(whole) - place)) + whole[place + 64 :]
        silent += changed(read, path, page, known)
    assert silent == 0


# --- CK-03, CK-09, CK-14: what is no checkpoint, or is not there ---------------------------------

LOOKS = {
    b"": "is empty",
    b"<!DOCTYPE html><html>404": "looks like an HTML page: the download failed",
    b"version https://git-lfs.github.com/spec/v1\n": "is a Git LFS pointer: fetch the file itself",
    b"\x10\x00\x00\x00\x00\x00\x00\x00{": "looks like a safetensors file",
    b"\x80\x02}q": "has an unknown format",
}


@pytest.mark.parametrize("content", LOOKS)
def test_ck_03_the_message_says_what_it_looks_like(tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match="CKPT-FORMAT: a.ckpt is no torch") as refused:
        read_checkpoint(tmp_path / "a.ckpt")
    assert LOOKS[content] in str(refused.value)


def test_ck_09_an_empty_folder_is_never_begun_anew(dsdiff, tmp_path):
    code, line = dsdiff("train", "--resume", tmp_path)
    assert (code, "CKPT-MISSING" in line) == (4, True)
    (tmp_path / "config.yaml").write_text("model: {}\n")
    code, line = dsdiff("train", "--resume", tmp_path)
    assert (code, "has no checkpoint yet: start it anew" in line) == (4, True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml"]


@pytest.mark.parametrize("fault", ["dangling", "empty", "a folder"])
def test_ck_14_a_newest_generation_that_is_none(run, fault):
    (run / LAST).unlink()
    if fault == "dangling":
        (run / LAST).symlink_to(run / "gone")
    elif fault == "empty":
        (run / LAST).touch()
    else:
        (run / LAST).mkdir()
    assert newest_checkpoint(run) == run / PREVIOUS


# --- CK-07, CK-08: payloads and bombs -------------------------------------------------------------


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


PLACES = [("hyper_parameters",), ("optimizer_states", 0), ("current_model_state",), ("rng", "cpu")]


@pytest.mark.parametrize("place", PLACES)
def test_ck_07_a_payload_anywhere_in_a_checkpoint_does_not_run(tmp_path, place):
    canary = tmp_path / CANARY
    node = Payload(canary)
    for name in reversed(place):
        node = {name: node}
    torch.save(state(1) | node, tmp_path / "last.ckpt")
    with pytest.raises(UnsafeError, match="UNSAFE-PICKLE"):
        read_checkpoint(tmp_path / "last.ckpt")
    assert not canary.exists()
    torch.load(tmp_path / "last.ckpt", weights_only=False)  # the payload is one
    assert canary.exists()


@pytest.mark.parametrize("verb", ["resume", "sample", "weights of LPIPS"])
def test_ck_07_no_verb_runs_a_payload(dsdiff, tmp_path, run_folder, patients, verb):
    canary = tmp_path / CANARY
    payload = tmp_path / "payload.ckpt"
    torch.save({**state(1), "hyper_parameters": Payload(canary)}, payload)
    given = ("--output", tmp_path / "out")
    command = ("sample", payload, "--input", patients, *given)
    if verb == "resume":
        run = tmp_path / "run"
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_bytes((run_folder / "config.yaml").read_bytes())
        payload.rename(run / LAST)
        command = ("train", "--resume", run, "lightning.trainer.max_steps=6")
    elif verb == "sample":
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "config.yaml").write_bytes((run_folder / "config.yaml").read_bytes())
        command = ("sample", payload.rename(tmp_path / LAST), "--input", patients, *given)
    else:
        folders = ("--prediction", patients / "Phantom_0001", "--reference", patients)
        command = ("evaluate", *folders, *given, "--lpips-weights", payload)
    code, line = dsdiff(*command)
    assert (code, "UNSAFE-PICKLE" in line) == (10, True), line
    assert not canary.exists()


def test_ck_08_archives_that_are_weapons(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))  # 16 MiB in 16 kB
    with pytest.raises(UnsafeError, match="UNSAFE-ARCHIVE: a.ckpt has compressed entries"):
        verify_archive(path)
    monkeypatch.setattr(files, "MAX_ENTRIES", 50)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(51):
            archive.writestr(f"archive/data/{number}", b"")
    with pytest.raises(UnsafeError, match="has more than 50 entries"):
        verify_archive(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"../{CANARY}", b"x")
        archive.writestr(f"{tmp_path}/{CANARY}", b"x")
    with pytest.raises(DsdiffError) as refused:
        read_checkpoint(path)
    assert refused.value.exit_code in (4, 10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt"]


# --- CK-10: weights of other places --------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_ck_10_half_precision_is_read_as_it_is(tmp_path, kind):
    tensors = {"a": torch.linspace(-1, 1, 50).to(kind)}
    save_model(tmp_path, tensors, {})
    assert torch.equal(read_model(tmp_path / "model.safetensors")[0]["a"], tensors["a"])


# --- CK-11: a kill at every point of a save ------------------------------------------------------

POINTS = [
    "before write",
    "mid write",
    "before fsync",
    "before keeping",
    "before name",
    "after name",
]


def kill_at(point: str) -> None:
    """Arrange that this process is killed at a point of a save."""

    def die(*args, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    def half(value, path, *args, **options):
        plain_save(value, path)
        os.truncate(path, path.stat().st_size // 2)
        die()

    plain_save, plain_replace = torch.save, Path.replace
    if point in ("before write", "mid write"):
        files.torch.save = die if point == "before write" else half
    elif point == "before fsync":
        os.fsync = die
    elif point == "before keeping":
        checkpoint_io.rename = die
    elif point == "before name":
        os.link = die
        Path.replace = lambda self, new: plain_replace(self, new) if "prev" in str(new) else die()
    else:

        def named(self, new):
            plain_replace(self, new)
            if not str(new).endswith("previous.ckpt"):
                die()

        def linked(*args, **options):
            plain_link(*args, **options)
            die()

        plain_link, os.link, Path.replace = os.link, linked, named


# of the first save there is no generation before to keep
SAVES = [(point, saved) for point in POINTS for saved in (0, 1, 2) if saved or "keep" not in point]


@pytest.mark.parametrize(("point", "saved"), SAVES)
def test_ck_11_a_kill_anywhere_in_a_save_loses_one_interval_at_most(tmp_path, point, saved):
    (tmp_path / "config.yaml").write_text("model: {}\n")
    for step in range(saved):
        AtomicCheckpointIO().save_checkpoint(state(step), tmp_path / LAST)
    child = os.fork()
    if not child:
        kill_at(point)
        AtomicCheckpointIO().save_checkpoint(state(saved), tmp_path / LAST)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL  # it fired
    if not saved and point != "after name":
        with pytest.raises(CheckpointError, match="CKPT-MISSING"):
            newest_checkpoint(tmp_path)
        return
    assert step_of(newest_checkpoint(tmp_path)) >= saved - 1


# --- CK-12, CK-13, CK-16: where nothing can be written -------------------------------------------


def test_ck_13_a_save_that_fails_keeps_both_generations(run, monkeypatch):
    before = {name: (run / name).read_bytes() for name in CHECKPOINTS}
    writer = AtomicCheckpointIO()
    for error in (OSError(28, "No space left"), RuntimeError("enforce fail at inline_container")):
        monkeypatch.setattr(
            files.torch, "save", lambda *a, error=error: (_ for _ in ()).throw(error)
        )
        writer.failure = None
        writer.save_checkpoint(state(3), run / LAST)
        assert isinstance(writer.failure, OutputError)
        assert {name: (run / name).read_bytes() for name in CHECKPOINTS} == before
    assert not list(run.rglob(".tmp-*"))


def test_ck_12_a_full_disk_while_the_model_is_written(tmp_path, monkeypatch):
    """Which safetensors reports in words of its own."""
    save_model(tmp_path, state(1)["state_dict"], {})
    before = (tmp_path / "model.safetensors").read_bytes()
    full = SafetensorError("I/O error: No space left on device (os error 28)")
    monkeypatch.setattr("ldm.model_file.save_file", lambda *a, **k: (_ for _ in ()).throw(full))
    refused = pytest.raises(OutputError, match="OUT-IO: cannot write model.safetensors.*space")
    with claim(tmp_path, "train", replace=True), refused:
        save_model(tmp_path, state(2)["state_dict"], {})
    assert not list(tmp_path.glob(".tmp-*"))
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_ck_16_neither_the_umask_nor_the_folder_for_temporary_files_matters(tmp_path, monkeypatch):
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, "/nowhere")
    before = os.umask(0o022)
    try:
        AtomicCheckpointIO().save_checkpoint(state(1), tmp_path / LAST)
        save_model(tmp_path, state(1)["state_dict"], {})
    finally:
        os.umask(before)
    for name in (LAST, "model.safetensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o644
