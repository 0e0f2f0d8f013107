"""Strips and viewer of an evaluation: worst patients first, an error map for every row."""

import io
import math
import re
from itertools import combinations
from math import nan

import numpy as np
import pytest
from builders import RAS, head_image
from matplotlib import colormaps
from matplotlib.image import imread

from ldm.benchmark.results import BenchmarkResult
from ldm.data.nifti import Geometry
from ldm.evaluation.case import Case, Prediction
from ldm.evaluation.protocol import DEFAULT, DOWNSTREAM, PROTOCOLS, SEGMENTATION
from ldm.evaluation.scores import Evaluation
from ldm.plots.axes import row_styles
from ldm.plots.figures import (
    Pane,
    lines_figure,
    loss_figure,
    panes_figure,
    pareto_front,
    reliability_figure,
    scatter_figure,
)
from ldm.plots.overlay import OPACITY, overlay, overlay_figure
from ldm.report.gallery import Gallery, comparison_strip, shown_volumes
from ldm.report.score_tables import segmentation_tables

COPY_T1 = "copy T1"


def case(name="P1", shape=(12, 14, 10)):
    reference = head_image(shape).astype(np.float32)
    brain = reference != 0
    return Case(name, {"t1": reference * 2}, reference, brain, None, Geometry(shape, RAS, None))


def predictions(case, **errors):
    """Rows that are the reference plus a part of its range, without a bias of the bounds."""
    low, high = DEFAULT.bounds(case.reference, case.brain)
    inside = np.clip(case.reference, low + 0.2 * (high - low), low + 0.8 * (high - low))
    return {
        row.replace("_", " "): Prediction(inside + e * (high - low)) for row, e in errors.items()
    }


def evaluation(protocol=DEFAULT, region="brain", measure="psnr", /, **values):
    """One row ``unet`` beside a copied T1, on patients with these values, PSNR in the brain."""
    result, gallery = Evaluation(protocol, ["unet", COPY_T1], list(values)), Gallery()
    for name, value in values.items():
        result.add("unet", name, {region: {measure: value}})
        result.add(COPY_T1, name, {region: {measure: 100 - value}})
    for name in values:
        one = case(name)
        gallery.add(result, one, predictions(one, unet=0.1, copy_T1=0.0))
    return result, gallery


def test_shown_volumes_share_the_window_of_the_truth_and_are_black_outside():
    one = case()
    shown = shown_volumes(one, predictions(one, unet=0.1, dit=-0.1), DEFAULT)
    step = shown.predictions["unet"] - shown.predictions["dit"]
    np.testing.assert_allclose(step[one.brain], 0.2, atol=1e-5)
    for volume in (shown.real, *shown.inputs.values(), *shown.predictions.values()):
        assert volume[~one.brain].max() == 0
        assert 0 <= volume.min() <= volume.max() <= 1


def test_spread_is_in_units_of_the_range_of_the_truth():
    one = case()
    low, high = DEFAULT.bounds(one.reference, one.brain)
    spread = np.full(one.reference.shape, 0.25 * (high - low))
    shown = shown_volumes(one, {"unet": Prediction(one.reference, spread)}, DEFAULT)
    np.testing.assert_allclose(shown.spreads["unet"][one.brain], 0.25, rtol=1e-5)


def test_a_strip_has_an_error_map_for_every_row_with_the_front_upwards():
    one = case()
    strip = comparison_strip(
        one, shown_volumes(one, predictions(one, unet=0.1, dit=-0.2, copy_T1=0), DEFAULT), COPY_T1
    )
    errors = strip.errors()
    assert list(errors) == ["unet", "dit"]  # the copied T1 is an input already
    assert np.median(errors["dit"][errors["dit"] > 0]) > np.median(
        errors["unet"][errors["unet"] > 0]
    )
    assert strip.real.shape[0] > strip.real.shape[1]  # the brain is longer than wide
    assert strip.aspect == pytest.approx(1.2)


