"""A trained autoencoder as the first stage of diffusion: weights, scale, sizes, cached latents."""

import logging
from types import SimpleNamespace

import parity
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from test_autoencoder import DDCONFIG
from test_latent_diffusion import batch, noise, plain, probe

from ldm.errors import CheckpointError, ConfigError
from ldm.model_file import save_model
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.regression import OneStepRegression
from ldm.models.first_stage import FirstStageTraining, all_images
from ldm.util import instantiate_from_config

AUTOENCODER = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {"ddconfig": DDCONFIG, "embed_dim": 3},
}
# The model section of a first stage in latent-diffusion's YAML files.
LATENT_DIFFUSION_YAML = """
target: ldm.models.autoencoder.AutoencoderKL
params:
  monitor: val/rec_loss
  embed_dim: 3
  image_key: image
  colorize_nlabels: null
  ignore_keys: []
  lossconfig:
    target: ldm.modules.losses.LPIPSWithDiscriminator
    params: {disc_start: 50001, kl_weight: 0.000001, disc_weight: 0.5}
"""


@pytest.fixture
def trained(tmp_path):
    """A file with the weights of an autoencoder, under the names of the public checkpoints."""
    model = parity.fill(AutoencoderKL(DDCONFIG, 3)).eval()
    state = {**model.state_dict(), "loss.logvar": torch.zeros(())}
    torch.save({"state_dict": state}, tmp_path / "kl.ckpt")
    return tmp_path / "kl.ckpt", model


def latent(scale_factor=None, path=None, cls=LatentDiffusion, **params):
    first = {**AUTOENCODER, "params": {**AUTOENCODER["params"], "ckpt_path": path and str(path)}}
    return plain(
        probe(**params.pop("probe", {})),
        cls,
        first_stage_config=first,
        scale_factor=scale_factor,
        **params,
    ).eval()


def same_weights(one, other):
    return all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


@pytest.mark.parametrize(
    "loss", [None, {"target": "torch.nn.Identity"}], ids=["research", "identity"]
)
def test_yaml_of_latent_diffusion_builds_the_network_as_it_is(loss):
    config = OmegaConf.to_container(OmegaConf.create(LATENT_DIFFUSION_YAML))
    config["params"]["ddconfig"] = DDCONFIG
    if loss:
        config["params"]["lossconfig"] = loss
    model = instantiate_from_config(config)
    assert model.state_dict().keys() == AutoencoderKL(DDCONFIG, 3).state_dict().keys()


def test_research_loss_has_a_name_here():
    config = OmegaConf.create(LATENT_DIFFUSION_YAML).params.lossconfig
    assert instantiate_from_config(config).disc_start == 50001


@pytest.mark.parametrize("prefix", ["", "autoencoder.", "first_stage_model."])
def test_weights_load_from_any_file_that_holds_the_network(tmp_path, trained, prefix):
    path, model = trained
    state = {prefix + k: v.clone() for k, v in model.state_dict().items()}
    state |= {"model.diffusion_model.weight": torch.zeros(1)} if prefix else {}
    save_file(state, tmp_path / "foreign.safetensors")
    save_model(tmp_path, state, {"scale_factor": 0.5})
    for source in (path, tmp_path / "foreign.safetensors", tmp_path):
        loaded = AutoencoderKL(DDCONFIG, 3, ckpt_path=str(source))
        assert loaded.trained and same_weights(loaded, model)
        assert loaded.scale_factor == (0.5 if source == tmp_path else None)


def test_weights_of_another_network_are_refused(trained):
    with pytest.raises(CheckpointError, match="CKPT-MISMATCH"):
        AutoencoderKL({**DDCONFIG, "ch": 64}, 3, ckpt_path=str(trained[0]))


def test_ignored_keys_stay_as_they_were(trained):
    path, model = trained
    torch.manual_seed(0)
    loaded = AutoencoderKL(DDCONFIG, 3, ckpt_path=str(path), ignore_keys=["decoder."])
    torch.manual_seed(0)
    fresh = AutoencoderKL(DDCONFIG, 3)
    assert same_weights(loaded.encoder, model.encoder)
    assert same_weights(loaded.decoder, fresh.decoder)


def test_scale_factor_gives_latents_unit_variance():
    model = FirstStageTraining(AUTOENCODER, {"target": "torch.nn.Identity"})
    parity.fill(model.autoencoder)
    batches = [parity.normal(str(i), (2, 1, 16, 18)) for i in range(3)]
    scale = model.scale_factor(batches)
    with torch.no_grad():
        latents = torch.cat([model.autoencoder.encode(x).mode() for x in batches])
    assert (latents * scale).std().item() == pytest.approx(1, rel=1e-3)
    assert model.autoencoder.training  # as before


