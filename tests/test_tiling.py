"""A volume in overlapping windows: what needs no neighbours is not changed, and nothing shows."""

import pytest
import torch
from torch import nn

from ldm.errors import ConfigError
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.noise import KeyedNoise
from ldm.models.diffusion.regression import OneStepRegression
from ldm.models.diffusion.tiling import Tiling

PATCH, VOLUME = (4, 6, 6), (5, 17, 11)
CONDITIONS = torch.rand(1, 3, *VOLUME, generator=torch.Generator().manual_seed(0)) * 2 - 1
PRESENT = torch.ones(1, 3, dtype=torch.bool)


class Voxelwise(nn.Module):
    """A network that looks at no neighbour; keeps the sizes that it was called with."""

    def __init__(self, in_channels, out_channels, image_size, dims):
        super().__init__()
        assert (image_size, dims) == (PATCH, 3)
        self.conv = nn.Conv3d(in_channels, out_channels, 1)
        self.shapes = []

    def forward(self, x, timesteps):
        self.shapes.append(tuple(x.shape))
        return torch.sin(3 * self.conv(x)) + timesteps.view(-1, 1, 1, 1, 1) / 1000


class OfSlices(nn.Module):
    """A network without a number of axes."""

    def __init__(self, in_channels, out_channels):
        super().__init__()


class OwnName(Voxelwise):
    """A network that has another name for it."""

    interface = {"axes": "dims"}  # noqa: RUF012

    def __init__(self, in_channels, out_channels, image_size, axes):
        super().__init__(in_channels, out_channels, image_size, axes)


def model_of(network, cls=LatentDiffusion, **params):
    torch.manual_seed(0)
    node = {"target": f"{__name__}.{network.__name__}"}
    return cls(node, **{"image_size": list(PATCH), "subtract": "t1", "gain": 2.0, **params}).eval()


def sampled(model, tiling, sampler="ddpm", **options):
    model.tiling = tiling
    noise = KeyedNoise([("a", 0)], "cpu")
    return model.synthesise(CONDITIONS, PRESENT, noise, sampler, steps=3, **options)


@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (LatentDiffusion, {}),
        (LatentDiffusion, {"parameterization": "v", "variance": "learned_range"}),
        (OneStepRegression, {}),
    ],
)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_a_voxelwise_network_does_not_see_the_windows(cls, params, overlap):
    """The whole path of a stochastic sampler is that of the untiled volume, from one noise."""
    model = model_of(Voxelwise, cls, **params)
    network = model.model.diffusion_model
    whole = sampled(model, None)
    assert set(network.shapes) == {(1, 4, *VOLUME)}
    network.shapes.clear()
    tiled = sampled(model, Tiling(PATCH, overlap, batch_size=3))
    assert {shape[2:] for shape in network.shapes} == {PATCH}
    assert max(shape[0] for shape in network.shapes) == 3
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    assert whole.std() > 0.1


def test_guidance_and_thresholds_see_the_whole_volume():
    """What they take from an image, a deviation or a percentile, is that of no single window."""
    model = model_of(Voxelwise, parameterization="v", threshold="dynamic", drop_all=0.1)
    options = {"sampler": "ddim", "guidance": 3.0, "rescale": 0.7}
    whole, tiled = (sampled(model, tiling, **options) for tiling in (None, Tiling(PATCH, 0.5, 4)))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-4)


def test_a_network_may_return_its_input():
    x_t = torch.randn(1, 1, *VOLUME)
    same = Tiling(PATCH, 0.5)(lambda x, *_: x, x_t, torch.zeros(1), x_t)
    torch.testing.assert_close(same, x_t)


def test_a_patch_may_lose_all_its_conditions():
    model = model_of(Voxelwise, drop_all=1.0).train()
    batch = {"condition": torch.rand(2, 3, *PATCH), "target": torch.rand(2, 1, *PATCH)}
    loss = model.batch_loss({**batch, "presence": PRESENT.expand(2, 3)})["loss"]
    assert loss.isfinite()


def test_windows_at_once_change_nothing():
    model = model_of(Voxelwise)
    one, many = (sampled(model, Tiling(PATCH, 0.5, n)) for n in (1, 7))
    torch.testing.assert_close(one, many, rtol=0, atol=1e-5)


def test_windows_that_disagree_are_blended():
    """Each window says the mean of its condition: no jump is as large as between two windows."""
    ramp = torch.linspace(0, 1, 64).view(1, 1, 1, 1, 64).expand(1, 1, 4, 6, 64)

    def mean_of_window(x_t, t, condition):
        return condition.mean((2, 3, 4), keepdim=True) + torch.zeros_like(x_t)

    def largest_jump(overlap):
        tiling = Tiling((4, 6, 16), overlap)
        blended = tiling(mean_of_window, torch.zeros_like(ramp), torch.zeros(1), ramp)
        return blended.diff(dim=-1).abs().max()

    assert largest_jump(0.0) > 0.2  # 16 of 63 steps from one window to the next
    assert largest_jump(0.5) < 0.06


def test_a_constant_stays_a_constant():
    x_t = torch.randn(2, 1, *VOLUME)
    constant = Tiling(PATCH, 0.3, 4)(
        lambda x, *_: torch.full_like(x, 0.7), x_t, torch.zeros(2), x_t.expand(2, 3, *VOLUME)
    )
    torch.testing.assert_close(constant, torch.full_like(x_t, 0.7))


def test_what_fits_in_a_window_is_called_as_it_is():
    x_t, t, condition = torch.randn(2, 1, 3, 6, 5), torch.tensor([5, 7]), torch.randn(2, 3, 3, 6, 5)
    seen = []
    Tiling(PATCH)(lambda *inputs: seen.append(inputs), x_t, t, condition)
    ((x, time, given),) = seen
    assert x is x_t and time is t and given is condition


def test_a_volume_thinner_than_a_window_is_padded_and_cropped():
    x_t = torch.randn(1, 1, 2, 17, 11)
    doubled = Tiling(PATCH)(lambda x, *_: 2 * x, x_t, torch.zeros(1), x_t)
    torch.testing.assert_close(doubled, 2 * x_t)


def test_a_class_may_have_its_own_name_for_the_number_of_axes():
    assert model_of(OwnName).latent_shape == (1, *PATCH)


@pytest.mark.parametrize(
    ("network", "params", "said"),
    [
        (OfSlices, {}, "OfSlices has no argument dims"),
        (Voxelwise, {"cache_latents": True}, "not cached"),
        (
            Voxelwise,
            {
                "conditioning_key": "crossattn",
                "cond_stage_config": {"target": f"{__name__}.OfSlices"},
            },
            r"cond_stage_config: OfSlices has no argument dims",
        ),
    ],
)
def test_what_knows_only_slices_is_refused(network, params, said):
    with pytest.raises(ConfigError, match=said):
        model_of(network, **params)
