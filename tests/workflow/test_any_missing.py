"""One model for whichever contrast is missing: data, training, and the chain on phantoms."""

import json
import re
import shlex
import shutil
from itertools import islice

import nibabel as nib
import numpy as np
import pytest
import torch

from ldm import Synthesiser
from ldm.checkpoint import load_model
from ldm.cli.main import main
from ldm.config import load_config
from ldm.data.datamodule import ContrastDataModule
from ldm.data.slices import EndlessShuffle
from ldm.errors import ConfigError, DataError
from ldm.intensity import BACKGROUND, HEALTHY, standard_units
from ldm.losses.weights import EnhancementWeights
from ldm.models.base import wanted
from ldm.models.diffusion.anchors import AkinAnchor
from ldm.study import ASKED, Study, build_model, read_study

FOUR = ("t1", "t1ce", "t2", "flair")
OF_ANY = ["configs/any_missing.yaml", "data.params.val_slices=4"]
TEST = "Phantom_0003"


@pytest.fixture(scope="module")
def data(patients, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    parts = {"train": ["Phantom_0001", "Phantom_0002"], "val": [TEST]}
    size = {"image_size": 32, "neighbours": 1, "batch_size": 4, "val_slices": 8}
    module = ContrastDataModule(
        str(patients), conditions=FOUR, target="any", cache=str(cache), **parts, **size
    )
    module.setup()
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory, train):
    folder = tmp_path_factory.mktemp("runs") / "any"
    steps = ["lightning.trainer.max_steps=4", "lightning.trainer.val_check_interval=4"]
    assert train(folder, *OF_ANY, *steps) == 0
    return folder


def test_the_target_is_hidden_and_nothing_else(data):
    plain = data.train_slices.subjects[0].open("slices")
    for target, name in enumerate(FOUR):
        item = data.train_slices[(6, None, target)]
        assert item["presence"].tolist() == [c != name for c in FOUR]
        assert item[ASKED].tolist() == [float(c == name) for c in FOUR] + [
            float(c != name) for c in FOUR
        ]
        channels = item["condition"].unflatten(0, (3, 4))  # slices, contrasts
        assert (channels[:, target] == BACKGROUND).all()  # in the neighbours too
        others = [i for i in range(4) if i != target]
        assert (channels[:, others] > BACKGROUND).flatten(2).any(2).all()
        place = item["slice"]
        inside = plain[place, target][plain[place, target] > BACKGROUND].sum()
        hidden = item["target"][item["target"] > BACKGROUND].sum()
        assert hidden == pytest.approx(float(inside), rel=1e-2)


def test_targets_are_drawn_by_position_alone_and_all_alike(data):
    keys = list(islice(EndlessShuffle(len(data.train_slices), 0), 400))
    drawn = [int(wanted({ASKED: data.train_slices[key][ASKED][None]})) for key in keys]
    later = EndlessShuffle(len(data.train_slices), 0, start=100)
    again = [int(wanted({ASKED: data.train_slices[key][ASKED][None]})) for key in islice(later, 20)]
    assert drawn[100:120] == again
    assert all(70 < drawn.count(target) < 130 for target in range(4))  # of 100, 3.5 deviations
    shown = torch.cat([wanted(batch) for batch in data.val_dataloader()])
    assert shown.tolist() == [0, 1, 2, 3] * 2  # in validation they take turns


def test_a_dropped_contrast_never_leaves_none(data):
    data.train_slices.condition_dropout = 0.9
    try:
        items = [data.train_slices[(3, seed)] for seed in range(200)]
    finally:
        data.train_slices.condition_dropout = 0.0
    for item in items:
        assert item["presence"].any()
        assert not item["presence"][int(wanted({ASKED: item[ASKED][None]}))]
        assert (item[ASKED][4:] == item["presence"]).all()