def test_worst_patients_come_first_and_the_page_says_so(monkeypatch):
    monkeypatch.setattr("ldm.report.gallery.MOST_STRIPS", 2)
    result, gallery = evaluation(good=30.0, failed=math.nan, bad=20.0)
    figures = gallery.figures(result)
    assert [f.title for f in figures] == ["Patient failed", "Patient bad"]
    assert figures[0].caption.startswith("Worst first: 1 of 3 by the mean PSNR")
    assert "(1 better ones are not shown)" in figures[1].caption
    shown = gallery.viewer(result)
    assert [p.id for p in shown.patients] == ["failed", "bad", "good"]
    assert shown.rows == ["unet", COPY_T1]


@pytest.mark.parametrize(
    ("protocol", "region", "measure", "told", "title", "unit"),
    [
        ("region", "tumour", "psnr", "PSNR in the tumour", "unet\n20.00 dB", "dB"),
        ("brasyn", "tumour", "brasyn_ssim", "SSIM (BraSyn) in the tumour", "unet\n20.00", ""),
        ("legacy", "full", "psnr", "PSNR in the whole volume", "unet\n20.00 dB", "dB"),
    ],
)
def test_patients_are_ordered_by_what_comes_first_in_the_protocol(
    protocol, region, measure, told, title, unit, monkeypatch
):
    lines = []
    monkeypatch.setattr("ldm.report.gallery.panes_figure", lambda panes, *_: lines.append(panes))
    result, gallery = evaluation(PROTOCOLS[protocol], region, measure, good=30.0, bad=20.0)
    first, _ = gallery.figures(result)
    assert first.title == "Patient bad"
    assert first.caption.startswith(f"Worst first: 1 of 2 by the mean {told}. ")
    assert title in [pane.title for pane in lines[0][0] if pane]
    viewer = gallery.viewer(result)
    assert [p.id for p in viewer.patients] == ["bad", "good"]
    assert viewer.data()["ordered"] and viewer.data()["unit"] == unit


def test_without_a_value_patients_are_ordered_by_id_and_called_nothing_else(monkeypatch):
    """As under ``region`` of patients without labels; no image is titled n/a."""
    lines = []
    monkeypatch.setattr("ldm.report.gallery.panes_figure", lambda panes, *_: lines.append(panes))
    monkeypatch.setattr("ldm.report.gallery.MOST_STRIPS", 1)
    result, gallery = evaluation(PROTOCOLS["region"], "tumour", "psnr", b=math.nan, a=math.nan)
    (first,) = gallery.figures(result)
    assert first.title == "Patient a"
    assert first.caption.startswith("By id: 1 of 2 (1 more are not shown). ")
    assert "unet" in [pane.title for pane in lines[0][0] if pane]
    viewer = gallery.viewer(result)
    assert [p.id for p in viewer.patients] == ["a", "b"] and not viewer.data()["ordered"]


def test_the_viewer_keeps_to_its_budget_from_the_worst_on(monkeypatch):
    result, gallery = evaluation(good=30.0, bad=20.0)
    monkeypatch.setattr("ldm.report.gallery.PAGE_BYTES", gallery.viewed["bad"].size())
    shown = gallery.viewer(result)
    assert [p.id for p in shown.patients] == ["bad"]
    assert shown.left_out == 1
    monkeypatch.setattr("ldm.report.gallery.PAGE_BYTES", 0)
    assert gallery.viewer(result) is None


def test_rows_without_room_continue_below():
    """Nine rows: seven beside the one column of T1 and real, two in a block below."""
    one, gallery = case(), Gallery()
    rows = predictions(one, **{f"row{n}": n / 20 for n in range(9)})
    result = Evaluation(DEFAULT, list(rows), ["P1"])
    for row in rows:
        result.add(row, "P1", {"brain": {"psnr": 20.0}})
    gallery.add(result, one, rows)
    (nine,) = gallery.figures(result)
    strip = gallery.strips["P1"].predictions
    del strip["row7"], strip["row8"]
    (seven,) = gallery.figures(result)
    heights = [imread(io.BytesIO(figure.image)).shape[0] for figure in (nine, seven)]
    assert heights[0] == pytest.approx(2 * heights[1], rel=0.02)


