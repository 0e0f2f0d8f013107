"""``dsdiff import``: from a foreign file to synthetic volumes, or one line that says why not."""

import json
import shutil

import pytest
import torch

from ldm.cli.main import main
from ldm.config import read_saved_config
from ldm.model_file import read_model
from ldm.storage import MODEL_FILE, sha256


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, train):
    """A run of four steps without a prior, which public checkpoints do not have."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(folder, "lightning.trainer.max_steps=4", "model.params.prior_config=null") == 0
    return folder


@pytest.fixture
def public(tmp_path, run_folder):
    """The averaged weights of the run as latent-diffusion would have saved them."""
    tensors, _ = read_model(run_folder / MODEL_FILE)
    averages = {
        f"model_ema.{name.removeprefix('model.').replace('.', '')}": value
        for name, value in tensors.items()
    }
    trained = {name: torch.zeros_like(value) for name, value in tensors.items()}
    torch.save({"state_dict": {**trained, **averages}}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def import_model(checkpoint, run, output, *more):
    config = ["--config", str(run / "config.yaml"), *[a for a in more if "=" in a]]
    options = [a for a in more if "=" not in a]
    return main(["import", str(checkpoint), *config, "--output", str(output), *options])


def test_an_imported_model_samples_what_the_original_samples(
    tmp_path, public, run_folder, patients, capsys
):
    report = tmp_path / "report.json"
    assert import_model(public, run_folder, tmp_path / "model", "--report", str(report)) == 0
    printed = capsys.readouterr().out
    assert f"dsdiff sample {tmp_path}/model --input PATIENTS --output predictions\n" in printed
    described = json.loads(report.read_text())
    original = read_model(run_folder / MODEL_FILE)[1]["sha256"]
    assert described["weights"] == "ema" and described["sha256"] == original
    assert original in printed
    for model in (run_folder, tmp_path / "model"):
        options = ["--input", str(patients), "--subjects", "Phantom_0003"]
        assert main(["sample", str(model), *options, "--output", f"{tmp_path}/{model.name}-o"]) == 0
    name = "Phantom_0003_t1ce.nii.gz"
    assert sha256(tmp_path / "model-o" / name) == sha256(tmp_path / f"{run_folder.name}-o" / name)


def test_what_another_program_trained_has_learned_no_mean_unless_the_yaml_says_so(
    tmp_path, public, run_folder
):
    """In a run ``auto`` is saved as what it stood for, so that a run says so."""
    shares = {"0.75": read_saved_config(run_folder / "config.yaml")}
    assert import_model(public, run_folder, tmp_path / "m", "model.params.mean_share=auto") == 0
    shares["0.0"] = read_saved_config(tmp_path / "m/config.yaml")
    for share, config in shares.items():
        assert str(config["model"]["params"]["mean_share"]) == share


def test_mismatch_is_listed_and_nothing_is_written(tmp_path, public, run_folder, capsys):
    report = tmp_path / "report.json"
    wider = "model.params.unet_config.params.model_channels=64"
    assert import_model(public, run_folder, tmp_path / "m", wider, "--report", str(report)) == 4
    error = capsys.readouterr().err
    assert "CKPT-MISMATCH" in error.splitlines()[-1]
    assert "Hint: the checkpoint has model_channels 32, the YAML gives 64" in error
    shapes = json.loads(report.read_text())["other_shape"]
    assert f"... and {len(shapes) - 10} more" in error
    assert not (tmp_path / "m").exists()


def test_existing_model_and_report_are_kept(tmp_path, public, run_folder, capsys):
    output, report = tmp_path / "model", tmp_path / "report.json"
    assert import_model(public, run_folder, output) == 0
    before = sha256(output / MODEL_FILE)
    assert import_model(public, run_folder, output, "--weights", "raw") == 5
    assert "OUT-EXISTS" in capsys.readouterr().err
    assert sha256(output / MODEL_FILE) == before
    report.touch()
    assert import_model(public, run_folder, tmp_path / "b", "--report", str(report)) == 5
    assert import_model(public, run_folder, output, "--weights", "raw", "--overwrite") == 0
    assert sha256(output / MODEL_FILE) != before


def test_refusals_have_their_exit_codes(tmp_path, run_folder, capsys):
    page = tmp_path / "model.ckpt"
    page.write_text("<html>not found</html>")
    assert import_model(page, run_folder, tmp_path / "m") == 4
    assert "looks like an HTML page" in capsys.readouterr().err
    assert import_model(tmp_path / "absent.pt", run_folder, tmp_path / "m") == 4
    assert "CKPT-MISSING" in capsys.readouterr().err
    torch.save({"state_dict": {"a": torch.ones(1)}, "f": shutil.rmtree}, page)
    assert import_model(page, run_folder, tmp_path / "m") == 10
    assert "UNSAFE-PICKLE: model.ckpt holds shutil.rmtree" in capsys.readouterr().err
    assert main(["import", str(page), "--config", "name=x", "--output", str(tmp_path / "m")]) == 2
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("name", [MODEL_FILE, "checkpoints/last.ckpt"])
def test_a_model_of_this_project_is_not_imported(tmp_path, run_folder, capsys, name):
    """By another YAML than its own it would be sampled otherwise than it was trained."""
    assert import_model(run_folder / name, run_folder, tmp_path / "model") == 4
    assert "dsdiff sample takes its folder as it is" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
