"""The report page is self-contained and runs nothing but its own scripts; tables survive names."""

import base64
import csv
import io
import json
import pickle
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ldm.claims import LOCK, claim
from ldm.cli.tables import print_table
from ldm.errors import OutputError
from ldm.evaluation.protocol import DEFAULT, PROTOCOLS
from ldm.evaluation.scores import Evaluation
from ldm.evaluation.statistics import Comparison
from ldm.plots.figures import loss_figure, scatter_figure, strip_figure
from ldm.report.page import Figure, Report, render, write_all, write_report
from ldm.report.score_tables import (
    bracket,
    cannot_decide,
    number,
    paper_table,
    region_table,
    signed,
)
from ldm.report.tables import (
    Number,
    Table,
    csv_table,
    format_cell,
    latex_table,
    markdown_table,
)
from ldm.report.viewer import Viewer, viewer_patient
from ldm.storage import csv_rows

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


def small_viewer(patient="P1", row="unet"):
    volume = np.linspace(0, 1, 60, dtype=np.float32).reshape(3, 4, 5)
    brain = np.ones(volume.shape, bool)
    volumes = ({"T1": volume}, volume, {row: volume / 2}, brain)
    return Viewer([viewer_patient(patient, *volumes, spacing=(1, 1, 1))], [row])


def hostile_report():
    table = Table(HOSTILE, [HOSTILE, "PSNR"], [[HOSTILE, 27.7], ["b", nan]], HOSTILE)
    return Report(
        title=HOSTILE,
        lead=HOSTILE,
        tables=[table],
        figures=[Figure(HOSTILE, PNG, HOSTILE, HOSTILE)],
        command=shlex.quote(HOSTILE),
        protocol={HOSTILE: {HOSTILE: [HOSTILE]}},
        environment={HOSTILE: HOSTILE},
        viewer=small_viewer(HOSTILE, HOSTILE),
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
        command="dsdiff benchmark configs/benchmark.yaml",
        protocol=DEFAULT.to_dict(),
        environment={"torch": "2.13"},
    )


def policy_of(page):
    """The Content-Security-Policy as {directive: sources}."""
    meta = next(meta for meta in page.all("meta") if "http-equiv" in meta)
    assert meta["http-equiv"] == "Content-Security-Policy"
    parts = (part.split() for part in meta["content"].split(";"))
    return {name: sources for name, *sources in parts}


