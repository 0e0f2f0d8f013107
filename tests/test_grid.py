"""The grid of a benchmark: which cells there are, what they are called, what a budget pays for."""

from pathlib import Path

import pytest

from ldm.benchmark.plan import plan_cells, plan_trainings, step_flops
from ldm.cost.network import count_flops, training_flops
from ldm.errors import CheckpointError, ConfigError
from ldm.storage import write_json
from ldm.study import build_model
from ldm.util import instantiate_from_config

OUT = Path("out")
TINY = "configs/backbone/unet_tiny.yaml"
ONE = {"rows": {"unet": {"config": TINY}}, "baselines": []}


def names(plan):
    return [cell.name for cell in plan_cells({**ONE, **plan}, OUT)]


def trainer(plan):
    return plan_trainings({**ONE, **plan}, OUT)[0].config["lightning"]["trainer"]


def test_names_hold_only_the_axes_that_vary():
    one = {"sampler": "ddim", "steps": 5}
    assert names({"sampling": one}) == ["unet"]
    assert names({"sampling": {**one, "steps": [5, 20]}}) == ["unet · steps 5", "unet · steps 20"]
    samplers = {**one, "sampler": ["ddim", "dpmpp_2m"]}
    assert names({"sampling": samplers}) == ["unet · ddim", "unet · dpmpp_2m"]
    both = {**samplers, "steps": [5, 20]}
    assert names({"sampling": both})[:2] == ["unet · ddim 5", "unet · ddim 20"]
    assert names({"seeds": [3, 4]}) == ["unet · seed 3", "unet · seed 4"]
    assert names({"sampling": {"temperature": [0, 1]}})[1] == "unet · temperature 1"


def test_numbers_go_through_all_trainings_first():
    """So that the first tasks of a job array train, and none waits for the training of another."""
    plan = {**ONE, "seeds": [0, 1], "sampling": {"steps": [5, 20]}, "baselines": ["linear"]}
    cells = sorted(plan_cells(plan, OUT), key=lambda cell: cell.number)
    assert [cell.number for cell in cells] == [0, 1, 2, 3, 4]
    assert [cell.name for cell in cells] == [
        *("unet · steps 5 · seed 0", "unet · steps 5 · seed 1"),
        *("unet · steps 20 · seed 0", "unet · steps 20 · seed 1"),
        "linear",
    ]
    assert [cell.is_timed for cell in cells] == [True, False, True, False, False]


def test_a_wider_grid_keeps_the_folders():
    narrow = plan_cells({**ONE, "sampling": {"sampler": "ddim", "steps": 5}}, OUT)
    axes = {"sampling": {"sampler": ["ddim", "unipc_3"], "steps": [2, 5]}, "seeds": [0, 1]}
    wide = plan_cells({**ONE, **axes, "spaces": {"pixel": None}}, OUT)
    assert narrow[0].folder in [cell.folder for cell in wide]
    assert len({cell.folder for cell in wide}) == len(wide) == 8


def test_a_value_added_to_any_option_keeps_the_folders(tmp_path):
    """Also of an option that no folder was named by while it had one value."""

    def folders(temperature):
        sampling = {"steps": 5, "temperature": temperature}
        found = plan_cells({**ONE, "sampling": sampling}, tmp_path)
        return {cell.sampling["temperature"]: cell.folder for cell in found}

    def finish(folder, temperature):
        sampling = {"steps": 5, "temperature": temperature}
        write_json(folder / "cell.json", {"state": "done", "request": {"sampling": sampling}})

    one = folders(0)
    finish(one[0], 0)
    more = folders([0, 1])
    assert more[0] == one[0] != more[1]
    finish(more[1], 1)
    assert folders([1, 2])[1] == folders(1)[1] == more[1]  # also where a value is taken away
    assert len(set(folders([2, 0, 1]).values())) == 3
    assert folders(0) == one


def test_one_step_regression_is_sampled_once():
    plan = {**ONE, "regression_of": "unet", "sampling": {"steps": [1, 2, 4]}}
    assert names(plan)[-1] == "unet-one-step"
    assert len(names(plan)) == 4


