"""Regions of a label map, the model that predicts them, and what trains it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import write_subject
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from ldm.callbacks.staged import FrozenStage
from ldm.config import config_root, load_config
from ldm.data.augmentation import SegmentationAugmentation
from ldm.data.datamodule import ContrastDataModule
from ldm.errors import ConfigError, DataError
from ldm.models.segmentation import Segmentation, foreground_shares
from ldm.regions import REGION_SETS, label_map, region_masks, region_names
from ldm.study import build_model
from ldm.training.module import TrainingModule

UNET = {
    "target": "ldm.modules.diffusionmodules.attention_unet.AttentionUNet",
    "params": {"channels": [32, 32], "timestep_conditioning": False},
}
LABELS = nps.arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 2, 4]))


def segmenter(**changes):
    options = {"conditions": ["t1", "flair"], "image_size": 16, **changes}
    params = {**UNET["params"], **options.pop("unet", {})}
    return Segmentation({**UNET, "params": params}, **options)


def data_module(root, **changes):
    options = {"conditions": ["t1", "flair"], "target": None, "val": ["p3"], "image_size": 16}
    return ContrastDataModule(str(root), **{**options, "num_workers": 0, **changes})


def batch_of(dataset):
    return torch.utils.data.default_collate([dataset[i] for i in range(len(dataset))])


# ---- regions -------------------------------------------------------------------------------------


def test_tumour_regions_lie_in_each_other():
    labels = np.array([0, 1, 2, 3, 4])
    masks = region_masks(labels, REGION_SETS["tumour"])
    assert masks["et"].tolist() == [False, False, False, True, True]
    assert masks["tc"].tolist() == [False, True, False, True, True]
    assert masks["wt"].tolist() == [False, True, True, True, True]


@given(LABELS)
def test_regions_make_the_label_map_again(labels):
    masks = region_masks(labels, REGION_SETS["tumour"])
    assert (label_map(masks) == labels).all()
    later = label_map(masks, enhancing=3)
    assert (later == np.where(labels == 4, 3, labels)).all()


@given(LABELS)
def test_lesion_is_any_label(labels):
    assert (label_map(region_masks(labels, ["lesion"])) == (labels > 0)).all()


def test_unknown_region_is_refused_with_the_nearest():
    assert region_names("wt") == ("wt",) and region_names(["et", "wt"]) == ("et", "wt")
    with pytest.raises(ConfigError, match="nearest: 'tumour'"):
        region_names("tumor")


# ---- data without a target -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, [6, 8, 8]], ids=["slices", "patches"])
def test_without_a_target_every_contrast_is_a_condition(brats_folder, size):
    data = data_module(brats_folder, image_size=size)
    data.setup()
    item = data.train_slices[0]
    assert "target" not in item
    assert item["condition"].shape[0] == 2 and item["presence"].shape == (2,)
    assert item["seg"].shape == item["brain"].shape
    with_target = data_module(brats_folder, image_size=size, target="t1ce")
    with_target.setup()
    other = with_target.train_slices[0]
    assert all(torch.equal(item[name], other[name]) for name in ("condition", "brain", "seg"))


def test_foreground_share_is_that_of_the_examples(brats_folder):
    data = data_module(brats_folder)
    data.setup()
    labels = batch_of(data.train_slices)["seg"]
    shares = foreground_shares(data.train_slices, ["lesion"])
    assert shares["lesion"] == pytest.approx((labels > 0).float().mean().item())


def test_start_measures_the_weight_of_the_foreground(brats_folder):
    data, model = data_module(brats_folder), segmenter(regions="lesion")
    data.setup()
    model.check_start(data)
    share = foreground_shares(data.train_slices, ["lesion"])["lesion"]
    saved = model.portable_params()["loss_config"]["params"]["pos_weight"]
    assert saved[0] ** 2 == pytest.approx((1 - share) / share, rel=1e-3)


def test_patients_without_labels_are_refused(brats_folder):
    write_subject(brats_folder, "p4", contrasts=("t1", "flair"), seed=4)
    data = data_module(brats_folder)
    data.setup()
    with pytest.raises(DataError, match="case=p4.*have no seg"):
        segmenter(regions="lesion").check_start(data)


def test_region_that_never_occurs_is_refused(brats_folder):
    data = data_module(brats_folder)  # whose labels are 0 and 1
    data.setup()
    with pytest.raises(DataError, match="region 'et'"):
        segmenter(regions="tumour").check_start(data)


# ---- shipped configurations ----------------------------------------------------------------------

ROOT = config_root() / "segmentation"
OVERLAYS = ("lesion", "staged", "volume")  # put behind the YAML of a network
NETWORKS = sorted(p.stem for p in ROOT.glob("*.yaml") if p.stem not in ("base", *OVERLAYS))


@pytest.mark.parametrize("overlay", [None, *OVERLAYS])
@pytest.mark.parametrize("name", NETWORKS)
def test_shipped_configuration_is_valid(name, overlay):
    files = [name] if overlay is None else [name, overlay]
    config = load_config([f"configs/segmentation/{file}.yaml" for file in files])
    assert config["data"]["params"]["target"] is None
    with torch.device("meta"):
        model = build_model(config)
    assert len(model.window) == (3 if overlay == "volume" else 2)
    assert model.regions == (("lesion",) if overlay == "lesion" else ("et", "tc", "wt"))
    assert model.decay_steps == config["lightning"]["trainer"]["max_steps"]


def test_paper_size_has_five_levels_and_four_gates():
    config = load_config(["configs/segmentation/attention_unet.yaml"])
    channels = config["model"]["params"]["unet_config"]["params"]["channels"]
    assert channels == [64, 128, 256, 512, 1024]
    with torch.device("meta"):
        model = build_model(config)
    assert sorted(model.unet.gates) == ["0", "1", "2", "3"]


# ---- model ---------------------------------------------------------------------------------------


def test_absent_contrast_does_not_change_the_output():
    model = segmenter(image_size=[12, 15]).eval()  # 15 is padded
    condition = torch.randn(2, 2, 12, 15)
    changed = condition.clone()
    changed[:, 1] = 7.0
    presence = torch.tensor([[True, False], [True, False]])
    with torch.no_grad():
        first, second = (model.logits(c, presence)[0] for c in (condition, changed))
    assert first.shape == (2, 3, 12, 15)
    assert torch.equal(first, second)
    with torch.no_grad():
        assert not torch.equal(first, model.logits(changed, torch.ones_like(presence))[0])


def test_coarser_predictions_are_supervised():
    model = segmenter(unet={"channels": [32, 32, 32], "deep_supervision": True}, supervision=0.4)
    batch = {
        "condition": torch.randn(2, 2, 16, 16),
        "presence": torch.ones(2, 2, dtype=torch.bool),
        "seg": torch.randint(0, 5, (2, 1, 16, 16)),
    }
    losses = model.batch_loss(batch)
    finest, coarser = model.logits(batch["condition"], batch["presence"])
    assert coarser.shape == finest.shape
    expected = 0.4 * model.loss(coarser, model.target(batch))["loss"]
    torch.testing.assert_close(losses["loss_supervision"], expected)
    terms = [value for name, value in losses.items() if name != "loss"]
    torch.testing.assert_close(losses["loss"], sum(terms))


@pytest.mark.parametrize("size", [[8, 8], [4, 8, 8]], ids=["slices", "volumes"])
def test_windows_agree_with_the_whole_where_the_network_looks_at_one_voxel(size):
    """Gaussian weights of windows add up to 1, whatever the size of the image."""
    model = segmenter(image_size=size, overlap=0.5).eval()
    model.unet = torch.nn.Conv3d(2, 3, 1) if len(size) == 3 else torch.nn.Conv2d(2, 3, 1)
    condition = torch.randn(1, 2, *[side + 5 for side in size])
    present = torch.tensor([True, True])
    found = model.probabilities(condition, present, batch_size=3)
    expected = model.unet(condition).sigmoid()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_attention_maps_have_the_size_of_the_image():
    model = segmenter(image_size=[12, 15], unet={"channels": [32, 32, 32]}).eval()
    maps = model.attention_maps(torch.randn(2, 2, 12, 15), torch.ones(2, 2, dtype=torch.bool))
    assert {level: tuple(m.shape) for level, m in maps.items()} == dict.fromkeys(
        (0, 1), (2, 1, 12, 15)
    )
    model.unet = torch.nn.Conv2d(2, 3, 1)
    assert model.attention_maps(torch.randn(1, 2, 8, 8), torch.ones(1, 2).bool()) == {}


def test_learning_rate_rises_then_falls_along_a_cosine():
    model = segmenter(warmup_steps=10, decay_steps=110, decay_to=0.1)
    rates = [model.rate_factor(step) for step in range(130)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)  # the middle of the cosine
    assert rates[110] == rates[129] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    for endless in (None, -1):
        assert segmenter(warmup_steps=10, decay_steps=endless).rate_factor(10_000) == 1.0


def test_a_network_of_another_package_segments_by_yaml_alone():
    config = {
        "target": "monai.networks.nets.BasicUNet",
        "params": {"features": [4, 4, 4, 4, 4, 4]},
    }
    model = Segmentation(config, conditions=["t1", "flair"], image_size=[32, 16, 32]).eval()
    with torch.no_grad():
        logits = model.logits(torch.randn(1, 2, 32, 16, 32), torch.ones(1, 2).bool())
    assert [tuple(each.shape) for each in logits] == [(1, 3, 32, 16, 32)]


def test_a_network_that_only_denoises_is_refused():
    config = {"target": "ldm.modules.diffusionmodules.dit.DiT"}
    with pytest.raises(ConfigError, match="needs timesteps"):
        Segmentation(config)


# ---- staged training -----------------------------------------------------------------------------


def test_gates_wait_then_learn():
    """In the first stage the optimizer passes over the gates, in the second it trains all."""
    model = segmenter(unet={"channels": [32, 32, 32]}, warmup_steps=0)
    optimizer = model.new_optimizer()
    stage = FrozenStage(steps=1)
    batch = {
        "condition": torch.randn(2, 2, 16, 16),
        "presence": torch.ones(2, 2, dtype=torch.bool),
        "seg": torch.randint(0, 5, (2, 1, 16, 16)),
    }
    moved = []
    for step in range(2):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.zero_grad()
        model.batch_loss(batch)["loss"].backward()
        trainer = SimpleNamespace(global_step=step)
        stage.on_before_optimizer_step(trainer, TrainingModule(model), optimizer)
        optimizer.step()
        moved.append({n for n, p in model.named_parameters() if not torch.equal(p, before[n])})
    gates = {n for n, _ in model.named_parameters() if n.startswith("unet.gates.")}
    assert gates and not gates & moved[0]
    assert moved[0] and gates <= moved[1]


@pytest.mark.parametrize("name", ["unet.gate", "loss"])
def test_stage_of_unknown_weights_is_refused(name):
    with pytest.raises(ConfigError, match="holds no weights"):
        FrozenStage([name]).on_fit_start(None, TrainingModule(segmenter()))


# ---- augmentation --------------------------------------------------------------------------------


def example(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    brain = torch.zeros(1, *size, dtype=torch.bool)
    brain[(0, *(slice(2, n - 2) for n in size))] = True
    seg = torch.zeros(1, *size, dtype=torch.uint8)
    seg[(0, *(slice(n // 2, n // 2 + 4) for n in size))] = 4
    image = torch.where(brain, torch.rand(1, *size, generator=generator) - 0.5, -1.0)
    image = torch.where(seg > 0, 0.9, image)
    return {"condition": torch.cat([image, image]), "brain": brain, "seg": seg}


EVERYTHING = {"flip": 1.0, "affine": 1.0, "elastic": 1.0, "gamma": 1.0, "noise": 1.0, "blur": 1.0}


@pytest.mark.parametrize("size", [(32, 28), (12, 16, 16)], ids=["2-D", "3-D"])
def test_augmentation_moves_labels_with_the_image(size):
    options = {**EVERYTHING, "gamma": 0.0, "noise": 0.0, "blur": 0.0, "elastic": 0.0}
    augmentation = SegmentationAugmentation(**options, rotation=20, dims=len(size))
    augmentation.set_random_state(1)
    before = example(size)
    after = augmentation(before)
    lesion = torch.as_tensor(after["seg"])[0] == 4
    assert not torch.equal(lesion, before["seg"][0] == 4)
    image = torch.as_tensor(after["condition"])
    assert image[0][lesion].mean() > 0.7 and image[0][~lesion].mean() < 0.1
    assert torch.equal(image[0], image[1])


@pytest.mark.parametrize("size", [(32, 28), (12, 16, 16)], ids=["2-D", "3-D"])
def test_augmentation_is_a_function_of_its_seed_and_keeps_the_ranges(size):
    augmentation = SegmentationAugmentation(**EVERYTHING, dims=len(size))
    results = []
    for seed in (3, 3, 4):
        augmentation.set_random_state(seed)
        results.append({n: torch.as_tensor(a) for n, a in augmentation(example(size)).items()})
    first, same, other = results
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["condition"], other["condition"])
    assert first["condition"].abs().max() <= 1
    assert (first["condition"][:, ~(first["brain"][0] > 0.5)] == -1).all()
    assert set(first["seg"].unique().tolist()) <= {0, 4}


def test_augmentation_without_any_change_is_the_identity():
    augmentation = SegmentationAugmentation(0, 0, elastic=0, gamma=0, noise=0, blur=0)
    augmentation.set_random_state(0)
    before = example((32, 28))
    for name, image in augmentation(before).items():
        torch.testing.assert_close(torch.as_tensor(image).float(), before[name].float())
