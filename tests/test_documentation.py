"""What the documentation says is so: links lead somewhere, commands are commands, cells run."""

import argparse
import contextlib
import inspect
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from ldm.cli.main import VERBS, build_parser, main
from ldm.config import TOP_LEVEL, config_root, load_config, merge_config
from ldm.errors import DsdiffError

REPO = Path(__file__).parents[1]
PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").rglob("*.md")])
NAMES = [page.relative_to(REPO).as_posix() for page in PAGES]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (dsdiff (?:.*\\\n)*.*)$", re.MULTILINE)
INLINE = re.compile(r"`(dsdiff [^`]+)`")
NEXT = re.compile(r"^  next: (dsdiff .*)$", re.MULTILINE)
MOST_WORDS = 600  # of the README
CONFIGURED = ("train", "benchmark", "segment")


def prose(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchor(title: str) -> str:
    """The fragment that a heading is reached by."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip())


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page, broken = REPO / name, []
    for target in LINK.findall(re.sub(r"^```.*?^```$", "", prose(page), flags=re.M | re.S)):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists():
            broken.append(target)
        elif fragment and place.suffix == ".md":
            titles = re.findall(r"^#+ (.+)$", prose(place), re.MULTILINE)
            broken += [target] if fragment not in map(anchor, titles) else []
    assert broken == []


def test_the_readme_is_read_in_three_minutes():
    assert len(prose(REPO / "README.md").split()) <= MOST_WORDS


def commands(text: str) -> list[str]:
    """Every ``dsdiff`` command of a page to type: in fenced and in indented blocks."""
    blocks = "\n".join(FENCED.findall(text)).replace("\\\n", " ")
    lines = [part.strip() for line in blocks.splitlines() for part in line.split("&&")]
    found = [line for line in lines if line.startswith("dsdiff ")]
    return found + [match.replace("\\\n", " ") for match in INDENTED.findall(text)]


def mentions(text: str) -> list[str]:
    """Every command within a sentence, which may leave parts out."""
    return INLINE.findall(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def found(read) -> list[tuple[str, str]]:
    return sorted({(name, text) for name in NAMES for text in read(prose(REPO / name))})


def resolved(verb: str, words: list[str]) -> None:
    """Merge the configuration that a command names as the verb does, if its files are ours."""
    files = [w for w in words if "=" not in w]
    overrides = [w for w in words if "=" in w]
    if not files or not all((config_root().parent / f).is_file() for f in files):
        return  # a file that the page writes, which the test of the page runs
    if verb == "benchmark":
        from ldm.benchmark.plan import OWN_KEYS

        merge_config(files, overrides, (*TOP_LEVEL, *OWN_KEYS))
    else:
        load_config(files, overrides)


@pytest.mark.parametrize(("page", "command"), found(commands))
def test_commands_are_commands(page, command):
    """By the real parser, and where it trains by the real merge of the configuration."""
    words = shlex.split(command, comments=True)[1:]
    try:
        args, rest = build_parser(words[0]).parse_known_args(words)
    except SystemExit:
        pytest.fail(f"{page}: {command} is refused")
    assert not [w for w in rest if w.startswith("-")], f"{page}: {command}"
    if words[0] in CONFIGURED and hasattr(args, "config"):
        try:
            resolved(words[0], [*args.config, *rest])
        except DsdiffError as error:
            pytest.fail(f"{page}: {command}: {error}")


@pytest.mark.parametrize(("page", "command"), found(mentions))
def test_commands_in_sentences_name_what_there_is(page, command):
    """The verb, and each option of it."""
    verb, *rest = command.split()[1:]
    if verb in VERBS:
        task = rest[:1] if verb in ("segment", "diagnose") else []
        told = " ".join(shown_help(verb, *task))
        named = [word.split("=")[0] for word in rest if word.startswith("--")]
        assert [name for name in named if name not in told] == [], f"{page}: {command}"
    else:
        assert verb == "VERB" or verb.startswith("--"), f"{page}: {command}"


@cache
def shown_help(*words: str) -> list[str]:
    """What ``--help`` of a verb prints, in words."""
    parser, printed = build_parser(words[0]), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        parser.parse_args([*words, "--help"])
    return printed.getvalue().split()


TASKS = {"segment": ("train", "predict", "evaluate"), "diagnose": ("data", "run")}
HELPED = [*((verb,) for verb in VERBS), *((v, t) for v, ts in TASKS.items() for t in ts)]
MOST_OPTIONS = 10  # of a verb without groups


def options(*words: str) -> tuple[argparse.ArgumentParser, list[argparse.Action]]:
    """The parser of a verb or of its task, and the options it declares."""
    parser = build_parser(words[0])
    for word in words:
        subparsers = next(a for a in parser._actions if isinstance(a.choices, dict))
        parser = subparsers.choices[word]
    return parser, [action for action in parser._actions if action.option_strings]


ONE_WORD = {  # what is the same for every verb is called the same by every verb
    **dict.fromkeys(("--reference", "--root", "folder of data", "input of prepare"), "PATIENTS"),
    **{"--output": "FOLDER", "--trust": "CLASS", "--layout": "NAME", "--resume": "RUN"},
    **{"model": ("MODEL", "RUN"), "--model": "MODEL", "--input": ("PATIENTS", "CASES")},
    **{"output of phantom": "PATIENTS", "folder of run": "RUN", "run_folder": "RUN"},
    **{"--prediction": ("FOLDER", "[NAME=]FOLDER")},
}


@pytest.mark.parametrize("words", HELPED, ids=" ".join)
def test_help_calls_the_same_thing_by_one_word(words):
    parser, _ = options(*words)
    for action in parser._actions:
        name = next(iter(action.option_strings), action.dest)
        expected = ONE_WORD.get(name, ONE_WORD.get(f"{name} of {words[-1]}"))
        assert expected is None or action.metavar in expected, (name, action.metavar)
    assert not re.search(r"\bDATA\b|root=(?!(NEW_)?PATIENTS)", parser.format_help())


@pytest.mark.parametrize("words", HELPED, ids=" ".join)
def test_help_ends_with_commands_that_are_commands(words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser, _ = options(*words)
    *_, shown = re.split(r"^examples?:$", parser.format_help(), flags=re.MULTILINE)
    examples = shown.strip("\n").splitlines()
    assert examples and max(map(len, examples)) <= 80
    for line in examples:
        assert line.startswith(f"  dsdiff {' '.join(words)}")
        test_commands_are_commands(" ".join(words), line.strip())


@pytest.mark.parametrize("words", HELPED, ids=" ".join)
def test_help_says_each_default_and_groups_many_options(words):
    parser, declared = options(*words)
    shown = " ".join(parser.format_help().split())
    for action in declared:
        value = action.default
        if isinstance(value, str | int | float) and action.nargs != 0:  # no switch
            said = re.search(rf" {action.option_strings[0]} .*?default: ([^)]*)\)", shown)
            assert value == argparse.SUPPRESS or said and str(value) in said[1], action.dest
    own = {group.title for group in parser._action_groups if group._group_actions}
    own_options = [a for a in declared if a.dest not in ("help", "debug")]
    assert len(own_options) <= MOST_OPTIONS or len(own - {"options", "positional arguments"}) >= 3


def test_help_says_what_the_model_takes_where_nothing_is_asked():
    from ldm.models.diffusion.ddpm import LatentDiffusion
    from ldm.models.diffusion.samplers import ddim
    from ldm.models.diffusion.tiling import Tiling

    shown = " ".join(options("sample")[0].format_help().split())
    owners = {"enhancement": LatentDiffusion.synthesise, "guidance": LatentDiffusion.generate}
    owners |= {"rescale": LatentDiffusion.generate, "overlap": Tiling}
    for name, owner in owners.items():
        said = re.search(rf" --{name} N .*?default: ([\d.]+)\)", shown)
        assert float(said[1]) == inspect.signature(owner).parameters[name].default, name
    assert "0 deterministic (default)" in shown
    assert inspect.signature(ddim).parameters["eta"].default == 0


def test_there_are_commands_and_a_wrong_one_is_found():
    assert len(found(commands)) > 40 and len(found(mentions)) > 20
    assert commands("```bash\ndsdiff a && dsdiff b \\\n  c\n```\n    dsdiff d \\\n    e") == [
        *("dsdiff a", "dsdiff b    c"),
        "dsdiff d      e",
    ]
    with pytest.raises(pytest.fail.Exception, match="is refused"):
        test_commands_are_commands("page", "dsdiff evaluate --prediction a")
    with pytest.raises(pytest.fail.Exception, match="nearest"):
        wrong = "configs/backbone/unet.yaml model.params.tempersture=1"
        test_commands_are_commands("page", f"dsdiff train {wrong}")
    with pytest.raises(AssertionError):
        test_commands_in_sentences_name_what_there_is("page", "dsdiff sample --stepz 4")


SMALL = {"--subjects 8 --size 64": "--subjects 4 --size 32", "image_size=64": "image_size=32"}
SMALL |= {"Phantom_0007": "Phantom_0003", "Phantom_0008": "Phantom_0004"}
MORE = {
    "train": ["lightning.trainer.max_steps=2"],
    "sample": ["--steps", "1"],
    "benchmark": ["--plan", "data.params.test=[Phantom_0004]"],
}


def test_the_quick_start_runs(tmp_path, monkeypatch, capsys):
    """Its commands one after another, on fewer and smaller patients; the benchmark is planned."""
    monkeypatch.chdir(tmp_path)
    page = commands(prose(REPO / "docs/index.md"))
    assert [command.split()[1] for command in page] == [
        *("doctor", "phantom", "diagnose", "train", "train", "sample", "evaluate", "benchmark")
    ]
    following = []
    for command in page:
        for written, small in SMALL.items():
            command = command.replace(written, small)
        words = shlex.split(command)[1:]
        words += MORE.get(words[0], [])
        code, printed = main(words), capsys.readouterr()
        assert code == 0, f"{command}\n{printed}"
        following += [(words[0], line) for line in NEXT.findall(printed.out)]
    assert [verb for verb, _ in following] == ["phantom", "diagnose", "train", "train", "sample"]
    for _, line in following:
        test_commands_are_commands("docs/index.md", line)
    for name in ("report.html", "table.tex", "tables/brain.csv"):
        assert (tmp_path / "evaluation" / name).is_file()


def test_the_notebook_runs(tmp_path, monkeypatch):
    """Cell by cell in one namespace, as a kernel does, in an empty folder."""
    import matplotlib as mpl

    mpl.use("agg")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(prose(REPO / "docs/notebooks/quickstart.ipynb"))
    assert not any(cell.get("outputs") for cell in notebook["cells"])  # nothing stale is committed
    namespace: dict = {}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)  # noqa: S102
    assert (tmp_path / "predictions/Phantom_0004_t1ce.nii.gz").is_file()
    assert namespace["summary"].mean > 10


def test_the_site_shows_every_page():
    site = yaml.safe_load(prose(REPO / "mkdocs.yml"))

    def pages(part) -> list[str]:
        if isinstance(part, str):
            return [part]
        inner = part.values() if isinstance(part, dict) else part
        return [page for below in inner for page in pages(below)]

    assert sorted(f"docs/{page}" for page in pages(site["nav"])) == [
        name for name in NAMES if name.startswith("docs/")
    ]


@pytest.mark.skipif(not shutil.which("mkdocs"), reason="mkdocs is not installed ([docs])")
def test_the_site_builds(tmp_path):
    words = ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Synthesiser" in prose(tmp_path / "site/api/index.html")


def holds(after, before) -> bool:
    """Whether all of a nested configuration is in another."""
    if isinstance(before, dict):
        return all(key in after and holds(after[key], value) for key, value in before.items())
    return after == before


def test_the_settings_are_those_of_the_code():
    """The page is what the script makes; each key is one, and its default changes nothing."""
    script = runpy.run_path(str(REPO / "scripts/describe_settings.py"))
    assert prose(script["PAGE"]) == script["page"](), "run python scripts/describe_settings.py"
    file = script["SYNTHESIS"]
    found = script["settings"](file)
    assert [setting.key for setting in found if not setting.meaning] == []
    plain = [s for s in found if not s.default.strip("[")[:1].isupper()]  # no class
    assert len(plain) > 80
    before = load_config([file])
    assert holds(load_config([file], [f"{s.key}={s.default}" for s in plain]), before)
    assert not holds(load_config([file], ["data.params.batch_size=5"]), before)


def test_the_facts_of_a_citation_are_those_of_the_package():
    from ldm import __version__

    cited = yaml.safe_load(prose(REPO / "CITATION.cff"))
    assert (cited["version"], cited["license"]) == (__version__, "MIT")
    assert f"## {__version__}" in prose(REPO / "CHANGELOG.md")


WITHOUT_POSIX = """
import os, runpy, signal, sys

class Hidden:
    names = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix_ipc"}

    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
for name in Hidden.names:
    sys.modules.pop(name, None)
for name in ("fork", "getuid", "geteuid", "getpgid", "setsid", "O_NOFOLLOW", "killpg"):
    if hasattr(os, name):
        delattr(os, name)
os.environ["USERNAME"] = "somebody"  # as Windows has it
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGKILL"):
    if hasattr(signal, name):
        delattr(signal, name)

import importlib, pkgutil, ldm
for found in pkgutil.walk_packages(ldm.__path__, "ldm."):
    if ".configs" not in found.name and not found.name.endswith("__main__"):
        importlib.import_module(found.name)

from ldm.cli.main import VERBS, build_parser
for verb in VERBS:
    build_parser(verb)
print("started", len(VERBS))
"""


def test_everything_starts_without_what_windows_lacks():
    """Modules, calls and signals of POSIX are hidden: every module imports, every verb parses."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX], capture_output=True, text=True, check=False, cwd=REPO
    )
    assert done.stdout == f"started {len(VERBS)}\n", done.stderr[-2000:]
