"""The picture of disentangled features."""

import io

import numpy as np
import pytest
import torch
from skimage.io import imread

from ldm.plots.features import feature_figure, similarity


def test_similarity_is_one_within_a_view_and_zero_between_orthogonal_views():
    east, north = torch.eye(2).reshape(2, 1, 2, 1)
    table, names = similarity({"content": [east[None], 3 * east[None]], "style": [north[None]]})
    assert names == ["content", "content", "style"]
    np.testing.assert_allclose(table, [[1, 1, 0], [1, 1, 0], [0, 0, 1]], atol=1e-7)


def test_features_of_other_sizes_have_no_similarity():
    table, _ = similarity({"a": [torch.ones(1, 2, 4, 4)], "b": [torch.ones(1, 2, 2, 2)]})
    assert np.isnan(table[0, 1])
    assert table[1, 1] == pytest.approx(1)


@pytest.mark.parametrize("size", [(6, 8), (4, 6, 8)], ids=["slices", "volumes"])
def test_picture_has_the_maps_and_the_heat_map(size):
    generator = torch.Generator().manual_seed(0)
    features = {
        "style": [torch.randn(2, 4, *size, generator=generator) for _ in range(3)],
        "lesion": [torch.randn(2, 4, *size, generator=generator) for _ in range(2)],
    }
    image = imread(io.BytesIO(feature_figure(features)))
    assert image.shape[1] > image.shape[0] > 300
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 100
    assert feature_figure(features) == feature_figure(features)