def test_what_is_subtracted_is_alike_in_healthy_tissue():
    anchor, images = AkinAnchor(FOUR), torch.rand(4, 4, 5, 5) - 0.5
    images[..., 0] = BACKGROUND
    told = {"condition": images, "presence": ~torch.eye(4, dtype=torch.bool)}
    told[ASKED] = torch.cat([torch.eye(4), told["presence"].float()], 1)
    found = anchor.latents(lambda image: image, images, told)
    assert torch.equal(found[0, 0], images[0, 1])  # T1: T1ce
    assert torch.equal(found[1, 0], images[1, 0])  # T1ce: T1
    for item in (2, 3):
        assert (found[item, 0, :, 1:] == HEALTHY).all()
        assert (found[item, 0, :, 0] == BACKGROUND).all()
    assert standard_units(torch.tensor(HEALTHY)) == pytest.approx(0, abs=1e-6)
    told["presence"][1, 0] = False  # T1 is missing too
    assert (anchor.latents(lambda image: image, images, told)[1, 0, :, 1:] == HEALTHY).all()


def test_only_enhanced_targets_weigh_by_enhancement():
    torch.manual_seed(0)
    batch = {"condition": 2 * torch.rand(4, 4, 24, 24) - 1, "target": torch.rand(4, 1, 24, 24)}
    batch["brain"] = torch.ones(4, 1, 24, 24, dtype=torch.bool)
    batch[ASKED] = torch.cat([torch.eye(4), 1 - torch.eye(4)], 1)
    weights = EnhancementWeights(FOUR, "any", image_size=(24, 24))(batch)
    assert (weights[[0, 2, 3]] == 1).all()
    alone = {name: value[1:2] for name, value in batch.items()}
    own = {**alone, "condition": alone["condition"][:, [0, 2, 3]]}
    expected = EnhancementWeights(("t1", "t2", "flair"), "t1ce", image_size=(24, 24))(own)
    assert torch.equal(weights[1:2], expected)
    assert expected.max() > 2


@pytest.mark.parametrize("name", ["unet", "unet_crossattn", "ds_unet", "dit", "monai_unet"])
def test_a_backbone_is_told_what_is_asked(name):
    """By a vector, by a token, or by the contrast that is not there: the output depends on it."""
    files = [f"configs/backbone/{name}_tiny.yaml", "configs/any_missing.yaml"]
    overrides = ["data.params.image_size=32", "model.params.loss_config=null"]
    if name == "ds_unet":  # which gives each contrast a role
        overrides.append("model.params.unet_config.params.roles.anatomy=[t1,t1ce]")
    config = load_config(files, overrides)
    torch.manual_seed(0)
    model = build_model(config, read_study(config)).eval()
    expected = {"unet": "y", "unet_crossattn": "context", "ds_unet": "y"}
    assert model.model.asked_as == expected.get(name)
    for parameter in model.parameters():  # at first the last layers are 0
        torch.nn.init.normal_(parameter, std=0.05)
    x_t, t, images, others = model.network_inputs(2)
    images = torch.rand_like(images)
    others[ASKED] = torch.eye(4)[:2].repeat(1, 2)
    with torch.no_grad():
        one, two = model.model(x_t, t, images, others), model.model(x_t, t, images[[1, 0]], others)
        told = others | {ASKED: others[ASKED][[1, 0]]}
        other = model.model(x_t, t, images, told)
    assert one.isfinite().all() and not torch.equal(one, two)
    assert torch.equal(one, other) == (name not in expected)


def test_the_chain_makes_each_contrast(run, patients, tmp_path, capsys):
    model, study, *_ = load_model(run)
    assert study.varies and model.varies and isinstance(model.anchor, AkinAnchor)
    assert not model.losses  # T2 is no subtraction image, so nothing is sparse
    logged = (run / "metrics.csv").read_text()
    assert all(f"val/psnr_{name}" in logged for name in FOUR)
    for name in FOUR:
        case, output = tmp_path / name / "case", tmp_path / f"made_{name}"
        shutil.copytree(patients / TEST, case)
        (case / f"{TEST}_{name}.nii.gz").rename(tmp_path / f"{name}.nii.gz")
        mean = ["sample", str(run), "--temperature", "0"]
        assert main([*mean, "--input", str(case.parent), "--output", str(output)]) == 0
        made = output / f"{TEST}_{name}.nii.gz"
        sidecar = json.loads(made.with_name(f"{TEST}_{name}.json").read_text())
        assert (
            sidecar["conditions"]
            == [c for c in FOUR if c != name]
            == sorted(sidecar["inputs"], key=FOUR.index)
        )
        # with all four there, what is asked for is not read: the bytes are those
        whole = tmp_path / f"whole_{name}"
        asked = ["--subjects", TEST, "--target", name, "--output", str(whole)]
        assert main([*mean, "--input", str(patients), *asked]) == 0
        assert (whole / made.name).read_bytes() == made.read_bytes()
        scored = tmp_path / f"scores_{name}"
        rows = ["--prediction", str(output), "--reference", str(patients), "--output", str(scored)]
        assert main(["evaluate", *rows]) == 0
        assert json.loads((scored / "metrics.json").read_text())["target"] == name
        values = np.asarray(nib.load(made).dataobj)
        assert np.isfinite(values).all() and values.std() > 0


