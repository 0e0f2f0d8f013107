"""Splits: by patient, without leaks, a function of the seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.data.patients import patient_of
from ldm.data.split import split_subjects
from ldm.errors import ConfigError, DataError

IDS = [f"p{n:02}" for n in range(20)]
SHARES = st.one_of(st.none(), st.floats(0, 0.4))


@given(
    ids=st.lists(st.text("abc01", min_size=1), min_size=1, max_size=30, unique=True),
    val=SHARES,
    test=SHARES,
    seed=st.integers(0, 2**32),
    fold=st.one_of(st.none(), st.integers(0, 4)),
)
def test_parts_are_disjoint_and_made_of_the_subjects(ids, val, test, seed, fold):
    try:
        parts = split_subjects(ids, val=val, test=test, seed=seed, fold=fold)
    except DataError as error:
        assert error.code == "DATA-EMPTY"
        assert len(ids) <= 2
        return
    members = [s for part in parts.values() for s in part]
    assert sorted(members) == sorted(ids)  # none twice, none lost
    assert all(part == sorted(part) for part in parts.values())


def test_shares_that_are_rounded_up_leave_one_to_train_on():
    """Twice 0.375 of four patients are 1.5 each."""
    split = split_subjects(IDS[:4], val=0.375, test=0.375)
    assert sorted(map(len, split.values())) == [1, 1, 2]
    assert split["train"]
    assert len(split_subjects(IDS[:3], val=0.5, test=0.4)["train"]) == 1
    with pytest.raises(DataError, match="no subject is left to train on"):
        split_subjects(IDS[:4], val=0.5, test=0.5)


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_listing():
    split = split_subjects(IDS, val=0.25, test=0.1, seed=3)
    assert split == split_subjects(IDS[::-1], val=0.25, test=0.1, seed=3)
    assert split != split_subjects(IDS, val=0.25, test=0.1, seed=4)
    assert [len(split[p]) for p in ("train", "val", "test")] == [13, 5, 2]


def test_folds_partition_the_subjects_and_spare_the_test_part():
    splits = [split_subjects(IDS, test=["p03"], val=0.1, fold=k, folds=4) for k in range(4)]
    assert sorted(s for split in splits for s in split["val"]) == [i for i in IDS if i != "p03"]
    for split in splits:
        assert split["test"] == ["p03"]
        assert len(split["train"]) + len(split["val"]) == 19


def test_lists_are_taken_as_they_are_and_fractions_share_the_rest():
    split = split_subjects(IDS, train=["p01", "p00", "p01"], val=0.5)
    assert split["train"] == ["p00", "p01"]
    assert len(split["val"]) == 9
    assert not set(split["train"]) & set(split["val"])


def test_a_training_fraction_leaves_the_others_out():
    split = split_subjects(IDS, train=0.5, val=0.25)
    assert (len(split["train"]), len(split["val"])) == (10, 5)


def test_one_subject_is_trained_on_and_few_subjects_still_validate():
    assert split_subjects(["p"], val=0.1) == {"train": ["p"], "val": [], "test": []}
    assert len(split_subjects(["p", "q"], val=0.1)["val"]) == 1


def test_a_patient_has_one_side():
    with pytest.raises(DataError, match=r"LEAK case=p01: is in 'train' and in 'val'"):
        split_subjects(IDS, train=["p00", "p01"], val=["p01"])


def test_an_unknown_patient_is_named_with_the_nearest():
    with pytest.raises(DataError, match=r"DATA-MISSING case=p1: data.params.val .*nearest: 'p"):
        split_subjects(IDS, val=["p1"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"val": 1.5},
        {"val": -0.1},
        {"val": 0.6, "test": 0.6},
        {"train": 0.9, "val": 0.2},
        {"fold": 5, "folds": 5},
        {"fold": -1},
        {"fold": 0, "folds": 1},
        {"fold": 0, "val": ["p01"]},  # which of the two should hold?
    ],
)
def test_a_split_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ConfigError, match="CONFIG-VALUE"):
        split_subjects(IDS, **wrong)


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(DataError, match="DATA-EMPTY"):
        split_subjects(["a", "b"], val=["a", "b"])


def test_that_ids_read_as_scans_of_one_patient_is_said(caplog):
    """They are on one side, as they must be if it is so; that a share was asked for is not lost."""
    ids = [f"glioma_scan_{n:02}" for n in range(5)]
    assert split_subjects(ids, test=0.4)["test"] == []
    (told,) = caplog.messages
    assert told.startswith("all 5 subjects are taken for examinations of one patient, glioma: ")
    pattern = told.partition("data.params.patient='")[2].rstrip("'")
    caplog.clear()
    own = {i: patient_of(i, pattern) for i in ids}  # the way out that is told
    assert len(split_subjects(ids, test=0.4, patients=own)["test"]) == 2
    split_subjects(ids)  # no share is asked for
    split_subjects(ids[:1], test=0.4)  # there is nothing to split
    assert caplog.messages == []
