"""CF, EX-04 and SE-08 of docs/reliability.md: a value that cannot be meant is refused, at once."""

import re
from pathlib import Path

import pytest
import yaml

from ldm.config import config_root, load_config
from ldm.errors import ConfigError
from ldm.ranges import RANGES, check_ranges
from ldm.study import build_model
from ldm.util import instantiate_from_config

STEPS = "lightning.trainer.max_steps=1"
WRONG = [
    "data.params.target=t1",
    "data.params.conditions=[t1,t1]",
    "data.params.batch_size=0",
    "model.params.gain=0",
    "model.params.gain=-1",
    "model.params.sparsity=-1",
    "model.params.warmup_steps=-1",
    "model.params.temperature=-1",
    "model.params.sampling_steps=0",
    "model.params.optimizer_config.params.lr=-0.1",
    "model.params.optimizer_config.params.lr=0",
    "model.params.optimizer_config.params.weight_decay=-1",
    "model.params.optimizer_config.params.betas=[0.9]",
    "model.params.optimizer_config.target=torch.optim.Muon",  # for matrices alone
    "model.params.decay_steps=-5",
    "model.params.schedule_config.params.timesteps=0",
    "lightning.callbacks.ema.params.decay=2",
    "lightning.callbacks.ema.params.decay=-1",
    "lightning.callbacks.gradients.params.max_norm=0",
    "lightning.callbacks.gradients.params.max_norm=-1",
    "lightning.callbacks.checkpoint.params.every_n_steps=0",
    "lightning.trainer.accelerator=foo",
    "lightning.trainer.devices=0",
    "lightning.trainer.devices=-3",
    "lightning.trainer.precision=foo",
    "lightning.trainer.precision=bf16-true",
    "lightning.trainer.max_epochs=3",
    "lightning.trainer.max_time=abc",
    "lightning.trainer.max_time='00:00:00:00'",
    "lightning.trainer.limit_train_batches=0",
    "lightning.trainer.fast_dev_run=true",
    "lightning.trainer.gradient_clip_val=-1",
    "lightning.trainer.deterministic=maybe",
    "lightning.trainer.val_check_interval=0",
    "lightning.trainer.default_root_dir=/elsewhere",
    "seed=-1",
    "data.params.condition_dropout=1",
    "data.params.neighbours=100",
    "model.params.drop_all=1",
    "name=../elsewhere",
    "name=/elsewhere",
    "data.params.target=null",
    "data.target=torch.optim.AdamW",
    "model.target=ldm.data.datamodule.ContrastDataModule",
    "lightning.callbacks.ema.target=torch.optim.AdamW",
]


SLOTS = ["model.params." + name for name in ("first_stage", "schedule", "timesteps", "anchor")]
SLOTS += ["model.params.optimizer", "data.params.normaliser", "data.params.augmentation"]
STRANGERS = ["torch.nn.Identity", "collections.OrderedDict", "datetime.date"]
STRANGERS += ["ldm.data.normalise.RobustNormaliser", "ldm.data.augmentation.SliceAugmentation"]
STRANGERS += ["torch.optim.SGD", "ldm.models.diffusion.schedule.NoiseSchedule"]


@pytest.mark.parametrize("slot", SLOTS)
def test_se_08_a_class_that_is_not_for_its_place_is_named(slot):
    """Through what builds it: before any data, but for the augmentation."""
    config = load_config(["configs/backbone/unet_tiny.yaml"], ["data.params.root=x"])
    section, _, name = slot.partition(".params.")
    own = (config[section]["params"].get(f"{name}_config") or {}).get("target", "")
    refused = 0
    for stranger in STRANGERS:
        if stranger.rpartition(".")[0] == own.rpartition(".")[0]:
            continue
        given = [f"{slot}_config={{target: {stranger}}}", "model.params.subtract=null"]
        with pytest.raises(ConfigError) as error:
            changed = load_config(["configs/backbone/unet_tiny.yaml"], given)
            model = build_model(changed)
            model.new_optimizer()
            data = instantiate_from_config(changed["data"], where="data")
            data.augmentation()
        assert error.value.code in ("CONFIG-TARGET", "CONFIG-VALUE", "CONFIG-UNKNOWN")
        assert f"{slot}_config" in error.value.message
        refused += 1
    assert refused > 4


@pytest.mark.parametrize("override", WRONG)
def test_cf_03_a_value_that_cannot_be_meant(dsdiff, tmp_path, patients, override):
    config = ("configs/backbone/unet_tiny.yaml", f"data.params.root={patients}", STEPS, override)
    code, line = dsdiff("train", *config, "--output", tmp_path / "run")
    assert code == 2
    assert "CONFIG-" in line
    node, _, named = override.partition("=")[0].rpartition(".")
    assert named in line or node.removesuffix(".params") in line.partition("CONFIG-")[2]
    assert not (tmp_path / "run").exists()


