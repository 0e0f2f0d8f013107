"""Resampling: exact where it can be, bounded where it cannot, and blind to what is no brain."""

import numpy as np
import pytest
from builders import INPUTS, head_image, write_subject
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_prepare import prepare

from ldm.data.nifti import encode_volume, read_volume, write_volume
from ldm.data.prepare import AXES, Preparation
from ldm.data.resample import ORDERS, Resampling
from ldm.errors import ConfigError, DataError

OWN = (1.0, 1.2, 1.5)  # mm, the spacing of RAS


def there_and_back(volume, steps, interpolation="linear", mask=None):
    mask = np.ones(volume.shape, bool) if mask is None else mask
    plan = Resampling.plan(volume.shape, (1, 1, 1), steps, interpolation)
    resampled = plan.volumes({"t1": volume}, mask)["t1"]
    assert resampled.shape == plan.grid
    return plan.back(resampled, plan.labels(mask))


def wave(shape, length):
    """A wave (X, Y, Z) along the first axis, ``length`` voxels long."""
    x = np.arange(shape[0], dtype=np.float32)
    return np.broadcast_to(np.sin(2 * np.pi * x / length)[:, None, None], shape)


@given(
    slopes=arrays(np.float64, 3, elements=st.floats(-5, 5)),
    steps=st.tuples(*[st.floats(0.4, 2.0)] * 3).filter(lambda s: max(abs(x - 1) for x in s) > 0.01),
)
def test_a_linear_function_returns_inside(slopes, steps):
    shape = (14, 13, 15)
    volume = np.einsum("a,axyz->xyz", slopes, np.indices(shape)).astype(np.float32)
    error = np.abs(there_and_back(volume, steps) - volume)[5:-5, 5:-5, 5:-5]
    assert error.max() < 1e-4


@pytest.mark.parametrize("step", [0.6, 1.5, 2.0, 2.7])
def test_a_smooth_function_returns_within_the_bound_of_theory(step):
    """Smoothing takes 1 - exp(-(k s)^2 / 2) off a wave; linear pieces err by (k h)^2 / 8."""
    volume, k = wave((80, 4, 4), length=20), 2 * np.pi / 20
    sigma = max(0.0, (step - 1) / 2)
    bound = 1 - np.exp(-((k * sigma) ** 2) / 2) + (k * step) ** 2 / 8 + (k * 1.0) ** 2 / 8
    error = np.abs(there_and_back(volume, (step, 1, 1)) - volume)[8:-8]
    assert error.max() < bound
    cubic = np.abs(there_and_back(volume, (step, 1, 1), "cubic") - volume)[8:-8]
    assert cubic.max() < error.max()


@pytest.mark.parametrize("interpolation", ORDERS)
@pytest.mark.parametrize("parts", [2, 3])
def test_finer_voxels_give_the_coarse_ones_back(interpolation, parts):
    """The centres of the coarse voxels are centres of the fine grid too."""
    volume = head_image((7, 6, 5)).astype(np.float32)
    steps = (1 / parts, 1, 1 / parts)
    back = there_and_back(volume, steps, interpolation, volume > 0)
    np.testing.assert_allclose(back[volume > 0], volume[volume > 0], rtol=2e-5)


@given(shape=st.tuples(*[st.integers(1, 12)] * 3), steps=st.tuples(*[st.floats(0.3, 9)] * 3))
def test_the_grid_reaches_every_voxel_centre_and_wastes_less_than_one_voxel(shape, steps):
    plan = Resampling.plan(shape, (1, 1, 1), steps)
    for voxels, n, step in zip(plan.grid, shape, plan.steps, strict=True) if plan else ():
        assert n - 1 - 1e-2 <= (voxels - 1) * step < n - 1 + step


@given(seed=st.integers(0, 99), steps=st.tuples(*[st.sampled_from([0.7, 1.0, 1.6, 3.0])] * 3))
def test_what_lies_outside_the_mask_does_not_count(seed, steps):
    rng = np.random.default_rng(seed)
    mask = head_image((9, 8, 7)) > 0
    flat = np.where(mask, 7, rng.normal(0, 1e6, mask.shape)).astype(np.float32)
    if (plan := Resampling.plan(mask.shape, (1, 1, 1), steps)) is None:
        return
    resampled = plan.volumes({"t1": flat}, mask)["t1"]
    np.testing.assert_allclose(resampled, 7, rtol=1e-6)  # no dark rim either
    np.testing.assert_allclose(plan.back(resampled, plan.labels(mask)), 7, rtol=1e-6)


