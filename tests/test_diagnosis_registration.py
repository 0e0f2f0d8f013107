"""A shift between contrasts is found to the voxel; duplicates are found, two patients are not."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import normalized_mutual_information

from ldm.data.fingerprint import ALIKE, alike, difference, fingerprint
from ldm.data.volume_file import VolumeFile
from ldm.diagnosis.duplicates import equal_files
from ldm.diagnosis.registration import BINS, best_shift, information

SHAPE = (40, 44, 36)
AFFINE = np.diag([2.0, 1.0, 3.0, 1.0])


def smooth_head(seed: int = 0) -> np.ndarray:
    """A smooth random image (40, 44, 36), positive in an ellipsoid and 0 outside."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    return np.where((grid**2).sum(0) < 0.9, np.exp(4 * field / field.std() / 3), 0)


def other_contrast(image: np.ndarray) -> np.ndarray:
    """Another contrast of the same head: no rising, nor falling, function of the first."""
    bright = image > 0
    return np.where(bright, 2 + np.cos(2 * np.log(np.where(bright, image, 1))), 0)


@pytest.mark.parametrize("shift", [(0, 0, 0), (2, 0, 0), (-1, 3, 0), (3, -2, 2)])
def test_the_shift_is_found_to_the_voxel_and_in_millimetres(shift):
    head = smooth_head()
    moved = np.roll(other_contrast(head), shift, (0, 1, 2))
    found = best_shift(head, moved, head > 0, AFFINE)
    assert found.voxels == shift
    assert found.millimetres == pytest.approx(np.linalg.norm(AFFINE[:3, :3] @ shift))
    assert found.is_doubtful == any(shift)


def test_mutual_information_is_that_of_scikit_image():
    rng = np.random.default_rng(0)
    first = rng.integers(0, BINS, 5000).astype(np.uint16)
    second = np.where(rng.random(5000) < 0.5, first, rng.integers(0, BINS, 5000)).astype(np.uint16)
    assert information(first, second) == pytest.approx(
        normalized_mutual_information(first, second, bins=BINS) - 1
    )
    assert information(first, first) == pytest.approx(1)


def test_nothing_is_said_of_images_that_share_no_information():
    head = smooth_head()
    assert best_shift(head, (head > 0) * 1.0, head > 0, AFFINE) is None


def test_nothing_is_said_of_a_brain_of_few_voxels():
    head = smooth_head()[12:24, 12:24, 12:20]
    assert best_shift(head, head, head > 0, AFFINE) is None


def test_the_fingerprint_survives_noise_gamma_and_scale():
    head = smooth_head()
    reference = fingerprint(head)
    noise = np.random.default_rng(1).normal(0, 0.02 * head.std(), SHAPE) * (head > 0)
    for changed in (np.where(head > 0, head * 3 + 7, 0), head**0.8, head + noise):
        assert difference(fingerprint(changed), reference) < ALIKE
    assert difference(fingerprint(smooth_head(5)), reference) > 3 * ALIKE


def test_only_like_images_make_a_pair():
    heads = {f"p{seed}": fingerprint(smooth_head(seed)) for seed in range(4)}
    assert alike(heads) == []
    noise = np.random.default_rng(1).normal(0, 0.02, SHAPE) * (smooth_head(2) > 0)
    pairs = alike(heads | {"copy": fingerprint(2 * smooth_head(2) + noise)})
    assert [(first, second) for first, second, _ in pairs] == [("p2", "copy")]
    pairs = alike({"copy": fingerprint(2 * smooth_head(2) + noise)}, heads)
    assert [(first, second) for first, second, _ in pairs] == [("copy", "p2")]


def test_an_image_without_anatomy_has_no_fingerprint():
    flat = (smooth_head() > 0) * 1.0
    for image in (flat, np.zeros(SHAPE), smooth_head()[20:24, 20:24, 18:20]):
        assert fingerprint(image) == ""
    assert difference("", fingerprint(smooth_head())) == 1 and not alike({"a": "", "b": ""})


def test_equal_files_are_grouped_by_content_alone(tmp_path):
    for name, content in {"a": b"1234", "b": b"1234", "c": b"4321", "d": b"12345"}.items():
        (tmp_path / name).write_bytes(content)
    files = {name: VolumeFile(tmp_path / name) for name in "abcd"}
    groups = equal_files({name: [file] for name, file in files.items()})
    assert groups == [[("a", files["a"]), ("b", files["b"])]]
