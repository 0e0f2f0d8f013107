"""The report page is self-contained and inert; tables survive hostile names."""

import csv
import io
import re
from html.parser import HTMLParser
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import OutputError
from ldm.evaluation.protocol import DEFAULT
from ldm.evaluation.report import (
    Figure,
    Report,
    Section,
    Table,
    csv_rows,
    format_cell,
    loss_figure,
    markdown_table,
    render,
    scatter_figure,
    strip_figure,
    write_report,
)

PNG = b"\x89PNG\r\n\x1a\n"
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def hostile_report():
    return Report(
        title=HOSTILE,
        lead=HOSTILE,
        tables=[Table(HOSTILE, [HOSTILE, "PSNR"], [[HOSTILE, 27.7], ["b", nan]], HOSTILE)],
        figures=[Figure(HOSTILE, PNG, HOSTILE, HOSTILE)],
        sections=[Section(HOSTILE, [HOSTILE], HOSTILE)],
        protocol={HOSTILE: {HOSTILE: [HOSTILE]}},
        environment={HOSTILE: HOSTILE},
    )


def full_report():
    images = {"T1": np.eye(12), "synthetic": np.eye(12), "real": np.eye(12), "error": np.eye(12)}
    return Report(
        title="Benchmark",
        lead="Two backbones.",
        tables=[Table("Summary", ["backbone", "PSNR"], [["unet", 27.7], ["dit", None]])],
        figures=[
            Figure("Patients", strip_figure([images], ["P1"]), "caption", "strips"),
            Figure("Loss", loss_figure({"train": ([1, 2], [1.0, 0.5])}), "caption", "curve"),
            Figure("Cost", scatter_figure([("unet", 1, 2)], "s", "dB"), "caption", "points"),
        ],
        sections=[Section("Made by", ["dsdiff benchmark configs/benchmark.yaml"])],
        protocol=DEFAULT.to_dict(),
        environment={"torch": "2.13"},
    )


def test_page_reads_nothing_from_outside_and_runs_nothing():
    text = render(full_report())
    page = Page(text)
    assert "://" not in text
    assert not {"script", "link", "iframe", "object", "form", "base"} & {
        tag for tag, _ in page.tags
    }
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    policy = next(meta for meta in page.all("meta") if "http-equiv" in meta)
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_names_are_text_and_never_markup():
    page = Page(render(hostile_report()))
    assert [image["alt"] for image in page.all("img")] == [HOSTILE]
    assert not page.all("script")
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert sum(HOSTILE in word for word in page.words) >= 10  # everywhere shown as it is


def test_page_shows_all_parts_and_aligns_numbers():
    page = Page(render(full_report()))
    words = [word.strip() for word in page.words]
    for expected in ("Benchmark", "Two backbones.", "unet", "27.70", "n/a", "caption", "2.13"):
        assert expected in words
    assert "0.1, 99.9" in words  # lists of the protocol
    assert [cell.get("class") for cell in page.all("td")] == ["number", "number"]
    assert [cell["scope"] for cell in page.all("th")] == ["col", "col", "row", "row"]
    kinds = [re.match("data:image/([a-z]+)", image["src"])[1] for image in page.all("img")]
    assert kinds == ["png", "svg", "svg"]


def test_empty_parts_leave_no_empty_frames():
    assert not Page(render(Report("Title", "Lead"))).all("section")


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "out" / "report.html"
    write_report(Report("First", "lead"), path)
    assert "First" in path.read_text(encoding="utf-8")

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ldm.storage.os.replace", disk_full)
    with pytest.raises(OutputError, match="No space left"):
        write_report(Report("Second", "lead"), path)
    assert "First" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (27.7, "27.70"),
        (0.90083, "0.9008"),
        (999.96, "1,000"),
        (45_123_456.0, "45,123,456"),
        (45_123_456, "45,123,456"),
        (np.float32(0.25), "0.2500"),
        (0, "0"),
        (nan, "n/a"),
        (None, "n/a"),
        (inf, "inf"),
        (-inf, "-inf"),
        (True, "True"),
        ("FAILED(OOM)", "FAILED(OOM)"),
    ],
)
def test_cells_are_formatted_alike_everywhere(value, text):
    assert format_cell(value) == text


