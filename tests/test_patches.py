"""Patches of volumes: where they are cut depends on (index, seed) alone, and nothing is moved."""

import numpy as np
import pytest
import torch
from builders import INPUTS, write_subject

from ldm.data.augmentation import SliceAugmentation
from ldm.data.cache import cached_subject
from ldm.data.datamodule import ContrastDataModule
from ldm.data.layouts import detect_layout
from ldm.data.prepare import AXES, Preparation, prepare_subject
from ldm.data.slices import PatchDataset
from ldm.errors import ConfigError, DataError

SHAPE = (14, 18, 12)  # X, Y, Z
SIZE = (4, 6, 8)


@pytest.fixture(scope="module", params=["axial", "coronal", "sagittal"])
def subject(request, tmp_path_factory):
    """(cache entry, prepared subject) along each axis."""
    folder = tmp_path_factory.mktemp("patches")
    write_subject(folder / "patients", shape=SHAPE)
    layout, subjects = detect_layout(folder / "patients")
    settings = subjects["p0"], layout, list(INPUTS), "t1ce", Preparation(axis=request.param)
    return cached_subject(*settings, folder / "cache"), prepare_subject(*settings)


def box_of(item, shape, size=SIZE):
    """Where ``slice`` says that a patch was cut from a volume of ``shape``."""
    positions = [max(0, have - want) + 1 for have, want in zip(shape, size, strict=True)]
    starts = np.unravel_index(item["slice"], positions)
    return tuple(slice(n, n + side) for n, side in zip(starts, size, strict=True))


@pytest.mark.parametrize("key", [0, 3, (0, 1), (0, 2), (2, 1)], ids=str)
def test_a_patch_holds_what_the_volume_holds_there(subject, key):
    entry, prepared = subject
    item = PatchDataset([entry], SIZE)[key]
    depth, *plane = box_of(item, prepared.brain.shape)
    voxels = prepared.slices[(depth, slice(None), *plane)]  # (D, M + 1, H, W)
    np.testing.assert_allclose(item["condition"], voxels[:, :3].swapaxes(0, 1), atol=2**-11)
    np.testing.assert_allclose(item["target"][0], voxels[:, 3], atol=2**-11)
    assert np.array_equal(item["brain"][0], prepared.brain[(depth, *plane)])
    assert np.array_equal(item["seg"][0], prepared.seg[(depth, *plane)])
    assert item["subject"] == "p0"


def test_the_first_axis_is_that_of_the_slices(subject):
    """(D, H, W) of the largest patch is the brain's box with the axis of the slices first."""
    entry, prepared = subject
    box = [s.stop - s.start for s in prepared.box]
    size = (box.pop(prepared.axis), *box)
    (item,) = [PatchDataset([entry], size)[i] for i in range(len(PatchDataset([entry], size)))]
    assert item["target"].shape == (1, *size)
    assert torch.equal(item["brain"][0], torch.from_numpy(prepared.brain))
    assert prepared.axis in AXES.values()


def test_places_are_a_function_of_index_and_seed(subject):
    entry, _ = subject
    first, second = PatchDataset([entry], SIZE), PatchDataset([entry, entry], SIZE)
    seeds = range(40)
    places = [first[1, seed]["slice"] for seed in seeds]
    assert places == [second[1, seed]["slice"] for seed in seeds]
    assert len(set(places)) > 20
    assert first[1]["slice"] == first[1]["slice"]


def test_random_places_reach_every_corner(subject):
    entry, prepared = subject
    dataset = PatchDataset([entry], SIZE)
    starts = np.array(
        [[s.start for s in box_of(dataset[0, seed], prepared.brain.shape)] for seed in range(300)]
    )
    assert (starts.min(0) == 0).all()
    assert (starts.max(0) == np.subtract(prepared.brain.shape, SIZE)).all()


