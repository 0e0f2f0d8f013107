"""The page in a real browser: sorting, copying and the slice viewer, by mouse and keyboard."""

import numpy as np
import pytest
from browser import Browser, find_browser

from ldm.report.page import Report, write_report
from ldm.report.tables import Table
from ldm.report.viewer import Viewer, viewer_patient

pytestmark = pytest.mark.skipif(
    not find_browser(), reason="no Chromium or Chrome on PATH or in $CHROME"
)

SHAPE = (12, 16, 10)
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"
ROWS = ["unet", HOSTILE]


def volumes():
    """Truth with a value of its own in every slice of each plane; two predictions beside it."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    truth = (10 * x + 5 * y + 4 * z + 20) / 255
    return truth, {"unet": truth / 2, HOSTILE: np.where(x < 6, truth, 0)}


def patient(name, unet):
    truth, predictions = volumes()
    brain = np.ones(SHAPE, bool)
    return viewer_patient(
        name,
        {"T1": truth, "T2": 1 - truth},
        truth,
        predictions,
        brain,
        spacing=(1, 1, 2),
        spreads={"unet": truth / 10},
        scores={"unet": unet, HOSTILE: 45 - unet},
        focus=(6, 8, 4),
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    rows = [
        ["a", "9.50 ± 1.04", 1000, "FAILED: out of memory"],
        ["3D U-Net", "25.19 ± 0.2", 5, "0.2"],
        ["c", None, 30, "0.1"],
        [HOSTILE, "inf", None, "0.3"],
    ]
    columns = ["backbone", "PSNR dB", "calls", "NRMSE"]
    better = {"PSNR dB": "higher", "NRMSE": "lower"}
    report = Report(
        title="Benchmark",
        lead="Two rows.",
        tables=[Table("Summary", columns, rows, better=better)],
        command="dsdiff benchmark CONFIG",
        viewer=Viewer([patient("P1", 20.0), patient(HOSTILE, 25.0)], ROWS),
    )
    write_report(report, path)
    with Browser() as browser:
        browser.path = path
        yield browser


@pytest.fixture
def page(browser):
    """The page as first opened. Whatever a test does, nothing is reported and nothing fetched."""
    browser.problems.clear()
    browser.requests.clear()
    browser.resize(1200, 900)
    browser.open(browser.path)
    browser.wait_for("document.querySelectorAll('#viewer .stage canvas').length > 0")
    yield browser
    assert browser.problems == []
    assert {r for r in browser.requests if not r.startswith("data:image/png")} == {
        browser.path.as_uri()
    }
    assert browser.run("document.title") == "Benchmark"


def test_the_policy_stops_a_script_that_is_not_of_the_page(browser, tmp_path):
    """Of what slipped through all escaping, nothing would run and nothing would be fetched."""
    path = tmp_path / "tampered.html"
    added = "<script>document.title='taken'</script><img src='http://127.0.0.1:9/x.png'></body>"
    path.write_text(browser.path.read_text(encoding="utf-8").replace("</body>", added), "utf-8")
    browser.problems.clear()
    browser.open(path)
    assert browser.run("document.title") == "Benchmark"
    assert sum("Content Security Policy" in problem for problem in browser.problems) == 2


def column(page, place=0):
    return page.run(
        f"[...document.querySelectorAll('tbody tr')].map(r => r.cells[{place}].innerText)"
    )


def head(place):
    return f"thead th:nth-child({place + 1}) button"


def test_a_click_on_a_head_sorts_by_the_mean_best_first_and_the_absent_last(page):
    page.click(head(1))
    assert column(page) == [HOSTILE, "3D U-Net", "a", "c"]
    assert page.run("document.querySelector('thead th:nth-child(2)').ariaSort") == "descending"
    page.click(head(1))
    assert column(page) == ["a", "3D U-Net", HOSTILE, "c"]
    page.click(head(3))  # lower is better
    assert column(page) == ["c", "3D U-Net", HOSTILE, "a"]
    assert page.run("document.querySelectorAll('[aria-sort]').length") == 1
    page.click(head(2))
    assert column(page, 2) == ["1,000", "30", "5", "n/a"]


def test_the_keyboard_sorts_too(page):
    page.run(f"document.querySelector('{head(0)}').focus()")
    page.key("Enter")
    assert column(page) == [HOSTILE, "3D U-Net", "a", "c"]  # text, from the first letter


def test_tables_and_commands_can_be_copied(page):
    page.call("Browser.grantPermissions", permissions=["clipboardReadWrite"])
    page.click("#command button.copy")
    page.wait_for("document.querySelector('#command button.copy').innerText !== 'Copy'")
    assert page.run("document.querySelector('#command button.copy').innerText") in (
        *("Copied", "Selected"),  # the second where the browser has no clipboard
    )
    latex = page.run("document.querySelector('.sources pre').textContent")
    assert latex.startswith("\\begin{table}")


def slide(page, name, value):
    page.run(
        f"(() => {{ const s = document.querySelector('[name={name}]'); s.value = {value};"
        "s.dispatchEvent(new Event('input')); })()"
    )


def pane(page, place):
    """Pixels (H, W, 3), text for screen readers and shape on the screen of the n-th pane."""
    width, pixels, label, ratio = page.run(
        f"(() => {{ const c = document.querySelectorAll('.stage canvas')[{place}];"
        "const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "const r = c.getBoundingClientRect();"
        "return [c.width, [...p], c.ariaLabel, r.height / r.width]; })()"
    )
    return np.array(pixels).reshape(-1, width, 4)[..., :3], label, ratio


REAL, UNET, UNET_ERROR, UNET_SPREAD, OTHER = 2, 3, 4, 5, 6


def planes(volume, axis, index):
    """Slice as shown: the second remaining axis upwards."""
    return np.take(volume, index, axis).T[::-1]


@pytest.mark.parametrize(
    ("plane", "axis", "index", "ends", "ratio"),
    [
        ("axial", 2, 4, "LRAP", 16 / 12),
        ("coronal", 1, 8, "LRSI", 10 * 2 / 12),
        ("sagittal", 0, 6, "PASI", 10 * 2 / 16),
    ],
)
def test_each_plane_shows_the_voxels_of_its_slice_in_their_proportions(
    page, plane, axis, index, ends, ratio
):
    page.click(f"[name=plane][value={plane}]")
    slide(page, "contrast", 1)
    truth, predictions = volumes()
    for place, volume in (
        (REAL, truth),
        (UNET, predictions["unet"]),
        (OTHER, predictions[HOSTILE]),
    ):
        pixels, label, shown_ratio = pane(page, place)
        expected = 255 * planes(volume, axis, index)
        assert np.abs(pixels - expected[..., None]).max() <= 0.5 + 1e-9
        assert label.endswith(f"{plane} {index}")
        assert shown_ratio == pytest.approx(ratio, rel=0.02)
    assert page.run("document.querySelector('.frame').innerText.replace(/\\s/g, '')") == ends


def test_errors_and_spread_are_in_colour_on_one_scale(page):
    from matplotlib import colormaps

    limit = float(page.run("document.querySelector('[name=error]').value"))
    truth, predictions = volumes()
    error = np.abs(np.rint(255 * truth) - np.rint(255 * predictions["unet"]))
    level = np.minimum(255, np.rint(error / limit))
    pixels, label, _ = pane(page, UNET_ERROR)
    shown = colormaps["magma"](planes(level, 2, 4).astype(int), bytes=True)[..., :3]
    assert np.abs(pixels - shown.astype(int)).max() <= 12  # a level more or less: rounding of .5
    assert label == "unet, error, axial 4"
    pixels, label, _ = pane(page, UNET_SPREAD)
    assert label == "unet, spread, axial 4"
    assert np.ptp(pixels, axis=-1).max() > 50
    bars = page.run("document.querySelector('.bars').innerText").split()
    assert bars == ["error", "0", f"{limit:.2g}", "spread", "0", "0.095"]


def shown_slice(page):
    labels = page.run("[...document.querySelectorAll('.stage canvas')].map(c => c.ariaLabel)")
    (index,) = {label.rsplit(" ", 1)[1] for label in labels}  # all panes are linked
    assert page.run("document.querySelector('[name=slice]').nextElementSibling.innerText") == index
    return int(index)


def test_wheel_keys_and_slider_scroll_all_panes_together(page):
    assert shown_slice(page) == 4
    page.wheel(".stage canvas", -100)
    page.wait_for("document.querySelector('[name=slice]').value === '5'")
    assert shown_slice(page) == 5
    page.run("document.querySelector('.stage').focus()")
    for key, expected in (("ArrowUp", 6), ("ArrowLeft", 5), ("Home", 0), ("PageUp", 9), ("End", 9)):
        page.key(key)
        assert shown_slice(page) == expected
    page.run("document.querySelector('[name=slice]').focus()")
    page.key("ArrowLeft")
    assert shown_slice(page) == 8
    assert pane(page, REAL)[0].max() > 0


def test_a_swipe_leafs_through_the_slices(page):
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    point = page.place(".stage canvas")
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
    for step in range(1, 7):
        moved = {**point, "x": point["x"] + 8 * step}
        page.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[moved])
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.call("Emulation.setTouchEmulationEnabled", enabled=False)
    assert 7 <= shown_slice(page) <= 9


def test_a_click_takes_the_other_planes_to_that_place(page):
    page.click(".stage canvas", across=2.5 / 12, down=0.5 / 16)  # x = 2, y = 15
    readout = page.run("document.querySelectorAll('.stage output')[2].innerText")
    assert float(readout) == pytest.approx((10 * 2 + 5 * 15 + 4 * 4 + 20) / 255, abs=0.006)
    page.click("[name=plane][value=coronal]")
    assert shown_slice(page) == 15
    page.click("[name=plane][value=sagittal]")
    assert shown_slice(page) == 2


def choose(page, name, value):
    page.run(
        f"(() => {{ const s = document.querySelector('[name={name}]'); s.value = {value!r};"
        "s.dispatchEvent(new Event('change')); })()"
    )


def test_patients_and_rows_are_chosen_by_name(page):
    options = "[...document.querySelectorAll('[name=patient] option')].map(o => o.value)"
    assert page.run(options) == ["P1", HOSTILE]
    choose(page, "order", HOSTILE)
    assert page.run(options) == [HOSTILE, "P1"]  # 20 dB before 25 dB in this row
    choose(page, "patient", HOSTILE)
    page.wait_for("document.querySelector('.results small').innerText.includes('25.00 dB')")
    before = page.run("document.querySelectorAll('.results .column').length")
    page.click(".rows label:nth-of-type(2) input")
    assert page.run("document.querySelectorAll('.results .column').length") == before - 1 == 1


def test_contrast_and_error_sliders_change_the_scale(page):
    start = float(page.run("document.querySelector('[name=contrast]').value"))
    assert start == pytest.approx(np.percentile(volumes()[0], 99.5), abs=0.02)
    slide(page, "contrast", 1)
    dark, error = pane(page, UNET)[0].max(), pane(page, UNET_ERROR)[0].max()
    slide(page, "contrast", 0.5)
    slide(page, "error", 1)
    assert pane(page, UNET)[0].max() == pytest.approx(2 * dark, abs=2)
    assert pane(page, UNET_ERROR)[0].max() < error


def test_a_window_of_one_contrast_leaves_the_others(page):
    """T1 alone is made brighter; the real and the synthetic images share a window of their own."""
    slide(page, "contrast", 1)
    before = [pane(page, place)[0].max() for place in (0, REAL, UNET)]
    choose(page, "window", "T1")
    slide(page, "contrast", 0.5)
    after = [pane(page, place)[0].max() for place in (0, REAL, UNET)]
    assert after[0] == min(255, 2 * before[0]) > before[0] and after[1:] == before[1:]
    choose(page, "window", "real and synthetic")
    assert float(page.run("document.querySelector('[name=contrast]').value")) == 1


@pytest.mark.parametrize(
    ("plane", "axis", "index", "ends"),
    [("axial", 2, 4, "RLAP"), ("coronal", 1, 8, "RLSI"), ("sagittal", 0, 6, "PASI")],
)
def test_the_radiological_view_has_the_left_at_the_right(page, plane, axis, index, ends):
    page.click(f"[name=plane][value={plane}]")
    choose(page, "side", "right")
    slide(page, "contrast", 1)
    expected = planes(volumes()[0], axis, index)
    expected = expected if plane == "sagittal" else expected[:, ::-1]
    assert np.abs(pane(page, REAL)[0][..., 0] - 255 * expected).max() <= 0.5 + 1e-9
    assert page.run("document.querySelector('.frame').innerText.replace(/\\s/g, '')") == ends


def test_a_click_on_a_mirrored_image_goes_to_the_place_that_is_shown(page):
    choose(page, "side", "right")
    page.click(".stage canvas", across=2.5 / 12, down=0.5 / 16)  # the third column: x = 9
    page.click("[name=plane][value=sagittal]")
    assert shown_slice(page) == 9


def test_a_wide_table_says_so_until_its_end_is_seen(page):
    page.resize(300, 800)
    more = "document.querySelector('.beyond').classList.contains('more')"
    page.wait_for(more)
    page.run("document.querySelector('.beyond > .scroll').scrollLeft = 10000")
    page.wait_for(f"!{more}")


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_window(page, width):
    page.resize(width, 800)
    assert page.run("document.documentElement.scrollWidth") <= width


def test_print_leaves_out_what_only_works_on_a_screen(page):
    page.prefer(media="print")
    hidden = "getComputedStyle(document.querySelector('{}')).display"
    assert page.run(hidden.format("#viewer")) == page.run(hidden.format(".copy")) == "none"
    assert page.run(hidden.format("table")) != "none"
    page.prefer()
    assert page.pdf().startswith(b"%PDF")


def test_without_scripts_the_tables_are_there_and_no_dead_controls(page):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.call("Page.navigate", url=page.path.as_uri())
    shown = "[...document.querySelectorAll('{}')].filter(e => e.checkVisibility()).length"
    page.wait_for("document.readyState === 'complete'")
    assert page.run(shown.format("#table-1 table")) == 1
    assert page.run(shown.format("#viewer, button, [name=slice]")) == 0
    page.call("Emulation.setScriptExecutionDisabled", value=False)
