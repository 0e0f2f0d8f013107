"""``lightning.compile`` and ``--runtime compile`` change how a network is called, nothing else."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from ldm.cli.main import main
from ldm.errors import ConfigError
from ldm.model_file import read_model
from ldm.storage import MODEL_FILE


@pytest.fixture
def compiled(monkeypatch):
    """The classes that were compiled; traced and called as they are, which takes no minute."""
    found = []

    def compile_lightly(self, **options):
        found.append(type(self).__name__)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_lightly)
    monkeypatch.setattr("ldm.compiling.shutil.which", lambda name: name)
    return found


def states(run):
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint["state_dict"], checkpoint["current_model_state"]


@pytest.mark.slow
def test_a_compiled_training_writes_the_run_that_it_would_without(
    tmp_path, train, run_folder, compiled
):
    run, resume = tmp_path / "run", ["train", "--resume", str(tmp_path / "run")]
    steps = "lightning.trainer.max_steps="
    assert train(run, f"{steps}2", "lightning.compile=true") == 0
    assert compiled == ["UNetModel"]
    assert main([*resume, f"{steps}3", "lightning.compile=false"]) == 0
    assert len(compiled) == 1
    assert main([*resume, f"{steps}4", "lightning.compile=true"]) == 0
    assert len(compiled) == 2
    for own, expected in zip(states(run), states(run_folder), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)  # names too
    made, plain = (read_model(folder / MODEL_FILE)[0] for folder in (run, run_folder))
    assert made.keys() == plain.keys()


def test_a_compiled_network_samples_the_same_volume(
    tmp_path, run_folder, patients, compiled, capsys
):
    volumes = {}
    for runtime in ("torch", "compile"):
        start = ["sample", str(run_folder), "--input", str(patients), "--precision", "32"]
        more = ["--temperature", "0", "--subjects", "Phantom_0003"]
        more += ["--output", str(tmp_path / runtime)]
        assert main([*start, "--runtime", runtime, *more]) == 0
        sidecar = json.loads((tmp_path / runtime / "Phantom_0003_t1ce.json").read_text())
        assert sidecar["request"].get("runtime", "torch") == runtime
        volumes[runtime] = nib.load(tmp_path / runtime / "Phantom_0003_t1ce.nii.gz").get_fdata()
    assert compiled == ["UNetModel"]
    spread = volumes["torch"].std()
    np.testing.assert_allclose(volumes["compile"], volumes["torch"], atol=1e-4 * spread)


def test_without_a_compiler_no_run_is_begun(tmp_path, train, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert train(tmp_path / "run", "lightning.compile=true") == ConfigError.exit_code
    assert "lightning.compile needs a C++ compiler, and there is no" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_whether_is_a_yes_or_no(tmp_path, train, capsys):
    assert train(tmp_path / "run", "lightning.compile=fast") == ConfigError.exit_code
    assert "lightning.compile is 'fast': give true or false" in capsys.readouterr().err
