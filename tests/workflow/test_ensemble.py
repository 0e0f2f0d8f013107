"""Several runs as one model: its answer is the mean of theirs, and it is a model like any other."""

import json
import re

import pytest
import torch

import ldm
from ldm.checkpoint import load_model
from ldm.cli.main import main
from ldm.data.seen import read_seen
from ldm.errors import CheckpointError
from ldm.models.diffusion.ensemble import Ensemble
from ldm.models.prior import EnhancementPrior
from ldm.util import with_params

STEPS = "lightning.trainer.max_steps=2"
ONE = "data.params.train=[Phantom_000{}]"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, train):
    """Two runs of one U-Net on a patient each, and a DiT."""
    folder = tmp_path_factory.mktemp("members")
    for seed in (1, 2):
        assert train(folder / f"unet-{seed}", STEPS, f"seed={seed}", ONE.format(seed)) == 0
    assert train(folder / "dit", "configs/backbone/dit_tiny.yaml", STEPS) == 0
    return [folder / "unet-1", folder / "unet-2", folder / "dit"]


@pytest.fixture(scope="module")
def joined(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensembles") / "all"
    assert main(["ensemble", *map(str, runs), "--output", str(folder)]) == 0
    return folder


def mean_of_one_call(model, patients):
    """Of the network alone: a prior is cut off where it is certain."""
    volumes = ldm.Synthesiser.load(model, precision="32", enhancement=0).volumes(
        patients, ["Phantom_0003"], temperature=0
    )
    return torch.as_tensor(next(volumes).volume)


def test_at_temperature_0_it_is_the_mean_of_the_volumes(runs, joined, patients):
    """Inside the range of the images, where none of the answers was cut off."""
    volumes = torch.stack([mean_of_one_call(run, patients) for run in runs])
    torch.testing.assert_close(
        mean_of_one_call(joined, patients), volumes.mean(dim=0), rtol=1e-3, atol=1e-2
    )
    assert (volumes[0] - volumes[1]).abs().max() > 0.1


def test_the_network_is_the_mean_of_the_networks_at_every_timestep(runs, joined):
    models = [load_model(path).model for path in (joined, *runs)]
    inputs = [torch.randn(2, *x.shape[1:]) for x in models[0].network_inputs(2)]
    with torch.no_grad():
        for t in (0, 500, 999):
            inputs[1] = torch.full((2,), t)
            mean, *outputs = (model.network(*inputs) for model in models)
            torch.testing.assert_close(mean, torch.stack(outputs).mean(dim=0))


def test_its_prior_is_the_mean_of_theirs(runs, joined):
    mean, *own = (load_model(path).model.prior.coefficients for path in (joined, *runs))
    torch.testing.assert_close(mean, torch.stack(own).mean(dim=0))
    assert not own[0].equal(own[1])  # fitted to a patient each


def test_a_run_whose_prior_found_nothing_leaves_that_of_the_others(
    runs, train, tmp_path, monkeypatch
):
    with monkeypatch.context() as nothing_is_abnormal:
        nothing_is_abnormal.setattr(EnhancementPrior, "fit", lambda self, data: None)
        assert train(tmp_path / "empty", STEPS, "seed=4", ONE.format(1)) == 0
    joined = ldm.ensemble([tmp_path / "empty", runs[0]], tmp_path / "both")
    prior, own = (load_model(path).model.prior.state_dict() for path in (joined, runs[0]))
    assert all(prior[name].equal(own[name]) for name in own)


def test_it_has_seen_whom_any_of_them_has_seen(joined, runs):
    assert {"Phantom_0001"} == read_seen(runs[0]).keys()
    assert {"Phantom_0001", "Phantom_0002"} == read_seen(joined).keys()


@pytest.mark.parametrize(
    "verb",
    [
        ["sample", "{model}", "--input", "{patients}", "--samples", "2", "--steps", "2"],
        ["export", "{model}"],
        ["distill", "{model}", "--steps", "1", "data.params.root={patients}", STEPS],
        ["train", "--from", "{model}", "data.params.root={patients}", STEPS],
    ],
    ids=lambda words: words[0],
)
def test_other_verbs_take_it_for_a_run(verb, joined, patients, tmp_path):
    told = [w.format(model=joined, patients=patients) for w in verb]
    assert main([*told, "--output", str(tmp_path / "out")]) == 0


def test_a_run_joins_once(runs, tmp_path, capsys):
    assert main(["ensemble", *map(str, [*runs, runs[0]]), "--output", str(tmp_path / "out")]) == 4
    assert "unet-1 has the weights of" in capsys.readouterr().err
    assert main(["ensemble", str(runs[0]), "--output", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_an_ensemble_is_no_member_and_is_replaced_only_when_asked(joined, runs, tmp_path, capsys):
    """In an ensemble of ensembles a run would count twice."""
    assert main(["ensemble", str(joined), str(runs[0]), "--output", str(tmp_path / "out")]) == 4
    assert f"{joined} is an ensemble: give the runs" in capsys.readouterr().err
    again = ["ensemble", *map(str, runs), "--output", str(joined)]
    assert main(again) == 5
    assert "OUT-EXISTS" in capsys.readouterr().err
    assert main([*again, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("data.params.conditions=[t1,flair]", "data.params.conditions"),
        ("model.params.gain=4.0", "model.params.gain=4.0"),
        ("model.params.mean_share=0", "one has learned its mean"),
        ("configs/backbone/unet_crossattn_tiny.yaml", "model.params.cond_stage_config"),
        ("configs/preprocessing/zscore.yaml", "data.params.normaliser_config"),
        ("configs/process/residual.yaml", "model.params.anchor_config"),
    ],
)
def test_runs_that_answer_another_question_are_refused(other, said, runs, train, tmp_path):
    assert train(tmp_path / "other", STEPS, other) == 0
    with pytest.raises(CheckpointError, match=re.escape(said)):
        ldm.ensemble([runs[0], tmp_path / "other"], tmp_path / "out")


def test_what_is_fitted_beside_the_network_must_be_one(train, tmp_path):
    """The anchor of each is the regression on its own patient."""
    for seed in (1, 2):
        files = ["configs/process/residual.yaml", ONE.format(seed)]
        assert train(tmp_path / f"run-{seed}", STEPS, *files) == 0
    with pytest.raises(CheckpointError, match=r"another anchor\.coefficients"):
        ldm.ensemble([tmp_path / "run-1", tmp_path / "run-2"], tmp_path / "out")


def test_a_segmenter_is_no_member(runs, segmenter_run, tmp_path, capsys):
    told = ["ensemble", str(runs[0]), str(segmenter_run), "--output", str(tmp_path / "out")]
    assert main(told) == 4
    assert "synthesises nothing" in capsys.readouterr().err


def test_its_configuration_says_what_it_is(joined, runs):
    from omegaconf import OmegaConf

    network = OmegaConf.load(joined / "config.yaml").model.params.unet_config
    targets = [member.target.rpartition(".")[2] for member in network.params.members]
    assert targets == ["UNetModel", "UNetModel", "DiT"]
    assert json.loads((joined / "subjects.json").read_text())["untold"] == []


def test_members_of_volumes_pad_each_axis_as_all_of_them_need():
    """The U-Net of volumes keeps its slices, so its divisor is one for each axis."""
    unet = {
        "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "params": {"model_channels": 32, "num_res_blocks": 1, "attention_resolutions": []},
    }
    members = [with_params(unet, {"channel_mult": mult}) for mult in ([1, 1], [1, 1, 1])]
    network = Ensemble(members, 4, 1, image_size=[4, 8, 8], dims=3)
    assert network.size_divisor == (1, 4, 4)
    assert network(torch.zeros(1, 4, 3, 8, 8), torch.zeros(1)).shape == (1, 1, 3, 8, 8)