@pytest.mark.parametrize("viewer", [None, small_viewer()], ids=["tables", "viewer"])
def test_page_reads_nothing_from_outside_and_runs_only_its_own_scripts(viewer):
    text = render(replace(full_report(), viewer=viewer))
    page = Page(text)
    assert "://" not in text
    assert not {"link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    scripts = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digests = [base64.b64encode(sha256(s.encode()).digest()).decode() for s in scripts]
    assert len(scripts) == (2 if viewer else 1)
    assert policy_of(page) == {
        "default-src": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "img-src": ["data:"],
        "style-src": ["'unsafe-inline'"],
        "script-src": [f"'sha256-{digest}'" for digest in digests],
    }
    data = [s for s in page.all("script") if s]
    assert data == ([{"type": "application/json", "id": "viewer-data"}] if viewer else [])


def test_names_are_text_and_never_markup():
    page = Page(render(hostile_report()))
    assert [image["alt"] for image in page.all("img")] == [HOSTILE]
    assert len(page.all("script")) == 3  # sorting, the viewer and its data
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert sum(HOSTILE in word for word in page.words) >= 10  # everywhere shown as it is


def test_data_of_the_viewer_ends_with_its_element():
    """In JSON a name that closes the element is written with escapes, and reads back whole."""
    name = "</script><script>alert(1)</script><!--"
    text = render(Report("Title", "Lead", viewer=small_viewer(name, name)))
    (data,) = re.findall('<script type="application/json" id="viewer-data">(.*?)</script>', text)
    assert json.loads(data)["patients"][0]["id"] == name
    assert json.loads(data)["rows"] == [name]
    assert "alert(1)</script>" not in text


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

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    with claim(path.parent, "evaluate"):
        write_report(Report("First", "lead"), path)
        assert "First" in path.read_text(encoding="utf-8")
        monkeypatch.setattr("ldm.storage.os.replace", disk_full)
        with pytest.raises(OutputError, match="No space left"):
            write_report(Report("Second", "lead"), path)
    assert "First" in path.read_text(encoding="utf-8")
    assert {file.name for file in path.parent.iterdir()} == {"report.html", LOCK}


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


def scores_table():
    rows = [
        ["unet", Number(25.19, "25.19 ± 1.04"), Number(0.05, "0.05 ± 0.01")],
        ["d_i_t", Number.mean(27.0, 0.1), None],
        ["vit", "FAILED", 0.06],
    ]
    better = {"PSNR dB": "higher", "NRMSE": "lower"}
    return Table("Scores", ["", "PSNR dB", "NRMSE"], rows, "", better, {(1, 1), (0, 2)})


def test_the_best_cells_are_bold_and_the_note_says_what_that_means():
    page = Page(render(Report("T", "L", tables=[scores_table()])))
    assert [c.get("class") for c in page.all("td")] == [
        *(None, "number best"),
        *("best", "number"),
        *(None, "number"),
    ]


def latex_row(table: Table) -> str:
    """The first line below the head."""
    return latex_table(table).partition("\\midrule\n")[2].split("\n")[0]


def test_latex_table_pastes_into_a_paper():
    """Text columns stay text; the one of numbers is aligned by siunitx, with its widest number."""
    assert latex_table(scores_table()) == "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\sisetup{separate-uncertainty=true, table-align-uncertainty=false, "
            r"detect-weight=true}",
            r"\caption{Scores. Bold: the best of a column, and what a paired test does not tell "
            r"from it (Wilcoxon, p \textless{} 0.05 after Holm).}",
            r"\label{tab:scores}",
            r"\begin{tabular}{l l S[table-format=1.5(3)]}",
            r"\toprule",
            r" & PSNR dB $\uparrow$ & {NRMSE $\downarrow$} \\",
            r"\midrule",
            r"unet & 25.19 $\pm$ 1.04 & \bfseries 0.05 +- 0.01 \\",
            r"d\_i\_t & \textbf{27.00 $\pm$ 0.10} & {--} \\",
            r"vit & FAILED & 0.06000 \\",
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no pdflatex")
def test_latex_compiles(tmp_path):
    table = Table("50 % & [more]", ["", "n_1"], [["a_b", Number(-1.5, "-1.5 ± 0.2")], ["c", 1234]])
    paper = [r"\documentclass{article}\usepackage{booktabs,siunitx}\begin{document}"]
    paper += [latex_table(scores_table()), latex_table(table), r"\end{document}"]
    (tmp_path / "paper.tex").write_text("\n".join(paper), encoding="utf-8")
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_tables_and_figures_are_files_of_this_report_only(tmp_path):
    """What an earlier report wrote is gone, what somebody else wrote stays."""
    drawn = Figure("Cost of it", scatter_figure([("unet", 1, 2)], "s", "dB"), "caption", "points")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/mine.png").write_bytes(PNG)
    with claim(tmp_path, "evaluate"):
        write_all(Report("First", "", tables=[scores_table()], figures=[drawn]), tmp_path)
        written = {p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("*/*")}
        tables = {f"tables/scores.{kind}" for kind in ("csv", "md", "tex")}
        figures = {f"figures/{name}" for name in ("cost-of-it.png", "cost-of-it.svg", "mine.png")}
        assert written == tables | figures
        assert (tmp_path / "figures/cost-of-it.png").read_bytes().startswith(PNG)
        write_all(Report("Second", "", figures=[replace(drawn, title="Other")]), tmp_path)
    assert {p.name for p in tmp_path.glob("*/*")} == {"other.png", "other.svg", "mine.png"}


def test_every_patient_keeps_a_picture_of_their_own(tmp_path):
    """Where ids differ in signs that no file is named by, or have no other."""
    ids = ["P.01", "p_01", "P 01 2", "张伟", "王芳"]
    strips = [strip_figure([{"T1": np.eye(n)}], ["slice"]) for n in range(8, 8 + len(ids))]
    figures = [Figure(f"Patient {i}", s, "", "") for i, s in zip(ids, strips, strict=True)]
    tables = [replace(scores_table(), title=title) for title in ("One (a)", "One: a")]
    write_all(Report("Cohort", "", tables=tables, figures=figures), tmp_path)
    written = {p.name: p.read_bytes() for p in (tmp_path / "figures").glob("*.png")}
    assert sorted(written.values()) == sorted(figure.image for figure in figures)
    assert {"patient-p-01.png", "patient-p-01-2.png", "patient.png"} <= written.keys()
    assert {p.name for p in (tmp_path / "tables").glob("*.csv")} == {"one-a.csv", "one-a-2.csv"}


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        (r"50% & a_b #1 $x$ {y}", r"50\% \& a\_b \#1 \$x\$ \{y\}"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        (
            "a~b^c <d> |e|",
            r"a\textasciitilde{}b\textasciicircum{}c \textless{}d\textgreater{} "
            r"\textbar{}e\textbar{}",
        ),
        ("[h] *", "{[}h{]} {*}"),
        ("a--b", "a-{}-b"),
        ("-1.5 ± 2", r"$-$1.5 $\pm$ 2"),
        ("two\nlines\0", "two lines"),
    ],
)
def test_latex_escapes_what_would_be_a_command(text, latex):
    assert latex_row(Table("", ["a"], [[text]])) == rf"{latex} \\"


