"""The command line is there at once: help imports no library that computes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from builders import write_subject

from ldm.cli.main import VERBS

HEAVY = ("torch", "numpy", "pytorch_lightning", "lightning", "monai", "matplotlib", "nibabel")
HEAVY += ("scipy", "skimage", "omegaconf", "torchmetrics", "timm", "rich", "safetensors")
TASKS = {"segment": ("train", "predict", "evaluate"), "diagnose": ("data", "run")}
COMMANDS = [(), *((verb,) for verb in VERBS), *((v, t) for v, ts in TASKS.items() for t in ts)]
MOST_MODULES = 300  # Python alone has 60, argparse and the packages of a verb double that
START = """
import json, sys
from ldm.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert stop.code == 0, stop.code
print(json.dumps(sorted(n for n, m in sys.modules.items() if m)), file=sys.stderr)
"""


def started(*command: str) -> tuple[str, set[str]]:
    """Return what a command prints, and the modules that it imported, in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-c", START, *command],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.returncode == 0, process.stderr
    return process.stdout + process.stderr, set(json.loads(process.stderr.splitlines()[-1]))


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


def test_an_evaluation_imports_nothing_that_computes_for_networks(tmp_path):
    real, predicted = tmp_path / "real", tmp_path / "predicted"
    write_subject(real, shape=(20, 20, 20))
    (source,) = real.rglob("*_t1ce.nii*")
    predicted.mkdir()
    (predicted / source.name).write_bytes(source.read_bytes())
    text, modules = started("evaluate", "--prediction", str(predicted), "--reference", str(real))
    assert "MS-SSIM" in text
    assert modules.isdisjoint({"torch", "torchmetrics", "monai", "skimage.metrics", "scipy.signal"})
