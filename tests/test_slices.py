"""From the cache to batches: what an item holds, and an order that depends on the seed only."""

import os
import pickle
import signal
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import INPUTS, write_subject
from hypothesis import given
from hypothesis import strategies as st

from ldm.data import cache, prepare, slices, volume_file
from ldm.data.augmentation import SliceAugmentation
from ldm.data.cache import CachedSubject, cached_subject
from ldm.data.datamodule import ContrastDataModule
from ldm.data.layouts import detect_layout
from ldm.data.normalise import PercentileNormaliser, RobustNormaliser
from ldm.data.prepare import Preparation
from ldm.data.slices import EndlessShuffle, SliceDataset, with_neighbours
from ldm.errors import ConfigError, DataError, OutputError
from ldm.storage import cache_root
from ldm.study import Study
from ldm.training.module import TrainingData

AUGMENTED = {"target": "ldm.data.augmentation.SliceAugmentation", "params": {"shift": 1.0}}


def entry(root, folder, subject="p0", normaliser=None, axis="axial") -> CachedSubject:
    layout, subjects = detect_layout(folder)
    chosen = Preparation(normaliser or RobustNormaliser(), axis)
    return cached_subject(subjects[subject], layout, list(INPUTS), "t1ce", chosen, root / "cache")


def data_module(folder, **options) -> ContrastDataModule:
    module = ContrastDataModule(
        str(folder), **{"image_size": 16, "num_workers": 0, "val": ["p3"], "seed": 5, **options}
    )
    module.setup()
    return module


# --- Cache ----------------------------------------------------------------------------------------


def test_a_volume_is_decoded_once(brats_folder, tmp_path, monkeypatch):
    first = entry(tmp_path, brats_folder)
    monkeypatch.setattr(volume_file, "read_volume", lambda *_: pytest.fail("it was opened"))
    second = entry(tmp_path, brats_folder)
    assert first.folder == second.folder
    assert isinstance(second.open("slices"), np.memmap)
    assert np.array_equal(first.brain_share, second.brain_share)


def test_no_two_threads_read_a_header_at_once(brats_folder, tmp_path, monkeypatch):
    """They would fail at random in CPython 3.11, whose parser is not safe for it."""
    real, inside, most = np.load, [], []

    def load(*args, **options):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        found = real(*args, **options)
        inside.pop()
        return found

    monkeypatch.setattr(np, "load", load)
    data_module(brats_folder, cache=str(tmp_path))
    assert len(most) >= 4 and max(most) == 1


def test_an_entry_holds_what_preparing_gives(brats_folder, tmp_path):
    layout, subjects = detect_layout(brats_folder)
    prepared = prepare.prepare_subject(subjects["p0"], layout, INPUTS, "t1ce", Preparation())
    cached = entry(tmp_path, brats_folder)
    assert cached.open("slices").dtype == np.float16
    np.testing.assert_allclose(cached.open("slices"), prepared.slices, atol=2**-11)
    assert np.array_equal(cached.open("brain"), prepared.brain)
    assert np.array_equal(cached.open("seg"), prepared.seg)
    assert np.array_equal(cached.brain_share, prepared.brain.mean((1, 2)))


def test_an_entry_depends_on_the_files_and_the_parameters(brats_folder, tmp_path):
    folders = {
        entry(tmp_path, brats_folder).folder,
        entry(tmp_path, brats_folder, axis="coronal").folder,
        entry(tmp_path, brats_folder, normaliser=PercentileNormaliser()).folder,
        entry(tmp_path, brats_folder, normaliser=RobustNormaliser(-4, 9)).folder,
        entry(tmp_path, brats_folder, "p1").folder,
    }
    os.utime(brats_folder / "p0" / "p0_t2.nii.gz", (1, 1))
    folders.add(entry(tmp_path, brats_folder).folder)
    assert len(folders) == 6


def test_a_writer_killed_at_any_file_leaves_no_entry(brats_folder, tmp_path):
    for survived in range(4):
        child = os.fork()
        if not child:
            calls = iter(range(10))
            save = np.save

            def die(path, array, calls=calls, save=save, survived=survived):
                save(path, array)
                if next(calls) == survived:
                    os.kill(os.getpid(), signal.SIGKILL)

            cache.np.save = die
            entry(tmp_path, brats_folder)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert all(p.name.startswith(".tmp-") for p in (tmp_path / "cache").iterdir())
    assert entry(tmp_path, brats_folder).open("slices").size  # a later run makes it


