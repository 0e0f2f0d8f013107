"""Preparation: to [-1, 1] slices and back, every voxel to its own place."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from builders import (
    INPUTS,
    RAS,
    SHAPE,
    head_image,
    oblique,
    reoriented,
    signed_permutations,
    write_subject,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ldm.data.brain import bounding_box
from ldm.data.contrasts import as_labels
from ldm.data.layouts import detect_layout
from ldm.data.nifti import encode_volume, read_volume, write_volume
from ldm.data.prepare import (
    AXES,
    Preparation,
    PreparedSubject,
    fit_size,
    prepare_subject,
)
from ldm.errors import DataError

OPENMS = Path(__file__).parents[1] / ".." / "shared" / "data" / "openms"


def prepare(
    root: Path, target: str | None = "t1ce", allow_missing=(), **choices
) -> PreparedSubject:
    layout, subjects = detect_layout(root)
    (subject,) = subjects.values()
    chosen = Preparation(**choices)
    return prepare_subject(subject, layout, INPUTS, target, chosen, allow_missing)


def refusal(root: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        prepare(root, **options)
    return str(caught.value)


# --- A subject ------------------------------------------------------------------------------------


def test_a_prepared_subject_is_the_cropped_brain_in_channels(brats_folder):
    layout, subjects = detect_layout(brats_folder)
    prepared = prepare_subject(subjects["p0"], layout, INPUTS, "t1ce", Preparation())
    stored = {c: subjects["p0"].files[c].read().array for c in (*INPUTS, "t1ce", "seg")}
    brain = np.any([stored[c] != 0 for c in INPUTS], axis=0)
    box = bounding_box(brain)
    count, *plane = (stored["t1"][box].shape[i] for i in (2, 0, 1))
    assert prepared.slices.shape == (count, 4, *plane)
    assert prepared.slices.dtype == np.float32
    assert np.abs(prepared.slices).max() <= 1
    assert prepared.contrasts == (*INPUTS, "t1ce")
    assert prepared.present.tolist() == [True] * 4
    assert np.array_equal(prepared.brain, np.moveaxis(brain[box], 2, 0))
    assert np.array_equal(prepared.seg, np.moveaxis(stored["seg"][box], 2, 0))
    assert (prepared.slices.transpose(1, 0, 2, 3)[:, ~prepared.brain] == -1).all()
    for channel, contrast in enumerate(prepared.contrasts):
        restored = prepared.scales[contrast].restore(prepared.slices[:, channel])
        volume = prepared.to_volume(restored)
        inside = brain & (np.abs(prepared.to_volume(prepared.slices[:, channel])) < 1)
        np.testing.assert_allclose(volume[inside], stored[contrast][inside], rtol=1e-4)
        assert (volume[~brain] == 0).all()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("affine", ["RAS", "LPS", "LAS", "oblique"])
def test_every_voxel_returns_to_its_index_in_the_file(tmp_path, axis, affine):
    affines = {"LPS": np.diag([-1.0, -1, 2, 1]), "LAS": np.diag([-1.0, 1, 1, 1]), "RAS": RAS}
    image = head_image()
    image[0, 0, 0] = image[-1, -1, -1] = image[-1, 0, 3] = 500  # markers in the corners
    images = dict.fromkeys(INPUTS, image)
    write_subject(tmp_path / "in", affine=affines.get(affine, oblique()), images=images)
    prepared = prepare(tmp_path / "in", target=None, axis=axis)
    values = prepared.scales["t1"].restore(prepared.slices[:, 0])
    content = encode_volume(prepared.to_volume(values), prepared.geometry)
    write_volume(tmp_path / "out.nii.gz", content)
    output = read_volume(tmp_path / "out.nii.gz")
    stored = output.geometry.from_canonical(output.array)
    np.testing.assert_allclose(stored, image, rtol=1e-5)
    assert (stored[image == 0] == 0).all()


@pytest.mark.parametrize("choices", [{}, {"axis": "sagittal", "spacing": (2, 1, 1)}], ids=str)
def test_preparing_commutes_with_reorienting_bit_by_bit(tmp_path, choices):
    images = {c: head_image(seed=i) for i, c in enumerate((*INPUTS, "t1ce"))}
    expected = None
    for number, turn in enumerate(signed_permutations()):
        turned = {c: reoriented(image, RAS, turn) for c, image in images.items()}
        affine = turned["t1"][1]
        folder = tmp_path / str(number)
        only = {c: array for c, (array, _) in turned.items()}
        write_subject(
            folder, affine=affine, images=only, contrasts=[*images], name="{subject}_{contrast}.nii"
        )
        prepared = prepare(folder, **choices)
        expected = expected if number else prepared
        assert np.array_equal(prepared.slices, expected.slices)
        volume = prepared.to_volume(prepared.slices[:, 3])
        stored = prepared.geometry.from_canonical(volume)
        reference = expected.geometry.from_canonical(expected.to_volume(expected.slices[:, 3]))
        assert np.array_equal(stored, reoriented(reference, RAS, turn)[0])


@given(
    turn=st.sampled_from(signed_permutations()),
    axis=st.sampled_from(sorted(AXES)),
    corners=arrays(np.int64, (3, 2), elements=st.integers(0, 8)),
)
@settings(max_examples=40)
def test_any_box_of_brain_returns_from_any_orientation_and_axis(turn, axis, corners):
    low, high = corners.min(1), corners.max(1) + 2  # at least two voxels along each axis
    image = np.zeros((10, 10, 10), np.int16)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    image[box] = np.arange(1, image[box].size + 1).reshape(image[box].shape)
    stored, affine = reoriented(image, RAS, turn)
    with TemporaryDirectory() as root:
        name = "{subject}_{contrast}.nii"
        images = dict.fromkeys(INPUTS, stored)
        write_subject(Path(root), contrasts=INPUTS, affine=affine, images=images, name=name)
        prepared = prepare(Path(root), target=None, axis=axis)
    assert prepared.box == box
    assert prepared.slices[:, 0].size == image[box].size
    volume = prepared.to_volume(prepared.scales["t1"].restore(prepared.slices[:, 0]))
    np.testing.assert_allclose(volume, image, rtol=1e-4)
    np.testing.assert_allclose(prepared.geometry.from_canonical(volume), stored, rtol=1e-4)


@pytest.mark.parametrize("shape", [(2, 1, 1), (7, 11, 1), (1, 13, 5), (17, 3, 2)])
def test_odd_and_tiny_sizes(tmp_path, shape):
    image = np.arange(1, np.prod(shape) + 1, dtype=np.int16).reshape(shape)
    write_subject(tmp_path, contrasts=INPUTS, images=dict.fromkeys(INPUTS, image))
    prepared = prepare(tmp_path, target=None)
    volume = prepared.to_volume(prepared.scales["t1"].restore(prepared.slices[:, 0]))
    np.testing.assert_allclose(volume, image, rtol=1e-4)


def test_a_single_voxel_has_no_spread(tmp_path):
    write_subject(tmp_path, contrasts=INPUTS, images=dict.fromkeys(INPUTS, np.ones((1, 1, 1))))
    assert "DATA-CONSTANT case=p0: t1 has no spread" in refusal(tmp_path, target=None)


def test_the_target_is_not_needed_to_sample_and_does_not_shape_the_brain(tmp_path):
    write_subject(tmp_path / "with", images={"t1ce": np.ones(SHAPE, np.int16) + head_image(seed=9)})
    write_subject(tmp_path / "without", contrasts=INPUTS)
    first, second = prepare(tmp_path / "with"), prepare(tmp_path / "without", target=None)
    assert np.array_equal(first.slices[:, :3], second.slices)
    assert second.seg is None


def test_a_missing_contrast_is_a_mask(tmp_path):
    write_subject(tmp_path, contrasts=("t1", "t2", "t1ce"))
    prepared = prepare(tmp_path, allow_missing=["flair"])
    assert prepared.present.tolist() == [True, True, False, True]
    assert (prepared.slices[:, 2] == -1).all()
    assert "flair" not in prepared.scales
    assert "DATA-MISSING case=p0: no flair: expected p0_flair.nii.gz" in refusal(tmp_path)
    assert "add it, or leave the subject out" in refusal(tmp_path)


@pytest.mark.parametrize("target", ["t1ce", None])
def test_some_input_must_exist(tmp_path, target):
    write_subject(tmp_path, contrasts=("t1ce",))
    assert "DATA-MISSING" in refusal(tmp_path, target=target, allow_missing=INPUTS)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"t2": np.ones((12, 14, 9), np.int16)}, "DATA-SHAPE case=p0: t1 is (12, 14, 10) but t2"),
        ({"flair": np.zeros(SHAPE)}, "DATA-CONSTANT case=p0: flair has no spread"),
        ({"t1ce": np.full(SHAPE, 5.0)}, "DATA-CONSTANT case=p0: t1ce has no spread"),
        (
            dict.fromkeys(INPUTS, np.zeros(SHAPE)),
            "DATA-CONSTANT case=p0: every input contrast is 0",
        ),
        ({"t2": np.full(SHAPE, np.nan)}, "DATA-NONFINITE case=p0: p0_t2.nii.gz bad=1680/1680"),
        ({"seg": np.full(SHAPE, 300, np.int16)}, "DATA-LABEL case=p0: seg holds labels 300"),
        (
            {"seg": np.zeros((3, 3, 3), np.uint8)},
            "DATA-SHAPE case=p0: t1 is (12, 14, 10) but seg",
        ),
    ],
)
def test_a_subject_that_cannot_be_used_says_why(tmp_path, images, message):
    write_subject(tmp_path, images=images)
    assert message in refusal(tmp_path)


def test_labels_between_whole_numbers_are_not_rounded_in_silence(caplog):
    """A label map that was resampled by interpolation holds labels that nobody drew."""
    assert as_labels(np.array([0, 1, 4.001]), "p0").tolist() == [0, 1, 4]  # of slope and intercept
    assert not caplog.text
    assert as_labels(np.array([0, 0.4, 1.7]), "p0").tolist() == [0, 0, 2]
    assert "p0: seg holds 0.4, which is no label" in caplog.text


def test_negative_intensities_and_a_large_scale_are_data(tmp_path):
    image = head_image().astype(np.float32) * 1000
    image[image > 0] -= 200_000
    write_subject(tmp_path, images={"t1": image})
    prepared = prepare(tmp_path)
    assert np.isfinite(prepared.slices).all()
    assert np.ptp(prepared.slices[:, 0][prepared.brain]) > 0.1


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_fit_size_is_symmetric_and_a_pad_is_undone_by_a_crop(shape, size):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape) + 1
    fitted = fit_size(array, size, -1)
    assert fitted.shape == (1, *size)
    larger = tuple(np.maximum(shape, size))
    assert np.array_equal(fit_size(fit_size(array, larger, -1), shape, -1), array)
    centre = (fitted != -1).any(axis=(0, 2)).nonzero()[0].mean()
    assert abs(centre - (size[0] - 1) / 2) <= 0.5


@pytest.mark.skipif(not OPENMS.is_dir(), reason="the real patients are not shipped")
def test_a_real_patient_goes_there_and_back():
    layout, subjects = detect_layout(OPENMS)
    prepared = prepare_subject(subjects["OpenMS_19"], layout, INPUTS, "t1ce", Preparation())
    assert prepared.geometry.shape == (182, 218, 182)
    assert prepared.present.all()
    assert 0.9e6 < prepared.brain.sum() < 2.2e6  # mm^3: the volume of a brain
    for channel in range(4):
        inside = prepared.slices[:, channel][prepared.brain]
        assert abs(np.median(inside) + 1 / 3) < 0.01  # z = 0 of [-4, 8]
        assert 0.1 < np.percentile(inside, 75) - np.percentile(inside, 25) < 0.2  # 1 of 12, twice
    t1 = subjects["OpenMS_19"].files["t1"].read().array
    volume = prepared.to_volume(prepared.scales["t1"].restore(prepared.slices[:, 0]))
    inside = prepared.to_volume(np.abs(prepared.slices[:, 0]) < 1) > 0
    np.testing.assert_allclose(volume[inside], t1[inside], atol=1e-4 * np.ptp(t1))
