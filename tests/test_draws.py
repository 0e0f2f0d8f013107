"""The randomness of a batch: the same for an item, whichever process has it."""

import pytest
import torch

from ldm.models.draws import Draws

KEY = (3, "train")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_draw_together_what_one_draws(world_size):
    whole, shape = Draws(KEY, items=6, first=12), (2, 5)
    parts = [Draws(KEY, 6 // world_size, 12, rank, world_size) for rank in range(world_size)]
    together = torch.stack([part.normal(shape) for part in parts], dim=1).flatten(0, 1)
    assert torch.equal(together, whole.normal(shape))
    together = torch.stack([part.uniform() for part in parts], dim=1).flatten()
    assert torch.equal(together, whole.uniform())
    assert {part.one_of(1000) for part in parts} == {whole.one_of(1000)}
    assert sum(part.items_of(0.4) for part in parts) == whole.items_of(0.4)


def test_an_item_keeps_its_numbers_in_batches_of_another_size():
    small = [Draws(KEY, 2, first).normal((4,)) for first in (0, 2)]
    assert torch.equal(torch.cat(small), Draws(KEY, 4).normal((4,)))


def test_shares_are_kept_on_average_and_whole_ones_exactly():
    counts = [Draws((n,), items=2).items_of(0.25) for n in range(400)]
    assert set(counts) == {0, 1}
    assert sum(counts) / 800 == pytest.approx(0.25, abs=0.03)
    assert {Draws((n,), 3).items_of(1.0) for n in range(50)} == {3}
    assert {Draws((n,), 3).items_of(0.0) for n in range(50)} == {0}


def test_without_a_key_they_follow_the_global_generator():
    numbers = []
    for _ in range(2):
        torch.manual_seed(5)
        numbers += [Draws.unkeyed(2).normal((3,)), Draws.unkeyed(2).normal((3,))]
    assert torch.equal(numbers[0], numbers[2])
    assert not torch.equal(numbers[0], numbers[1])
