"""Every command of README and docs is run, a page at a time, on three small phantom patients.

What the commands take for granted (patients, a run, predictions) is laid where they look for it,
and what makes a command long (size, steps, full networks) is made small; a benchmark is planned.
The pages that are run as written have tests of their own: ``RUN_ELSEWHERE``.
"""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
from test_documentation import NAMES, commands, mentions, prose

from ldm.cli.main import build_parser, main

RUN_ELSEWHERE = {
    "docs/index.md": "test_documentation.test_the_quick_start_runs",
    "docs/add-a-backbone.md": "workflow/test_add_a_backbone.py",
}
NOT_HERE = {  # what a command needs that no test machine has -> where its kind is tested
    "hd-bet": "tests/test_registration.py",
    "my_layout": "workflow/test_own_layout.py",
    "dsdiff import CHECKPOINT": "workflow/test_import.py",
    "dsdiff benchmark plan.yaml": "workflow/test_benchmark.py",
    "dsdiff demo": "workflow/test_demo.py",
}
RECIPES = "docs/recipes.md"
HELD_OUT = "Phantom_0003"
SPLIT = ["data.params.train=[Phantom_0001,Phantom_0002]", f"data.params.val=[{HELD_OUT}]"]
SIZE = ["data.params.image_size=32", "data.params.batch_size=2", "data.params.val_slices=2"]
TRAINER = ["max_steps=1", "precision=32", "accelerator=cpu"]
SHORT = [*SPLIT, *SIZE, *(f"lightning.trainer.{text}" for text in TRAINER)]
SHORT += ["lightning.callbacks.curve=null"]
DIFFUSION = ["model.params.sampling_steps=2"]
SEGMENTER = ["model.params.unet_config.params.channels=[32,32,32]", "model.params.warmup_steps=2"]
REPLACED = re.compile(
    r"data\.params\.(train|val|test|image_size|batch_size|fold|folds)="
    r"|lightning\.trainer\.(max_steps|max_time|precision)=|model\.params\.warmup_steps="
    r"|model\.params\.unet_config\.params\.channels="
)
PAGES = [name for name in NAMES if name not in (*RUN_ELSEWHERE, "CHANGELOG.md")]


def is_whole(command: str) -> bool:
    """Whether a sentence gives a command to type, and does not only name a verb."""
    words = command.split()[1:]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        build_parser(words[0]).parse_known_args(words)
        return len(words) > 1
    return False


def told(page: str) -> list[str]:
    """Every command of a page in its order; of the tables of recipes what no other page tells."""
    text = prose(Path(__file__).parents[2] / page)
    within, others = [], set()
    if page == RECIPES:
        within = [c for c in mentions(text) if is_whole(c)]
        others = {command for other in PAGES if other != RECIPES for command in told(other)}
    found = [re.sub(r"\s+(#\s|\|\|).*", "", c) for c in dict.fromkeys([*commands(text), *within])]
    found = [c for c in found if "..." not in c and not any(part in c for part in NOT_HERE)]
    return [c for c in found if c not in others]


def small(word: str) -> str:
    """The smallest network of its kind."""
    if match := re.fullmatch(r"configs/(backbone|first_stage|segmentation)/(\w+)\.yaml", word):
        kind, name = match.groups()
        if kind == "segmentation":
            return word if name == "lesion" else "configs/segmentation/attention_unet_tiny.yaml"
        return word if name.endswith("_tiny") else f"configs/{kind}/{name}_tiny.yaml"
    return word


def shortened(words: list[str]) -> list[str]:
    """A command that asks for the same in seconds."""
    verb, task = words[0], " ".join(words[:2])
    if verb != "prepare":  # which takes no time that a split would save
        words = [small(word) for word in words if not REPLACED.match(word)]
    own = ["--subjects", HELD_OUT]
    if "unseen" in words:  # which are that one
        own = []
    elif "--subjects" in words:
        first = words.index("--subjects") + 1
        last = next((i for i in range(first, len(words)) if words[i].startswith("-")), len(words))
        words[first - 1 : last] = []
    if verb == "train" or task == "segment train":
        words += SHORT
        if "--resume" in words:
            words = [w for w in words if w not in SHORT] + ["lightning.trainer.max_steps=5"]
        elif verb == "segment":
            words += SEGMENTER
        elif not any("first_stage/" in word for word in words):
            words += DIFFUSION
        if not {"--resume", "--from"} & set(words) and "data.params.root" not in " ".join(words):
            words.append("data.params.root=PATIENTS")
    more = {
        "phantom": ["--subjects", "3", "--size", "32", "--seed", "0", "--overwrite"],
        "sample": [*own, "--steps", "1"],
        "evaluate": own,
        "segment predict": own,
        "sweep": [*own, "--steps", "1", "--sampler", "ddim"],
        "distill": ["lightning.trainer.max_steps=1", "model.params.substeps=2"],
        "benchmark": [f"data.params.test=[{HELD_OUT}]", "--plan"],
    }
    return words + more.get(verb, more.get(task, []))


