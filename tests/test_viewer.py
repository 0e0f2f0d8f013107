"""The slice viewer carries what it was given: within half a grey step, in its place and order."""

import base64
import io
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from ldm.report.viewer import (
    Viewer,
    colour_table,
    encode_sheet,
    reduced,
    shown_shape,
    viewer_patient,
    within_budget,
)

SIDES = st.tuples(*[st.integers(1, 7)] * 3)


def decode(png, shape):
    """The volume of a sheet, by the rule that the docstring of ``encode_sheet`` states."""
    x, y, z = shape
    sheet = np.asarray(Image.open(io.BytesIO(png)))
    columns = math.ceil(math.sqrt(z))
    tiles = [
        sheet[k // columns * y : k // columns * y + y, k % columns * x : k % columns * x + x]
        for k in range(z)
    ]
    return np.stack(tiles, axis=-1).transpose(1, 0, 2)


def patient(name="P1", rows=("unet",), seed=0, shape=(6, 8, 5), **options):
    rng = np.random.default_rng(seed)
    truth = rng.random(shape)
    predictions = {row: rng.random(shape) for row in rows}
    options = {"spacing": (1, 1, 1), **options}
    brain = np.ones(shape, bool)
    return viewer_patient(name, {"T1": rng.random(shape)}, truth, predictions, brain, **options)


@given(st.data())
def test_a_volume_survives_within_half_a_grey_step(data):
    shape = data.draw(SIDES)
    volume = data.draw(arrays(np.float32, shape, elements=st.floats(0, 2, width=32)))
    read = decode(encode_sheet(volume, high=2), shape) / 255 * 2
    assert np.abs(read - volume).max() <= 0.5 / 255 * 2 + 1e-6


def test_values_outside_the_window_end_at_its_ends():
    volume = np.array([-1, 0, 0.5, 1, 7.0]).reshape(5, 1, 1)
    assert decode(encode_sheet(volume), (5, 1, 1)).ravel().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("shape", "spacing", "voxels", "side", "expected"),
    [
        ((100, 120, 80), (1, 1, 1), math.inf, 128, (100, 120, 80)),  # nothing to do
        ((200, 240, 160), (1, 1, 1), math.inf, 120, (100, 120, 80)),  # the longest side
        ((200, 240, 20), (1, 1, 8), math.inf, 120, (100, 120, 20)),  # thick slices stay
        ((60, 60, 60), (1, 1, 1), 30**3, 128, (30, 30, 30)),  # the budget
    ],
)
def test_the_shown_grid_is_the_finest_within_the_limits(shape, spacing, voxels, side, expected):
    found = shown_shape(shape, spacing, voxels, side)
    assert found == pytest.approx(expected, rel=0.04)
    assert max(found) <= side
    assert math.prod(found) <= voxels


def test_a_coarser_voxel_is_the_mean_of_those_it_covers():
    volume = np.random.default_rng(0).random((4, 6, 8), dtype=np.float32)
    blocks = volume.reshape(2, 2, 3, 2, 4, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(reduced(volume, (2, 3, 4)), blocks, rtol=1e-5)
    assert reduced(volume, volume.shape) is volume


def test_geometry_says_where_a_shown_voxel_lies_in_the_file(monkeypatch):
    monkeypatch.setattr("ldm.report.viewer.LONGEST_SIDE", 16)
    shape = (40, 40, 10)
    brain = np.zeros(shape, bool)
    brain[10:30, 4:36, 1:9] = True
    point = np.zeros(shape)
    point[20:22, 24:26, 4] = 1
    made = viewer_patient("P1", {}, point, {}, brain, spacing=(1, 1, 4), focus=(20, 24, 4))
    assert made.shape == (10, 16, 8)
    assert made.extent == (20, 32, 32)  # mm: the proportions of the box, not of its voxels
    assert made.origin == (10, 4, 1)
    assert made.step == (2, 2, 1)
    volume = decode(made.truth, made.shape)
    assert np.argwhere(volume == 255).tolist() == [list(made.focus)] == [[5, 10, 3]]


def test_limits_cover_the_errors_and_the_spread():
    truth = np.zeros((10, 10, 10))
    wrong = np.full(truth.shape, 0.25)
    spread = {"unet": np.full(truth.shape, 0.125)}
    brain = np.ones(truth.shape, bool)
    volumes = ({}, truth, {"unet": wrong}, brain)
    made = viewer_patient("P1", *volumes, spacing=(1, 1, 1), spreads=spread)
    assert made.limits == pytest.approx({"error": 0.25, "spread": 0.125, "white": 0})
    assert set(decode(made.spreads["unet"], made.shape).ravel()) == {255}


def test_the_budget_holds_and_the_page_says_what_is_left_out():
    found = [patient(f"P{n}", seed=n) for n in range(3)]
    sizes = [p.size() for p in found]
    kept = within_budget(found, sizes[0] + sizes[1])
    assert [p.id for p in kept] == ["P0", "P1"]
    assert "Not in the viewer: 1 patient with better results." in Viewer(kept, (), 1).note()
    data = json.dumps(Viewer(kept, ()).data())
    assert sum(sizes[:2]) < len(data) < sum(sizes[:2]) + 12_000  # names, geometry, colours


def test_the_page_states_the_reduction():
    assert "averaged" not in Viewer([patient()], ["unet"]).note()
    coarse = Viewer([patient(shape=(8, 8, 8), voxels=4**3)], ["unet"])
    assert "averaged over up to 2 × 2 × 2 voxels" in coarse.note()


def test_data_is_strict_json_with_infinite_scores_and_without_patients():
    made = Viewer([patient(scores={"unet": math.inf})], ["unet"]).data()
    assert json.loads(json.dumps(made, allow_nan=False))["patients"][0]["scores"] == [
        {"row": "unet", "text": "inf"}
    ]
    assert Viewer([], []).data()["limits"] == {"error": 1.0, "spread": 1.0, "white": 1.0}


def test_colours_rise_in_lightness_from_black():
    for name in ("magma", "cividis"):
        colours = np.frombuffer(base64.b64decode(colour_table(name)), np.uint8).reshape(256, 3)
        assert colours[0].tolist() == [0, 0, 0]
        lightness = colours @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(lightness) > -1).all()
        assert lightness[-1] - lightness[1] > 150