def test_markdown_table():
    assert markdown_table(["case", "PSNR"], [["a|b", 27.7], ["two\nlines", nan]]) == (
        "| case | PSNR |\n| --- | ---: |\n| a\\|b | 27.70 |\n| two lines | n/a |\n"
    )
    assert "<img" not in markdown_table(["case"], [[HOSTILE]])


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), min_size=1, max_size=4))
def test_markdown_keeps_rows_and_columns_for_any_text(rows):
    lines = markdown_table(["a", "b"], rows).removesuffix("\n").split("\n")
    assert len(lines) == 2 + len(rows)
    for line in lines:
        unescaped = re.sub(r"\\[\\|]", "", line)
        assert unescaped.count("|") == 3


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_csv_starts_no_formula(start):
    hostile = f'{start}HYPERLINK("x")'
    assert csv_rows(["case"], [[hostile]]) == [["case"], [f"'{hostile}"]]


def test_csv_keeps_numbers_whole():
    row = [-1.25, 1 / 3, 7, "-3.5e-2", nan, None, -inf, "P-01"]
    written = csv_rows([*"abcdefgh"], [row])[1]
    assert written == ["-1.25", repr(1 / 3), "7", "-3.5e-2", "n/a", "n/a", "-inf", "P-01"]
    assert float(written[1]) == 1 / 3


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3))
def test_csv_survives_a_round_trip(cells):
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(csv_rows(cells, []))
    stream.seek(0)
    (read,) = csv.reader(stream)
    assert [text.removeprefix("'") for text in read] == [cell.removeprefix("'") for cell in cells]


def test_strip_places_synthetic_and_real_in_one_window():
    real = np.linspace(0, 1, 400).reshape(20, 20)
    images = read_strip({"real": real, "synthetic": real / 2})
    as_real = images(0).mean()
    as_synthetic = images(1).mean()
    assert as_synthetic == pytest.approx(as_real / 2, rel=0.05)
    own_window = read_strip({"real": real, "T2": real / 2})
    assert own_window(1).mean() == pytest.approx(own_window(0).mean(), rel=0.05)


def read_strip(row):
    """A function that returns the grey values of the n-th image of a strip without error map."""
    from matplotlib.image import imread

    picture = imread(io.BytesIO(strip_figure([row], ["P1"])))
    height, width = picture.shape[:2]
    cell = 1.7 * 160  # inches a cell, dots an inch

    def image(place):
        left = int(0.32 * 160 + cell * place)
        middle = slice(left + int(0.2 * cell), left + int(0.8 * cell))
        return picture[int(0.35 * height) : int(0.8 * height), middle, :3]

    assert width > cell * len(row)
    return image


def test_error_map_is_in_colour_and_a_missing_contrast_leaves_a_gap():
    rows = [{"T1": np.eye(9), "T2": np.eye(9), "error": np.eye(9)}, {"T1": np.eye(9)}]
    assert strip_figure(rows, ["P1", "P2"]).startswith(PNG)
    grey, coloured = (read_strip({name: np.eye(9), "T1": np.eye(9)})(0) for name in ("T2", "error"))
    assert np.ptp(grey, axis=-1).max() < 0.01
    assert np.ptp(coloured, axis=-1).max() > 0.2


def test_figures_are_reproducible_and_take_hostile_labels():
    curves = {"$\\frac$": (range(100), np.geomspace(1, 0.1, 100)), "bad": ([1], [nan])}
    points = [("$\\frac$", 0.1, 20.0), ("b", 10.0, 25.0), ("failed", nan, nan)]
    strips = [{"$\\frac$": np.zeros((8, 8)), "error": np.zeros((8, 8))}]
    for draw in (
        lambda: loss_figure(curves),
        lambda: scatter_figure(points, "seconds", "dB"),
        lambda: strip_figure(strips, ["$\\frac$"]),
    ):
        assert draw() == draw()


def test_scatter_without_any_value_still_draws():
    assert b"<svg" in scatter_figure([("failed", nan, 1.0)], "seconds", "dB")
