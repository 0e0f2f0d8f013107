"""Configuration: merged in order, typed or refused, and never a way to run foreign code."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm.checkpoint import read_run_config
from ldm.config import (
    config_root,
    find_config,
    load_config,
    merge_config,
    read_yaml,
    save_config,
    trusted_targets,
    validate,
)
from ldm.config_arguments import admits, validate_arguments
from ldm.errors import MAX_LINE, ConfigError, DsdiffError, UnsafeError, on_the_command_line
from ldm.util import (
    get_obj_from_str,
    image_sides,
    instantiate_from_config,
    nearest,
    refuse_untrusted_targets,
    targets_in,
)

TINY = "configs/backbone/unet_tiny.yaml"


def refusal(call, *args, **options) -> DsdiffError:
    with pytest.raises(DsdiffError) as caught:
        call(*args, **options)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) <= MAX_LINE
    return caught.value


def yaml_file(tmp_path: Path, text: str | bytes, name: str = "a.yaml") -> Path:
    content = text if isinstance(text, bytes) else textwrap.dedent(text).encode()
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def merged(tmp_path: Path, text: str, *overrides: str) -> dict[str, Any]:
    return merge_config([yaml_file(tmp_path, text)], overrides)


# --- Reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\nseed: 2\n", " line 2: found duplicate key seed"),
        ("model:\n  a: 1\n  a: 2\n", " line 3: found duplicate key a"),
        ("model:\n\tparams: 1\n", " line 2: found character '\\t'"),
        ("model: [1, 2\n", " line 2: "),
        ("a: 1\n---\nb: 2\n", " line 2: "),
        (b"\xff\xfe\x00", ": 'utf-8' codec"),
        ("seed: 0b_\n", ": invalid literal for int"),
        ("", ": no mapping|holds no mapping"),
        ("# nothing\n", "holds no mapping"),
        ("- a\n- b\n", "holds no mapping"),
        ("just words\n", "holds no mapping"),
    ],
)
def test_what_is_no_plain_mapping_is_refused_with_its_line(tmp_path, text, line):
    error = refusal(read_yaml, yaml_file(tmp_path, text))
    assert (error.code, error.exit_code) == ("CONFIG-PARSE", 2)
    assert any(part in error.message for part in line.split("|"))


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    assert merged(tmp_path, "\ufeffname: run\n") == {"name": "run"}


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch canary']\n",
        "name: !!python/name:os.system\n",
        "name: !!binary aGVsbG8=\n",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
        "name: " + "[" * 10_000 + "]" * 10_000 + "\n",
        "name: x\n" + "# filling\n" * 1_000_000,  # 10 MB
    ],
    ids=["apply", "name", "binary", "aliases", "depth", "size"],
)
def test_yaml_that_is_a_weapon_is_refused_at_once(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    path = yaml_file(tmp_path, text)
    started = time.process_time()
    error = refusal(read_yaml, path)
    assert time.process_time() - started < 10  # an alias bomb would take for ever
    assert (error.code, error.exit_code) == ("UNSAFE-YAML", 10)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "value",
    [
        '"${oc.env:SECRET}"',
        '"${ oc.env:SECRET }"',
        '"\\x24{oc.env:SECRET}"',
        '"${${name}.env:SECRET}"',
        '"x${oc.decode:${oc.env:SECRET}}"',
    ],
)
def test_the_environment_never_enters_a_config(tmp_path, monkeypatch, value):
    monkeypatch.setenv("SECRET", "s3cret")
    for text, overrides in [
        (f"name: oc\nmodel:\n  params: {value}\n", []),
        (f"name: oc\nmodel: [{{a: {value}}}]\n", []),
        (f"name: oc\nbase: {value}\n", []),
        ("name: oc\n", [f"model={value}"]),
    ]:
        error = refusal(merged, tmp_path, text, *overrides)
        assert (error.code, error.exit_code) == ("CONFIG-RESOLVER", 10)
        assert "s3cret" not in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: ???\n", "seed: Missing mandatory value"),
        ("model: {a: [1, {b: '???'}]}\n", "model.a[1].b: Missing mandatory value"),
        ("seed: ${nowhere}\n", "Interpolation key 'nowhere' not found"),
        ("seed: ${name}\nname: ${seed}\n", "Recursive interpolation"),
    ],
)
def test_a_value_left_open_is_named(tmp_path, text, said):
    error = refusal(merged, tmp_path, text)
    assert error.code == "CONFIG-PARSE"
    assert said in error.message


# --- Merging --------------------------------------------------------------------------------------


def test_files_merge_left_to_right_then_overrides(tmp_path):
    first = yaml_file(tmp_path, "name: a\nmodel: {x: 1, y: [1, 2]}\n", "1.yaml")
    second = yaml_file(tmp_path, "model: {y: [3], z: '${name}'}\n", "2.yaml")
    assert merge_config([first, second], ["model.x=5", "name=b"]) == {
        "name": "b",
        "model": {"x": 5, "y": [3], "z": "b"},
    }


def test_bases_come_before_the_file_and_are_found_beside_it(tmp_path):
    (tmp_path / "sub").mkdir()
    yaml_file(tmp_path, "name: root\nseed: 1\nmodel: {a: 1}\n", "root.yaml")
    yaml_file(tmp_path, "base: ../root.yaml\nseed: 2\n", "sub/middle.yaml")
    yaml_file(tmp_path, "model: {c: 3}\n", "sub/other.yaml")
    top = yaml_file(tmp_path, "base: [middle.yaml, other.yaml]\nmodel: {b: 2}\n", "sub/top.yaml")
    assert merge_config([top]) == {"name": "root", "seed": 2, "model": {"a": 1, "b": 2, "c": 3}}


def test_a_base_that_leads_back_is_refused(tmp_path):
    yaml_file(tmp_path, "base: b.yaml\n", "a.yaml")
    yaml_file(tmp_path, "base: a.yaml\n", "b.yaml")
    assert "leads back" in refusal(merge_config, [tmp_path / "a.yaml"]).message
    assert "leads back" in refusal(merged, tmp_path, "base: a.yaml\n").message


@pytest.mark.parametrize("base", ["3", "{a: b}", "[1]", "nowhere.yaml"])
def test_a_base_is_a_file(tmp_path, base):
    assert refusal(merged, tmp_path, f"base: {base}\n").exit_code == 2


@pytest.mark.parametrize("by_file", [True, False])
@pytest.mark.parametrize(
    ("target", "kept"),
    [
        ("test_config.Widget", {"size": 8, "width": 2}),  # takes anything
        ("test_config.Strict", {"size": 8}),
        ("test_config.Nothing", {}),  # validation will say that there is no such class
    ],
)
def test_another_class_keeps_the_arguments_that_it_takes_too(tmp_path, by_file, target, kept):
    old = "model: {params: {net: {target: a.Old, params: {size: 8, width: 2}}, other: 1}}\n"
    new = f"model: {{params: {{net: {{target: {target}, params: {{colour: x}}}}}}}}\n"
    base = yaml_file(tmp_path, old, "old.yaml")
    if by_file:
        result = merge_config([base, yaml_file(tmp_path, new, "new.yaml")])
    else:
        path = "model.params.net"
        result = merge_config([base], [f"{path}.target={target}", f"{path}.params.colour=x"])
    net = {"target": target, "params": {**kept, "colour": "x"}}
    assert result == {"model": {"params": {"net": net, "other": 1}}}


def test_an_argument_called_target_is_only_an_argument(tmp_path):
    text = "data: {target: a.Data, params: {target: t1ce, size: 8}}\n"
    params = merged(tmp_path, text, "data.params.target=t2")["data"]["params"]
    assert params == {"target": "t2", "size": 8}


@pytest.mark.parametrize("override", ["name", "=1", "a=[", "a={b", "--a", "a=0b_"])
def test_an_override_is_key_and_value(override):
    error = refusal(merge_config, [TINY], [override])
    assert error.code == "CONFIG-PARSE"
    assert override in error.message


@given(st.text("ab.[]{}=:,$?!*&-0 \n\t'\"#", max_size=12))
def test_any_override_is_taken_or_refused_in_one_line(override):
    try:
        merge_config([TINY], [override])
    except DsdiffError as error:
        assert str(error).isprintable()


def test_shipped_files_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(TINY) == config_root() / "backbone" / "unet_tiny.yaml"
    yaml_file(tmp_path, "name: mine\n", "base.yaml")
    assert find_config("base.yaml") == Path("base.yaml")  # one's own file comes first
    error = refusal(find_config, "configs/backbone/unet_tny.yaml")
    assert error.code == "CONFIG-MISSING"
    assert "nearest: 'configs/backbone/unet_tiny.yaml'" in error.message


# --- Checking -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    return load_config([TINY])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr_rat=1", "nearest: 'model.params.optimizer_config.params.lr'"),
        ("modle.params.x=1", "nearest: 'model'"),
        ("data.params.batchsize=2", "nearest: 'batch_size'"),
        ("data.parms.batch_size=2", "nearest: 'params'"),
        ("lightning.trainr.max_steps=2", "nearest: 'trainer'"),
        ("lightning.trainer.max_step=2", "nearest: 'max_steps'"),
        ("model.params.unet_config.params.model_channel=8", "nearest: 'model_channels'"),
        ("lightning.callbacks.ema.params.deca=0.9", "nearest: 'decay'"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_name(tiny, override, said):
    error = refusal(load_config, [tiny], [override])
    assert (error.code, error.exit_code) == ("CONFIG-UNKNOWN", 2)
    assert said in error.message


@pytest.mark.parametrize(
    "override",
    [
        "model.params.optimizer_config.params.lr=fast",
        "model.params.optimizer_config.params.lr=.nan",
        "model.params.optimizer_config.params.lr=.inf",
        "model.params.unet_config.params.channel_mult=[1,.nan]",
        "model.params.unet_config.params.channel_mult=[1,b]",
        "model.params.unet_config.params.model_channels=32.5",
        "model.params.unet_config.params=[1]",
        "data.params.batch_size=two",
        "data.params.batch_size=no",
        "data.params.target=no",
        "data.params.conditions=t1",
        "data.params.conditions=[t1,no]",
        "data.params.train=[001]",
        "data.params.image_size=[a,b]",
        "data.params.root=2021",
        "lightning.trainer.max_steps=0",
        "lightning.trainer.max_steps=-5",
        "lightning.trainer.max_steps=many",
        "lightning.trainer.accumulate_grad_batches=-1",
        "lightning.trainer.max_time=12:30",
        "lightning.trainer=[1]",
        "lightning.callbacks=3",
        "lightning=on",
        "name=no",
        "name=12:30",
        "seed=1e4",
        "seed=yes",
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_path(tiny, override):
    key = override.partition("=")[0]
    error = refusal(load_config, [tiny], [override])
    assert (error.code, error.exit_code) == ("CONFIG-VALUE", 2)
    assert key.rpartition(".")[2] in error.message


def test_numbers_that_yaml_1_1_hides_are_typed(tiny):
    changed = load_config(
        [tiny],
        [
            "model.params.optimizer_config.params.lr=1e-4",
            "lightning.trainer.max_time=00:00:10:00",
            "name=08",
            "data.params.train=[a08,b]",
            "data.params.val=1",
        ],
    )
    assert changed["model"]["params"]["optimizer_config"]["params"]["lr"] == 1e-4
    assert changed["lightning"]["trainer"]["max_time"] == "00:00:10:00"
    assert changed["name"] == "08"
    assert changed["data"]["params"]["train"] == ["a08", "b"]


def test_a_callback_is_turned_off_by_null(tiny):
    changed = load_config([tiny], ["lightning.callbacks.samples=null"])
    assert changed["lightning"]["callbacks"]["samples"] is None


@pytest.mark.parametrize("section", ["model", "data"])
def test_a_missing_section_is_named(tiny, section):
    error = refusal(validate, {k: v for k, v in tiny.items() if k != section})
    assert error.code == "CONFIG-MISSING"
    assert f"'{section}'" in error.message


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [1, -3], [True, 1.0, "1", None]),
        (float, [1, 1.5], [True, "1", None]),
        (bool, [True], [1, "yes"]),
        (str, ["a", ""], [1, None, ["a"]]),
        (Path, ["a"], [1]),
        (int | None, [1, None], ["1"]),
        (Optional[Union[int, tuple[int, int]]], [1, None, [1, 2]], [1.5, ["a", "b"]]),  # noqa: UP007, UP045
        (list[str] | float, [["a"], 0.1, []], [[1], "a"]),
        (Literal["a", "b"], ["a", "c"], [1]),
        (dict[str, int], [{"a": 1}], [[1], "a"]),
        (float | torch.Tensor, [0.1], ["fast"]),
        (Any, [1, "a", None, [1]], []),
        (object, [1, "a", None], []),
        (torch.Tensor, [1, "a"], []),  # YAML cannot write one: the class itself will say
    ],
)
def test_annotations_are_held_against_yaml_values(hint, good, bad):
    assert all(admits(hint, value) is not False for value in good)
    assert all(admits(hint, value) is False for value in bad)


class Liar:
    """A foreign class whose annotations are not to be trusted."""

    def __init__(self, size: int = None, name: str = 3, other: "Nowhere" = 0) -> None:  # noqa: F821, RUF013
        pass


def test_a_value_like_the_default_is_right_whatever_the_annotation_says():
    validate_arguments(Liar, {"size": None, "name": 4, "other": "anything"}, "x")
    assert refusal(validate_arguments, Liar, {"size": "a"}, "x").code == "CONFIG-VALUE"


# --- Saving ---------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12).filter(
        lambda s: "${" not in s and s != "???"
    ),
    st.sampled_from(
        ["no", "1e-4", "08", "12:30", "0x1f", "null", "~", "yes", "1_000", "2021-01-01"]
    ),
)
KEYS = st.text("abcdefg_", min_size=1, max_size=5)
TREES = st.recursive(
    SCALARS, lambda s: st.lists(s, max_size=3) | st.dictionaries(KEYS, s, max_size=3), max_leaves=8
)


@given(st.dictionaries(st.sampled_from(["name", "seed", "model", "data"]), TREES, min_size=1))
def test_a_saved_config_is_read_back_identical(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("saved") / "first.yaml"
    save_config(tree, path)
    assert merge_config([path]) == tree
    save_config(merge_config([path]), path.with_name("second.yaml"))
    assert path.with_name("second.yaml").read_bytes() == path.read_bytes()


def test_the_resolved_config_of_a_run_names_no_variable(tiny, tmp_path):
    save_config(tiny, tmp_path / "config.yaml")
    assert "${" not in (tmp_path / "config.yaml").read_text()
    assert load_config([tmp_path / "config.yaml"]) == tiny


# --- Targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("ldm.modules.nowhere.Net", "there is no module 'ldm.modules.nowhere'"),
        ("nowhere.Net", "there is no module 'nowhere'"),
        ("ldm.data.normalise.RobustNormalizer", "nearest: 'RobustNormaliser'"),
        ("Net", "is no dotted path"),
        (".Net", "is no dotted path"),
        ("needs_missing.Net", "needs 'package_that_is_missing', which is not installed"),
        ("breaks.Net", "importing 'breaks' failed: ZeroDivisionError"),
    ],
)
def test_the_ways_a_target_can_fail_are_told_apart(tmp_path, monkeypatch, target, said):
    yaml_file(tmp_path, "import package_that_is_missing\n", "needs_missing.py")
    yaml_file(tmp_path, "1 / 0\n", "breaks.py")
    monkeypatch.syspath_prepend(tmp_path)
    error = refusal(get_obj_from_str, target)
    assert error.code == "CONFIG-TARGET"
    assert said in error.message


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "torch.hub.load", "torch.load", "logging.os.system"]
)
def test_a_function_is_no_class_even_if_the_user_names_it(tiny, target):
    error = refusal(load_config, [tiny], [f"model.params.unet_config.target={target}"])
    assert error.code == "CONFIG-TARGET"
    assert "is not a class" in error.message or "no module 'logging.os'" in error.message


class Widget:
    """Something to build."""

    def __init__(self, size: int, colour: str = "red", **more: Any):
        if size < 0:
            raise ValueError("size is negative")
        self.size, self.colour, self.more = size, colour, more


class Strict:
    """Something to build that takes no other argument."""

    def __init__(self, size: int, colour: str = "red"):
        self.size, self.colour = size, colour


def node(cls: type, **params: Any) -> dict[str, Any]:
    return {"target": f"{__name__}.{cls.__name__}", "params": params}


def test_a_node_becomes_an_object():
    widget = instantiate_from_config(node(Widget, size=3, shade=1), colour="blue")
    assert (widget.size, widget.colour, widget.more) == (3, "blue", {"shade": 1})
    assert instantiate_from_config({"target": "collections.OrderedDict"}) == {}


def test_a_fact_has_one_owner():
    assert instantiate_from_config(node(Strict), interface={"size": 4, "depth": 2}).size == 4
    assert instantiate_from_config(node(Strict, size=4), interface={"size": 4}).size == 4
    error = refusal(instantiate_from_config, node(Strict, size=5), interface={"size": 4})
    assert error.code == "CONFIG-SHAPE"
    assert "config.params.size is 5, but data and model need 4" in error.message


@pytest.mark.parametrize(
    ("config_node", "code", "said"),
    [
        (
            node(Strict, sise=1),
            "CONFIG-UNKNOWN",
            "net.params.sise is not a parameter of Strict (nearest: 'size')",
        ),
        (node(Strict), "CONFIG-VALUE", "net.params.size is required by Strict"),
        (node(Widget, size=-1), "CONFIG-VALUE", "net: Widget refused: size is negative"),
        (node(Widget), "CONFIG-VALUE", "size"),
        ({"target": "a.B", "parms": {}}, "CONFIG-UNKNOWN", "net.parms is not known"),
        ({"target": "a.B", "params": [1]}, "CONFIG-VALUE", "net.params is [1]: give a mapping"),
        ({"params": {}}, "CONFIG-TARGET", "give a mapping with 'target'"),
        ({"x" * 500: 1}, "CONFIG-TARGET", "give a mapping with 'target'"),
        (None, "CONFIG-TARGET", "net is None"),
    ],
)
def test_a_node_that_cannot_be_built_says_why(config_node, code, said):
    error = refusal(instantiate_from_config, config_node, where="net")
    assert error.code == code
    assert said in error.message


def test_sizes_are_a_side_a_pair_or_three_numbers():
    assert image_sides(3) == (3, 3)
    assert image_sides([3, 4]) == (3, 4)
    assert image_sides([1, 2, 3]) == (1, 2, 3)
    for wrong in (0, [1], [1, 2, 3, 4], [0, 4], ["a", "b"], "ab"):
        assert refusal(image_sides, wrong).code == "CONFIG-VALUE"


def test_the_nearest_name_is_given_only_if_it_is_near():
    assert nearest("batchsize", ["batch_size", "seed"]) == " (nearest: 'batch_size')"
    assert nearest("zebra", ["batch_size", "seed"]) == ""


# --- Trust ----------------------------------------------------------------------------------------

EVIL = ["os.system", "builtins.eval", "torch.hub.load", "logging.os.system"]
EVIL += ["torch.optim.Optimizer.load_state_dict", "torch.optim.swa_utils.AveragedModel"]
EVIL += ["ldm.util.instantiate_from_config", "ldm.models.diffusion.ddpm.LatentDiffusion.x"]


def test_the_shipped_classes_are_trusted(tiny):
    refuse_untrusted_targets(tiny, trusted_targets(), "run")
    assert {"ldm.models.diffusion.ddpm.LatentDiffusion", "torch.optim.AdamW"} <= trusted_targets()
    assert "t1ce" not in trusted_targets()


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize(
    "path",
    [
        ("model",),
        ("model", "params", "unet_config"),
        ("model", "params", "optimizer_config"),
        ("data", "params", "augmentation_config"),
        ("lightning", "callbacks", "new"),
        ("anything", "else"),
    ],
)
def test_a_model_folder_cannot_name_another_class_anywhere(tiny, path, evil):
    def with_target(tree, path):
        here = tree if isinstance(tree, dict) else {}
        if not path:
            return {"target": evil, "params": {}}
        return {**here, path[0]: with_target(here.get(path[0]), path[1:])}

    error = refusal(refuse_untrusted_targets, with_target(tiny, path), trusted_targets(), "run")
    assert (error.code, error.exit_code) == ("UNSAFE-TARGET", 10)
    assert evil in error.message
    assert isinstance(error, UnsafeError)


def test_the_user_may_trust_a_class_by_name(tiny):
    changed = {**tiny, "extra": {"target": "my.Net"}}
    refuse_untrusted_targets(changed, trusted_targets(), "run", named={"my.Net"})


def test_all_classes_that_need_trust_are_named_at_once(tiny):
    names = ["my.Net", "my.Loss", "my.Data"]
    parts = [{"target": name} for name in [*names, "my.Net"]]
    error = refusal(refuse_untrusted_targets, {**tiny, "extra": parts}, trusted_targets(), "run")
    assert error.message.endswith(f"if you trust them, add trust={names}")
    with on_the_command_line():
        told = "if you trust them, add --trust my.Net --trust my.Loss --trust my.Data"
        assert error.message.endswith(told)
    refuse_untrusted_targets({"extra": parts}, (), "run", named=names)
    part = refusal(refuse_untrusted_targets, {"a": {"target": "my.Net"}}, (), "run", "my.NetOther")
    assert part.code == "UNSAFE-TARGET"
    refuse_untrusted_targets({"a": {"target": "my.Net"}}, (), "run", "my.Net")


def test_an_argument_called_target_names_no_class():
    data = {"target": "a.Data", "params": {"target": "t2", "part": {"target": "b.Part"}}}
    assert targets_in({"data": [data]}) == ["a.Data", "b.Part"]
    hidden = {"target": "a.Data", "params": {"target": {"target": "os.system"}}}
    assert refusal(refuse_untrusted_targets, hidden, {"a.Data"}, "run").code == "UNSAFE-TARGET"


def test_refusing_imports_nothing(tmp_path):
    yaml_file(tmp_path, "from pathlib import Path\nPath('canary').touch()\n", "payload.py")
    script = """
        import sys
        from ldm.errors import UnsafeError
        from ldm.util import refuse_untrusted_targets
        before = set(sys.modules)
        try:
            refuse_untrusted_targets({"a": [{"target": "payload.Net"}]}, {"torch.nn.Linear"}, "run")
        except UnsafeError as error:
            print(error.exit_code, len(set(sys.modules) - before))
    """
    code = textwrap.dedent(script)
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == ["10", "0"], result.stderr
    assert not (tmp_path / "canary").exists()


# ---- classes of the user, and of a folder that somebody else made ----


def test_a_class_that_is_not_installed_may_lie_in_the_working_directory(tmp_path, monkeypatch):
    """As the console script sees it: the folder is not on the path, and comes last once it is."""
    yaml_file(tmp_path, "class Net: ...\n", "own_net_here.py")
    yaml_file(tmp_path, "raise SystemExit('shadowed')\n", "colorsys.py")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(Path.cwd()))])
    before = list(sys.path)
    assert "there is no module" in refusal(get_obj_from_str, "own_net_here.Net").message
    monkeypatch.chdir(tmp_path)
    get_obj_from_str("colorsys.rgb_to_hsv")
    assert sys.path == before
    assert get_obj_from_str("own_net_here.Net").__name__ == "Net"
    assert sys.path == [*before, str(tmp_path)]


def test_a_run_folder_imports_nothing_before_its_classes_are_trusted(tmp_path, monkeypatch):
    """A ``base`` with another target would import that target when the two are merged."""
    yaml_file(tmp_path, "from pathlib import Path\nPath('canary').touch()\n", "payload_of_run.py")
    text = "base: configs/base.yaml\nmodel: {target: payload_of_run.Net}\n"
    yaml_file(tmp_path, text, "config.yaml")
    monkeypatch.chdir(tmp_path)
    assert refusal(read_run_config, tmp_path).code == "CONFIG-UNKNOWN"
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=3", "data.params.val=[a,b]"],
        {"seed": 3, "data.params.val": ["a", "b"]},
        iter(["seed=3", "data.params.val=[a,b]"]),
    ],
)
def test_overrides_are_words_or_a_mapping(overrides):
    config = load_config([TINY], overrides)
    assert (config["seed"], config["data"]["params"]["val"]) == (3, ["a", "b"])


def test_one_override_is_a_word_and_a_mapping_holds_any_value():
    assert load_config([TINY], "name=mine")["name"] == "mine"
    assert load_config([TINY], None) == load_config([TINY])
    told = {"data.params.root": Path("a b"), "model.params.prior_config": None}
    told |= {"model.params.optimizer_config.params.lr": 1e-5}
    config = load_config([TINY], told)
    assert config["data"]["params"]["root"] == "a b"
    assert config["model"]["params"]["prior_config"] is None
    assert config["model"]["params"]["optimizer_config"]["params"]["lr"] == 1e-5


@pytest.mark.parametrize("overrides", [5, [3], [{"seed": 3}]])
def test_what_is_no_override_is_refused(overrides):
    with pytest.raises(ConfigError, match="CONFIG-PARSE: an override is"):
        load_config([TINY], overrides)
