"""Group B of docs/reliability.md: weights, configuration and data belong together, or exit 4."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from ldm.binding import rate_notice
from ldm.cli.main import main
from ldm.config import load_config, read_saved_config

STEPS = "lightning.trainer.max_steps=6"


@pytest.fixture
def run(tmp_path, run_folder) -> Path:
    """A copy of a run of four steps."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def edited(run: Path, before: str, after: str) -> None:
    text = (run / "config.yaml").read_text()
    assert len(re.findall(before, text, re.MULTILINE)) >= 1
    (run / "config.yaml").write_text(re.sub(before, after, text, flags=re.MULTILINE))


# --- TR-12: what a resumed run takes --------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "model.params.optimizer_config.params.lr=0.05",
        "model.params.optimizer_config.params.weight_decay=0.5",
        "model.params.schedule_config.params.name=linear",
        "model.params.parameterization=eps",
        "data.params.batch_size=1",
        "data.params.seed=5",
        "seed=5",
        "data.params.train=[Phantom_0003]",
        "lightning.trainer.accumulate_grad_batches=2",
        "lightning.callbacks.ema.params.decay=0.5",
    ],
)
def test_tr_12_a_change_that_makes_another_run_is_refused(dsdiff, run, override):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    code, line = dsdiff("train", "--resume", run, STEPS, override)
    assert code == 4
    assert f"CKPT-MISMATCH: {override.partition('=')[0]}" in line.replace("[0]", "")
    assert "was begun with" in line
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_tr_12_what_a_resumed_run_takes_is_applied(dsdiff, run):
    taken = ["lightning.trainer.val_check_interval=1", "data.params.val_slices=1", "name=other"]
    assert dsdiff("train", "--resume", run, STEPS, *taken) == (0, "")
    config = (run / "config.yaml").read_text()
    assert "name: other" in config and "val_slices: 1" in config
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    assert list((run / "samples").glob("step-*.png"))  # validated


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["lightning.trainer.max_steps=6"], "its cosine still ends at step 4"),
        (["model.params.decay_steps=9"], "a cosine to step 9, where the run was begun with one to"),
        (["name=other", "data.params.val_slices=1"], None),
    ],
)
def test_tr_12_what_becomes_of_the_learning_rate_is_said_in_one_line(run, overrides, said):
    before = read_saved_config(run / "config.yaml")
    notice = rate_notice(before, load_config([before], overrides))
    assert said in notice and "\n" not in notice if said else notice is None
    constant = load_config([before], ["model.params.rate_schedule=constant"])
    assert rate_notice(constant, load_config([constant], overrides)) is None


def test_tr_12_a_longer_run_says_so_when_it_is_resumed(run, capsys):
    assert main(["train", "--resume", str(run), STEPS]) == 0
    lines = [n for n in capsys.readouterr().err.splitlines() if n.startswith("learning rate: ")]
    assert len(lines) == 1 and "the run ends at max_steps=6" in lines[0]
    assert main(["train", "--resume", str(run)]) == 0
    assert "learning rate: " not in capsys.readouterr().err


def test_se_07_an_optimizer_of_torch_needs_no_trust(dsdiff, run, train, tmp_path, patients):
    own = ["model.params.optimizer_config.target=torch.optim.RMSprop", STEPS]
    assert train(tmp_path / "own", *own) == 0
    given = ("--input", patients, "--output", tmp_path / "out", "--steps", "1")
    assert dsdiff("sample", tmp_path / "own", *given) == (0, "")
    edited(run, "torch.optim.AdamW", "torch.optim.lr_scheduler.LambdaLR")
    code, line = dsdiff("sample", run, *given)
    assert (code, "UNSAFE-TARGET" in line) == (10, True)


def test_tr_11_a_run_that_lost_its_list_of_patients_says_so(dsdiff, run, caplog):
    (run / "subjects.json").unlink()
    assert dsdiff("train", "--resume", run, STEPS) == (0, "")
    assert "holds no subjects.json: the data are taken to be the same" in caplog.text
    caplog.clear()
    assert dsdiff("train", "--resume", run, STEPS) == (0, "")
    assert "subjects.json" not in caplog.text


# --- CK-04: config.yaml is bound to the weights --------------------------------------------------

