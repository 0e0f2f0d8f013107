"""Distillation end to end: a run like any other, which resumes and samples without its teacher."""

import shutil

import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoint import load_model
from ldm.cli.main import main
from ldm.data.seen import read_seen
from ldm.model_file import read_model

FEW = ["model.params.substeps=2", "lightning.trainer.val_check_interval=2"]


@pytest.fixture(scope="module")
def distill(run_folder):
    """``distill(folder, *overrides)``: a student of two steps, of a teacher in a folder apart."""

    def run(folder, *overrides, teacher=run_folder):
        return main(
            ["distill", str(teacher), "--steps", "2", *FEW, *overrides, "--output", str(folder)]
        )

    return run


def sample(model, patients, output, *options):
    subject = ["--subjects", "Phantom_0003", "--input", str(patients)]
    assert main(["sample", str(model), *subject, "--output", str(output), *options]) == 0
    return (output / "Phantom_0003_t1ce.nii.gz").read_bytes()


def test_goes_on_without_its_teacher(tmp_path, run_folder, distill, weights, patients):
    """Cut after two of four steps, the teacher's folder deleted: the same student, and it samples.

    Its sampler and steps are what it was distilled for.
    """
    teacher = tmp_path / "teacher"
    shutil.copytree(run_folder, teacher)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert distill(whole, "lightning.trainer.max_steps=4") == 0
    assert distill(parts, "lightning.trainer.max_steps=2", teacher=teacher) == 0
    shutil.rmtree(teacher)
    assert main(["train", "--resume", str(parts), "lightning.trainer.max_steps=4"]) == 0
    assert weights(parts) == weights(whole) != weights(run_folder)

    config = OmegaConf.load(parts / "config.yaml").model.params
    assert (config.teacher, config.sampler, config.sampling_steps) == (None, "ddim", 2)
    own, default = tmp_path / "own", tmp_path / "default"
    volume = sample(parts, patients, default)
    assert sample(parts, patients, own, "--sampler", "ddim", "--steps", "2") == volume


def test_the_model_file_holds_the_student_alone(tmp_path, run_folder, distill):
    """The names and shapes are the teacher's own: the network once."""
    folder = tmp_path / "student"
    fewer = "data.params.train=[Phantom_0001]"
    assert distill(folder, "lightning.trainer.max_steps=1", fewer) == 0
    assert read_seen(folder).keys() == {"Phantom_0001", "Phantom_0002"}  # its teacher's too
    own, given = (read_model(run / "model.safetensors")[0] for run in (folder, run_folder))
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in given.items()}
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert all(torch.equal(checkpoint["teacher"][name], value) for name, value in given.items())


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_every_parameterisation(tmp_path, train, distill, kind):
    """A student of a model that predicts eps predicts v."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    change = f"model.params.parameterization={kind}"
    assert train(teacher, "lightning.trainer.max_steps=1", change) == 0
    assert distill(student, "lightning.trainer.max_steps=1", teacher=teacher) == 0
    assert load_model(student)[0].process.parameterization == {"eps": "v"}.get(kind, kind)


def test_a_student_teaches_in_its_own_steps(tmp_path, distill):
    """Two steps, then one: the second student's teacher makes the two steps that it has learned."""
    two, one = tmp_path / "two", tmp_path / "one"
    assert distill(two, "lightning.trainer.max_steps=1") == 0
    steps = ["--steps", "1", "lightning.trainer.max_steps=1", "--output", str(one)]
    assert main(["distill", str(two), *steps]) == 0
    params = OmegaConf.load(one / "config.yaml").model.params
    assert (params.sampling_steps, params.substeps) == (1, 2)
    assert "teacher_config" not in params.teacher_config.params


def test_dry_run_writes_nothing(tmp_path, run_folder, capsys):
    assert main(["distill", str(run_folder), "--output", str(tmp_path / "no"), "--dry-run"]) == 0
    assert "Distillation" in capsys.readouterr().out
    assert not (tmp_path / "no").exists()