def test_labels_are_the_nearest_and_never_mixed():
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[2:4] = 4
    plan = Resampling.plan(labels.shape, (1, 1, 1), (0.5, 1, 1))
    assert set(np.unique(plan.labels(labels))) == {0, 4}
    assert plan.labels(labels).sum() == pytest.approx(2 * labels.sum(), rel=0.1)
    assert plan.labels(labels > 0).dtype == bool


@pytest.mark.parametrize("interpolation", ORDERS)
def test_a_mask_comes_back_as_shares_of_voxels(interpolation):
    """One half and more of a voxel is inside, so a region keeps its volume."""
    plan = Resampling.plan((40, 40, 40), (1, 1, 1), (2, 2, 2), interpolation)
    mask, everywhere = np.zeros(plan.grid, bool), np.ones(plan.grid, bool)
    mask[6:14, 6:14, 6:14] = True
    shares = plan.back(mask, everywhere)
    np.testing.assert_array_equal(shares, plan.back(mask.astype(np.float32), everywhere))
    assert (shares >= 0.5).sum() == pytest.approx(8 * mask.sum(), rel=0.02)


def test_nothing_is_brighter_than_the_grid_or_darker():
    edge = np.zeros((12, 4, 4), np.float32)
    edge[6:] = 1
    plan = Resampling.plan(edge.shape, (1, 1, 1), (2, 1, 1), "cubic")
    everywhere = np.ones(plan.grid, bool)
    step = (np.indices(plan.grid)[0] > 3).astype(np.float32)
    back = plan.back(step, everywhere)  # a spline alone would overshoot: spreads stay positive
    assert back.min() == 0 and back.max() == 1


# --- In a subject ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [OWN, (1.00005, 1.2, 1.5)])
def test_the_own_spacing_changes_nothing(tmp_path, spacing):
    write_subject(tmp_path)
    plain, same = prepare(tmp_path), prepare(tmp_path, spacing=spacing)
    assert same.resampling is None
    assert np.array_equal(plain.slices, same.slices)
    assert plain.to_dict() == same.to_dict()


@pytest.mark.parametrize("interpolation", ORDERS)
@pytest.mark.parametrize("axis", AXES)
def test_a_sample_takes_the_place_of_its_input(tmp_path, axis, interpolation):
    """Same shape and affine, zeros where the input has no brain, units and labels kept."""
    write_subject(tmp_path / "in", affine=np.diag([-1.0, 1.2, -1.5, 1.0]))
    choices = {"axis": axis, "spacing": (2.0, 2.0, 1.0), "interpolation": interpolation}
    prepared = prepare(tmp_path / "in", **choices)
    assert prepared.to_dict()["resampled"]["spacing"] == [2.0, 2.0, 1.0]
    assert prepared.slices.shape[0] == prepared.resampling.grid[AXES[axis]]
    assert prepared.seg.shape == prepared.brain.shape == prepared.slices[:, 0].shape
    assert (prepared.slices.swapaxes(0, 1)[:, ~prepared.brain] == -1).all()
    values = prepared.scales["t1"].restore(prepared.slices[:, 0])
    content = encode_volume(prepared.to_volume(values), prepared.geometry)
    write_volume(tmp_path / "out.nii.gz", content)
    output, source = (
        read_volume(path) for path in (tmp_path / "out.nii.gz", tmp_path / "in/p0/p0_t1.nii.gz")
    )
    source.geometry.require_same_grid(output.geometry, ("input", "output"), None)
    brain = np.any([read_volume(tmp_path / f"in/p0/p0_{c}.nii.gz").array != 0 for c in INPUTS], 0)
    assert np.array_equal(output.array != 0, brain)
    assert output.array[brain].min() >= 90  # intensities are 100 to 1000: no zeros mixed in


def test_scales_are_those_of_the_stored_voxels(tmp_path):
    write_subject(tmp_path)
    assert prepare(tmp_path, spacing=(3, 3, 3)).scales == prepare(tmp_path).scales


def test_a_spacing_that_leaves_no_brain_is_refused(tmp_path):
    write_subject(tmp_path)
    with pytest.raises(DataError, match=r"no brain is left at a spacing of \[50, 50, 50\] mm"):
        prepare(tmp_path, spacing=(50, 50, 50))


def test_a_spacing_that_fills_the_memory_is_refused(tmp_path):
    write_subject(tmp_path)
    with pytest.raises(DataError, match=r"DATA-TOO-LARGE.*10 x 14 x 12 mm would have .* coarser"):
        prepare(tmp_path, spacing=(0.01, 0.01, 0.01))


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, -2, 1)])
def test_a_spacing_is_three_lengths(spacing):
    with pytest.raises(ConfigError, match=r"data\.params\.spacing is .*give mm"):
        Preparation(spacing=spacing)
