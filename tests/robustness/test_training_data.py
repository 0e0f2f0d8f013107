"""TR-08 and TR-16: few patients end as they should; nothing but the seed decides a training."""

import pytest

STEPS = "lightning.trainer.max_steps=4"


@pytest.mark.parametrize(
    ("split", "code"),
    [
        (["train=[Phantom_0001]", "val=[]"], 0),
        (["train=[Phantom_0001]", "val=null"], 0),
        (["train=[]", "val=[Phantom_0003]"], 3),
    ],
    ids=["one", "no validation", "none"],
)
def test_tr_08_few_patients(tmp_path, train, split, code, capsys):
    options = [f"data.params.{part}" for part in split]
    assert train(tmp_path / "run", "lightning.trainer.max_steps=1", *options) == code
    assert (tmp_path / "run/model.safetensors").exists() == (code == 0)
    assert ("error DATA-" in capsys.readouterr().err) == (code == 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_tr_16_seed_and_workers_decide_nothing_else(tmp_path, train, weights, run_folder, workers):
    """``run_folder`` is of the same seed, and without workers."""
    count = f"data.params.num_workers={workers}"
    assert train(tmp_path / "run", STEPS, count) == 0
    assert weights(tmp_path / "run") == weights(run_folder)
    assert train(tmp_path / "other", STEPS, count, "seed=1") == 0
    assert weights(tmp_path / "other") != weights(run_folder)
