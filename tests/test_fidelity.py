"""The first call of a network in bf16 is compared with the same call in 32 bit, once."""

import logging

import pytest
import torch
from torch import nn

from ldm.inference.fidelity import LIMIT, FirstCall


class Network(nn.Module):
    """A convolution of image and condition that answers wrongly in one precision.

    Args:
        wrong: what is added in bf16.
    """

    def __init__(self, wrong=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.wrong = nn.Conv2d(2, 1, 3, padding=1), wrong

    def forward(self, x, t, condition, others):
        images = torch.cat([x, condition], 1) + t.view(-1, 1, 1, 1) + others["y"].view(-1, 1, 1, 1)
        dtype = self.layer.weight.dtype
        answer = self.layer(images.to(dtype)).float()
        return answer + self.wrong if dtype is torch.bfloat16 else answer


def inputs(items=3):
    generator = torch.Generator().manual_seed(1)
    x, condition = torch.randn(2, items, 1, 8, 8, generator=generator)
    return x, torch.zeros(items), condition, {"y": torch.zeros(items)}


def checked(network):
    first = FirstCall(network)
    network.to(torch.bfloat16)
    return first


def test_a_sound_network_is_as_far_as_rounding_and_its_answer_as_without(caplog):
    network, alone = Network(), Network().to(torch.bfloat16)
    first = checked(network)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(network(*inputs()), alone(*inputs()))
    bf16, exact = (net(*inputs())[:1] for net in (alone, Network()))
    apart = (bf16 - exact).square().mean().sqrt() / exact.std()
    assert first.difference == pytest.approx(apart.item(), rel=1e-3)
    assert 0 < first.difference < LIMIT
    assert not caplog.records


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_a_wrong_answer_in_bf16_is_told_in_one_line(wrong, caplog):
    network = Network(wrong)
    first = checked(network)
    for _ in range(3):
        network(*inputs())
    assert not first.difference <= LIMIT
    (record,) = caplog.records
    assert "in 32 bit" in record.message and "--precision 32" in record.message
    assert "\n" not in record.message


def test_it_costs_one_call_of_one_item(monkeypatch):
    network, seen, forward = Network(), [], Network.forward
    checked(network)

    def counted(self, x, *rest):
        seen.append((self.layer.weight.dtype, len(x)))
        return forward(self, x, *rest)

    monkeypatch.setattr(Network, "forward", counted)
    for _ in range(3):
        network(*inputs())
    assert seen == [(torch.bfloat16, 3), (torch.float32, 1), *[(torch.bfloat16, 3)] * 2]