@given(st.text())
def test_latex_keeps_a_cell_a_cell(text):
    line = latex_row(Table("", ["a", "b"], [[text, 1]]))
    assert len(re.findall(r"(?<!\\)&", line)) == 1
    assert len(re.findall(r"(?<!\\)[{]", line)) == len(re.findall(r"(?<!\\)[}]", line))


@pytest.mark.parametrize(("patients", "bold"), [(2, []), (6, []), (7, ["b", "c"])])
def test_bold_claims_no_best_that_so_few_patients_cannot_tell(patients, bold):
    """Two rows 1 dB above the third on every patient, 0.01 dB apart: one line of each table."""
    result = Evaluation(DEFAULT, [*"abc"], [f"p{i}" for i in range(patients)])
    for i, subject in enumerate(result.subjects):
        for row, psnr in (("a", 20 + i), ("b", 21 + i), ("c", 21 + i + 0.01 * (-1) ** i)):
            result.add(row, subject, {"brain": {"psnr": psnr}})
    for table in (region_table(result, "brain"), paper_table(result, ["psnr"])):
        assert [table.rows[row][0] for row, column in sorted(table.best)] == bold
        assert {column for _, column in table.best} == ({1} if bold else set())
        assert ("does not tell from it" in latex_table(table)) == bool(bold)
        assert render(Report("T", "L", tables=[table])).count('class="number best"') == len(bold)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_csv_starts_no_formula(start):
    hostile = f'{start}HYPERLINK("x")'
    assert csv_rows(["case"], [[hostile]]) == [["case"], [f"'{hostile}"]]


def test_csv_keeps_numbers_whole():
    row = [-1.25, 1 / 3, 7, "-3.5e-2", nan, None, -inf, "P-01"]
    written = csv_rows([*"abcdefgh"], [row])[1]
    assert written == ["-1.25", repr(1 / 3), "7", "-3.5e-2", "n/a", "n/a", "-inf", "P-01"]
    assert float(written[1]) == 1 / 3


def test_a_table_for_programs_has_one_number_in_a_cell():
    rows = [
        ["unet", Number.mean(25.1864, 1.0423), Number.of(3, 4), 0.5],
        ["vit", None, Number.of(0, 4), None],
    ]
    table = Table("", ["", "PSNR dB", "n", "s"], rows)
    assert pickle.loads(pickle.dumps(table)) == table  # other processes may take it
    head, body = csv_table(table)
    assert head == ["row", "PSNR dB", "PSNR dB sd", "n", "n of", "s"]
    assert body == [["unet", 25.1864, 1.0423, 3, 4, 0.5], ["vit", None, None, 0, 4, None]]
    assert csv_table(Table("", ["", "PSNR dB"], [])) == (["row", "PSNR dB"], [])


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


def compared(*patients: int) -> list[Comparison]:
    return [Comparison("a", "b", n, 1.0, nan, nan, nan, nan, nan) for n in patients]


@pytest.mark.parametrize(
    ("patients", "said"),
    [
        ([], ""),
        ([6], ""),
        ([8] * 6, ""),
        ([7, 7, 7, 8, 8, 8], ""),  # step-down: once three are decided, 3 are left to correct for
        ([5], "Too few patients to decide: with 5 of them and 1 comparison "),
        ([7] * 6, "Too few patients to decide: with 7 of them and 6 comparisons "),
        ([3, 8, 8], "Too few patients to decide all of it: with 3 of them and 3 comparisons "),
    ],
)
def test_a_warning_where_a_difference_could_not_be_seen(patients, said):
    told = cannot_decide(compared(*patients))
    assert told.startswith(said) and bool(told) == bool(said)


