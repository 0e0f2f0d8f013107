"""What the loss weighs, which slices are drawn, and in which units the network sees the images."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from test_latent_diffusion import noise, plain, probe

from ldm.data.slices import EndlessShuffle
from ldm.errors import ConfigError
from ldm.intensity import abnormality, blur, standard_units
from ldm.losses.prediction import Expectile, PredictedBatch
from ldm.losses.weights import EnhancementWeights
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.regression import OneStepRegression

WEIGHTS = "ldm.losses.weights.EnhancementWeights"


def from_z(z):
    """Images in [-1, 1] of intensities in units of healthy tissue."""
    return (torch.as_tensor(z, dtype=torch.float32) + 4) / 6 - 1


def phantom():
    """A healthy brain, a bright lesion in FLAIR that enhances, and a vessel that enhances alone."""
    z = torch.zeros(1, 4, 24, 24)  # t1, t2, flair, t1ce
    z[:, 2, 4:10, 4:10] = 3.0
    z[:, 3, 5:9, 5:9] = 2.0
    z[:, 3, 18:20, 18:20] = 4.0
    brain = torch.ones(1, 1, 24, 24, dtype=torch.bool)
    brain[..., :2, :] = False
    images = torch.where(brain, from_z(z), -1.0)
    presence = torch.ones(1, 3, dtype=torch.bool)
    return {
        "condition": images[:, :3],
        "target": images[:, 3:],
        "brain": brain,
        "presence": presence,
    }


@pytest.mark.parametrize("shape", [(11, 17), (9, 8, 13)])
def test_blur_is_a_gaussian_with_zeros_outside(shape):
    image = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    expected = [gaussian_filter(each[0], 1.5, mode="constant", truncate=5 / 1.5) for each in image]
    torch.testing.assert_close(blur(image, 1.5)[:, 0], torch.from_numpy(np.stack(expected)))


def test_what_is_bright_near_by_is_abnormal():
    """From 0 in healthy tissue to the excess of z, whatever lies outside the brain."""
    z = torch.zeros(1, 1, 20, 20)
    brain = torch.ones_like(z, dtype=torch.bool)
    assert abnormality(from_z(z), brain, 2.0).abs().max() < 1e-6
    assert abnormality(from_z(z + 2), brain, 2.0) == pytest.approx(torch.ones(1, 1, 20, 20).numpy())
    brain[..., :10] = False  # an edge of the brain is no dark surrounding
    half = abnormality(torch.where(brain, from_z(z + 2), -1.0), brain, 2.0)
    torch.testing.assert_close(half, brain.float(), rtol=0, atol=1e-5)


def test_weights_find_the_lesion_and_not_the_vessel():
    data = phantom()
    weights = EnhancementWeights(("t1", "t2", "flair"), abnormal=1.0, enhancing=2.0)(data)
    lesion, vessel = weights[0, 0, 5:9, 5:9], weights[0, 0, 18:20, 18:20]
    assert (weights >= 1).all()
    assert vessel.max() < 1.01
    assert lesion.min() > 3  # 2 x enhancement of 2, and its surroundings
    of_inputs = EnhancementWeights(("t1", "t2", "flair"), enhancing=0.0)
    changed = {**data, "target": torch.zeros_like(data["target"])}
    assert torch.equal(of_inputs(data), of_inputs(changed))


def test_what_is_sampled_may_enhance_more_than_the_mean():
    """The items at the start of a batch learn the mean."""
    data = {name: torch.cat([value] * 3) for name, value in phantom().items()}
    weights = EnhancementWeights(("t1", "t2", "flair"), enhancing=2.0, sampled=8.0)(data, 1)
    base = EnhancementWeights(("t1", "t2", "flair"), enhancing=0.0)(data)
    torch.testing.assert_close(weights[1] - base[1], 4 * (weights[0] - base[0]))
    assert torch.equal(weights[1], weights[2])


def test_without_flair_t2_says_what_is_abnormal_and_without_both_nothing_does():
    data = phantom()
    data["condition"] = data["condition"][:, [0, 2]]  # what was FLAIR is called T2
    assert EnhancementWeights(("t1", "t2"))(data).max() > 3
    assert (EnhancementWeights(("t1", "dwi"))(data) == 1).all()


def test_voxels_weigh_alike_where_the_target_enhances_no_condition():
    data = phantom()
    assert (EnhancementWeights(("t1", "t2", "flair"), target="t2")(data) == 1).all()
    assert (EnhancementWeights(("t2", "flair"), target="t1ce")(data) == 1).all()
    with pytest.raises(ConfigError, match="params.source is 't1': give one of t2, flair"):
        EnhancementWeights(("t2", "flair"), source="t1")


def test_width_follows_the_image_so_that_it_is_the_same_in_millimetres():
    widths = [
        EnhancementWeights(("t1", "flair"), image_size=s).width for s in ((96, 80), (192, 160))
    ]
    assert widths == [2.0, 4.0]


@pytest.mark.parametrize("cls", [LatentDiffusion, OneStepRegression])
def test_the_error_of_a_voxel_weighs_so_much(cls):
    """A network that returns 0: the loss is the weighted square of what there was to predict."""
    config = {"target": WEIGHTS, "params": {"width": 1.0}}
    data = phantom()
    model = plain(probe(), cls, voxel_weight_config=config, subtract="t1", gain=5.0)
    weights = EnhancementWeights(("t1", "t2", "flair"), width=1.0)(data)
    x_0 = 5 * (data["target"] - data["condition"][:, :1])
    torch.testing.assert_close(model.batch_loss(data)["loss"], (weights * x_0**2).mean())


@pytest.mark.parametrize("asymmetry", [-0.5, 0.0, 0.8])
def test_the_minimum_is_the_expectile(asymmetry):
    """Newey & Powell: expectations above and below balance as the asymmetry says."""
    r = torch.rand(1, 1, 1, 20001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss, constants = Expectile(asymmetry), torch.linspace(0.05, 0.95, 181, dtype=torch.float64)
    losses = [
        (r - c).square().mean() + loss(PredictedBatch(c.expand_as(r), r, r, r))["expectile"]
        for c in constants
    ]
    best = constants[torch.stack(losses).argmin()]
    above, below = (r - best).clamp(min=0).mean(), (best - r).clamp(min=0).mean()
    tau = (1 + asymmetry) / 2
    assert (tau * above).item() == pytest.approx(((1 - tau) * below).item(), abs=2e-3)


def test_the_network_sees_units_of_healthy_tissue_and_no_background():
    """Absent contrasts and what is no brain are 0; the anchor is the image as it is."""
    model = plain(probe(weight=1.0, channel=3), standard_inputs=True, subtract="t1", gain=1.0)
    data = phantom()
    data["presence"] = torch.tensor([[True, False, True]])
    images = model.space.encode_condition(data["condition"], data["presence"])
    given = model.given(images, data)
    expected = torch.where(data["brain"], standard_units(data["condition"]), 0.0)
    expected[:, 1] = 0
    torch.testing.assert_close(given["condition"], expected)
    torch.testing.assert_close(given["anchor"], data["condition"][:, :1])
    model.synthesise(data["condition"], data["presence"], noise(1), steps=1)
    torch.testing.assert_close(model.model.diffusion_model.seen[:, 1:], expected)
    assert plain(probe()).given(images, data)["condition"] is images


def test_a_share_of_the_examples_is_drawn_by_weight():
    """A function of seed and position alone; the others go on in their order."""
    weights = np.array([0.0, 3.0, 0.0, 1.0])

    def drawn(start=0, share=0.5, count=4000, **options):
        stream = iter(EndlessShuffle(4, 0, start, weights=weights, share=share, **options))
        return [next(stream) for _ in range(count)]

    indices = np.bincount([i for i, _ in drawn()], minlength=4) / 4000
    assert indices == pytest.approx(0.5 * weights / 4 + 0.5 / 4, abs=0.03)
    assert drawn(start=7, count=20) == drawn(count=27)[7:]
    assert drawn(share=0.0, count=50) == [
        item for item, _ in zip(EndlessShuffle(4, 0), range(50), strict=False)
    ]
    nothing = EndlessShuffle(4, 0, weights=np.zeros(4), share=0.5)
    assert next(iter(nothing))[0] == next(iter(EndlessShuffle(4, 0)))[0]
