"""The loss of the autoencoder: closed forms, and two players apart from each other."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldm.errors import CheckpointError, ConfigError
from ldm.losses.adversarial import adversarial_terms, hinge_loss
from ldm.losses.autoencoder import AutoencoderLoss
from ldm.losses.perceptual import LPIPS, multi_scale_gradient
from ldm.models.autoencoder import DiagonalGaussian


def images(seed=0, size=(2, 1, 32, 32)):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def posterior(mean=0.0, logvar=0.0, size=(2, 3, 8, 8)):
    return DiagonalGaussian(torch.full(size, mean), torch.full(size, logvar))


def loss(**params):
    torch.manual_seed(0)
    return AutoencoderLoss(**{"disc_channels": 8, "disc_num_layers": 2, **params})


def player_gradients(model, step, real, fake):
    """(loss, gradient of the reconstruction, gradients of the discriminator)"""
    fake = fake.clone().requires_grad_()
    losses = model(real, fake, posterior(), step)
    losses["loss"].backward()
    return losses, fake.grad, discriminator_gradients(model)


def discriminator_gradients(model):
    """Of the kernels: the last bias has none while all scores lie inside the margins."""
    return [p.grad for p in model.discriminator.parameters() if p.ndim > 1]


def test_kl_is_that_of_two_gaussians():
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 2, 3, 4, 4, generator=generator)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(DiagonalGaussian(mean, logvar).kl(), expected)
    assert (posterior().kl() == 0).all()


def test_weight_of_kl_is_per_pixel_of_the_image():
    model = loss(disc_weight=0, perceptual_weight=0, kl_weight=0.5)
    losses = model.fidelity(images(), images(), posterior(mean=2.0))
    assert losses["loss"].item() == pytest.approx(0.5 * (0.5 * 2.0**2 * 3 * 8 * 8) / 32**2)


def test_hinge_loss_is_zero_beyond_the_margins_and_linear_inside():
    one = torch.ones(4)
    assert hinge_loss(one, -one) == 0
    assert hinge_loss(3 * one, -5 * one) == 0
    assert hinge_loss(0 * one, 0 * one) == 1
    assert hinge_loss(-one, one) == 2


def test_gradient_loss_of_a_ramp():
    """Slopes of 0.1 a pixel against none: 0.1, 0.2, 0.4 at the scales; an offset costs nothing."""
    ramp = (torch.arange(32) * 0.1).expand(1, 1, 32, 32)
    flat = torch.zeros(1, 1, 32, 32)
    assert multi_scale_gradient(ramp, flat).item() == pytest.approx(0.7 / 3, rel=1e-5)
    assert multi_scale_gradient(flat + 0.3, flat) == 0


def test_adversarial_pull_has_its_stated_size_beside_l1():
    model = loss(disc_weight=0.25, perceptual_weight=0, kl_weight=0)
    real, fake = images(0), images(1)
    _, with_pull, _ = player_gradients(model, 0, real, fake)
    l1_gradient = (fake - real).sign() / fake.numel()
    pull = with_pull - l1_gradient
    assert pull.norm() / l1_gradient.norm() == pytest.approx(0.25, rel=1e-4)


def test_pull_raises_the_score_of_the_reconstruction():
    model = loss(disc_weight=1.0, perceptual_weight=0, kl_weight=0)
    real, fake = images(0), images(1)
    pull, _, _ = adversarial_terms(model.discriminator, real, fake.requires_grad_(), 1.0)
    pull.backward()
    before, after = (model.discriminator(x)[-1].mean() for x in (fake, fake - fake.grad))
    assert after > before


def test_discriminator_learns_only_from_its_own_loss():
    """Its gradient is that of the weighted hinge loss alone."""
    real, fake = images(0), images(1)
    model = loss(disc_weight=0.25)
    _, _, grads = player_gradients(model, 0, real, fake)
    model.zero_grad()
    scores = [model.discriminator(x)[-1] for x in (real, fake)]
    (0.25 * hinge_loss(*scores)).backward()
    torch.testing.assert_close(grads, discriminator_gradients(model))
    assert all(g.abs().max() > 0 for g in grads)


def test_reconstruction_is_not_moved_by_the_loss_of_the_discriminator():
    model = loss()
    fake = images(1).requires_grad_()
    _, hinge, _ = adversarial_terms(model.discriminator, images(0), fake, 0.1)
    assert torch.autograd.grad(hinge, fake, allow_unused=True) == (None,)


def test_discriminator_takes_part_from_its_start_step_on():
    model = loss(disc_start=3, perceptual_weight=0, kl_weight=0)
    real, fake = images(0), images(1)
    for step in (0, 2):
        losses, pulled, grads = player_gradients(model, step, real, fake)
        torch.testing.assert_close(pulled, (fake - real).sign() / fake.numel())
        assert all((g == 0).all() for g in grads)
        assert "discriminator" not in losses
    before = losses["loss"]
    losses, _, grads = player_gradients(model, 3, real, fake)
    assert all(g.abs().max() > 0 for g in grads)
    assert losses["discriminator"] > 0
    torch.testing.assert_close(losses["loss"], before)  # the curve goes on without a jump


def test_without_weight_there_is_no_discriminator():
    model = loss(disc_weight=0)
    assert model.discriminator is None
    assert "generator" not in model(images(0), images(1), posterior(), 10**6)


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory):
    """The state dict of a random SqueezeNet, as torchvision saves it."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    state = squeezenet1_1().state_dict()
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(state, path)
    return str(path), state


def test_lpips_takes_the_weights_of_torchvision(squeezenet):
    """The features are SqueezeNet's own; the distance is 0 for equal images only."""
    path, state = squeezenet
    lpips = LPIPS(path, "squeeze")
    fire = lpips.network.net.slices[1][1].squeeze.weight
    assert torch.equal(fire, state["features.3.squeeze.weight"])
    x, y = images(0, (2, 1, 64, 64)), images(1, (2, 1, 64, 64)).requires_grad_()
    assert lpips(x, x) == 0
    distance = lpips(y, x)
    distance.backward()
    assert distance > 0 and y.grad.abs().max() > 0


def test_lpips_weights_stay_out_of_checkpoints(squeezenet):
    model = loss(lpips_weights=squeezenet[0], lpips_net="squeeze")
    assert model.perceptual_name == "LPIPS"
    assert model.state_dict().keys() == loss().state_dict().keys()
    one, other = images(0, (1, 1, 64, 64)), images(1, (1, 1, 64, 64))
    assert math.isfinite(model(one, other, posterior(), 0)["perceptual"])


def test_wrong_lpips_weights_are_refused(squeezenet, tmp_path):
    path, _ = squeezenet
    with pytest.raises(ConfigError, match="give one of vgg, alex, squeeze"):
        LPIPS(path, "resnet")
    with pytest.raises(CheckpointError, match="there is no"):
        LPIPS(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="state dict of torchvision's alexnet"):
        LPIPS(path, "alex")