def test_a_column_of_decibels_has_one_number_of_decimals():
    """Else the best row of a paper has two, and one below 10 dB four."""
    result = Evaluation(DEFAULT, ["a", "b"], ["1", "2"])
    for row, values in (("a", (9.5, 9.7)), ("b", (25.1, 25.3))):
        for subject, value in zip("12", values, strict=True):
            result.add(row, subject, {"brain": {"psnr": value, "ssim": value / 100}})
    table = paper_table(result, ["psnr", "ssim"])
    psnr, ssim = ([format_cell(row[place]) for row in table.rows] for place in (1, 2))
    assert psnr == ["9.60 ± 0.14", "25.20 ± 0.14"]
    assert ssim == ["0.0960 ± 0.0014", "0.2520 ± 0.0014"]
    assert table.note.startswith("2 patients, in the brain")  # its title says of what
    result.subjects.append("3")  # a third, whom only one row has
    result.add("b", "3", {"brain": {"psnr": 25.0, "ssim": 0.25}})
    assert "3 patients (a: 2), in the brain" in paper_table(result, ["psnr"]).note
    result.add("b", "3", {"enhancing": {"recovery": 0.5}})  # who alone has such a tumour
    told = paper_table(result, ["psnr", "recovery"]).note
    assert "3 patients (a: 2, Recovery: 1), in the brain" in told and "seeds" not in told
    result.add("b", "3", {"brain": {"psnr": 25.2}}, seed=1)
    assert "patients, each the mean of 2 training seeds." in paper_table(result, ["psnr"]).note


def test_a_protocol_of_a_challenge_has_a_table_of_its_own_measures():
    result = Evaluation(PROTOCOLS["brasyn"], ["a"], ["1"])
    result.add("a", "1", {"tumour": {"brasyn_ssim": 0.5}, "rest": {"brasyn_ssim": 0.75}})
    table = paper_table(result)
    assert [format_cell(cell)[:6] for cell in table.rows[0]] == ["a", "0.5000", "0.7500"]


def test_what_is_written_as_zero_has_no_minus():
    assert (number(-0.004, 2), number(-0.006, 2)) == ("0.00", "-0.01")
    assert [signed(value, 2).text for value in (-0.0004, -0.5)] == ["+0.00", "-0.50"]
    assert bracket(-1e-9, 1e-9, 2) == "[0.00, 0.00]"
    assert signed(nan) is None


@pytest.mark.parametrize("width", [30, 50, 80, 200])
def test_no_column_of_a_table_is_cut_off_by_a_terminal(width):
    """What is wider than the terminal comes in parts, each with the names of the rows."""
    titles = [f"M{n}" for n in range(9)]
    rows = [[name, *(Number(n, f"{n}.25 ± 0.{n}") for n in range(9))] for name in ("one", "two")]
    console = Console(width=width, file=io.StringIO())
    print_table(console, Table("Brain", ["", *titles], rows))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = [word for line in lines for word in line.split()]
    assert [word for word in words if word in titles] == titles
    assert words.count("one") == sum("M" in line for line in lines) and words.count("Brain") == 1
    assert all(words.count(f"{n}.25") == words.count(f"±0.{n}") == 2 for n in range(9))


def test_columns_of_text_that_fill_a_terminal_come_one_below_the_other():
    """The first alone says what a row is where two of them leave no room for a third."""
    rows = [[letter * 20 for letter in letters] + [1.5] for letters in ("abc", "def")]
    console = Console(width=50, file=io.StringIO())
    print_table(console, Table("", ["who", "where", "what", "x"], rows))
    words = console.file.getvalue().split()
    titles = ["who", "where", "who", "what", "who", "x"]
    assert [word for word in words if word.isalpha() and len(word) < 6] == titles
    assert [words.count(letter * 20) for letter in "abcdef"] == [3, 1, 1] * 2


@pytest.mark.parametrize("width", [10, 20, 30, 40, 50])
def test_a_terminal_too_narrow_for_a_table_folds_its_text_and_no_number(width):
    """Not even where a terminal is narrower than the name of a row and one number beside it."""
    names, scores = ["copy t1 of the patient", "my-long-name-of-a-model"], [1234567, 12345.25]
    pairs = zip(names, scores, strict=True)
    rows = [[name, "in_the_enhancing_tumour", score] for name, score in pairs]
    console = Console(width=width, file=io.StringIO())
    print_table(console, Table("", ["row", "region", "recovered enhancement"], rows))
    shown = console.file.getvalue()
    assert all(number in shown.split() for number in ("1,234,567", "12,345", "enhancement"))
    folded = "".join(line.split("  ")[0].strip() for line in shown.splitlines())
    assert all(name.replace(" ", "") in folded.replace(" ", "") for name in names)
    assert width < 20 or max(map(len, shown.splitlines())) <= max(width, 24)