def test_colour_maps_use_one_limit_and_leave_the_outside_dark():
    image = np.array([[0.0, 0.5], [1.0, 0.0]])
    brightest = tuple(colormaps["magma"](255, bytes=True)[:3])
    for limit in (1.0, 2.0):
        drawn = panes_figure([[Pane("error", image, "error")]], {"error": limit})
        picture = (imread(io.BytesIO(drawn))[..., :3] * 255).round().astype(int)
        pane = picture[:, : int(0.7 * picture.shape[1])]  # without the colour bar
        colours = {tuple(pixel) for pixel in pane.reshape(-1, 3)}
        assert (16, 17, 20) in colours  # the background, where the error is 0
        assert (brightest in colours) == (limit == 1.0)


def test_the_front_holds_what_no_cheaper_point_matches():
    points = [(3, 20), (1, 10), (2, 20), (4, 15), (5, 21), (1, 9)]
    assert pareto_front(points) == [(1, 10), (2, 20), (5, 21)]


def drawn_as(picture):
    """Label -> colour and marker of what a figure draws under it."""
    lines = picture.canvas.axes[0].lines
    named = [line for line in lines if not line.get_label().startswith("_")]
    return {line.get_label(): (line.get_color(), line.get_marker()) for line in named}


def test_a_row_looks_alike_in_every_figure_of_a_page():
    """In one figure b is above a and in the other a is missing: neither changes b."""
    rows = ["a", "b", "c"]
    styles = row_styles(rows)
    every = scatter_figure([("a", 1, 20.0), ("b", 2, 21.0), ("c", 3, 19.0)], "s", "dB")
    fewer = scatter_figure([("c", 3, 19.0), ("b", 2, 21.0)], "s", "dB", styles=styles)
    spread = (np.arange(1.0, 4), np.arange(1.0, 4))
    line = reliability_figure({"b": [spread]}, styles)
    assert drawn_as(fewer) == {row: drawn_as(every)[row] for row in ("c", "b")}
    assert drawn_as(line)["b"] == drawn_as(every)["b"]
    assert drawn_as(loss_figure({"b": ([1, 2], [1.0, 0.5])}, styles))["b"][0] == styles["b"].colour
    assert len(set(row_styles(map(str, range(56))).values())) == 56


def test_a_legend_names_the_regions_that_are_drawn_in_their_colours():
    image, mask = np.zeros((8, 8)), np.ones((8, 8), bool)
    row = {"t1": image, "prediction": (image, {"et": mask, "wt": mask})}
    (legend,) = overlay_figure([row], ["P1"]).canvas.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["enhancing tumour (ET)", "whole tumour (WT)"]
    for patch, region in zip(legend.get_patches(), ("et", "wt"), strict=True):
        shown = np.array(patch.get_facecolor()[:3])  # over black only its strength is another
        np.testing.assert_allclose(overlay(image, {region: mask})[0, 0], OPACITY * shown)
    assert not overlay_figure([{"t1": image}], ["P1"]).canvas.legends


def test_tables_of_segmentations_spell_out_the_regions_and_have_no_note_without_its_column():
    result = Evaluation(SEGMENTATION, ["ours"], ["P1"])
    found = {"dice": 0.5, "volume_ml": 2.0, "false_ml": math.nan}
    result.add("ours", "P1", {"et": found, "wt": found})
    agreement, volumes = segmentation_tables(result)
    assert agreement.note.startswith("ET: enhancing tumour, WT: whole tumour. Nothing segmented")
    assert (volumes.columns, volumes.note) == (["", "Region", "Found ml", "n"], "")
    other = Evaluation(DOWNSTREAM, ["ours"], ["P2"])
    other.add("ours", "P2", {"et": {"volume_ml": 1.0, "false_ml": 1.0}})
    (volumes,) = segmentation_tables(other)
    assert "False ml" in volumes.columns and volumes.note.startswith("False: enhancing tumour")


def test_the_loss_of_a_training_has_the_colour_of_its_first_row():
    rows = ["a", "unet · steps 1", "unet · steps 2", "unet-b"]
    curves = {name: ([1, 2], [1.0, 0.5]) for name in ("unet", "unet-b", "a")}
    (figure,) = BenchmarkResult(
        "t", Evaluation(DEFAULT, rows), costs={}, curves=curves, failures={}, command=""
    ).figures()
    styles, drawn = row_styles(rows), drawn_as(figure.image)
    of = {"unet": "unet · steps 1", "unet-b": "unet-b", "a": "a"}
    assert {n: colour for n, (colour, _) in drawn.items()} == {
        name: styles[row].colour for name, row in of.items()
    }