def test_every_contrast_is_an_image_of_its_own():
    """In the order of the batch, the target last, and padded to what the network divides."""
    data = batch(size=(7, 9))
    images = all_images(data)
    assert torch.equal(images[3], data["target"][0]) and torch.equal(images[7], data["target"][1])
    model = FirstStageTraining(AUTOENCODER, {"target": "torch.nn.Identity"})
    assert model.padded(images).shape == (8, 1, 8, 10)
    assert torch.equal(model.padded(images)[..., :7, :9], images)


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 12), (7, 9)], ids=str)
def test_scale_is_applied_once_and_inverted_once(trained, size):
    """Latents are the scale times posterior means; decoding them is the autoencoder's own."""
    path, autoencoder = trained
    model = latent(0.25, path)
    images = parity.normal("x", (2, 2, *size)).clamp(-1, 1)
    latents = model.space.encode(images)
    padded = torch.nn.functional.pad(images, (0, size[1] % 2, 0, size[0] % 2), mode="replicate")
    for contrast in range(2):
        single = padded[:, contrast : contrast + 1]
        means = autoencoder.encode(single).mode()
        own = latents[:, 3 * contrast : 3 * contrast + 3]
        torch.testing.assert_close(own, 0.25 * means, rtol=1e-4, atol=1e-5)
        expected = autoencoder.decode(means)[..., : size[0], : size[1]]
        torch.testing.assert_close(model.space.decode(own, size), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_network_that_returns_zero_gives_the_reconstruction_of_the_subtracted_contrast(trained):
    path, autoencoder = trained
    data = batch(size=(8, 8))
    for cls in (LatentDiffusion, OneStepRegression):
        model = latent(0.5, path, cls, subtract="t2", gain=2.0, image_size=8)
        model.model.forward = lambda x_t, *given: torch.zeros_like(x_t)
        image = model.synthesise(data["condition"], data["presence"], noise())
        expected = autoencoder(data["condition"][:, 1:2], sample_posterior=False)[0].clamp(-1, 1)
        torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-4)


def test_backbone_is_told_the_channels_and_the_size_of_latents(trained):
    model = latent(1.0, trained[0], image_size=[33, 48])
    assert model.model.diffusion_model.channels == (12, 3)
    assert model.latent_shape == (3, 17, 24)


def test_first_stage_is_frozen_and_never_in_training_mode(trained):
    model = latent(1.0, trained[0]).train()
    assert model.model.training and not model.first_stage_model.training
    assert not any(p.requires_grad for p in model.first_stage_model.parameters())


def test_saved_configuration_needs_no_file(trained):
    """What a run saves builds the same model, with the scale, but without the path."""
    model = latent(0.3, trained[0])
    again = plain(probe(), **model.portable_params())
    assert str(trained[0]) not in str(model.portable_params())
    assert again.state_dict().keys() == model.state_dict().keys()
    assert again.space.scale_factor == 0.3 and again.facts() == model.facts()


def data_module(**changes):
    split = {"train": ["a"], "val": ["b"], "test": []}
    return SimpleNamespace(**{"split": split, "augmentation_config": None, **changes})


def test_training_does_not_start_without_weights_or_scale(trained):
    with pytest.raises(ConfigError, match="has no weights"):
        latent(1.0).check_start(data_module())
    with pytest.raises(ConfigError, match=r"model\.params\.scale_factor"):
        latent(None, trained[0]).check_start(data_module())
    latent(1.0, trained[0]).check_start(data_module())
    plain(probe()).check_start(data_module())


def test_patients_that_the_first_stage_has_seen_are_reported(tmp_path, trained, caplog):
    state = trained[1].state_dict()
    save_model(tmp_path, state, {"scale_factor": 0.5, "train_subjects": ["a", "b"]})
    with caplog.at_level(logging.WARNING):
        latent(None, tmp_path).check_start(data_module())
    assert "held-out patients: b" in caplog.text


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
def test_cached_latents_are_those_of_encoding(trained, autocast):
    """Slices come back in other batches and with other contrasts absent."""
    cached, encoded = (latent(0.5, trained[0], cache_latents=c).train() for c in (True, False))
    data = batch(size=(8, 8), items=3) | {
        "subject": ["p", "p", "q"],
        "slice": torch.tensor([3, 4, 3]),
    }
    for order, absent in ([0, 1], None), ([2, 0], (0, 1)), ([1, 2], (1, 2)):
        part = {k: v[order] for k, v in data.items() if k != "subject"}
        part["subject"] = [data["subject"][i] for i in order]
        if absent:
            part["presence"] = part["presence"].clone()
            part["presence"][absent] = False
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            (given, x_0), (images, target) = (m.encode_batch(part) for m in (cached, encoded))
        tolerance = 0.05 if autocast else 1e-3
        for found, expected in ((given["condition"], images["condition"]), (x_0, target)):
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert len(cached.space.cache.slices) == 3


@torch.no_grad()
def test_cached_latents_do_not_depend_on_the_batch(trained):
    """Bitwise: or a resumed training, which sees other batches first, would differ."""
    data = batch(size=(8, 8)) | {"subject": ["p", "q"], "slice": torch.tensor([1, 2])}
    alone = {k: v[1:] for k, v in data.items()}
    one, other = (latent(0.5, trained[0], cache_latents=True).train() for _ in range(2))
    other.encode_batch(alone)
    assert torch.equal(one.encode_batch(data)[1], other.encode_batch(data)[1])


def test_cache_refuses_augmented_slices(trained):
    model = latent(1.0, trained[0], cache_latents=True)
    with pytest.raises(ConfigError, match="augmentation_config=null"):
        model.check_start(data_module(augmentation_config={"target": "x"}))
