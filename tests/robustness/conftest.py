"""The small patients and runs of the end-to-end tests, and a way to run the command line."""

import shutil
from pathlib import Path

import pytest
from robustness.record import LAST_CODE, STOCK
from workflow.conftest import (  # noqa: F401 - fixtures
    offline,
    patients,
    run_folder,
    segmenter_run,
    train,
    train_segmenter,
    weights,
)

from ldm.cli.main import main
from ldm.errors import MAX_LINE


@pytest.fixture
def cohort(tmp_path, patients) -> Path:  # noqa: F811
    """A copy of the patients that a test may damage, or a verb try to."""
    return Path(shutil.copytree(patients, tmp_path / "cohort"))


@pytest.fixture
def beside(request):
    """``beside(damage, library, what it does, ours)``: a line of the comparison with stock."""

    def note(damage: str, library: str, stock: str, ours: int) -> None:
        told = {"damage": damage, "library": library, "stock": stock, "ours": int(ours)}
        request.config.stash.setdefault(STOCK, {})[damage] = told

    return note


@pytest.fixture
def dsdiff(capsys, request):
    """``dsdiff(*arguments)``: exit code and the one line of an error, "" where there is none."""

    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = request.node.stash[LAST_CODE] = main([str(a) for a in arguments])
        lines = [n for n in capsys.readouterr().err.splitlines() if ": error " in n]
        assert all(len(line) <= MAX_LINE for line in lines)
        return code, "\n".join(lines)

    return run
