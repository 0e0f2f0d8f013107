"""Whole heads at another spacing, end to end: no air is written, and no training data is needed."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from builders import INPUTS, write_subject
from scipy import ndimage
from test_brain import VOXEL, whole_head

from ldm import evaluate
from ldm.cli.main import main
from ldm.config import read_saved_config

AFFINE = np.diag([-VOXEL, -VOXEL, VOXEL, 1.0])


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Three whole-head patients and where the head of each is, as stored."""
    folder, truth = tmp_path_factory.mktemp("heads"), {}
    for number in range(3):
        volumes, head = whole_head(number)
        subject = f"Head_{number}"
        write_subject(folder, subject, [*volumes], affine=AFFINE, images=volumes)
        truth[subject] = head
    return folder, truth


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, train, heads):
    """Trained on two, with learned landmarks; sampled where only the inputs of the third lie."""
    root, run = heads[0], tmp_path_factory.mktemp("runs") / "run"
    code = train(
        run,
        "configs/preprocessing/histogram.yaml",
        f"data.params.root={root}",
        "data.params.train=[Head_0,Head_1]",
        "data.params.val=[Head_2]",
        "data.params.spacing=[7.5,5,7.5]",
        "data.params.image_size=[48,32]",
        "lightning.trainer.max_steps=1",
    )
    assert code == 0
    source, output = (tmp_path_factory.mktemp(name) for name in ("source", "output"))
    shutil.copytree(root / "Head_2", source / "Head_2")
    (source / "Head_2/Head_2_t1ce.nii.gz").unlink()
    arguments = ["sample", str(run), "--input", str(source), "--output", str(output)]
    assert main([*arguments, "--samples", "2"]) == 0
    return run, output


def test_the_learned_scale_travels_with_the_run(sampled):
    described = read_saved_config(sampled[0] / "config.yaml")["data"]["params"]
    standard = described["normaliser_config"]["params"]["standard"]
    assert set(standard) == {*INPUTS, "t1ce"}
    sidecar = json.loads((sampled[1] / "Head_2_t1ce.json").read_text())
    assert sidecar["normaliser"] == described["normaliser_config"]
    assert sidecar["intensity"]["standard"] == standard["t1"]
    assert len(sidecar["intensity"]["landmarks"]) == len(standard["t1"])


def test_a_sample_lies_on_the_grid_of_its_input_and_air_is_zero(sampled, heads):
    root, truth = heads
    source = nib.load(root / "Head_2/Head_2_t1.nii.gz")
    air = ndimage.distance_transform_edt(~truth["Head_2"]) > 2
    for name in ("t1ce", "t1ce_std"):
        image = nib.load(sampled[1] / f"Head_2_{name}.nii.gz")
        voxels = np.asarray(image.dataobj)
        assert image.shape == source.shape
        np.testing.assert_array_equal(image.affine, source.affine)
        assert (voxels[air] == 0).all()
        assert (voxels[truth["Head_2"]] != 0).mean() > 0.9
    assert voxels.min() == 0  # no spread is negative
    recorded = json.loads((sampled[1] / "Head_2_t1ce.json").read_text())["preparation"]
    assert recorded["mask"] == "head"
    assert recorded["orientation"] == "LPS"
    assert recorded["resampled"]["spacing"] == [7.5, 5.0, 7.5]


def test_it_is_compared_within_the_same_mask(sampled, heads, caplog):
    result = evaluate({"row": sampled[1]}, heads[0])
    assert np.isfinite(result.mean("row", "brain", "psnr"))
    assert "Head_2" in result.values("row", "brain", "error_to_spread")
    assert not caplog.records
    evaluate({"row": sampled[1]}, heads[0], mask="nonzero")
    assert "sampled where 'head' says brain, compared where 'nonzero'" in caplog.text


def test_a_resumed_run_keeps_its_scale(sampled, heads):
    """Also if a training patient has changed meanwhile."""
    before = read_saved_config(sampled[0] / "config.yaml")
    for path in (heads[0] / "Head_0").glob("*.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.sqrt(image.get_fdata()), image.affine), path)
    more = ["lightning.trainer.max_steps=2", "--allow-data-change"]
    assert main(["train", "--resume", str(sampled[0]), *more]) == 0
    after = read_saved_config(sampled[0] / "config.yaml")
    assert after["data"] == before["data"]
