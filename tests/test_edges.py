"""Edge maps against scikit-image, and on a shape whose edge is known."""

import numpy as np
import pytest
import torch
from skimage import filters

from ldm.errors import ConfigError
from ldm.modules.edges import edge_map

KINDS = ["sobel", "laplacian", "canny"]


def disc(radius, size=48):
    """An image of 1 inside a circle around the centre and -1 outside, and the distances from it."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    distance = np.hypot(y, x)
    return torch.tensor(np.where(distance < radius, 1.0, -1.0)).float()[None, None], distance


def test_sobel_and_laplacian_are_those_of_scikit_image():
    image = np.random.default_rng(0).standard_normal((9, 11)).astype(np.float32)
    tensor = torch.from_numpy(image)[None, None]
    sobel = edge_map(tensor, "sobel")[0, 0].numpy() / np.sqrt(2)  # scikit-image: mean of squares
    np.testing.assert_allclose(sobel[1:-1, 1:-1], filters.sobel(image)[1:-1, 1:-1], atol=1e-5)
    laplacian = -edge_map(tensor, "laplacian")[0, 0].numpy()
    np.testing.assert_allclose(laplacian[1:-1, 1:-1], filters.laplace(image)[1:-1, 1:-1], atol=1e-5)


@pytest.mark.parametrize("radius", [6, 11.5, 18])
def test_canny_draws_a_thin_closed_circle_around_a_disc(radius):
    image, distance = disc(radius)
    edges = edge_map(image, "canny")[0, 0].numpy()
    assert set(np.unique(edges)) == {0, 1}
    assert np.abs(distance[edges == 1] - radius).max() < 1.5
    assert 0.8 * 2 * np.pi * radius < edges.sum() < 1.4 * 2 * np.pi * radius
    y, x = np.argwhere(edges == 1).T - (edges.shape[0] - 1) / 2
    angles = np.sort(np.arctan2(y, x))
    assert np.diff(angles, append=angles[0] + 2 * np.pi).max() < 3 / radius


def test_canny_drops_weak_edges_unless_a_strong_one_leads_to_them():
    ramp = torch.linspace(0, 1, 48)
    image = torch.where(torch.arange(48) < 24, 0.0, ramp[:, None])[
        None, None
    ]  # step grows downwards
    alone = torch.zeros(1, 1, 48, 48)
    alone[..., 24:], alone[..., :8] = 0.15, 1.0
    assert edge_map(image, "canny")[0, 0, 10].sum() == 1  # height 0.2, of which 0.15 passes `low`
    assert edge_map(alone, "canny")[0, 0, :, 16:].sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_constant_images_have_no_edges_and_volumes_are_maps_of_slices(kind):
    assert edge_map(torch.full((1, 1, 9, 9), 0.3), kind).abs().max() < 1e-6
    volume = torch.randn(2, 3, 4, 9, 11, generator=torch.Generator().manual_seed(0))
    edges = edge_map(volume, kind)
    assert edges.shape == volume.shape
    single = edge_map(volume[1, 2, 3][None, None], kind)[0, 0]
    torch.testing.assert_close(edges[1, 2, 3], single)


def test_brightness_and_contrast_do_not_move_canny_edges():
    image = disc(11.5)[0] + 0.1 * torch.randn(48, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(edge_map(image, "canny"), edge_map(4 * image + 1, "canny"))


def test_bf16_keeps_its_type_and_unknown_kinds_are_refused():
    assert edge_map(torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16), "sobel").dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="use_edge is 'edge': expected sobel, laplacian, canny"):
        edge_map(torch.zeros(1, 1, 8, 8), "edge")
    with pytest.raises(ConfigError, match="at least two spatial axes"):
        edge_map(torch.zeros(1, 1, 8), "sobel")
