"""Every shipped YAML is valid, and every backbone's YAML builds its network by ``--dry-run``."""

import pytest

from ldm.cli.main import main
from ldm.config import config_root, load_config, merge_config

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


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "process").glob("*.yaml")))
def test_processes_build_behind_a_backbone(name, capsys):
    files = ["configs/backbone/dit_tiny.yaml", f"configs/process/{name}"]
    assert main(["train", *files, "data.params.image_size=32", "--dry-run"]) == 0
    assert "parameters" in capsys.readouterr().out


def _without(plan, name):
    """The plan with a row turned off, and another that is left."""
    spare = {"config": "configs/backbone/unet_tiny.yaml"}
    return {**plan, "rows": {**plan["rows"], name: None, "spare": spare}}
