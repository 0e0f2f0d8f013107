"""The container: its steps name files that exist and reach the build, its entry point is the verb.

Nothing is built here: docs/container.md says how.
"""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from setuptools import find_packages

from ldm.cli.main import build_parser

REPO = Path(__file__).parents[1]
PLACES = {"input": Path("/input"), "output": Path("/output"), "model": Path("/model")}


def steps() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, in order, comments left out."""
    text = re.sub(r"^#.*\n", "", (REPO / "Dockerfile").read_text(), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def copied() -> list[str]:
    """What the Dockerfile copies from the repository."""
    words = [rest.split() for name, rest in steps() if name == "COPY" and "--from" not in rest]
    return [source for *sources, _ in words for source in sources]


def applied() -> list[str]:
    """What the recipe of Apptainer copies from the repository."""
    text = (REPO / "apptainer.def").read_text()
    section = re.search(r"%files\n(.*?)\n\n", text, re.S)[1]
    return [line.split()[0] for line in section.splitlines()]


@pytest.mark.parametrize("sources", [copied, applied])
def test_what_is_copied_exists_and_is_all_that_setup_needs(sources):
    found = sources()
    assert [name for name in found if not (REPO / name).exists()] == []
    packages = {name.partition(".")[0] for name in find_packages(REPO)} - {"tests"}
    needed = {*packages, "configs", "setup.py", "README.md", "LICENSE", "dsdiff.py"}
    assert {name for name in needed if (REPO / name).exists()} <= set(found)
    assert {"ldm", "guided_diffusion", "UNet_DS_Diff"} <= packages


def test_nothing_else_reaches_the_build():
    lines = (REPO / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    assert sorted(allowed) == sorted(copied())
    assert not any(fnmatch(name, rule) for rule in allowed for name in (".git", "runs", "tests"))


def test_the_entry_point_is_the_verb():
    (entry,) = [json.loads(rest) for name, rest in steps() if name == "ENTRYPOINT"]
    assert entry[:2] == ["dsdiff", "brasyn"]
    args, rest = build_parser("brasyn").parse_known_args([*entry[1:], "--device", "cpu"])
    assert {name: getattr(args, name) for name in PLACES} == PLACES and rest == []
    assert f'exec {" ".join(entry)} "$@"' in (REPO / "apptainer.def").read_text()


def test_it_is_no_root_and_asks_no_network_when_it_runs():
    last = max(place for place, (name, _) in enumerate(steps()) if name == "FROM")
    final = steps()[last:]
    (user,) = [rest for name, rest in final if name == "USER"]
    assert int(user.split(":")[0]) > 0
    assert [name for name, _ in final if name in ("RUN", "ADD")] == []
    assert any("HF_HUB_OFFLINE=1" in rest for name, rest in final if name == "ENV")


def test_the_pins_of_torch_are_those_of_the_repository():
    """One owner of a version: the file that `.ci/run` installs by."""
    text = "\n".join(rest for name, rest in steps() if name == "RUN")
    assert "constraints/cpu.txt" in text and "torch==" not in text
