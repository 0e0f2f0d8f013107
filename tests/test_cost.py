"""Costs by hand formula on layers small enough to count on paper."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ldm.cost.network import (
    count_flops,
    count_parameters,
    peak_memory_label,
    training_memory_estimate,
)

FLOAT = 4  # bytes


class Attention(nn.Module):
    def forward(self, query, key):
        return F.scaled_dot_product_attention(query, key, key)


class LooksAtValues(nn.Module):
    """Cannot run on the meta device."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(10, 20)
        self.norm = nn.BatchNorm1d(20)

    def forward(self, x):
        return self.norm(self.linear(x)) if x.sum().item() > 0 else x


def test_parameters_count_shared_ones_once():
    first = nn.Linear(10, 20)
    second = nn.Linear(10, 20)
    assert count_parameters(nn.Sequential(first, second)) == 2 * (10 * 20 + 20)
    second.weight = first.weight
    second.weight.requires_grad = False
    assert count_parameters(nn.Sequential(first, second)) == 10 * 20 + 2 * 20


@pytest.mark.parametrize(
    ("module", "shape", "multiply_adds"),
    [
        (nn.Linear(10, 20), (3, 10), 3 * 10 * 20),
        (nn.Conv2d(4, 8, 3, padding=1), (2, 4, 16, 12), 2 * 16 * 12 * 8 * 4 * 9),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), (1, 4, 16, 12), 8 * 6 * 8 * 4 * 9),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), (1, 4, 16, 12), 16 * 12 * 8 * 9),
        (nn.Conv3d(1, 2, 3, padding=1), (1, 1, 5, 6, 7), 5 * 6 * 7 * 2 * 27),
        (nn.Sequential(nn.GroupNorm(1, 4), nn.SiLU()), (1, 4, 8, 8), 0),
    ],
)
def test_flops_are_two_per_multiply_add(module, shape, multiply_adds):
    assert count_flops(module, torch.randn(shape)) == 2 * multiply_adds


def test_attention_is_counted_as_two_products():
    batch, heads, queries, keys, channels = 2, 3, 16, 10, 8
    query = torch.randn(batch, heads, queries, channels)
    key = torch.randn(batch, heads, keys, channels)
    products = 2 * batch * heads * queries * keys * channels
    assert count_flops(Attention(), query, key) == 2 * products


def test_fast_path_of_the_transformer_layer_hides_nothing():
    tokens, width, hidden = 12, 16, 32

    class PeekingLayer(nn.TransformerEncoderLayer):  # runs on the CPU, where the fast path is
        def forward(self, x):
            return super().forward(x) if x.isfinite().all().item() else x

    layer = PeekingLayer(width, 2, hidden, batch_first=True).eval()
    projections = tokens * width * 4 * width
    attention = 2 * tokens * tokens * width
    feed_forward = 2 * tokens * width * hidden
    expected = 2 * (projections + attention + feed_forward)
    assert count_flops(layer, torch.randn(1, tokens, width)) == expected
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_a_huge_network_needs_no_memory():
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(200_000, 200_000), nn.Linear(200_000, 1))
    assert count_parameters(network) == 200_000**2 + 200_000 + 200_001
    x = torch.zeros(7, 200_000)
    assert count_flops(network, x) == 2 * 7 * (200_000**2 + 200_000)
    estimate = training_memory_estimate(network, x)
    assert estimate.activations == 2 * 7 * 200_000 * FLOAT


def test_network_that_looks_at_values_is_run_and_left_as_it_was():
    network = LooksAtValues().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    x = torch.ones(6, 10)
    assert count_flops(network, x) == 2 * 6 * 10 * 20
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_errors_of_the_network_are_not_swallowed():
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        count_flops(nn.Linear(10, 20), torch.randn(3, 11))


def test_training_memory_by_hand():
    network = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5)).eval()
    network[0].bias.requires_grad = False
    parameters = (10 * 20 + 20 + 20 * 5 + 5) * FLOAT
    trainable = parameters - 20 * FLOAT
    estimate = training_memory_estimate(network, torch.randn(8, 10))
    assert estimate.parameters == estimate.ema == parameters
    assert estimate.gradients == trainable
    assert estimate.optimizer == 2 * trainable
    # the input, and the output of ReLU, which ReLU and the second layer share
    assert estimate.activations == (8 * 10 + 8 * 20) * FLOAT
    assert estimate.total == 3 * parameters + 2 * trainable - 20 * FLOAT + estimate.activations
    assert not any(module.training for module in network.modules())


def test_activations_grow_with_the_batch_on_both_ways():
    class Peeks(nn.Sequential):
        def forward(self, x):
            return super().forward(x * bool(x.sum() < 1e9))

    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 3, padding=1)]
    sizes = {}
    for network in (nn.Sequential(*layers), Peeks(*layers)):
        one, five = (
            training_memory_estimate(network, torch.randn(n, 1, 16, 16)).activations for n in (1, 5)
        )
        assert five == 5 * one
        sizes[type(network)] = one
    assert len(set(sizes.values())) == 1


def test_estimate_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    training_memory_estimate(nn.Dropout(0.5), torch.ones(4, 4, requires_grad=True))
    assert torch.equal(torch.rand(3), expected)


def test_resident_peak_sees_an_array_that_is_gone():
    # in a process of its own: memory that an earlier test has freed may serve the array unseen
    script = """
import numpy
from ldm.cost.network import peak_memory, reset_peak_memory
reset_peak_memory("cpu")
before = peak_memory("cpu")
numpy.ones(25_000_000).sum()  # 200 MB
print(peak_memory("cpu") - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) > 150e6


def test_label_names_what_is_measured():
    assert peak_memory_label("cpu") == "peak resident memory (cpu)"
    assert peak_memory_label("cuda:1") == "peak VRAM"


def test_checkpointing_makes_the_estimate_a_lower_bound():
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    layers = [nn.Linear(10, 50), nn.SiLU(), nn.Linear(50, 10)]
    x = torch.randn(4, 10)
    plain = training_memory_estimate(nn.Sequential(*layers), x).activations
    assert training_memory_estimate(Checkpointed(*layers), x).activations < plain
