"""The first command that a newcomer types, to its end, on patients that are small."""

from builders import run_inside

from ldm.benchmark.cells import Work
from ldm.cli.main import main


def test_the_demo_ends_with_a_report_and_the_way_to_ones_own_patients(
    tmp_path, capsys, monkeypatch
):
    """Its verbs in this process; test_python.py has those of a benchmark in theirs."""
    monkeypatch.setattr(Work, "_dsdiff", run_inside)
    words = ["demo", "--output", str(tmp_path / "demo"), "--subjects", "8", "--size", "32"]
    short = ["budget.steps=1", "regression_of=null", "data.params.image_size=32"]
    assert main([*words, *short]) == 0
    shown = capsys.readouterr().out
    assert "copy T1" in shown and "diffusion · temperature 1" in shown
    assert "dsdiff train configs/backbone/unet_tiny.yaml data.params.root=PATIENTS" in shown
    assert (tmp_path / "demo/benchmark/report.html").is_file()
    assert len(list((tmp_path / "demo/patients").iterdir())) == 8