EDITS = {
    "parameterization": ("parameterization: x0", "parameterization: v"),
    "gain": (r"gain: 5\.0", "gain: 1.0"),
    "subtract": ("subtract: auto$", "subtract: null"),
    "axis": ("axis: axial", "axis: sagittal"),
    "order of the contrasts": (r"^    - t1\n    - t2$", "    - t2\n    - t1"),
    "normaliser": ("RobustNormaliser", "PercentileNormaliser"),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("verb", ["sample", "resume"])
def test_ck_04_an_edited_configuration_is_refused(dsdiff, run, patients, tmp_path, name, verb):
    edited(run, *EDITS[name])
    if verb == "sample":
        given = ("--input", patients, "--output", tmp_path / "out", "--steps", "1")
        code, line = dsdiff("sample", run, *given)
        assert not list(tmp_path.glob("out/*.nii.gz"))
    else:
        code, line = dsdiff("train", "--resume", run, STEPS)
    assert code == 4
    assert "CKPT-MISMATCH: config.yaml says" in line
    assert "was trained with" in line and "restore config.yaml" in line


def test_ck_04_an_edit_that_cannot_be_built_is_named_as_an_edit(dsdiff, run, patients, tmp_path):
    """The share of the mean, saved as a number, excludes eps; what is wrong is the edit."""
    edited(run, "parameterization: x0", "parameterization: eps")
    code, line = dsdiff("sample", run, "--input", patients, "--output", tmp_path / "out")
    assert code == 4
    assert "CKPT-MISMATCH: config.yaml says" in line and "restore config.yaml" in line


def test_ck_04_where_the_data_are_may_be_edited(dsdiff, run, patients, tmp_path):
    moved = shutil.copytree(patients, tmp_path / "moved")
    edited(run, "root: null", f"root: {moved}")  # which goes before place.json
    given = ("--input", moved, "--output", tmp_path / "out", "--steps", "1")
    assert dsdiff("sample", run, *given) == (0, "")
    assert dsdiff("train", "--resume", run, STEPS) == (0, "")


@pytest.mark.parametrize("key", ["optimizer_states", "current_model_state"])
def test_ck_04_a_checkpoint_that_lost_a_part(dsdiff, run, key):
    path = run / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint[key]
    torch.save(checkpoint, path)
    code, line = dsdiff("train", "--resume", run, STEPS)
    assert (code, f"CKPT-MISMATCH: last.ckpt holds no {key}" in line) == (4, True)


def test_ck_04_a_checkpoint_that_lost_a_weight(dsdiff, run):
    path = run / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for state in ("state_dict", "current_model_state"):
        checkpoint[state].pop(next(iter(checkpoint[state])))
    torch.save(checkpoint, path)
    code, line = dsdiff("train", "--resume", run, STEPS)
    assert (code, "CKPT-MISMATCH" in line) == (4, True)


def test_ck_06_weights_that_are_nan_are_found_before_any_step(dsdiff, run):
    path = run / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    name = next(n for n, v in checkpoint["current_model_state"].items() if v.is_floating_point())
    checkpoint["current_model_state"][name].view(-1)[0] = float("nan")
    torch.save(checkpoint, path)
    code, line = dsdiff("train", "--resume", run, STEPS)
    assert (code, f"CKPT-NONFINITE: last.ckpt: {name}" in line) == (4, True)


def test_ck_05_a_checkpoint_of_a_later_version(dsdiff, run):
    path = run / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["dsdiff"]["format"] = 99
    torch.save(checkpoint, path)
    code, line = dsdiff("train", "--resume", run, STEPS)
    assert (code, "CKPT-VERSION: last.ckpt has format 99" in line) == (4, True)


# --- TR-11: the data are those that the run was begun with ---------------------------------------


@pytest.fixture
def moved(dsdiff, run, patients, tmp_path):
    """The patients of the run, in a folder that a test may change; resume with the result."""
    folder = Path(shutil.copytree(patients, tmp_path / "patients"))

    def resume(*options):
        return dsdiff("train", "--resume", run, STEPS, f"data.params.root={folder}", *options)

    return folder, resume


def replaced(path: Path) -> None:
    image = nib.load(path)
    content = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(content[::-1]), image.affine), path)


def test_tr_11_other_files_are_refused_unless_the_user_says_so(moved):
    folder, resume = moved
    replaced(folder / "Phantom_0002/Phantom_0002_t2.nii.gz")
    code, line = resume()
    assert code == 4
    said = "CKPT-DATA case=Phantom_0002: t2 is not the file that was trained on"
    assert said in line and "--allow-data-change" in line
    assert resume("--allow-data-change") == (0, "")
    assert resume() == (0, "")  # what is trained on is what is known now


