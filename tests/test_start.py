"""The command line is there at once: help imports no library that computes."""

import subprocess
import sys
from pathlib import Path

import pytest
from builders import started, write_subject

from ldm.cli.main import VERBS

HEAVY = ("torch", "numpy", "pytorch_lightning", "lightning", "monai", "matplotlib", "nibabel")
HEAVY += ("scipy", "skimage", "omegaconf", "torchmetrics", "timm", "rich", "safetensors")
TASKS = {"segment": ("train", "predict", "evaluate"), "diagnose": ("data", "run")}
COMMANDS = [(), *((verb,) for verb in VERBS), *((v, t) for v, ts in TASKS.items() for t in ts)]
MOST_MODULES = 300  # Python alone has 60, argparse and the packages of a verb double that


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_imports_nothing_heavy(command):
    text, modules = started(*command, "--help")
    assert "usage: dsdiff" in text
    assert modules.isdisjoint(HEAVY)
    assert len(modules) < MOST_MODULES


MISTYPED = {
    "train": "train nowhere.yaml",
    "diagnose data": "diagnose data nowhere",
    "sample": "sample nowhere --input . --output out",
    "sample a folder": "sample . --input nowhere --output out",
    "evaluate": "evaluate --prediction . --reference nowhere",
    "benchmark": "benchmark nowhere.yaml --output out",
}


@pytest.mark.parametrize("command", MISTYPED.values(), ids=MISTYPED)
def test_a_mistyped_path_is_named_before_anything_heavy_is_imported(command):
    text, modules = started(*command.split())
    assert "error" in text and "nowhere" in text
    assert modules.isdisjoint({"torch", "pytorch_lightning", "monai", "nibabel"})


def test_torchvision_is_repaired_when_it_is_looked_for():
    script = "import sys, ldm; assert 'torch' not in sys.modules; import torchvision, torchmetrics"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])


def test_help_names_what_the_registries_hold():
    from ldm.cli import arguments
    from ldm.data.brain import MASKS

    assert ", ".join(MASKS) == arguments.MASKS


@pytest.mark.parametrize("report", [False, True], ids=["terminal", "report"])
def test_an_evaluation_imports_nothing_that_computes_for_networks(tmp_path, report):
    real, predicted = tmp_path / "real", tmp_path / "predicted"
    write_subject(real, shape=(20, 20, 20))
    (source,) = real.rglob("*_t1ce.nii*")
    predicted.mkdir()
    (predicted / source.name).write_bytes(source.read_bytes())
    output = ["--output", str(tmp_path / "evaluation")] if report else []
    folders = ["--prediction", str(predicted), "--reference", str(real)]
    text, modules = started("evaluate", *folders, *output)
    assert "MS-SSIM" in text
    assert modules.isdisjoint({"torch", "torchmetrics", "monai", "skimage.metrics", "scipy.signal"})
