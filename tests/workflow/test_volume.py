"""Volumes end to end: trained on patches, resumed exactly, sampled as a whole in place."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

import ldm
from ldm.cli.main import main

VOLUME = (
    "configs/volume.yaml",
    "data.params.image_size=[6,16,16]",
    "data.params.val_slices=2",
    "data.params.augmentation_config.target=ldm.data.augmentation.SliceAugmentation",
    "model.params.unet_config.params.channel_mult=[1,1]",
    "model.params.unet_config.params.attention_resolutions=[]",
)


@pytest.fixture(scope="module")
def volume_run(tmp_path_factory, train):
    folder = tmp_path_factory.mktemp("volume") / "run"
    assert train(folder, *VOLUME, "lightning.trainer.max_steps=2") == 0
    return folder


def sample(run, source, output, *more):
    only = ["--subjects", "Phantom_0003", "--output", str(output)]
    start = ["sample", str(run), "--input", str(source), "--precision", "32"]
    return main([*start, *only, *more])


def voxels(folder):
    return np.asarray(nib.load(folder / "Phantom_0003_t1ce.nii.gz").dataobj)


@pytest.fixture(scope="module")
def one(tmp_path_factory, volume_run, patients):
    output = tmp_path_factory.mktemp("one")
    assert sample(volume_run, patients, output) == 0
    return output


def test_resumed_equals_uninterrupted(tmp_path, train, weights, volume_run):
    parts = tmp_path / "parts"
    assert train(parts, *VOLUME, "lightning.trainer.max_steps=1") == 0
    assert main(["train", "--resume", str(parts), "lightning.trainer.max_steps=2"]) == 0
    assert weights(parts) == weights(volume_run)
    assert (parts / "metrics.csv").read_text() == (volume_run / "metrics.csv").read_text()


def test_validation_logs_metrics_and_the_middle_slice(tmp_path, train):
    run = tmp_path / "run"
    steps = ["lightning.trainer.max_steps=1", "lightning.trainer.val_check_interval=1"]
    assert train(run, *VOLUME, *steps) == 0
    assert "val/psnr" in (run / "metrics.csv").read_text()
    assert next((run / "samples").glob("step-*.png")).read_bytes().startswith(b"\x89PNG")


def test_output_takes_the_place_of_its_input(one, patients):
    image = nib.load(one / "Phantom_0003_t1ce.nii.gz")
    inputs = [
        nib.load(patients / f"Phantom_0003/Phantom_0003_{c}.nii.gz") for c in ("t1", "t2", "flair")
    ]
    assert image.shape == inputs[0].shape
    np.testing.assert_array_equal(image.affine, inputs[0].affine)
    brain = np.any([np.asarray(i.dataobj) != 0 for i in inputs], axis=0)
    assert (voxels(one)[~brain] == 0).all()
    assert np.isfinite(voxels(one)).all()
    # after two steps x_0 is about T1: what was put in the wrong place would not agree with it
    t1 = np.asarray(inputs[0].dataobj)
    assert np.corrcoef(voxels(one)[brain], t1[brain])[0, 1] > 0.5


def test_sidecar_and_cost_say_how_it_was_made(one):
    sidecar = json.loads((one / "Phantom_0003_t1ce.json").read_text())
    assert sidecar["request"]["overlap"] == 0.25
    cost = json.loads((one / "cost.json").read_text())
    depth = nib.load(one / "Phantom_0003_t1ce.nii.gz").shape[2]
    assert 1 <= cost["subjects"][0]["slices"] <= depth


def test_windows_at_once_change_nothing_and_their_overlap_is_an_option(
    tmp_path, volume_run, patients, one, capsys
):
    assert sample(volume_run, patients, tmp_path / "a", "--batch-size", "3") == 0
    np.testing.assert_allclose(voxels(tmp_path / "a"), voxels(one), atol=1e-4 * np.ptp(voxels(one)))
    assert sample(volume_run, patients, tmp_path / "b", "--overlap", "0.5") == 0
    assert not np.array_equal(voxels(tmp_path / "b"), voxels(one))
    assert sample(volume_run, patients, tmp_path / "c", "--overlap", "1") == 2
    assert "overlap is 1.0: give 0 to 0.9" in capsys.readouterr().err


def test_the_overlap_of_one_call_is_not_that_of_the_next(volume_run, patients):
    made = ldm.Synthesiser.load(volume_run, precision="32", temperature=0)

    def volume(**options):
        (one,) = made.volumes(patients, ["Phantom_0003"], **options)
        return one.volume

    before, other, after = volume(), volume(overlap=0.75), volume()
    assert not np.array_equal(other, before)
    np.testing.assert_array_equal(after, before)


def test_a_model_of_slices_has_no_windows(tmp_path, run_folder, patients, capsys):
    assert sample(run_folder, patients, tmp_path / "out", "--overlap", "0.5") == 2
    assert "samples slices" in capsys.readouterr().err


def test_several_samples_and_bf16(tmp_path, volume_run, patients):
    options = ["--samples", "2", "--precision", "bf16", "--steps", "2", "--overlap", "0"]
    assert sample(volume_run, patients, tmp_path / "n", *options) == 0
    spread = nib.load(tmp_path / "n/Phantom_0003_t1ce_std.nii.gz").get_fdata()
    assert spread.max() > 0


def test_dry_run_states_three_sizes(capsys):
    files = ["configs/backbone/unet_tiny.yaml", "configs/volume.yaml"]
    assert main(["train", *files, "data.params.image_size=[6,16,20]", "--dry-run"]) == 0
    assert "6 x 16 x 20" in capsys.readouterr().out


def test_a_first_stage_is_trained_on_slices(tmp_path, patients, capsys):
    run = ["configs/first_stage/autoencoder_kl_f4_tiny.yaml", f"data.params.root={patients}"]
    run += ["data.params.image_size=[6,16,16]", "data.params.val=[Phantom_0003]"]
    assert main(["train", *run, "--output", str(tmp_path / "run")]) == 2
    assert "trained on slices" in capsys.readouterr().err


def test_temperature_zero_needs_no_noise(tmp_path, volume_run, patients):
    for seed in ("0", "1"):
        options = ["--temperature", "0", "--seed", seed]
        assert sample(volume_run, patients, tmp_path / seed, *options) == 0
    assert np.array_equal(voxels(tmp_path / "0"), voxels(tmp_path / "1"))
    assert torch.isfinite(torch.from_numpy(voxels(tmp_path / "0").copy())).all()