def test_tr_11_other_patients_are_refused(dsdiff, train, tmp_path, patients):
    """Patients that a fraction finds: one more changes who is trained on."""
    folder = Path(shutil.copytree(patients, tmp_path / "patients"))
    split = [f"data.params.root={folder}", "data.params.train=null", "data.params.val=null"]
    assert train(tmp_path / "run", "lightning.trainer.max_steps=1", *split) == 0
    shutil.copytree(folder / "Phantom_0003", folder / "Phantom_0009")
    for file in (folder / "Phantom_0009").iterdir():
        file.rename(file.with_name(file.name.replace("0003", "0009")))
    code, line = dsdiff("train", "--resume", tmp_path / "run", "lightning.trainer.max_steps=2")
    assert code == 4
    assert "CKPT-DATA case=Phantom_0009: is new among the patients of train" in line


# --- EX-01: a torn small file is said by name, or made again -------------------------------------


@pytest.mark.parametrize("content", ["", '{"train": {"Phan', "[1, 2]"])
@pytest.mark.parametrize("verb", ["sample", "resume"])
def test_ex_01_a_torn_list_of_patients(dsdiff, run, patients, tmp_path, content, verb):
    (run / "subjects.json").write_text(content)
    given = ("--input", patients, "--output", tmp_path / "out", "--steps", "1")
    command = ("sample", run, *given) if verb == "sample" else ("train", "--resume", run, STEPS)
    code, line = dsdiff(*command)
    assert (code, f"DATA-CORRUPT: {run}/subjects.json is torn" in line) == (3, True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"t1": 5}'])
def test_ex_01_a_torn_digest_is_made_again(brats_folder, tmp_path, content):
    from ldm.data.layouts import detect_layout
    from ldm.data.seen import subject_digests

    subjects = detect_layout(brats_folder)[1].values()
    digests = subject_digests(subjects, tmp_path)
    for kept in (tmp_path / "digests").iterdir():
        assert json.loads(kept.read_text())
        kept.write_text(content)
    assert subject_digests(subjects, tmp_path) == digests


# --- SE-X2: a run folder says what it is, not where to write --------------------------------------


def test_se_x2_a_run_folder_names_no_cache(dsdiff, run, tmp_path, patients, train, caplog):
    elsewhere = tmp_path / "elsewhere"
    edited(run, "    root: ", f"    cache: {elsewhere}\\n    root: ")
    assert dsdiff("train", "--resume", run, STEPS) == (0, "")
    assert not elsewhere.exists()
    assert "names a cache, which is not used: give data.params.cache=FOLDER" in caplog.text
    mine = tmp_path / "mine"
    more = "lightning.trainer.max_steps=7"
    assert dsdiff("train", "--resume", run, more, f"data.params.cache={mine}") == (0, "")
    assert list(mine.iterdir())  # the user says where
    assert str(mine) not in (run / "config.yaml").read_text()


# --- CK-01: which checkpoint is taken in place of a damaged one ----------------------------------


def test_ck_01_both_generations_are_named(dsdiff, train, tmp_path, caplog):
    every = "lightning.callbacks.checkpoint.params.every_n_steps=2"
    assert train(tmp_path / "run", "lightning.trainer.max_steps=4", every) == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    assert dsdiff("train", "--resume", tmp_path / "run", STEPS) == (0, "")
    assert "CKPT-CORRUPT: last.ckpt is damaged" in caplog.text
    assert "going on from previous.ckpt" in caplog.text


# --- CK-15: which weights a volume is made with ---------------------------------------------------


@pytest.mark.parametrize(("ema", "kind"), [("", "ema"), ("=null", "last")])
@pytest.mark.parametrize("file", ["model.safetensors", "checkpoints/last.ckpt"])
def test_ck_15_the_sidecar_says_which_weights(dsdiff, train, patients, tmp_path, ema, kind, file):
    options = [f"lightning.callbacks.ema{ema}"] if ema else []
    assert train(tmp_path / "run", "lightning.trainer.max_steps=1", *options) == 0
    given = ("--input", patients, "--subjects", "Phantom_0003", "--output", tmp_path / "out")
    assert dsdiff("sample", tmp_path / "run" / file, *given, "--steps", "1") == (0, "")
    sidecar = json.loads((tmp_path / "out/Phantom_0003_t1ce.json").read_text())
    assert sidecar["weights"] == kind
