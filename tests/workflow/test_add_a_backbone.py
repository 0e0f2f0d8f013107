"""``docs/add-a-backbone.md`` as a reader follows it: each file saved, each command run as written.

A block after "Save as `NAME`:" is saved under that name. The lines of a ``bash`` block are run in
the reader's folder; the lines of the ``text`` block after it must occur in its output, in their
order, where ``...`` stands for anything within a line.

Each ``dsdiff`` is a process of its own that is forked, for which nothing is imported anew; the
verbs of the benchmark run within it (test_python.py has them in processes of their own).
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import run_inside
from robustness.forks import Verb

from ldm.benchmark.cells import Work

REPO = Path(__file__).parents[2]
PAGE = REPO / "docs/add-a-backbone.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAVE = re.compile(r"[Ss]ave as `([^`]+)`:\s*$")
DSDIFF = re.compile(r"dsdiff (?P<words>.*?)(?P<rest> \|\| .*)?")


def steps(page: str) -> Iterator[tuple[str, str, str]]:
    """Yield (``save``, name, content) and (``run``, commands, expected output) in their order."""
    blocks = list(BLOCK.finditer(page))
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        kind, content = block.groups()
        if kind == "bash":
            told = following is not None and following[1] == "text"
            yield "run", content, following[2] if told else ""
        elif kind != "text":
            name = SAVE.search(page[: block.start()])
            assert name, f"nothing says where to save:\n{content}"
            yield "save", name[1], content


def missing_line(expected: str, output: str) -> str | None:
    """Return the first line of ``expected`` that ``output`` lacks after the lines before it."""
    position = 0
    for line in filter(None, expected.splitlines()):
        pattern = ".*".join(re.escape(part) for part in line.split("..."))
        found = re.compile(pattern).search(output, position)
        if not found:
            return line
        position = found.end()
    return None


@pytest.fixture
def clone(tmp_path) -> Path:
    """A copy of the repository, where the page may add files."""
    packages = ("ldm", "guided_diffusion", "UNet_DS_Diff")
    files = ("pyproject.toml", "setup.py", "dsdiff.py")
    for name in (*packages, "configs", "scripts", "tests", "docs", *files):
        copy = shutil.copytree if (REPO / name).is_dir() else shutil.copy
        copy(REPO / name, tmp_path / "clone" / name)
    return tmp_path / "clone"


@pytest.fixture
def shell(tmp_path, clone):
    """``shell(commands)``: their exit code and output, in the reader's folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    places = {"PATH": path, "PYTHONPATH": str(clone), "CLONE": str(clone)}

    def as_the_reader() -> None:
        os.chdir(folder)
        Work._dsdiff = run_inside

    def bash(commands: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "-e", "-c", commands],
            cwd=folder,
            env=os.environ | places | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        return done.returncode, done.stdout

    def run(commands: str) -> tuple[int, str]:
        output = ""
        for line in commands.splitlines():
            if found := DSDIFF.fullmatch(line):
                verb = Verb(
                    *shlex.split(found["words"]), log=tmp_path / "log", before=as_the_reader
                )
                code = verb.wait(900)
                output += verb.text
                line = f"(exit {code})" + (found["rest"] or "")
            code, more = bash(line)
            output += more
            if code:
                return code, output
        return 0, output

    return run


def test_the_page_works_as_written(tmp_path, shell):
    for kind, first, second in steps(PAGE.read_text(encoding="utf-8")):
        if kind == "save":
            (tmp_path / "folder" / first).write_text(second)
            continue
        code, output = shell(first)
        assert code == 0, f"{first}\n{output}"
        missing = missing_line(second, output)
        assert missing is None, f"{first}\ndoes not print: {missing}\n{output}"


def test_the_page_shows_what_each_command_prints():
    found = list(steps(PAGE.read_text(encoding="utf-8")))
    assert [name for kind, name, _ in found if kind == "save"][:2] == ["my_net.py", "my_net.yaml"]
    assert all(expected for kind, _, expected in found if kind == "run")


@pytest.mark.parametrize(
    ("expected", "missing"),
    [
        ("b\nd", None),
        ("a ... c\nd", None),
        ("d\nb", "b"),
        ("a ... d", "a ... d"),
        ("a.b", "a.b"),
    ],
    ids=["lines", "wildcard", "order", "one line", "literal"],
)
def test_what_counts_as_printed(expected, missing):
    assert missing_line(expected, "a b c\nd\n") == missing