def test_what_a_killed_writer_left_is_swept_a_day_later(brats_folder, tmp_path):
    dead = 4_194_304  # one more than the largest process number of Linux
    young, old = (tmp_path / "cache" / f".tmp-{dead}-0000000{n}" for n in (1, 2))
    young.mkdir(parents=True)
    old.mkdir()
    os.utime(old, (1, 1))
    entry(tmp_path, brats_folder)
    assert young.exists()
    assert not old.exists()


def test_the_second_of_two_writers_takes_the_entry_of_the_first(
    brats_folder, tmp_path, monkeypatch
):
    overtaken = []

    def overtake(*args, **options):
        prepared = prepare.prepare_subject(*args, **options)
        monkeypatch.undo()
        overtaken.append(entry(tmp_path, brats_folder))
        return prepared

    monkeypatch.setattr(cache, "prepare_subject", overtake)
    assert entry(tmp_path, brats_folder).folder == overtaken[0].folder
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [overtaken[0].folder.name]


def test_a_cache_that_cannot_be_written_says_what_to_set(brats_folder, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match="OUT-IO: .*set DSDIFF_CACHE"):
        entry(tmp_path, brats_folder)


def test_a_file_that_vanished_is_named(brats_folder, tmp_path):
    (brats_folder / "p0" / "p0_t1.nii.gz").unlink()
    (brats_folder / "p0" / "p0_t1.nii.gz").symlink_to("gone")
    with pytest.raises(DataError, match=r"DATA-IO case=p0: cannot read p0_t1\.nii\.gz: No such"):
        entry(tmp_path, brats_folder)


