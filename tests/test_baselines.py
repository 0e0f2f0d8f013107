"""Baselines without a network, against closed forms."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from builders import write_subject

from ldm.data.layouts import detect_layout
from ldm.data.prepare import Preparation, prepare_subject
from ldm.errors import DataError
from ldm.inference.baseline_volumes import write_baseline
from ldm.inference.baselines import ContrastRegression, NearestPatient, design_matrix, fit_baseline


@dataclass
class Entry:
    """A patient in memory, as a cache entry: contrasts and target (S, M + 1, H, W)."""

    id: str
    slices: np.ndarray
    brain: np.ndarray

    def open(self, name):
        return getattr(self, name)


def patient(name, shape=(5, 6, 7), seed=0, target=None):
    rng = np.random.default_rng(seed)
    brain = rng.random(shape) < 0.6
    inputs = rng.uniform(-1, 1, (shape[0], 3, *shape[1:]))
    truth = target(inputs) if target else rng.uniform(-1, 1, (shape[0], 1, *shape[1:]))
    slices = np.concatenate([inputs, truth], axis=1)
    return Entry(name, np.where(brain[:, None], slices, -1).astype(np.float32), brain)


@pytest.fixture
def prepared(tmp_path):
    """A patient as it is read to be sampled."""
    write_subject(tmp_path)
    layout, found = detect_layout(tmp_path)
    return prepare_subject(found["p0"], layout, ["t1", "t2", "flair"], None, Preparation())


def as_prepared(prepared, entry):
    return replace(prepared, slices=entry.slices[:, :-1], brain=entry.brain)


@pytest.mark.parametrize("degree", [1, 2])
def test_streamed_fit_equals_least_squares_on_all_voxels(degree):
    entries = [patient(f"p{n}", seed=n) for n in range(3)]
    voxels = np.concatenate([np.moveaxis(e.slices, 1, -1)[e.brain] for e in entries])
    design = design_matrix(voxels[:, :3], degree)
    expected = np.linalg.lstsq(design, voxels[:, 3].astype(np.float64), rcond=None)[0]
    found = ContrastRegression(degree).fit(entries).coefficients
    assert design.shape[1] == {1: 4, 2: 10}[degree]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_a_quadratic_law_is_found_and_predicted(prepared):
    def law(x):
        t1, t2, flair = np.moveaxis(x, 1, 0)
        return (0.1 + 0.4 * t1 - 0.2 * t2 * flair + 0.2 * flair**2)[:, None]

    model = fit_baseline("quadratic", [patient("a", seed=1, target=law)])
    # the terms are 1, t1, t2, flair, t1 t1, t1 t2, t1 flair, t2 t2, t2 flair, flair flair
    expected = [0.1, 0.4, 0, 0, 0, 0, 0, 0, -0.2, 0.2]
    np.testing.assert_allclose(model.coefficients, expected, atol=1e-6)
    other = patient("b", seed=2, target=law)
    image = model.predict(as_prepared(prepared, other))
    np.testing.assert_allclose(image[other.brain], other.slices[:, -1][other.brain], atol=1e-5)
    assert (image[~other.brain] == -1).all()
    linear = fit_baseline("linear", [patient("a", seed=1, target=law)])
    assert np.abs(linear.predict(as_prepared(prepared, other)) - image).max() > 0.05


def test_a_constant_contrast_does_not_break_the_fit():
    entry = patient("a")
    entry.slices[:, 1] = -1
    assert np.isfinite(ContrastRegression(2).fit([entry]).coefficients).all()


def test_nearest_patient_is_found_among_others(prepared):
    """A patient with noise on its contrasts is nearest to itself, and gets its own target back."""
    entries = [patient(f"p{n}", shape=(24, 24, 24), seed=n) for n in range(4)]
    model = fit_baseline("nearest", entries)
    noise = np.random.default_rng(9).normal(0, 0.2, entries[2].slices.shape)
    noisy = Entry("new", (entries[2].slices + noise).astype(np.float32), entries[2].brain)
    assert model.nearest(noisy.slices[:, :-1]).id == "p2"
    image = model.predict(as_prepared(prepared, noisy))
    inside = entries[2].brain
    np.testing.assert_allclose(image[inside], entries[2].slices[:, -1][inside], atol=1e-6)


def test_likeness_ignores_gain_and_offset(prepared):
    entries = [patient(f"p{n}", shape=(24, 24, 24), seed=n) for n in range(3)]
    changed = 0.3 * entries[1].slices[:, :-1] + 0.1
    assert NearestPatient().fit(entries).nearest(changed).id == "p1"


def test_nearest_target_is_stretched_to_the_brain_and_has_no_hole(prepared):
    """A constant target stays constant on another grid, also where the neighbour has no brain."""
    entry = patient("a", shape=(8, 9, 10), target=lambda x: np.full_like(x[:, :1], 0.25))
    image = NearestPatient().fit([entry]).predict(prepared)
    assert image.shape == prepared.brain.shape != entry.brain.shape
    np.testing.assert_allclose(image[prepared.brain], 0.25, atol=1e-6)
    assert (image[~prepared.brain] == -1).all()


@pytest.mark.parametrize("name", ["linear", "quadratic", "nearest"])
def test_without_a_patient_there_is_nothing_to_fit(name):
    with pytest.raises(DataError, match="DATA-EMPTY"):
        fit_baseline(name, [])


def test_a_baseline_of_other_patients_is_written_anew(tmp_path, brats_folder):
    """What stands there may be of another training: it is never taken for this one."""
    data = {
        "target": "ldm.data.datamodule.ContrastDataModule",
        "params": {"root": str(brats_folder), "cache": str(tmp_path / "cache")},
    }
    contents = []
    for train in (["p0"], ["p1"], ["p0"]):
        write_baseline("linear", tmp_path / "out", data, train, ["p3"])
        contents.append((tmp_path / "out/p3_t1ce.nii.gz").read_bytes())
    assert contents[0] == contents[2] != contents[1]
