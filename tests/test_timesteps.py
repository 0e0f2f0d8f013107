"""Which timesteps training sees: distributions, unbiased weights, and a history that resumes."""

import pytest
import torch

from ldm.errors import CheckpointError, ConfigError
from ldm.models.diffusion import timesteps
from ldm.models.diffusion.timesteps import (
    ImportanceTimesteps,
    LogitNormalTimesteps,
    UniformTimesteps,
)

EVERY = pytest.mark.parametrize(
    "kind", [UniformTimesteps, LogitNormalTimesteps, ImportanceTimesteps]
)


def with_history(losses, history=2, **options):
    """An importance sampler that has seen each of these losses, ``history`` times."""
    sampler = ImportanceTimesteps(len(losses), history, **options)
    for _ in range(history):
        sampler.update(torch.arange(len(losses)), torch.tensor(losses))
    return sampler


def uniform(draws):
    return torch.rand(draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def frequencies(sampler, draws=100_000):
    t, _ = sampler.draw(uniform(draws))
    return torch.bincount(t, minlength=sampler.timesteps) / draws


@EVERY
def test_draws_are_in_range_up_to_the_last_number_below_one(kind):
    numbers = torch.cat([uniform(998), torch.tensor([0.0, 1.0]).nextafter(torch.zeros(2)).double()])
    t, weight = kind(50).draw(numbers.clamp(min=0))
    assert t.dtype == torch.int64
    assert weight.dtype == torch.float32
    assert t.shape == weight.shape == (1000,)
    assert (t.min(), t.max()) == (0, 49)


def test_uniform_draws_are_equal_shares_of_the_numbers():
    t, weight = UniformTimesteps(4).draw(torch.tensor([0, 0.24, 0.25, 0.5, 0.76]).double())
    assert t.tolist() == [0, 0, 1, 2, 3]
    assert (weight == 1).all()


def test_logit_normal_is_the_law_of_a_sigmoid_of_normals():
    sampler = LogitNormalTimesteps(10, mean=0.5, std=0.8)
    normals = torch.randn(400_000, generator=torch.Generator().manual_seed(1)).double()
    drawn = (torch.sigmoid(0.5 + 0.8 * normals) * 10).long().bincount(minlength=10) / 400_000
    assert sampler.probabilities.sum().item() == pytest.approx(1)
    torch.testing.assert_close(sampler.probabilities, drawn.double(), rtol=0, atol=4e-3)
    torch.testing.assert_close(frequencies(sampler), drawn, rtol=0, atol=8e-3)


def test_importance_is_uniform_until_every_history_is_full():
    sampler = ImportanceTimesteps(4, history=2)
    sampler.update(torch.tensor([0, 1, 2, 3, 0, 1, 2]), torch.tensor([9.0, 1, 1, 1, 9, 1, 1]))
    assert sampler.probabilities.tolist() == [0.25] * 4
    sampler.update(torch.tensor([3]), torch.tensor([1.0]))
    assert sampler.probabilities[0] > 0.7


def test_importance_is_the_root_mean_square_of_the_last_losses():
    """Nichol & Dhariwal 2021, eq. 18, beside a share of uniform draws."""
    sampler = ImportanceTimesteps(2, history=2, uniform=0.1)
    for losses in ([100.0, 100.0], [3.0, 1.0], [5.0, 1.0]):  # the first is forgotten
        sampler.update(torch.arange(2), torch.tensor(losses))
    rms = torch.tensor([17**0.5, 1]).double()
    expected = 0.9 * rms / rms.sum() + 0.1 / 2
    torch.testing.assert_close(sampler.probabilities, expected)
    torch.testing.assert_close(frequencies(sampler), expected.float(), rtol=0, atol=8e-3)


def test_importance_weights_keep_the_mean_and_lower_its_variance():
    losses = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
    spread = {}
    for name, sampler in (
        ("uniform", UniformTimesteps(6)),
        ("importance", with_history(losses.tolist())),
    ):
        t, weight = sampler.draw(uniform(100_000))
        estimates = weight * losses[t]
        assert estimates.mean().item() == pytest.approx(losses.mean().item(), rel=0.02)
        spread[name] = estimates.std().item()
    assert spread["importance"] < 0.05 * spread["uniform"]


def test_a_loss_of_zero_everywhere_leaves_the_draws_uniform():
    assert with_history([0.0] * 5).probabilities.tolist() == [0.2] * 5


def test_a_timestep_of_no_loss_is_not_forgotten():
    assert with_history([0.0, 1.0]).probabilities[0] == pytest.approx(0.001 / 2)


def test_a_resumed_history_goes_on_as_if_never_stopped(tmp_path):
    run = with_history([3.0, 2.0, 1.0], history=3)
    run.update(torch.tensor([1]), torch.tensor([7.0]))
    torch.save(run.state_dict(), tmp_path / "state.pt")
    resumed = ImportanceTimesteps(3, history=3)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for sampler in (run, resumed):  # the oldest of timestep 1 falls out in both
        sampler.update(torch.tensor([1, 1, 0]), torch.tensor([0.5, 0.1, 4.0]))
    assert torch.equal(run.probabilities, resumed.probabilities)
    assert not torch.equal(run.probabilities, with_history([3.0, 2.0, 1.0]).probabilities)


def test_a_history_of_another_shape_is_refused():
    with pytest.raises(CheckpointError, match=r"\(3, 2\); expected \(4, 10\)") as caught:
        ImportanceTimesteps(4).load_state_dict(with_history([1.0] * 3).state_dict())
    assert caught.value.code == "CKPT-MISMATCH"
    with pytest.raises(CheckpointError, match=r"absent; expected \(4, 10\)"):
        ImportanceTimesteps(4).load_state_dict(UniformTimesteps(4).state_dict())


@EVERY
def test_every_state_loads_again(kind):
    kind(7).load_state_dict(kind(7).state_dict())


def test_all_ranks_share_one_history(monkeypatch):
    """What the other rank saw arrives by all_gather_object; the order is not that of the ranks."""

    def gather(gathered, pairs):
        gathered[:] = [[(1, 5.0)], pairs]

    monkeypatch.setattr(timesteps.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(timesteps.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(timesteps.distributed, "all_gather_object", gather)
    sampler = ImportanceTimesteps(2, history=1)
    sampler.update(torch.tensor([0]), torch.tensor([3.0]))
    assert sampler.losses.flatten().tolist() == [3.0, 5.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogitNormalTimesteps(5, std=0.0), "std is 0.0; expected a number above 0"),
        (lambda: ImportanceTimesteps(5, history=0), "history is 0; expected 1 or more"),
        (lambda: ImportanceTimesteps(5, uniform=0.0), "uniform is 0.0; expected 0 < uniform <= 1"),
    ],
)
def test_bad_arguments_are_refused_with_the_value_seen(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