def test_latent_space_is_the_row_behind_a_first_stage():
    plan = {**ONE, "spaces": {"pixel": None, "latent": "runs/ae"}}
    pixel, latent = plan_trainings(plan, OUT)
    assert [t.label(several_spaces=True) for t in (pixel, latent)] == [
        "unet · pixel",
        "unet · latent",
    ]
    first_stage = latent.config["model"]["params"]["first_stage_config"]
    assert first_stage["target"].endswith("TrainedFirstStage")
    assert first_stage["params"] == {"path": "runs/ae"}
    assert pixel.config["model"]["params"]["first_stage_config"]["target"].endswith(
        "IdentityFirstStage"
    )
    assert pixel.folder != latent.folder
    with pytest.raises(CheckpointError, match="rows.unet: runs/ae is no run folder"):
        plan_cells(plan, OUT)  # before any training


def test_a_path_of_the_home_folder_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text(f"base: {TINY}\n")
    (training,) = plan_trainings({**ONE, "rows": {"own": {"config": "~/own.yaml"}}}, OUT)
    assert training.row == "own"
    with pytest.raises(ConfigError, match=f"{tmp_path}/run is no run folder"):
        plan_trainings({**ONE, "rows": {"given": {"run": "~/run"}}}, OUT)


def test_seed_reaches_weights_noise_and_order():
    for seed, training in zip((5, 6), plan_trainings({**ONE, "seeds": [5, 6]}, OUT), strict=True):
        assert training.config["seed"] == seed
        assert training.config["model"]["params"]["seed"] == seed
        assert training.config["data"]["params"]["seed"] == seed


def test_budget_of_steps_and_seconds():
    assert trainer({"budget": {"steps": 2000}})["max_steps"] == 2000
    timed = trainer({"budget": {"seconds": 90061}})
    assert (timed["max_steps"], timed["max_time"]) == (-1, "01:01:01:01")
    assert trainer({"budget": {"seconds": None, "steps": 7}})["max_steps"] == 7
    own = {"lightning": {"trainer": {"max_steps": 9}}}
    assert trainer({"budget": {"steps": None}, **own})["max_steps"] == 9


def test_budget_of_flops_pays_for_whole_steps():
    """A step is three forwards, an image of the batch each."""
    training = plan_trainings(ONE, OUT)[0]
    data = instantiate_from_config(training.config["data"])
    model = build_model(training.config)
    forward = count_flops(model.network, *model.network_inputs())
    cost = step_flops(training.config)
    assert cost == 3 * forward * data.batch_size == training_flops(forward, data.batch_size, 1)
    assert trainer({"budget": {"flops": 7.9 * cost}})["max_steps"] == 7
    with pytest.raises(ConfigError, match="enough for one"):
        trainer({"budget": {"flops": 0.5 * cost}})


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"rows": {}}, "rows: name at least one"),
        ({"rows": {"unet": None}}, "all are null"),
        ({"rows": {"a/b": {"config": TINY}}}, "becomes a folder"),
        ({"rows": {"a": {"confg": TINY}}}, "give config and overrides, or run"),
        ({"rows": {"a": {"run": "nowhere"}}}, "nowhere is no run folder"),
        ({"budget": {"steps": 2, "seconds": 3}}, "give one of"),
        ({"budget": {"hours": 2}}, "give one of"),
        ({"budget": 2000}, "give one of"),
        (
            {"budget": {"steps": 2}, "lightning": {"trainer": {"max_steps": 9}}},
            "budget.steps and lightning.trainer.max_steps both",
        ),
        (
            {
                "budget": {"steps": 2},
                "rows": {"a": {"config": TINY, "overrides": ["lightning.trainer.max_steps=9"]}},
            },
            "rows.a.overrides set lightning.trainer.max_steps",
        ),
        (
            {"rows": {"a": {"config": "configs/segmentation/attention_unet_tiny.yaml"}}},
            "a is a Segmentation, which synthesises nothing",
        ),
        ({"seeds": []}, "give whole numbers"),
        ({"seeds": 3}, "give whole numbers"),
        ({"sampling": {"steps": []}}, "a list is empty"),
        ({"baselines": ["linera"]}, "nearest: 'linear'"),
        ({"spaces": ["latent"]}, "give {pixel: null"),
    ],
)
def test_a_wrong_plan_says_what_to_give(plan, message):
    with pytest.raises(ConfigError, match=message):
        plan_cells({**ONE, **plan}, OUT)