def test_cf_09_steps_that_the_schedule_does_not_have(dsdiff, tmp_path, patients):
    """It trains, and would fail only when it samples."""
    wrong = "model.params.sampling_steps=1001"
    config = ("configs/backbone/unet_tiny.yaml", f"data.params.root={patients}", STEPS, wrong)
    code, line = dsdiff("train", *config, "--output", tmp_path / "run")
    assert (code, "1001" in line) == (2, True)
    assert not (tmp_path / "run").exists()


def numbers(node, trail=()):
    """Yield (name of the parameter, number) of everything in a YAML."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from numbers(value, (*trail, key))
    elif isinstance(node, list):
        for value in node:
            yield from numbers(value, trail)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield trail, node


# of a benchmark's plan, which checks its own; and shares of a split, which are checked there
ELSEWHERE = {"seeds", "timing", "budget", "sampling", "val", "train", "test", "spacing"}
ELSEWHERE |= {"age", "likeness", "max_steps", "steps", "max_time", "devices", "samples", "rows"}


def test_cf_03_every_shipped_number_has_a_range_and_lies_in_it():
    seen = 0
    for path in sorted(config_root().rglob("*.yaml")):
        for trail, value in numbers(yaml.safe_load(path.read_text())):
            name = trail[-1]
            if "params" in trail and name not in ELSEWHERE:
                assert name in RANGES, f"{path.name}: {'.'.join(map(str, trail))}"
                assert value in RANGES[name], f"{path.name}: {name}={value}"
                seen += 1
    assert seen > 100


@pytest.mark.parametrize("value", [0, -1, float("nan"), [1, 0]])
def test_cf_03_a_range_says_what_it_takes(value):
    with pytest.raises(ConfigError, match=re.escape("a.lr is ")) as refused:
        check_ranges({"lr": value}, "a")
    assert "give above 0" in str(refused.value)
    check_ranges({"lr": 1e-9, "unknown": -5}, "a")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--device", "cuda:99"), "device is 'cuda:99', which is not here"),
        (("--device", "foo"), "device is 'foo'"),
        (("--device", "meta"), "device is 'meta'"),
        (("--steps", "1001", "--temperature", "0"), "1001 sampling steps"),
        (("--temperature", "inf"), "temperature is inf"),
        (("--temperature", "-1"), "temperature is -1.0"),
        (("--rescale", "2"), "rescale is 2.0"),
        (("--rescale", "-0.5"), "rescale is -0.5"),
        (("--eta", "-1"), "eta is -1.0"),
        (("--temperature", "nan"), "temperature is nan"),
    ],
)
def test_ex_04_an_option_that_cannot_be_meant(dsdiff, tmp_path, patients, run_folder, option, said):
    given = ("--input", patients, "--output", tmp_path / "out", "--steps", "1")
    code, line = dsdiff("sample", run_folder, *given, *option)
    assert (code, said in line) == (2, True), line
    assert not list(Path(tmp_path).glob("out/*.nii.gz"))


@pytest.mark.parametrize("text", ["12:30", "0123", "1:30:00"])
def test_cf_04_what_yaml_reads_as_another_number_is_refused(dsdiff, tmp_path, text):
    (tmp_path / "a.yaml").write_text(
        f"base: configs/backbone/unet_tiny.yaml\ndata:\n  params:\n    batch_size: {text}\n"
    )
    code, line = dsdiff("train", tmp_path / "a.yaml", "data.params.root=x", STEPS)
    assert code == 2
    assert f"CONFIG-VALUE: a.yaml line 4: {text} is read as" in line and "in quotes" in line


@pytest.mark.parametrize("override", ["batch_size=12:30", "train=[P1,0123]", "image_size=1:30:00"])
def test_cf_04_nor_is_it_taken_on_the_command_line(dsdiff, tmp_path, override):
    config = ("configs/backbone/unet_tiny.yaml", "data.params.root=x", STEPS)
    code, line = dsdiff("train", *config, f"data.params.{override}", "--output", tmp_path / "run")
    assert code == 2
    assert f"CONFIG-VALUE: data.params.{override}: " in line and "in quotes" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["on", "off", "no", "yes"])
def test_cf_04_a_word_that_yaml_takes_for_a_switch_is_no_name_and_no_number(dsdiff, value):
    config = ("configs/backbone/unet_tiny.yaml", "data.params.root=x", STEPS)
    for override in (f"data.params.train=[{value}]", f"name={value}", f"data.params.fold={value}"):
        code, line = dsdiff("train", *config, override)
        assert (code, "CONFIG-VALUE" in line) == (2, True), (override, line)


def test_cf_04_what_is_quoted_or_grouped_is_read_as_it_is_meant():
    from ldm.config import merge_config

    wanted = {"data": {"a": 1000, "b": ["0123", "12:30"], "c": 1e-4, "d": "08"}}
    overrides = ["data.a=1_000", "data.b=['0123',\"12:30\"]", "data.c=1e-4", "data.d=08"]
    assert merge_config([], overrides) == wanted
