"""The KL autoencoder's network: public reference numbers, sizes, and its posterior."""

import math

import parity
import pytest
import torch
from omegaconf import OmegaConf

from ldm.errors import ConfigError
from ldm.models.autoencoder import AutoencoderKL, DiagonalGaussian, IdentityFirstStage

TARGET = "ldm.models.autoencoder.AutoencoderKL"
DDCONFIG = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 16,
    "in_channels": 1,
    "out_ch": 1,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def autoencoder(embed_dim=3, **changes):
    return AutoencoderKL({**DDCONFIG, **changes}, embed_dim)


@pytest.mark.parametrize("name", parity.cases(TARGET))
def test_reference(name):
    model = parity.build(name)
    with torch.no_grad():
        posterior = model.encode(parity.inputs(name)["x"])
        output = model.decode(posterior.mode())
    tolerance = {"rtol": parity.RTOL, "atol": parity.ATOL}
    moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
    torch.testing.assert_close(moments, parity.expected(f"{name}/moments"), **tolerance)
    torch.testing.assert_close(output, parity.expected(name), **tolerance)


def test_published_size_of_kl_f8():
    """The first stage of Stable Diffusion."""
    with torch.device("meta"):
        model = autoencoder(
            4, resolution=256, in_channels=3, out_ch=3, ch=128, ch_mult=[1, 2, 4, 4],
            num_res_blocks=2, attn_type="vanilla-xformers",
        )  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) == 83_653_863
    assert model.downsampling == 8


@pytest.mark.parametrize("changes", [{}, {"attn_resolutions": [16, 8]}, {"dropout": 0.2}], ids=str)
def test_gradient_in_every_parameter(changes):
    model = parity.fill(autoencoder(**changes)).train()
    posterior = model.encode(parity.normal("x", (2, 1, 16, 16)))
    latents = posterior.sample(parity.normal("noise", posterior.mean.shape))
    model.decode(latents).square().mean().backward()
    assert not [n for n, p in model.named_parameters() if not p.grad.abs().max() > 0]


def test_shapes_and_what_diffusion_asks_of_a_first_stage():
    model = autoencoder(embed_dim=3, ch_mult=[1, 1, 2]).eval()
    with torch.no_grad():
        latents = model.encode(torch.zeros(2, 1, 24, 16)).mode()
        assert latents.shape == (2, model.latent_channels, 6, 4)
        assert model.decode(latents).shape == (2, 1, 24, 16)
    assert (model.latent_channels, model.downsampling) == (3, 4)
    assert {"latent_channels", "downsampling"} <= set(dir(IdentityFirstStage))


def test_an_image_does_not_see_the_rest_of_the_batch():
    model = parity.fill(autoencoder(attn_resolutions=[8])).eval()
    x = parity.normal("x", (3, 1, 16, 16))
    with torch.no_grad():
        together = model.decode(model.encode(x).mode())
        alone = model.decode(model.encode(x[1:2]).mode())
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_posterior_samples_have_its_mean_and_variance():
    moments = torch.tensor([0.5, -1.0]).reshape(1, 2, 1, 1).expand(1, 2, 200, 200)
    posterior = DiagonalGaussian.from_moments(moments)
    samples = posterior.sample(parity.normal("noise", posterior.mean.shape))
    standard_error = math.exp(-0.5) / 200
    assert samples.mean() == pytest.approx(0.5, abs=4 * standard_error)
    assert samples.var().log() == pytest.approx(-1.0, abs=0.04)
    assert torch.equal(posterior.mode(), posterior.mean)


def test_posterior_is_narrow_before_training():
    posterior = autoencoder().encode(parity.normal("x", (2, 1, 16, 16)))
    assert posterior.logvar.mean().item() == pytest.approx(-6, abs=1)


def test_posterior_is_finite_for_any_moments():
    moments = torch.tensor([1.0, -1e9]).reshape(1, 2, 1, 1)
    narrow = DiagonalGaussian.from_moments(moments)
    wide = DiagonalGaussian.from_moments(-moments)
    assert narrow.sample() == pytest.approx(1.0, abs=1e-5)
    assert wide.sample(torch.ones(1, 1, 1, 1)).isfinite()


def test_the_public_defaults_may_be_written_out():
    written = {"resamp_with_conv": True, "tanh_out": False, "use_linear_attn": False}
    model = AutoencoderKL({**DDCONFIG, **written, "give_pre_end": False}, embed_dim=3)
    assert model.state_dict().keys() == AutoencoderKL(DDCONFIG, embed_dim=3).state_dict().keys()


@pytest.mark.parametrize("name", ["tanh_out", "use_linear_attn", "give_pre_end"])
def test_what_is_not_offered_is_named(name):
    with pytest.raises(ConfigError, match=f"ddconfig has {name} True: expected False"):
        AutoencoderKL({**DDCONFIG, name: True}, embed_dim=3)


def test_ddconfig_may_be_omegaconf():
    config = OmegaConf.create({"ddconfig": DDCONFIG, "embed_dim": 3})
    plain = {key: value.shape for key, value in autoencoder().state_dict().items()}
    assert {k: v.shape for k, v in AutoencoderKL(**config).state_dict().items()} == plain


@pytest.mark.parametrize(
    ("changes", "size", "words"),
    [
        ({"double_z": False}, 16, "double_z False"),
        ({"attn_type": "linear"}, 16, "attn_type 'linear'"),
        ({"ch": 24}, 16, "24 channels"),
        ({}, 17, "multiples of 2"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(changes, size, words):
    with pytest.raises(ConfigError, match=words):
        autoencoder(**changes).encode(torch.zeros(1, 1, size, size))