@pytest.mark.parametrize(
    ("seconds", "quality"),
    [((0.31, 0.39), (20.5100, 20.5184)), ((0.3, 9.0), (20.1, 20.4)), ((0.01, 200.0), (-0.3, 0.3))],
)
def test_ticks_are_plain_numbers_with_equally_many_decimals(seconds, quality):
    points = [
        (str(place), *point) for place, point in enumerate(zip(seconds, quality, strict=True))
    ]
    canvas = scatter_figure(points, "seconds", "dB").canvas
    canvas.draw_without_rendering()
    ax = canvas.axes[0]
    assert not ax.yaxis.get_offset_text().get_text()
    for axis, values in ((ax.xaxis, seconds), (ax.yaxis, quality)):
        texts = [label.get_text().replace("\N{MINUS SIGN}", "-") for label in axis.get_ticklabels()]
        places = zip(axis.get_majorticklocs(), texts, strict=True)
        shown = [text for place, text in places if values[0] <= place <= values[1]]
        assert len(shown) >= 2 and all(re.fullmatch(r"-?\d+(\.\d{1,6})?", t) for t in shown)
        if axis.get_scale() == "linear":
            assert len({len(text.partition(".")[2]) for text in shown}) == 1


@pytest.mark.parametrize("apart", [1.0, 0.0])
def test_a_row_is_named_once_beside_its_point_or_in_the_legend(apart):
    points = [(f"row {n}", 1 + apart * n, 20 + apart * n) for n in range(5)] + [("lost", nan, 1.0)]
    ax = scatter_figure(points, "seconds", "dB").canvas.axes[0]
    beside = [text.get_text() for text in ax.texts]
    listed = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(beside + listed) == ["lost: n/a", *(f"row {n}" for n in range(5))]
    assert len(beside) == 5 if apart else len(listed) > 1
    if apart:
        ax.figure.draw_without_rendering()  # with the legend as it is now
        boxes = [text.get_window_extent() for text in ax.texts]
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_a_line_of_several_panels_is_named_once():
    both, alone = [(1.0, 20.0), (2.0, 21.0)], [(1.0, 0.5)]
    panels = {"dB": {"ddim": both}, "recovery": {"ddim": alone, "heun": alone}}
    (legend,) = lines_figure(panels, "calls").canvas.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ddim", "heun"]


@pytest.mark.parametrize("rows", [20, 60])
def test_a_comparison_of_many_rows_is_as_high_as_its_names_and_keeps_its_axes(rows):
    points = [(f"backbone {n} · temperature 0", 1.0, 20.0) for n in range(rows)]
    canvas = scatter_figure(points, "seconds", "dB").canvas
    canvas.draw_without_rendering()
    ax = canvas.axes[0]
    names = ax.get_legend().get_window_extent()
    assert canvas.bbox.y0 <= names.y0 and names.y1 <= canvas.bbox.y1
    assert ax.get_window_extent().height > canvas.bbox.height / 2


def test_an_axis_of_quality_does_not_blow_up_what_means_nothing():
    spans = []
    for best in (20.001, 24.0):
        points = [("a", 1.0, 20.0), ("b", 2.0, best)]
        low, high = scatter_figure(points, "s", "dB", least=0.5).canvas.axes[0].get_ylim()
        assert low < 20.0 and best < high
        spans.append(high - low)
    assert spans[0] == pytest.approx(0.5) and spans[1] > 4


def test_of_a_second_quality_the_line_leads_to_its_best_value_from_either_side():
    points = [("none", 0.0, 21.0), ("mean", 0.5, 22.4), ("beaten", 0.4, 22.0)]
    points += [("strong", 0.9, 22.0), ("too strong", 1.3, 22.1), ("far too strong", 1.6, 22.2)]
    lines = scatter_figure(points, "recovery", "dB", ideal=1).canvas.axes[0].lines
    dotted, joined = (line for line in lines if line.get_marker() == "None")
    assert set(dotted.get_xdata()) == {1}
    assert list(joined.get_xdata()) == [0.5, 0.9, 1.3]
