"""Perceptual metrics run with weights on disk, and say why they do not without."""

from math import isnan
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import evaluate_volume

from ldm.errors import CheckpointError
from ldm.evaluation.measures import MEASURES
from ldm.evaluation.metrics.perceptual import Perceptual, find_weights, frechet_distance
from ldm.losses.perceptual import LPIPS


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights under the name that torchvision gives it."""
    from torchvision.models import squeezenet1_1  # after ldm, which repairs its import

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_1-b8a52dc0.pth"
    torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    reference = rng.random((64, 48, 3))
    return np.clip(reference + rng.normal(0, 0.2, reference.shape), 0, 1), reference


def test_lpips_is_zero_for_the_truth_and_in_the_scores(weights, pair):
    network, reason = find_weights(weights)
    assert reason == ""
    assert network.net == "squeeze"
    assert network.lpips(pair[1], pair[1]) == 0
    brain = np.ones(pair[1].shape, bool)
    scores = evaluate_volume(*pair, brain, perceptual=network)["brain"]
    assert scores["lpips"] > 0
    assert isnan(network.lpips(*(volume[..., :0] for volume in pair)))


def test_features_are_those_of_slices(weights, pair):
    network = Perceptual(weights, "squeeze")
    features = network.features(pair[0])
    assert len(features) == 3
    np.testing.assert_allclose(
        features[1:2], network.features(pair[0][..., 1:2]), rtol=1e-4, atol=1e-5
    )


def test_frechet_distance_of_normal_distributions():
    """Means 3 apart, variances 1 and 4 in each of two directions: 9 + 2 (1 - 2)^2."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 100_000, 2))
    assert frechet_distance(first, 2 * second + [3, 0]) == pytest.approx(11, rel=0.02)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert isnan(frechet_distance(first[:1], second))


def test_without_weights_there_is_a_reason(tmp_path, monkeypatch, weights):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network, reason = find_weights()
    assert network is None
    assert "no weights" in reason
    downloads = Path(torch.hub.get_dir()) / "checkpoints"
    downloads.mkdir(parents=True)
    (downloads / weights.name).write_bytes(weights.read_bytes())
    assert find_weights()[0].net == "squeeze"
    with pytest.raises(CheckpointError, match="CKPT-MISSING"):
        find_weights(tmp_path / "vgg16.pth")
    assert MEASURES["lpips"].regions == ("full", "brain")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"<html>no</html>", "HTML page"), (b"\x80\x02junk", "unknown format")],
    ids=["empty", "a page", "junk"],
)
def test_a_file_that_holds_no_weights_is_named(tmp_path, content, words):
    path = tmp_path / "vgg16.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"CKPT-FORMAT: vgg16.pth .*{words}"):
        LPIPS(path)