def test_a_long_unicode_id_still_names_an_entry(tmp_path):
    subject = "\u00e9" * 90
    write_subject(tmp_path / "patients", subject)
    assert entry(tmp_path, tmp_path / "patients", subject).open("slices").size


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("DSDIFF_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("DSDIFF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(cache_root()) == "/somewhere/dsdiff"


# --- Items ----------------------------------------------------------------------------------------


def test_an_item_is_what_the_design_says(brats_folder, tmp_path):
    subjects = [entry(tmp_path, brats_folder, p) for p in ("p0", "p1")]
    dataset = SliceDataset(subjects, (16, 20), neighbours=1)
    item = dataset[0]
    shapes = {n: (tuple(v.shape), v.dtype) for n, v in item.items() if torch.is_tensor(v)}
    assert shapes == {
        "condition": ((9, 16, 20), torch.float32),
        "target": ((1, 16, 20), torch.float32),
        "brain": ((1, 16, 20), torch.bool),
        "seg": ((1, 16, 20), torch.uint8),
        "presence": ((3,), torch.bool),
    }
    assert (item["subject"], item["slice"]) == ("p0", dataset.places[0][1])
    for dataset_item in dataset:
        outside = ~dataset_item["brain"]
        assert (dataset_item["target"][outside] == -1).all()
        assert (dataset_item["condition"][3:6, outside[0]] == -1).all()  # the slice itself
        assert dataset_item["condition"].abs().max() <= 1
        assert dataset_item["presence"].all()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux lists open files there")
def test_the_arrays_of_few_subjects_are_open_at_once(brats_folder, tmp_path, monkeypatch):
    """A system allows 1024 open files as a rule, and there may be 10^5 subjects."""
    subjects = [entry(tmp_path, brats_folder, f"p{n}") for n in range(4)]

    def opened() -> int:
        files = (str(f.readlink()) for f in Path("/proc/self/fd").iterdir() if f.is_symlink())
        return sum(name.endswith(".npy") and str(tmp_path) in name for name in files)

    monkeypatch.setattr(slices, "MOST_OPEN", 1)
    few, many = SliceDataset(subjects, (16, 16)), SliceDataset(subjects, (16, 16))
    order = [*range(len(few)), *reversed(range(0, len(few), 3))]
    read = []
    for index in order:
        read.append(few[index])
        assert opened() <= len(few.arrays)
    monkeypatch.setattr(slices, "MOST_OPEN", 64)
    for index, item in zip(order, read, strict=True):
        other = many[index]
        assert item["subject"] == other["subject"]
        assert torch.equal(item["condition"], other["condition"])
    assert opened() > len(few.arrays)  # the count sees them


def test_seg_is_given_only_if_every_subject_has_one(tmp_path):
    write_subject(tmp_path / "patients", "p0")
    write_subject(tmp_path / "patients", "p1", contrasts=(*INPUTS, "t1ce"))
    subjects = [entry(tmp_path, tmp_path / "patients", p) for p in ("p0", "p1")]
    assert "seg" in SliceDataset(subjects[:1], (16, 16))[0]
    assert "seg" not in SliceDataset(subjects, (16, 16))[0]


@pytest.mark.parametrize("min_brain", [0.0, 0.3, 0.6])
def test_slices_with_too_little_brain_are_left_out(brats_folder, tmp_path, min_brain):
    cached = entry(tmp_path, brats_folder)
    dataset = SliceDataset([cached], (16, 16), min_brain=min_brain)
    kept = {place for _, place in dataset.places}
    assert kept == {i for i, share in enumerate(cached.brain_share) if share >= min_brain}
    assert 0 < len(kept) <= len(cached.brain_share)


def test_neighbours_run_slice_by_slice_and_end_in_background():
    slices = np.arange(5 * 2).reshape(5, 2, 1, 1).astype(np.float32)
    assert with_neighbours(slices, 2, 0).ravel().tolist() == [4, 5]
    assert with_neighbours(slices, 2, 1).ravel().tolist() == [2, 3, 4, 5, 6, 7]
    assert with_neighbours(slices, 0, 1).ravel().tolist() == [-1, -1, 0, 1, 2, 3]
    assert with_neighbours(slices, 4, 2).ravel().tolist() == [4, 5, 6, 7, 8, 9, -1, -1, -1, -1]


def test_dropout_hides_by_the_mask_and_leaves_the_images(brats_folder, tmp_path):
    dataset = SliceDataset([entry(tmp_path, brats_folder)], (16, 16), condition_dropout=0.5)
    plain = dataset[2]
    drawn = [dataset[2, seed] for seed in range(200)]
    masks = torch.stack([item["presence"] for item in drawn])
    assert masks.any(1).all()  # one contrast always stays
    assert 0.5 < masks.float().mean() < 0.65  # (1 - 1/2) + the rescued eighth / 3
    assert torch.equal(masks, torch.stack([dataset[2, seed]["presence"] for seed in range(200)]))
    assert all(torch.equal(item["condition"], plain["condition"]) for item in drawn)


def test_numbers_of_a_patient_are_hidden_in_a_share_of_the_training_examples(
    brats_folder, tmp_path
):
    cached = entry(tmp_path, brats_folder)
    told = {"covariates": {cached.id: (0.25, 60.0)}, "covariate_dropout": 0.3}
    dataset = SliceDataset([cached], (16, 16), **told)
    drawn = torch.stack([dataset[2, seed]["covariates"] for seed in range(300)])
    hidden = drawn.isnan().all(dim=1)
    assert torch.equal(hidden, drawn.isnan().any(dim=1))  # all of them, or none
    assert 0.2 < hidden.float().mean() < 0.4
    assert (drawn[~hidden] == torch.tensor([0.25, 60.0])).all()
    assert dataset[2]["covariates"].tolist() == [0.25, 60.0]  # a plain example has them


def test_a_worker_opens_its_own_memory_maps(brats_folder, tmp_path):
    dataset = SliceDataset([entry(tmp_path, brats_folder)], (16, 16))
    first = dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy._opened == {}
    assert torch.equal(copy[0]["condition"], first["condition"])


# --- Augmentation ---------------------------------------------------------------------------------


@pytest.fixture
def square():
    """The same square in all images: brain, one lesion, background around."""
    image = torch.full((1, 40, 40), -1.0)
    image[:, 10:28, 12:30] = torch.linspace(-0.5, 1, 18)
    brain = image > -1
    seg = torch.zeros_like(image, dtype=torch.uint8)
    seg[:, 15:20, 15:20] = 4
    return {"condition": image.expand(3, 40, 40), "target": image, "brain": brain, "seg": seg}


@pytest.mark.parametrize("seed", range(8))
def test_all_images_of_an_item_move_together(square, seed):
    augmentation = SliceAugmentation(affine=1.0)
    augmentation.set_random_state(seed)
    moved = augmentation(square)
    assert not torch.equal(moved["target"], square["target"])
    for channel in moved["condition"]:
        torch.testing.assert_close(channel, moved["target"][0])
    assert set(moved["brain"].unique().tolist()) == {0, 1}
    assert set(moved["seg"].unique().tolist()) == {0, 4}
    assert moved["target"].min() == -1
    assert moved["target"].max() <= 1 + 1e-6
    border = torch.ones(40, 40, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    assert (moved["target"][0][border] == -1).all()  # what comes in from outside is background
    surely_inside = moved["brain"].bool() & (moved["target"] < -0.99)
    assert surely_inside.sum() <= 3  # brain and image agree but for the rounding of an edge


def test_augmentation_is_a_function_of_the_seed(square):
    augmentation = SliceAugmentation(affine=1.0)

    def at(seed):
        augmentation.set_random_state(seed)
        return augmentation(square)["target"]

    first, other, again = at(1), at(2), at(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_nothing_to_do_leaves_the_item_as_it_is(square):
    augmentation = SliceAugmentation(flip=0, affine=0, contrast=0)
    augmentation.set_random_state(0)
    for name, image in augmentation(square).items():
        torch.testing.assert_close(
            torch.as_tensor(image), square[name].to(image.dtype), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("seed", range(5))
def test_contrast_stretches_all_images_about_their_median(seed):
    """x -> m + (x - m) f with one factor f in [1/1.4, 1.4] for every image of the item."""
    brain = torch.zeros(1, 20, 20, dtype=torch.bool)
    brain[:, 4:16, 4:16] = True
    generator = torch.Generator().manual_seed(seed)
    target = torch.where(brain, torch.rand(1, 20, 20, generator=generator) * 0.4 - 0.6, -1.0)
    item = {"condition": torch.cat([target, target]), "target": target, "brain": brain}
    augmentation = SliceAugmentation(flip=0, affine=0, contrast=0.4)
    augmentation.set_random_state(seed)
    stretched = augmentation(item)
    before, after = target[brain], stretched["target"][brain]
    factor = (after.max() - after.min()) / (before.max() - before.min())
    assert 1 / 1.4 <= factor <= 1.4
    median = before.median()
    torch.testing.assert_close(after, median + (before - median) * factor)
    torch.testing.assert_close(stretched["condition"][1], stretched["target"][0])
    assert (stretched["target"][~brain] == -1).all()


def test_an_augmented_item_is_plain_and_of_its_types(brats_folder, tmp_path):
    dataset = SliceDataset(
        [entry(tmp_path, brats_folder)], (16, 16), augmentation=SliceAugmentation(affine=1.0)
    )
    plain, augmented = dataset[3], dataset[3, 11]
    for name, value in plain.items():
        assert type(augmented[name]) is type(value)
        if torch.is_tensor(value):
            assert (augmented[name].dtype, augmented[name].shape) == (value.dtype, value.shape)
    assert not torch.equal(plain["target"], augmented["target"])
    assert torch.equal(augmented["target"], dataset[3, 11]["target"])


# --- Order ----------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 2**32), st.integers(0, 300))
def test_every_pass_is_a_permutation_and_a_start_continues_exactly(length, seed, start):
    drawn = list(islice(EndlessShuffle(length, seed), start + 3 * length))
    for turn in range(3):
        assert sorted(i for i, _ in drawn[turn * length :][:length]) == list(range(length))
    assert list(islice(EndlessShuffle(length, seed, start), 3 * length)) == drawn[start:]
    assert len({seed for _, seed in drawn}) == len(drawn)  # every draw is augmented anew


def test_passes_differ_and_the_seed_decides():
    first, second = (list(islice(EndlessShuffle(50, s), 100)) for s in (0, 1))
    assert first != second
    assert first == list(islice(EndlessShuffle(50, 0), 100))
    assert [i for i, _ in first[:50]] != [i for i, _ in first[50:]]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_order_out(world_size):
    whole = list(islice(EndlessShuffle(10, 0, start=4), 30))
    ranks = [
        list(islice(EndlessShuffle(10, 0, 4, rank, world_size), 30 // world_size))
        for rank in range(world_size)
    ]
    assert [drawn for together in zip(*ranks, strict=True) for drawn in together] == whole


# --- The data module ------------------------------------------------------------------------------


def batches(module: ContrastDataModule, count: int) -> list[dict]:
    return list(islice(module.train_dataloader(), count))


def assert_equal_batches(first: list[dict], second: list[dict]) -> None:
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            same = torch.equal(value, two[name]) if torch.is_tensor(value) else value == two[name]
            assert same, name


def test_a_batch_has_the_shapes_of_the_contract(brats_folder):
    (batch,) = batches(data_module(brats_folder, batch_size=3, neighbours=1), 1)
    assert {n: tuple(v.shape) for n, v in batch.items() if n != "subject"} == {
        "target": (3, 1, 16, 16),
        "condition": (3, 9, 16, 16),
        "presence": (3, 3),
        "brain": (3, 1, 16, 16),
        "seg": (3, 1, 16, 16),
        "slice": (3,),
    }


def test_workers_change_nothing(brats_folder):
    options = {"augmentation_config": AUGMENTED, "condition_dropout": 0.3}
    alone = batches(data_module(brats_folder, **options), 6)
    helped = batches(data_module(brats_folder, num_workers=2, **options), 6)
    assert_equal_batches(alone, helped)


def test_a_resumed_run_goes_on_after_the_batches_already_drawn(brats_folder):
    whole = batches(data_module(brats_folder, augmentation_config=AUGMENTED), 9)
    resumed = data_module(brats_folder, augmentation_config=AUGMENTED)
    progress = SimpleNamespace(total=SimpleNamespace(ready=4))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    of_training = TrainingData(resumed)
    of_training.trainer = SimpleNamespace(global_rank=0, world_size=1, fit_loop=loop)
    assert_equal_batches(whole[4:], batches(of_training, 5))


def test_no_patient_is_trained_and_validated_on(brats_folder):
    module = data_module(brats_folder)
    trained = {s for batch in batches(module, 20) for s in batch["subject"]}
    validated = {s for batch in module.val_dataloader() for s in batch["subject"]}
    assert trained == {"p0", "p1", "p2"}
    assert validated == {"p3"}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_validation_slices_are_distinct_spread_and_plain(brats_folder, count):
    module = data_module(
        brats_folder,
        val=["p2", "p3"],
        val_slices=count,
        augmentation_config=AUGMENTED,
        condition_dropout=0.9,
    )
    seen = [
        (subject, int(place))
        for batch in module.val_dataloader()
        for subject, place in zip(batch["subject"], batch["slice"], strict=True)
    ]
    assert len(set(seen)) == len(seen) == count
    assert count == 1 or {s for s, _ in seen} == {"p2", "p3"}
    assert all(batch["presence"].all() for batch in module.val_dataloader())
    assert_equal_batches(list(module.val_dataloader()), list(module.val_dataloader()))


def test_one_patient_is_trained_on_without_validation(tmp_path):
    write_subject(tmp_path, "only")
    module = data_module(tmp_path, val=0.1)
    assert module.split == {"train": ["only"], "val": [], "test": []}
    assert module.val_dataloader() == []
    assert len(batches(module, 1)) == 1


def test_a_damaged_patient_is_named(brats_folder):
    path = brats_folder / "p1" / "p1_flair.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"DATA-CORRUPT case=p1: p1_flair\.nii\.gz is truncated"):
        data_module(brats_folder)


def test_no_slice_with_enough_brain_is_an_error(brats_folder):
    with pytest.raises(DataError, match=r"DATA-EMPTY: no slice has 100% brain"):
        data_module(brats_folder, min_brain=1)


def test_neighbours_that_no_volume_has_are_an_error(brats_folder):
    """A head of S slices has S - 1 beside a slice at most; the farthest one is enough."""
    slices = data_module(brats_folder).train_slices.subjects[0].brain_share.size
    assert data_module(brats_folder, neighbours=slices - 1).neighbours == slices - 1
    told = f"CONFIG-VALUE: data.params.neighbours is {slices}, and the volumes have {slices} slices"
    with pytest.raises(ConfigError, match=told):
        data_module(brats_folder, neighbours=slices)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"val_slices": 0},
        {"neighbours": -1},
        {"num_workers": -1},
        {"min_brain": 1.5},
        {"condition_dropout": -0.1},
        {"condition_dropout": 1},
        {"covariate_dropout": 1},
        {"worker_timeout": 0},
        {"axis": "diagonal"},
        {"image_size": 0},
        {"image_size": [8, 8, 8, 8]},
        {"image_size": [8, 8, 8], "neighbours": 1},
        {
            "normaliser_config": {
                "target": "ldm.data.normalise.RobustNormaliser",
                "params": {"lower": 9},
            }
        },
    ],
)
def test_values_out_of_range_are_refused_before_the_data_is_touched(wrong):
    with pytest.raises(ConfigError, match="CONFIG-VALUE"):
        ContrastDataModule("nowhere", **wrong)


def test_the_folder_must_be_given():
    with pytest.raises(ConfigError, match=r"data\.params\.root is not set"):
        ContrastDataModule().setup()


def scanned(seed, curves=0.5, free=(1, 2), contrasts=3, neighbours=0):
    """An item of random contrasts in a round brain, before and after an augmentation by curves."""
    grid = torch.linspace(-1, 1, 24)
    brain = (grid[:, None] ** 2 + grid[None] ** 2 < 0.7)[None]
    own = torch.Generator().manual_seed(seed)
    images = torch.rand(contrasts * (1 + 2 * neighbours) + 1, 24, 24, generator=own) * 0.5 - 0.6
    images = torch.where(brain, images, -1.0)
    item = {"condition": images[:-1], "target": images[-1:], "brain": brain}
    told = {"contrasts": contrasts, "free": free}
    augmentation = SliceAugmentation(flip=0, affine=0, contrast=0, curves=curves, **told)
    augmentation.set_random_state(seed)
    return item, augmentation(item)


@pytest.mark.parametrize("seed", range(5))
def test_curves_change_each_free_contrast_by_itself_and_keep_its_order(seed):
    """T1, with which the target is compared, and the target stay; so do medians and background."""
    before, after = scanned(seed)
    brain = before["brain"][0]
    torch.testing.assert_close(after["condition"][0], before["condition"][0])
    torch.testing.assert_close(after["target"], before["target"])
    factors = []
    for old, new in zip(before["condition"][1:], after["condition"][1:], strict=True):
        assert (new[~brain] == -1).all() and (new[brain] > -1).all() and new.max() <= 1
        assert torch.equal(old[brain].argsort(stable=True), new[brain].argsort(stable=True))
        torch.testing.assert_close(new[brain].median(), old[brain].median())
        factors.append(float(new[brain].std() / old[brain].std()))
    assert abs(factors[0] / factors[1] - 1) > 1e-3
    assert all(0.4 < factor < 2.5 for factor in factors)


def test_curves_of_a_contrast_are_those_of_its_neighbours_too():
    """One factor and power for the three slices of T2, which stand three channels apart."""
    before, after = scanned(3, neighbours=1, free=(1,))
    brain = before["brain"][0]
    old, new = (item["condition"][1::3][:, brain].flatten() for item in (before, after))
    assert torch.equal(old.argsort(), new.argsort())
    for place in (0, 2, 3, 5, 6, 8):
        torch.testing.assert_close(after["condition"][place], before["condition"][place])


def test_no_curves_are_asked_for_by_default_and_a_negative_strength_is_refused():
    before, after = scanned(0, curves=0.0)
    torch.testing.assert_close(after["condition"], before["condition"])
    with pytest.raises(ConfigError, match="curves is -1"):
        SliceAugmentation(curves=-1.0)
    with pytest.raises(ConfigError, match="no contrast may change by itself"):
        SliceAugmentation(curves=0.5, free=())


@pytest.mark.parametrize(
    ("params", "free"),
    [
        ({}, ["t2", "flair"]),  # T1 is what T1ce is compared with
        ({"target": "flair", "conditions": ["t1", "t2"]}, ["t1", "t2"]),
        ({"target": "any", "conditions": ["t1", "t1ce", "t2", "flair"]}, ["t2", "flair"]),
    ],
)
def test_which_contrasts_may_change_by_themselves(params, free):
    study = Study.of(**params)
    assert [study.conditions[place] for place in study.free] == free
