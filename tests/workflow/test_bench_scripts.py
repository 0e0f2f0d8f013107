"""The scripts that time whole volumes and reading do the work that they say."""

import runpy
import sys
from pathlib import Path

import pytest

from ldm.phantom import write_phantoms

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patients")
    write_phantoms(folder, 2, size=32)
    return folder


def script(name, monkeypatch, *arguments):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return runpy.run_path(str(SCRIPTS / name), run_name="__main__")


def test_a_volume_of_both_is_timed_and_one_call_is_the_same(
    patients, tmp_path, monkeypatch, capsys
):
    """The script itself stops where the two differ by more than 1e-4."""
    small = ("--config", "configs/backbone/unet_tiny.yaml", "--image-size", 32)
    script("bench_sampling.py", monkeypatch, patients, *small, "--calls", 1, "--output", tmp_path)
    page = capsys.readouterr().out
    assert page.endswith((tmp_path / "sampling.md").read_text())
    assert "| 1 | MONAI script |" in page and "| 1 | dsdiff, 32 bit |" in page


def test_another_network_is_refused(patients, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPTS)
    found = runpy.run_path(str(SCRIPTS / "bench_sampling.py"))
    monkeypatch.setitem(found["compare"].__globals__, "map_weights", lambda *a, **k: 0.0)
    config = "configs/backbone/unet_tiny.yaml"
    with pytest.raises(SystemExit, match="one call differs by"):
        found["compare"](patients, "Phantom_0001", config, 32, 1, 1)


def test_reading_is_timed(patients, tmp_path, monkeypatch, capsys):
    small = ("--subjects", 2, "--reads", 20, "--decoded", 2, "--size", 32, "--steps", 2)
    script("bench_data.py", monkeypatch, patients, *small, "--rounds", 1, "--output", tmp_path)
    assert "times as fast as the files" in (tmp_path / "data.md").read_text()