def test_python_finds_what_is_missing(run, patients):
    synthesiser = Synthesiser.load(run, device="cpu")
    files = {c: patients / TEST / f"{TEST}_{c}.nii.gz" for c in FOUR}
    three = {c: files[c] for c in ("t1", "t1ce", "flair")}
    made = synthesiser.volume(TEST, three)
    assert made.target == "t2"
    assert synthesiser.volume(TEST, {**three, "t2": None}).content == made.content
    asked = synthesiser(subject=TEST, target="t2", **files)
    assert np.array_equal(np.asarray(asked.dataobj), np.asarray(made.image.dataobj))
    with pytest.raises(DataError, match="no contrast is missing .* which with target=CONTRAST"):
        synthesiser(**files)
    with pytest.raises(DataError, match="t2, flair are missing"):
        synthesiser(t1=files["t1"], t1ce=files["t1ce"])
    with pytest.raises(ConfigError, match="target is 'dwi': give one of t1, t1ce, t2, flair"):
        synthesiser(target="dwi", **three)


def test_a_model_of_one_target_makes_no_other(run_folder, patients):
    synthesiser = Synthesiser.load(run_folder, device="cpu")
    with pytest.raises(ConfigError, match="target is 't2': give one of t1ce"):
        synthesiser.at(target="t2")


def test_a_synthetic_contrast_teaches_nothing(run, patients, tmp_path, train, capsys):
    """Every contrast is a truth here, so a synthetic one among the inputs is refused."""
    folder = tmp_path / "patients"
    shutil.copytree(patients, folder)
    asked = ["--subjects", TEST, "--target", "t2", "--output", str(tmp_path / "made")]
    assert main(["sample", str(run), "--input", str(patients), *asked]) == 0
    shutil.copy(tmp_path / "made" / f"{TEST}_t2.nii.gz", folder / TEST / f"{TEST}_t2.nii.gz")
    capsys.readouterr()
    assert train(tmp_path / "again", *OF_ANY, f"data.params.root={folder}") == 3
    assert "DATA-SYNTHETIC" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override", ["model.params.subtract=t1", "model.params.cache_latents=true"]
)
def test_what_is_for_one_target_is_refused(override, tmp_path, train, capsys):
    assert train(tmp_path / "run", *OF_ANY, override) == 2
    assert "is for one target, and data.params.target is any" in capsys.readouterr().err


def test_a_study_of_any_needs_two_contrasts():
    with pytest.raises(ConfigError, match="target is any of t1 alone"):
        Study(("t1",), "any")
    study = Study(FOUR, "any")
    assert study.needed == study.targets == FOUR
    assert study.appended is None
    assert study.making("t1").conditions == ("t1ce", "t2", "flair")
    assert (study.enhanced, study.native) == ("t1ce", None)


def test_the_training_resumes_as_if_it_had_not_stopped(run, tmp_path, train, weights):
    steps, half = ["lightning.trainer.max_steps=4", "model.params.decay_steps=4"], tmp_path / "half"
    whole = tmp_path / "whole"
    assert train(half, *OF_ANY, "lightning.trainer.max_steps=2", steps[1]) == 0
    assert main(["train", "--resume", str(half), steps[0]]) == 0
    assert train(whole, *OF_ANY, *steps) == 0
    assert weights(half) == weights(whole)


def test_the_next_step_that_is_printed_works_on_patients_who_lack_nothing(
    run, tmp_path, capsys, monkeypatch
):
    assert main(["train", "--resume", str(run)]) == 0
    told = re.search("next: dsdiff (.+)", capsys.readouterr().out)[1]
    assert f"--target t1ce --subjects {TEST}" in told
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(told), "--steps", "1"]) == 0
    assert [path.name for path in tmp_path.rglob("*.nii.gz")] == [f"{TEST}_t1ce.nii.gz"]
