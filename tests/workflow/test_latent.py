"""An autoencoder trains from YAML, resumes exactly, and carries a latent diffusion end to end."""

import csv
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from workflow.conftest import trainer

from ldm.checkpoint import load_model, read_run_config
from ldm.cli.main import main
from ldm.model_file import read_model
from ldm.models.first_stage import all_images
from ldm.storage import MODEL_FILE
from ldm.study import build_model
from ldm.util import instantiate_from_config

TINY = [
    "configs/first_stage/autoencoder_kl_f4_tiny.yaml",
    "data.params.image_size=[30,32]",  # 30 is no multiple of 4
    "data.params.batch_size=2",
    "data.params.val_slices=2",
    "data.params.augmentation_config=null",
    "model.params.lossconfig.params.disc_start=2",
    "model.params.scale_slices=8",
    "model.params.warmup_steps=5",
    "lightning.trainer.precision=32",
    "lightning.trainer.log_every_n_steps=1",
    "lightning.trainer.accelerator=cpu",
]


@pytest.fixture(scope="session")
def train_autoencoder(patients):
    return trainer(patients, "train", *TINY)


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory, train_autoencoder):
    """A run of 40 steps, validated at the first and at the last."""
    folder = tmp_path_factory.mktemp("runs") / "autoencoder"
    steps = ["lightning.trainer.max_steps=40", "lightning.trainer.val_check_interval=20"]
    assert train_autoencoder(folder, *steps) == 0
    return folder