@pytest.fixture
def lay(tmp_path, monkeypatch, train, patients, run_folder, segmenter_run):
    """``lay(words)``: what the command reads lies where it looks, if the page has not made it."""
    monkeypatch.chdir(tmp_path)

    def copied(place: str, contrast: str, suffix: str) -> None:
        Path(place).mkdir(parents=True)
        for folder in patients.iterdir():
            source = folder / f"{folder.name}_{contrast}.nii.gz"
            shutil.copy(source, Path(place, f"{folder.name}_{suffix}.nii.gz"))

    def provide(place: object, kind: str) -> None:
        if place is None or Path(str(place)).exists():
            return
        if kind in ("t1", "seg"):
            copied(str(place), kind, {"t1": "t1ce"}.get(kind, kind))
        else:
            source = {"patients": patients, "run": run_folder, "segmenter": segmenter_run}[kind]
            shutil.copytree(source, str(place))

    def run(words: list[str]) -> None:
        args, rest = build_parser(words[0]).parse_known_args(words)
        own = vars(args)
        is_segment = words[0] == "segment"
        for name in ("model", "run_folder", "resume", "start"):
            provide(own.get(name), "segmenter" if is_segment else "run")
        provide(own.get("segmenter"), "segmenter")
        for seed, place in enumerate(own.get("runs") or ()):
            if not place.exists():
                assert train(place, "lightning.trainer.max_steps=1", f"seed={seed}") == 0
        for name in ("input", "reference"):
            provide(own.get(name), "patients")
        if words[0] == "diagnose":
            provide(args.folder, "run" if args.kind == "run" else "patients")
        given = own.get("prediction") or []
        for place in given if isinstance(given, list) else [given]:
            provide(str(place).rpartition("=")[2], "seg" if is_segment else "t1")
        for word in [*(own.get("config") or []), *rest]:
            key, _, value = word.partition("=")
            if key in ("data.params.root", "segmenter"):
                provide(value, "segmenter" if key == "segmenter" else "patients")
            if key == "data.params.root" and "dwi" in " ".join(words):
                for t2 in Path(value).rglob("*_t2.nii.gz"):
                    shutil.copy(t2, t2.with_name(t2.name.replace("_t2", "_dwi")))

    return run


@pytest.mark.parametrize("page", [page for page in PAGES if told(page)])
def test_the_commands_of_a_page_run(page, lay, capsys):
    for number, command in enumerate(told(page)):
        words = shortened(shlex.split(command)[1:])
        if words[0] == "train" and not {"--resume", "--output"} & set(words):
            words = [w for w in words if not w.startswith("name=") or w == "name=mine"]
            words += [] if "name=mine" in words else [f"name=run-{number}"]
        output = Path(words[words.index("--output") + 1]) if "--output" in words else None
        if output and words.count(str(output)) == 1:  # the page shows alternatives
            shutil.rmtree(output, ignore_errors=True)
        lay(words)
        code = main(words)
        printed = capsys.readouterr()
        assert code == 0, f"{command}\n{shlex.join(words)}\n{printed.err}{printed.out[-2000:]}"


def test_most_commands_are_run():
    """What is left out is said, and stands somewhere."""
    run = [command for page in PAGES for command in told(page)]
    assert len(run) > 50
    everywhere = "\n".join(prose(Path(__file__).parents[2] / page) for page in PAGES)
    assert [part for part in NOT_HERE if part not in everywhere] == []
    assert shortened(["train", "configs/backbone/unet.yaml", "data.params.val=0.2"])[:2] == [
        "train",
        "configs/backbone/unet_tiny.yaml",
    ]
