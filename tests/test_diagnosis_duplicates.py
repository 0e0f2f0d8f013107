"""Duplicates are found, two patients are not."""

import base64

import numpy as np
import pytest
from scipy import ndimage

from ldm.data import fingerprint as module
from ldm.data.fingerprint import ALIKE, COMPARED, alike, fingerprint
from ldm.data.volume_file import VolumeFile
from ldm.diagnosis.duplicates import equal_files

SHAPE = (40, 44, 36)


def smooth_head(seed: int = 0) -> np.ndarray:
    """A smooth random image (40, 44, 36), positive in an ellipsoid and 0 outside."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    return np.where((grid**2).sum(0) < 0.9, np.exp(4 * field / field.std() / 3), 0)


def difference(first: str, second: str) -> float:
    """The share of bits that differ between two fingerprints."""
    stored = (np.frombuffer(base64.b64decode(text), np.uint8) for text in (first, second))
    return np.unpackbits(np.bitwise_xor(*stored)).sum() / COMPARED.sum()


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


@pytest.mark.parametrize("seed", range(5))
def test_blocks_and_parts_miss_no_pair(seed, monkeypatch):
    """The pairs, their order and shares are those of each compared with each, bit by bit.

    Half of the fingerprints are others with a share of bits about the limit turned, spread evenly
    or all in one place, where a part of the words sees none or all of them.
    """
    monkeypatch.setattr(module, "BLOCK", (3, 7))
    draw, size = np.random.default_rng(seed), int(COMPARED.sum())
    bits = draw.random((60, size)) < 0.5
    for i in range(30, 60):
        turned = round(size * draw.choice([0.05, ALIKE - 1e-4, ALIKE + 1e-4, 0.2]))
        where = np.arange(turned) if i % 2 else draw.choice(size, turned, replace=False)
        bits[i] = bits[draw.integers(30)]
        bits[i, where] ^= True
    texts = [base64.b64encode(np.packbits(row).tobytes()).decode() for row in bits]
    shares = (bits[:, None] != bits).mean(-1)
    some, others = (
        {f"a{i}": texts[i] for i in range(60)},
        {f"b{i}": texts[i] for i in range(20, 60)},
    )
    within = [(f"a{j}", f"a{i}") for i in range(60) for j in range(i) if shares[i, j] < ALIKE]
    across = [(f"a{j}", f"b{i}") for i in range(20, 60) for j in range(60) if shares[i, j] < ALIKE]
    assert len(within) > 10
    for found, expected in ((alike(some), within), (alike(some, others), across)):
        assert [pair[:2] for pair in found] == expected
        for first, second, share in found:
            assert share == pytest.approx(shares[int(first[1:]), int(second[1:])], abs=1e-12)


def test_an_image_without_anatomy_has_no_fingerprint():
    flat = (smooth_head() > 0) * 1.0
    for image in (flat, np.zeros(SHAPE), smooth_head()[20:24, 20:24, 18:20]):
        assert fingerprint(image) == ""
    assert not alike({"a": "", "b": "", "c": fingerprint(smooth_head())})


def test_equal_files_are_grouped_by_content_alone(tmp_path):
    for name, content in {"a": b"1234", "b": b"1234", "c": b"4321", "d": b"12345"}.items():
        (tmp_path / name).write_bytes(content)
    files = {name: VolumeFile(tmp_path / name) for name in "abcd"}
    groups = equal_files({name: [file] for name, file in files.items()})
    assert groups == [[("a", files["a"]), ("b", files["b"])]]
