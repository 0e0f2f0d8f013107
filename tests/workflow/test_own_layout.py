"""``docs/data.md``: the layout of its reader is saved and run as written."""

import shlex
import sys
from pathlib import Path

import pytest
from builders import INPUTS, write_subject

from ldm.cli.main import main
from ldm.data.layouts import LAYOUTS

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
OWN = PAGE.partition("## Your own layout")[2]
HOSPITAL = {"t1": "nativ", "t1ce": "km", "t2": "t2", "flair": "dark"}


def block(kind: str) -> str:
    """Return the first block of a kind in the section."""
    return OWN.partition(f"```{kind}\n")[2].partition("```")[0]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """The reader's folder, with a class and three patients."""
    (tmp_path / "my_layout.py").write_text(block("python"))
    for number in range(3):
        write_subject(tmp_path / "all", f"2024_000{number}", (*INPUTS, "t1ce"), seed=number)
    (tmp_path / "scans").mkdir()
    for path in (tmp_path / "all").rglob("*.nii.gz"):
        patient, _, contrast = path.name.removesuffix(".nii.gz").rpartition("_")
        path.rename(tmp_path / f"scans/{patient}.{HOSPITAL[contrast]}.nii.gz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_layout", None)


def test_the_layout_of_the_page_works_as_written(reader, capsys):
    assert main(shlex.split(block("bash"))[1:]) == 0
    printed = capsys.readouterr()
    expected = block("text").splitlines()
    assert expected[0] in printed.err.splitlines()
    assert expected[1] in printed.out.splitlines()


def test_the_class_has_at_most_15_lines_and_every_layout_is_described():
    lines = [line for line in block("python").splitlines() if line]
    assert len(lines) <= 15
    for name in LAYOUTS:
        assert f"`{name}`" in PAGE