def curve(run, metric):
    with (run / "metrics.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["metric"] == metric]
    return {int(r["step"]): float(r["value"]) for r in rows}


def latent_diffusion(autoencoder):
    return ["configs/latent.yaml", f"model.params.first_stage_config.params.path={autoencoder}"]


@torch.no_grad()
def test_training_improves_the_reconstruction(autoencoder):
    """Slices of the validation patient, against the autoencoder that it started from."""
    trained, config = load_model(autoencoder)[0], read_run_config(autoencoder)
    torch.manual_seed(config["seed"])
    first = build_model(config).eval()
    data = instantiate_from_config(config["data"])
    data.setup()
    images = torch.cat([data.val_dataset[i]["target"] for i in range(len(data.val_dataset))])
    images = trained.padded(images.unsqueeze(1))
    psnr = []
    for model in (first, trained):
        reconstruction, _ = model.autoencoder(images, sample_posterior=False)
        psnr.append(10 * torch.log10(4 / (reconstruction - images).square().mean()))
    assert psnr[1] > psnr[0] + 5


def test_validation_logs_and_draws_the_reconstruction(autoencoder):
    assert set(curve(autoencoder, "val/psnr")) == set(curve(autoencoder, "val/loss")) == {19, 39}
    loss = curve(autoencoder, "val/loss")
    assert loss[39] < loss[19]
    assert len(list((autoencoder / "samples").glob("step-*.png"))) == 2


def test_losses_are_logged_by_component_from_their_start_on(autoencoder):
    for part in ("loss", "reconstruction", "perceptual", "kl"):
        assert min(curve(autoencoder, f"train/{part}")) == 0
    for part in ("generator", "discriminator"):
        assert min(curve(autoencoder, f"train/{part}")) == 2


def test_scale_factor_is_measured_on_the_averaged_weights(autoencoder):
    """1 / standard deviation of the latents of training slices, stored beside the weights."""
    model, config = load_model(autoencoder)[0], read_run_config(autoencoder)
    data = instantiate_from_config(config["data"])
    data.setup()
    slices = [data.train_slices[i] for i in range(len(data.train_slices))]
    images = torch.cat(
        [all_images({k: s[k][None] for k in ("condition", "target")}) for s in slices]
    )
    with torch.no_grad():
        latents = model.autoencoder.encode(model.padded(images)).mode()
    metadata = read_model(autoencoder / MODEL_FILE)[1]
    assert (latents * metadata["scale_factor"]).std().item() == pytest.approx(1, abs=0.05)
    assert metadata["train_subjects"] == ["Phantom_0001", "Phantom_0002"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, train_autoencoder):
    """A run of five steps at once."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train_autoencoder(folder, "lightning.trainer.max_steps=5") == 0
    return folder


@pytest.mark.parametrize("cut", [1, 3])
def test_resumed_equals_uninterrupted(tmp_path, train_autoencoder, whole, cut):
    """Bitwise, whether the discriminator had begun or not."""
    parts = tmp_path / "parts"
    assert train_autoencoder(parts, f"lightning.trainer.max_steps={cut}") == 0
    assert main(["train", "--resume", str(parts), "lightning.trainer.max_steps=5"]) == 0
    (one, told), (other, again) = (read_model(run / MODEL_FILE) for run in (whole, parts))
    assert told == again
    assert all(torch.equal(v, other[k]) for k, v in one.items())
    rows = [(run / "metrics.csv").read_text().splitlines() for run in (whole, parts)]
    assert sorted(rows[0]) == sorted(rows[1])  # metrics stand in the order of their first value


@pytest.fixture(scope="session")
def latent_run(tmp_path_factory, autoencoder, train):
    """Four steps of diffusion in the latents of a copy of the autoencoder that is then deleted."""
    folder = tmp_path_factory.mktemp("latent")
    shutil.copytree(autoencoder, folder / "autoencoder")
    overrides = latent_diffusion(folder / "autoencoder")
    steps = ["lightning.trainer.max_steps=4", "lightning.trainer.val_check_interval=4"]
    assert train(folder / "run", *overrides, *steps) == 0
    shutil.rmtree(folder / "autoencoder")
    return folder / "run"


def test_run_of_a_latent_diffusion_needs_no_other_folder(latent_run, autoencoder):
    """The first stage's weights and scale are in the run itself, the path is not."""
    config = yaml.safe_load((latent_run / "config.yaml").read_text())
    params = config["model"]["params"]
    first_stage, told = read_model(autoencoder / MODEL_FILE)
    assert params["first_stage_config"]["target"] == "ldm.models.autoencoder.AutoencoderKL"
    assert set(params["first_stage_config"]["params"]) == {"ddconfig", "embed_dim"}
    assert params["scale_factor"] == told["scale_factor"]
    model, *_ = load_model(latent_run)
    own = model.first_stage_model.state_dict()
    assert all(torch.equal(v, first_stage[f"autoencoder.{k}"]) for k, v in own.items())


def test_sampling_without_the_autoencoder_folder(tmp_path, latent_run, patients):
    out = ["--input", str(patients), "--output", str(tmp_path), "--subjects", "Phantom_0003"]
    assert main(["sample", str(latent_run), *out, "--steps", "2"]) == 0
    image = nib.load(tmp_path / "Phantom_0003_t1ce.nii.gz")
    brain = nib.load(patients / "Phantom_0003/Phantom_0003_t1.nii.gz").get_fdata() != 0
    assert image.shape == brain.shape
    assert np.isfinite(image.get_fdata()).all() and image.get_fdata()[brain].std() > 0


def test_latent_diffusion_resumes_without_the_autoencoder_folder(tmp_path, latent_run):
    shutil.copytree(latent_run, tmp_path / "run")
    assert main(["train", "--resume", str(tmp_path / "run"), "lightning.trainer.max_steps=5"]) == 0


def test_cached_latents_train_and_resume_to_the_same_weights(tmp_path, train, weights, autoencoder):
    cached = [*latent_diffusion(autoencoder), "model.params.cache_latents=true"]
    cached += ["data.params.condition_dropout=0.3"]
    assert train(tmp_path / "whole", *cached, "lightning.trainer.max_steps=4") == 0
    assert train(tmp_path / "parts", *cached, "lightning.trainer.max_steps=2") == 0
    resume = ["train", "--resume", str(tmp_path / "parts"), "lightning.trainer.max_steps=4"]
    assert main(resume) == 0
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


def test_saved_configuration_starts_no_training_on_random_latents(tmp_path, latent_run, capsys):
    again = ["train", str(latent_run / "config.yaml"), "--output", str(tmp_path / "run")]
    assert main(again) == 2
    assert "first stage has no weights" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_missing_and_wrong_folders_are_refused(tmp_path, run_folder, train, capsys):
    assert train(tmp_path / "run", "configs/latent.yaml") == 2
    assert "first_stage_config.params.path=RUN" in capsys.readouterr().err
    assert train(tmp_path / "run", *latent_diffusion(tmp_path / "nowhere")) == 4
    assert "is no run folder" in capsys.readouterr().err
    assert train(tmp_path / "run", *latent_diffusion(run_folder)) == 4
    assert "holds no trained AutoencoderKL" in capsys.readouterr().err


def test_an_autoencoder_synthesises_nothing(tmp_path, autoencoder, patients, capsys):
    out = ["--input", str(patients), "--output", str(tmp_path / "out")]
    assert main(["sample", str(autoencoder), *out]) == 4
    assert "configs/latent.yaml" in capsys.readouterr().err
