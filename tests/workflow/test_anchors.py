"""Two-stage methods by YAML: train, resume and sample as any other run."""

import shutil

import pytest
import torch
from omegaconf import OmegaConf

from ldm.checkpoint import load_model
from ldm.cli.main import main
from ldm.data.seen import read_seen

STEPS = "lightning.trainer.max_steps={}"


def sample(model, patients, output, *options):
    subject = ["--subjects", "Phantom_0003", "--input", str(patients)]
    assert main(["sample", str(model), *subject, "--output", str(output), *options]) == 0
    return (output / "Phantom_0003_t1ce.nii.gz").read_bytes()


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_flow_from_the_mean_of_a_run_needs_that_run_no_more(
    tmp_path, train, weights, patients, dims
):
    """Cut after two of four steps, the first run deleted: the same weights, and it samples."""
    shape = ["data.params.image_size=[8,32,32]", "data.params.augmentation_config=null"]
    files = [*(shape if dims == 3 else ()), "data.params.train=[Phantom_0001]"]
    mean, flow = tmp_path / "mean", ["configs/process/posterior_mean_flow.yaml"]
    assert train(mean, "configs/regression.yaml", STEPS.format(1), *files) == 0
    flow += [f"model.params.anchor_config.params.path={mean}", *files]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, *flow, STEPS.format(4)) == 0
    assert train(parts, *flow, STEPS.format(2)) == 0
    shutil.rmtree(mean)
    assert main(["train", "--resume", str(parts), STEPS.format(4)]) == 0
    assert weights(parts) == weights(whole)
    assert "path" not in OmegaConf.load(parts / "config.yaml").model.params.anchor_config.params
    assert "Phantom_0001" in read_seen(parts)
    samples = {t: sample(parts, patients, tmp_path / t, "--temperature", t) for t in ("0", "1")}
    assert samples["0"] != samples["1"]


def test_the_residual_to_the_regression_is_fitted_once_and_resumed(
    tmp_path, train, weights, patients
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    residual = ["configs/process/residual.yaml", "data.params.neighbours=1"]
    assert train(whole, *residual, STEPS.format(4)) == 0
    assert train(parts, *residual, STEPS.format(2)) == 0
    assert main(["train", "--resume", str(parts), STEPS.format(4)]) == 0
    assert weights(parts) == weights(whole)
    assert sample(whole, patients, tmp_path / "samples")


def test_an_anchor_that_is_named_is_the_one_that_is_subtracted(tmp_path, train):
    """A flow goes on from another flow, about the mean of another run."""
    first, second, flow = (tmp_path / name for name in ("first", "second", "flow"))
    files = "configs/process/posterior_mean_flow.yaml"
    path = "model.params.anchor_config.params.path={}"
    for seed, mean in enumerate((first, second)):
        assert train(mean, "configs/regression.yaml", STEPS.format(1), f"seed={seed}") == 0
    assert train(flow, files, path.format(first), STEPS.format(1)) == 0
    begun = [files, path.format(second), STEPS.format(1), "--from", str(flow)]
    assert train(tmp_path / "again", *begun) == 0
    kept = load_model(tmp_path / "again").model.anchor.model.state_dict()
    for name, weight in load_model(second).model.state_dict().items():
        torch.testing.assert_close(kept[name], weight)