def test_plain_patches_cover_the_brain(subject):
    entry, prepared = subject
    dataset = PatchDataset([entry], SIZE)
    covered = np.zeros_like(prepared.brain)
    for index in range(len(dataset)):
        covered[box_of(dataset[index], covered.shape)] = True
    assert covered[prepared.brain].all()


@pytest.mark.parametrize("min_brain", [0.3, 0.6])
def test_patches_have_enough_brain(subject, min_brain):
    entry, _ = subject
    dataset = PatchDataset([entry], SIZE, min_brain=min_brain)
    assert 0 < len(dataset) <= len(PatchDataset([entry], SIZE))
    items = [dataset[i] for i in range(len(dataset))] + [dataset[0, seed] for seed in range(40)]
    assert all(item["brain"].float().mean() >= min_brain for item in items)


def test_around_a_small_volume_is_background(subject):
    entry, prepared = subject
    size = tuple(n + 5 for n in prepared.brain.shape)
    dataset = PatchDataset([entry], size, min_brain=0.4)
    assert len(dataset) == 1
    item = dataset[0, 7]
    inside = tuple(slice(2, 2 + n) for n in prepared.brain.shape)
    assert torch.equal(item["brain"][0][inside], torch.from_numpy(prepared.brain))
    assert (item["condition"][:, ~item["brain"][0]] == -1).all()
    assert item["brain"].sum() == prepared.brain.sum()


def test_augmentation_moves_all_images_of_a_patch_together(subject):
    """Flipped along H, which is left-right in axial patches, and stretched by one factor."""
    entry, _ = subject
    augmentation = SliceAugmentation(flip=1.0, contrast=0.0, dims=3)
    plain, dataset = PatchDataset([entry], SIZE), PatchDataset([entry], SIZE)
    dataset.augmentation = augmentation
    for seed in range(3):
        before, after = plain[0, seed], dataset[0, seed]
        for name in ("condition", "target", "brain", "seg"):
            assert after[name].dtype == before[name].dtype
            torch.testing.assert_close(after[name], before[name].flip(2))
    dataset.augmentation = SliceAugmentation(flip=0.0, contrast=0.4, dims=3)
    before, after = plain[0, 5], dataset[0, 5]
    assert not torch.equal(before["target"], after["target"])
    assert (after["target"][~before["brain"]] == -1).all()


def test_an_affine_map_of_patches_is_refused():
    with pytest.raises(ConfigError, match="an affine map brings background into patches"):
        SliceAugmentation(affine=0.3, dims=3)


# --- The data module ------------------------------------------------------------------------------


def data_module(folder, **options):
    node = {"target": "ldm.data.augmentation.SliceAugmentation"}
    settings = {"num_workers": 0, "val": ["p3"], "seed": 5, "augmentation_config": node}
    module = ContrastDataModule(str(folder), image_size=[4, 6, 6], **settings, **options)
    module.setup()
    return module


def test_a_batch_has_the_shapes_of_the_contract(brats_folder):
    batch = next(iter(data_module(brats_folder, batch_size=3).train_dataloader()))
    assert {n: tuple(v.shape) for n, v in batch.items() if n != "subject"} == {
        "target": (3, 1, 4, 6, 6),
        "condition": (3, 3, 4, 6, 6),
        "presence": (3, 3),
        "brain": (3, 1, 4, 6, 6),
        "seg": (3, 1, 4, 6, 6),
        "slice": (3,),
    }


def test_validation_patches_are_fixed_and_distinct(brats_folder):
    module = data_module(brats_folder, val_slices=3)
    seen = [[b["slice"].tolist() for b in module.val_dataloader()] for _ in range(2)]
    assert seen[0] == seen[1]
    assert len({place for places in seen[0] for place in places}) == 3


def test_no_patch_with_enough_brain_is_an_error(brats_folder):
    with pytest.raises(DataError, match=r"DATA-EMPTY: no patch has 100% brain"):
        data_module(brats_folder, min_brain=1)
