"""The cache gives what was written, or makes it again: TR-09, EX-01 and EX-09 of group B."""

import json
import os
import shutil

import numpy as np
import pytest

from ldm.data import cache
from ldm.data.cache import cached_subject
from ldm.data.layouts import detect_layout
from ldm.data.prepare import Preparation


@pytest.fixture
def entry(brats_folder, tmp_path):
    """``entry()``: the cache entry of a patient, found anew each time."""

    def find():
        layout, subjects = detect_layout(brats_folder)
        settings = (["t1", "t2", "flair"], "t1ce", Preparation(), tmp_path / "cache")
        return cached_subject(subjects["p0"], layout, *settings)

    return find


def arrays(found) -> dict[str, bytes]:
    return {name: np.array(found.open(name)).tobytes() for name in ("slices", "brain", "seg")}


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a bit": lambda folder: flip(folder / "slices.npy"),
    "cut": lambda folder: os.truncate(folder / "slices.npy", 200),
    "empty": lambda folder: os.truncate(folder / "brain_share.npy", 0),
    "lost": lambda folder: (folder / "brain.npy").unlink(),
    "lost labels": lambda folder: (folder / "seg.npy").unlink(),
    "lost list": lambda folder: (folder / "entry.json").unlink(),
    "torn list": lambda folder: (folder / "entry.json").write_text('{"slices": {"sha'),
    "a folder": lambda folder: ((folder / "brain.npy").unlink(), (folder / "brain.npy").mkdir()),
    "a pipe": lambda folder: ((folder / "seg.npy").unlink(), os.mkfifo(folder / "seg.npy")),
    "odd list": lambda folder: (folder / "entry.json").write_text('{"slices": 5, "brain": []}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_tr_09_a_damaged_entry_is_made_again(entry, damage, caplog):
    first = entry()
    whole = arrays(first)
    DAMAGES[damage](first.folder)
    healed = entry()
    assert "is damaged: it is made again" in caplog.text
    assert arrays(healed) == whole
    assert healed.has_seg and healed.folder == first.folder


def test_tr_09_a_copied_entry_is_read_once_and_kept(entry, monkeypatch, caplog):
    first = entry()
    shutil.copytree(first.folder, first.folder.with_name("copy"))
    shutil.rmtree(first.folder)
    first.folder.with_name("copy").rename(first.folder)
    monkeypatch.setattr(cache, "prepare_subject", lambda *_, **__: pytest.fail("it was not kept"))
    entry()
    monkeypatch.setattr(cache, "sha256", lambda path: pytest.fail("it was read twice"))
    entry()
    assert json.loads((first.folder / "entry.json").read_text()).keys() >= {"slices", "seg"}


@pytest.mark.parametrize("way", ["copied over", "renamed over"])
def test_ex_09_a_file_of_equal_size_and_time_is_another_file(entry, brats_folder, way):
    """As ``cp -p``, ``rsync -t`` and unpacking leave it."""
    first = entry()
    path = brats_folder / "p0/p0_t2.nii.gz"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[4] ^= 1  # the time in the gzip header: another file that is read as the same image
    target = path.with_name("new") if way == "renamed over" else path
    target.write_bytes(content)
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    target.rename(path)
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert entry().folder != first.folder
