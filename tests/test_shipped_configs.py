"""Every shipped YAML is valid, and every backbone's YAML builds its network by ``--dry-run``."""

import inspect

import pytest

from ldm.cli.main import main
from ldm.config import config_root, find_config, load_config, load_with_bases, merge_config
from ldm.util import accepted_parameters, get_obj_from_str

ROOT = config_root()
BACKBONES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "backbone").glob("*.yaml"))


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_is_valid(name):
    config = load_config([f"configs/{name}"])
    assert "unet_config" in config["model"]["params"]


@pytest.mark.parametrize("name", [n for n in BACKBONES if n.endswith("_tiny.yaml")])
def test_tiny_backbone_builds(name, capsys):
    assert main(["train", f"configs/{name}", "data.params.image_size=32", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "parameters" in printed and "FLOPs" in printed


FIRST_STAGES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "first_stage").glob("*.yaml"))


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_first_stage_is_valid_and_builds(name, capsys):
    assert main(["train", f"configs/{name}", "data.params.image_size=32", "--dry-run"]) == 0
    assert "AutoencoderKL" in capsys.readouterr().out


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_is_valid_in_latent_space(name):
    config = load_config([f"configs/{name}", "configs/latent.yaml"])
    first_stage = config["model"]["params"]["first_stage_config"]
    assert first_stage["target"] == "ldm.models.autoencoder.TrainedFirstStage"


def test_dry_run_prints_a_config_that_gives_itself(tmp_path, capsys):
    arguments = ["configs/backbone/unet_tiny.yaml", "data.params.image_size=32", "--dry-run"]
    assert main(["train", *arguments]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed[: printed.index("backbone  ")])
    assert main(["train", str(tmp_path / "printed.yaml"), "--dry-run"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("name", ["benchmark.yaml", "benchmark_families.yaml", "demo.yaml"])
def test_benchmark_plans_are_valid(name, tmp_path):
    from ldm.benchmark.plan import OWN_KEYS, plan_trainings
    from ldm.config import TOP_LEVEL

    plan = merge_config([f"configs/{name}"], [], (*TOP_LEVEL, *OWN_KEYS))
    trainings = plan_trainings(plan, tmp_path)
    first = next(iter(plan["rows"]))
    assert first not in [t.row for t in plan_trainings(_without(plan, first), tmp_path)]
    assert any("one-step" in training.row for training in trainings)
    assert all(training.config["model"]["params"]["unet_config"] for training in trainings)


STARTS_AT = {
    "process/posterior_mean_flow.yaml": "anchor_config",
    "objective/segmenter.yaml": "loss_config.segmenter",
}
CHANGES = [p for folder in ("process", "objective") for p in (ROOT / folder).glob("*.yaml")]


@pytest.mark.parametrize("name", sorted(p.relative_to(ROOT).as_posix() for p in CHANGES))
def test_processes_build_behind_a_backbone(name, capsys):
    """One that starts from a trained run says that it needs it."""
    files = ["configs/backbone/dit_tiny.yaml", f"configs/{name}"]
    code = main(["train", *files, "data.params.image_size=32", "--dry-run"])
    printed = capsys.readouterr()
    if starts_at := STARTS_AT.get(name):
        assert code == 2 and f"{starts_at}.params.path=RUN" in printed.err
    else:
        assert code == 0 and "parameters" in printed.out


def _without(plan, name):
    """The plan with a row turned off, and another that is left."""
    spare = {"config": "configs/backbone/unet_tiny.yaml"}
    return {**plan, "rows": {**plan["rows"], name: None, "spare": spare}}


def nodes(config, path=""):
    """Yield (key path, target, params) of every object that a configuration describes."""
    for key, value in config.items() if isinstance(config, dict) else ():
        here = f"{path}.{key}".strip(".")
        if isinstance(value, dict) and "." in value.get("target", ""):
            yield here, value["target"], value.get("params") or {}
        yield from nodes(value, here)


def test_python_and_yaml_give_the_same_model():
    """For every key of base.yaml the default of the constructor is its value, or there is none."""
    contradictions = {}
    for path, target, params in nodes(load_with_bases(find_config("configs/base.yaml"))):
        defaults, _ = accepted_parameters(get_obj_from_str(target))
        for name, value in params.items():
            default = defaults[name].default
            owned = isinstance(value, str) and value.startswith("${")  # a fact of another section
            none = default is inspect.Parameter.empty or (
                default is None and isinstance(value, dict)
            )
            same = list(default) == value if isinstance(default, tuple) else default == value
            if target.startswith("ldm.") and not (owned or none or same):
                contradictions[f"{path}.params.{name}"] = (default, value)
    assert contradictions == {}
