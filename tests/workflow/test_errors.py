"""What goes wrong is said in one line with a stable code and exit status, and nothing is lost."""

import ast
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ldm.claims import folder_lock
from ldm.cli import doctor
from ldm.cli.main import VERBS, main
from ldm.errors import (
    MAX_LINE,
    OPTION,
    RENAMED,
    ConfigError,
    DsdiffError,
    on_the_command_line,
    to_the_reader,
)
from ldm.inference.request import Request

REPO = Path(__file__).parents[2]


@pytest.fixture
def broken(tmp_path, patients):
    """A copy of the patients to damage."""
    shutil.copytree(patients, tmp_path / "patients")
    return tmp_path / "patients"


def one_line(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if ": error " in line]
    assert len(lines) == 1
    assert len(lines[0]) <= MAX_LINE
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


def test_a_run_that_is_trained_at_this_moment_is_busy(tmp_path, patients, capsys):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/last.ckpt").touch()
    with folder_lock(tmp_path / "run"):
        assert train_on(patients, tmp_path / "run") == 11
    assert "RUN-BUSY" in one_line(capsys)
    assert train_on(patients, tmp_path / "run") == 5
    assert "OUT-EXISTS" in one_line(capsys)


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


@pytest.mark.parametrize(
    "verb", [["sample"], ["segment", "predict"], ["segment", "train"], ["diagnose", "data"]]
)
def test_a_part_of_an_option_is_not_taken_for_it(verb, capsys):
    """Else a command of today would mean another option once there is one that begins so."""
    with pytest.raises(SystemExit) as stopped:
        main([*verb, "x", "--outpu", "y"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "required: --input, --output" in said or "unrecognized arguments: --outpu" in said


def test_an_interrupt_while_torch_is_imported_is_no_bug(tmp_path, run_folder, patients):
    """C++ that calls Python aborted there, or went on half imported into an error of its own."""
    (tmp_path / "torch").mkdir()
    hides = "try:\n    os.kill(os.getpid(), 2)\nexcept BaseException:\n    raise RecursionError"
    (tmp_path / "torch/__init__.py").write_text(f"import os\n{hides}")
    path = os.pathsep.join([str(tmp_path), str(REPO)])
    words = ["sample", run_folder, "--input", patients, "--output", tmp_path / "out"]
    process = subprocess.run(
        [sys.executable, "-m", "dsdiff", *map(str, words)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # also behind nohup
    )
    assert process.returncode == 130
    assert "dsdiff sample: interrupted; the same command goes on" in process.stderr
    assert "INTERNAL" not in process.stderr


def test_a_folder_in_another_encoding_is_refused_and_reached_by_a_link(
    tmp_path, patients, monkeypatch, capsys
):
    """As on a disk of Windows; a report or a manifest failed when all was done."""
    folder = tmp_path / os.fsdecode(b"Kl\xfcnik")
    shutil.copytree(patients, folder / "patients")
    output = ["--output", str(tmp_path / "out")]
    assert main(["prepare", str(folder / "patients"), *output]) == 2
    assert "Kl\\udcfcnik/patients' is not UTF-8" in one_line(capsys)
    (tmp_path / "link").symlink_to(folder / "patients")
    assert main(["prepare", str(tmp_path / "link"), *output]) == 0
    assert main(["prepare", "--verify", str(tmp_path / "out/manifest.csv")]) == 0
    monkeypatch.chdir(folder)
    assert main(["phantom", "more", "--subjects", "1", "--size", "16"]) == 2
    assert "is not UTF-8" in one_line(capsys)


def test_the_home_of_nobody_is_no_folder_to_be_made(tmp_path, monkeypatch, capsys):
    """As in Python; the command line made a folder that is called ``~name``."""
    monkeypatch.chdir(tmp_path)
    assert main(["phantom", "~nobody-of-this-name/x", "--subjects", "1", "--size", "16"]) == 2
    assert "'~nobody-of-this-name/x' is no path" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_scripts_are_the_verbs():
    script = Path(__file__).parents[2] / "scripts/sample.py"
    process = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert process.returncode == 0
    assert "usage: dsdiff sample" in process.stdout


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        ("(self, x, t, z): return x", "it is called as forward(x, timesteps), and"),
        ("(self, x): return x", "goes into ldm.modules.adapter.ForeignBackbone"),
        ("(self, x, timesteps, context=None, y=None): return nam", "in own_net.py line 5"),
        ("(self, x, t): return Net.forward(self)", "in own_net.py line 5, which is not of this"),
    ],
    ids=["signature", "no timestep", "name", "a call of its own"],
)
def test_a_mistake_in_a_network_of_ones_own_is_named_as_such(
    tmp_path, patients, monkeypatch, capsys, forward, said
):
    text = "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, in_channels, "
    text += "out_channels):\n        super().__init__(); self.c = nn.Conv2d(4, 1, 1)\n"
    (tmp_path / "own_net.py").write_text(f"{text}    def forward{forward}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    config = tmp_path / "own.yaml"
    config.write_text("base: base.yaml\nmodel: {params: {unet_config: {target: own_net.Net}}}\n")
    told = [f"data.params.root={patients}", "data.params.image_size=32"]
    assert main(["train", str(config), *told, "--dry-run"]) == 2
    shown = capsys.readouterr().err
    assert "error CONFIG-TARGET" in shown and said in shown and "a bug" not in shown


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    assert "everything is in order" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("told", "repair"),
    [(["einops", "scipy>=99"], "pip install 'scipy>=99'"), (None, "pip install -e .")],
    ids=["too old", "a clone that is not installed"],
)
def test_doctor_compares_with_what_is_required(capsys, monkeypatch, told, repair):
    def requires(name):
        if told is None:
            raise PackageNotFoundError(name)
        return [*told, "no-such-package; extra == 'test'"]

    monkeypatch.setattr(doctor, "requires", requires)
    assert main(["doctor"]) == 2
    shown = capsys.readouterr().out
    assert f"repair: {repair}" in shown and "no-such-package" not in shown


@pytest.mark.parametrize(
    ("typed", "called"),
    [
        ("pass --overwrite", "pass overwrite"),
        ("fix it or pass --nonfinite=zero", "fix it or pass nonfinite='zero'"),
        (
            "--allow-missing needs more (--lpips-weights FILE)",
            "allow_missing needs more (lpips_weights=FILE)",
        ),
        (
            "continue it with --resume=runs/a, or --from RUN",
            "continue it with resume='runs/a', or start=RUN",
        ),
        ("--resume='runs/a b': no", "resume='runs/a b': no"),
        ("if you trust it, add --trust my.Net", "if you trust it, add trust=['my.Net']"),
        (
            "run dsdiff prepare A --register; or --layout",
            "run dsdiff prepare A --register; or layout",
        ),
        ("pip install --upgrade torch", "pip install --upgrade torch"),
        ("a -- b, x--y, ---", "a -- b, x--y, ---"),
    ],
)
def test_an_option_is_named_as_its_reader_gives_it(typed, called):
    """On the command line as it is typed, to a Python program as the argument of a call."""
    assert to_the_reader(typed) == called
    error = pickle.loads(pickle.dumps(ConfigError("USAGE", typed)))
    assert str(error) == f"USAGE: {called}" and error.message == called
    with on_the_command_line():
        assert str(error) == f"USAGE: {typed}" and error.message == typed


def sentences(tree: ast.AST):
    """Yield each text within a module that is no docstring and no word of a command."""
    own = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        value = getattr(node, "value", None)
        if isinstance(node, ast.Constant) and isinstance(value, str) and id(node) not in own:
            yield from [value] if " " in value.strip() else []


def test_every_option_that_is_named_is_an_argument_of_a_call():
    """No error of the library names what only the command line has."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for path in (REPO / "ldm").rglob("*.py")
        if path.parent.name != "cli"
    ]
    arguments = {
        argument.arg
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for argument in (*node.args.args, *node.args.kwonlyargs)
    }
    arguments |= {"states()"} | {field.name for field in fields(Request)}
    named = {
        option
        for tree in trees
        for text in sentences(tree)
        for _, option, *_ in OPTION.findall(text)
        if option
    }
    assert len(named) > 15 and "allow-missing" in named
    called = {RENAMED.get(option, option.replace("-", "_")) for option in named}
    assert called - arguments == set()


def test_python_is_told_arguments(tmp_path, run_folder, patients):
    from ldm import Synthesiser, train

    with pytest.raises(DsdiffError, match="allow_missing needs a model trained"):
        Synthesiser.load(run_folder, allow_missing="t2")
    with pytest.raises(DsdiffError, match="resume=RUN or start=RUN"):
        train([], output=tmp_path / "run")
    with pytest.raises(DsdiffError, match=f"continue it with resume='{run_folder}'"):
        train("configs/backbone/unet_tiny.yaml", output=run_folder)
