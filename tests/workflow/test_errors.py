"""What goes wrong is said in one line with a stable code and exit status, and nothing is lost."""

import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ldm.claims import folder_lock
from ldm.cli.main import VERBS, main


@pytest.fixture
def broken(tmp_path, patients):
    """A copy of the patients to damage."""
    shutil.copytree(patients, tmp_path / "patients")
    return tmp_path / "patients"


def one_line(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if ": error " in line]
    assert len(lines) == 1
    assert len(lines[0]) <= 300
    return lines[0]


def train_on(folder: Path, output: Path, *overrides: str) -> int:
    return main(
        [
            "train",
            "configs/backbone/unet_tiny.yaml",
            f"data.params.root={folder}",
            "data.params.image_size=32",
            "lightning.trainer.max_steps=1",
            *overrides,
            "--output",
            str(output),
        ]
    )


def contrast(folder: Path, name: str) -> Path:
    return folder / f"Phantom_0002/Phantom_0002_{name}.nii.gz"


def test_truncated_nifti(broken, tmp_path, capsys):
    path = contrast(broken, "t2")
    path.write_bytes(path.read_bytes()[:-1000])
    assert train_on(broken, tmp_path / "run") == 3
    assert "DATA-CORRUPT case=Phantom_0002: Phantom_0002_t2.nii.gz" in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_missing_flair(broken, tmp_path, capsys):
    contrast(broken, "flair").unlink()
    assert train_on(broken, tmp_path / "run") == 3
    line = one_line(capsys)
    assert "DATA-MISSING case=Phantom_0002" in line
    assert "Phantom_0002_flair.nii.gz" in line


def test_contrasts_of_different_shape(broken, tmp_path, capsys):
    path = contrast(broken, "t2")
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), path)
    assert train_on(broken, tmp_path / "run") == 3
    line = one_line(capsys)
    assert "DATA-SHAPE" in line
    assert "(32, 32, 21)" in line and "(31, 32, 21)" in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.params.unet_config.params.model_chanels=64", "nearest: 'model_channels'"),
        ("data.params.rot=x", "nearest: 'root'"),
        ("lightning.trainer.max_step=3", "nearest: 'max_steps'"),
        ("lightning.trainer.max_steps=many", "CONFIG-VALUE"),
        ("model.params.optimizer_config.params.lr=fast", "CONFIG-VALUE"),
        ("model.params.parameterization=epsilon", "eps, x0, v"),
        ("model.params.unet_config.params.in_channels=7", "need 4"),
        ("model.params.unet_config.target=ldm.modules.nothing.Net", "no module"),
        ("dat.params.root=x", "CONFIG-UNKNOWN"),
    ],
)
def test_wrong_configuration(patients, tmp_path, capsys, override, said):
    assert train_on(patients, tmp_path / "run", override) == 2
    assert said in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_missing_checkpoint(tmp_path, patients, capsys):
    out = tmp_path / "out"
    sample = ["sample", str(tmp_path / "nowhere"), "--input", str(patients), "--output", str(out)]
    assert main(sample) == 4
    assert "CKPT-MISSING" in one_line(capsys)
    assert main(["train", "--resume", str(tmp_path / "nowhere")]) == 4
    assert "CKPT-MISSING" in one_line(capsys)


def test_damaged_model(tmp_path, run_folder, patients, capsys):
    shutil.copytree(run_folder, tmp_path / "run")
    path = tmp_path / "run/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    out = ["--input", str(patients), "--output", str(tmp_path / "out")]
    assert main(["sample", str(tmp_path / "run"), *out]) == 4
    assert "CKPT-CORRUPT" in one_line(capsys)


def test_foreign_class_in_a_model_folder_is_refused_before_import(
    tmp_path, run_folder, patients, capsys
):
    shutil.copytree(run_folder, tmp_path / "run")
    path = tmp_path / "run/config.yaml"
    target = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
    path.write_text(path.read_text().replace(target, "antigravity.Net"))
    out = ["--input", str(patients), "--output", str(tmp_path / "out")]
    assert main(["sample", str(tmp_path / "run"), *out]) == 10
    assert "--trust antigravity.Net" in one_line(capsys)
    assert "antigravity" not in sys.modules


def test_busy_run_folder(tmp_path, patients, capsys):
    with folder_lock(tmp_path / "run"):
        assert train_on(patients, tmp_path / "run") == 11
    assert "RUN-BUSY" in one_line(capsys)


def test_no_subjects(tmp_path, run_folder, capsys):
    (tmp_path / "empty").mkdir()
    out = ["--input", str(tmp_path / "empty"), "--output", str(tmp_path / "out")]
    assert main(["sample", str(run_folder), *out]) == 3
    assert "expected files like ID_t1.nii.gz" in one_line(capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    assert "usage: dsdiff" in capsys.readouterr().out


def test_scripts_are_the_verbs():
    script = Path(__file__).parents[2] / "scripts/sample.py"
    process = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert process.returncode == 0
    assert "usage: dsdiff sample" in process.stdout


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    assert "everything is in order" in capsys.readouterr().out
