"""Classifier-free guidance and thresholds: what a prediction becomes before a sampler uses it."""

import pytest
import torch
from oracles import GaussianData, exact_denoiser, noise_in

from ldm.models.diffusion.guidance import THRESHOLDS, dynamic_threshold, guide
from ldm.models.diffusion.process import GaussianProcess
from ldm.models.diffusion.samplers import ddim
from ldm.models.diffusion.schedule import NoiseSchedule

LINEAR = NoiseSchedule("linear")
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double()
T = torch.tensor([10, 500, 900])


def with_condition(x, t):
    return torch.tanh(2 * x)


def without(x, t):
    return x / 3


def guided(scale, rescale=0.0):
    return guide(with_condition, without, scale, rescale)(X, T)


def test_scale_1_is_conditional_and_0_unconditional():
    assert torch.equal(guided(1.0), with_condition(X, T))
    assert torch.equal(guided(0.0), without(X, T))
    for scale, end in ((1.0, with_condition), (0.0, without)):
        near = guided(scale + 1e-9)  # by the formula, not by the shortcut
        torch.testing.assert_close(near, end(X, T), rtol=0, atol=1e-8)


def test_guidance_is_linear_in_its_scale():
    expected = 0.25 * guided(-1.0) + 0.75 * guided(7.0)
    torch.testing.assert_close(guided(5.0), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_guided_outputs_and_guided_x_0_are_the_same(kind):
    def output_of(denoise):
        def output(x, t):
            x_0 = denoise(x, t)
            return GaussianProcess(LINEAR, kind).target(x_0, noise_in(x, x_0, t, LINEAR), t)

        return output

    output = guide(output_of(with_condition), output_of(without), 4.0)(X, T)
    torch.testing.assert_close(
        GaussianProcess(LINEAR, kind).x_0(output, X, T), guided(4.0), rtol=0, atol=1e-10
    )


def test_rescaling_brings_the_spread_of_each_item_back():
    """Lin et al. 2023, eq. 15 and 16."""
    std = {share: guided(6.0, share).flatten(1).std(dim=1) for share in (0.0, 0.5, 1.0)}
    expected = with_condition(X, T).flatten(1).std(dim=1)
    assert (std[0.0] > 1.5 * expected).all()
    torch.testing.assert_close(std[1.0], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(std[0.5], (std[0.0] + expected) / 2, rtol=1e-12, atol=0)


def test_an_item_without_contrast_is_not_rescaled():
    flat = torch.full((1, 1, 2, 2), -1.0)
    out = guide(lambda x, t: x, lambda x, t: x, 3.0, rescale=0.7)(flat, T[:1])
    assert torch.equal(out, flat)


def test_scales_0_and_1_call_one_network():
    def never(x, t):
        raise AssertionError("called")

    assert torch.equal(guide(with_condition, never, 1.0)(X, T), with_condition(X, T))
    assert torch.equal(guide(never, without, 0.0)(X, T), without(X, T))


def test_sampling_with_guidance_exaggerates_the_condition():
    """The mean moves from the unconditional one to the conditional one and beyond."""

    def denoiser(mean):
        data = GaussianData(torch.tensor([mean]).double(), torch.tensor([[0.25]]).double())
        return exact_denoiser(data, LINEAR)

    x_T = torch.zeros(1, 1, dtype=torch.float64)
    at_0, at_1, at_2 = (
        ddim(guide(denoiser(0.3), denoiser(-0.5), scale), x_T, LINEAR, 200).item()
        for scale in (0.0, 1.0, 2.0)
    )
    assert at_0 == pytest.approx(-0.5, abs=0.02)
    assert at_1 == pytest.approx(0.3, abs=0.02)
    assert at_2 > 0.5


def test_clipping_and_no_threshold():
    x = torch.tensor([[-2.0, -0.5, 0.5, 3.0]])
    assert THRESHOLDS["none"](x) is x
    assert THRESHOLDS["clip"](x).tolist() == [[-1, -0.5, 0.5, 1]]


def test_dynamic_threshold_divides_by_a_percentile_of_each_item():
    """Saharia et al. 2022: items within the range stay as they are, others shrink into it."""
    inside = torch.linspace(-0.9, 0.9, 101)
    outside = torch.linspace(-4.0, 4.0, 101)
    x = torch.stack([inside, outside]).view(2, 1, 101, 1)
    out = dynamic_threshold(x, percentile=0.5)
    assert torch.equal(out[0], x[0])
    torch.testing.assert_close(out[1].flatten(), (outside / 2).clamp(-1, 1))  # median of |x| is 2
    assert THRESHOLDS["dynamic"](100 * X).abs().max() <= 1
