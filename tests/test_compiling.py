"""A compiled network is the network: its weights, their names, and what it returns."""

import copy
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ldm import compiling
from ldm.compiling import compile_network
from ldm.errors import ConfigError, as_known_error
from ldm.inference.fidelity import LIMIT, FirstCall
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.modules.diffusionmodules.util import normalization, to_channels_last

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no C++ compiler, with which torch compiles for a CPU"
)


class Backbone(nn.Module):
    """Little to compile, with what takes another way where torch compiles: the norm."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.first = nn.Conv2d(in_channels, 32, 3, padding=1)
        self.norm, self.last = normalization(32), nn.Conv2d(32, out_channels, 3, padding=1)

    def forward(self, x, t):
        scale = (t / 1000).to(x.dtype)[:, None].expand(-1, 32)
        return self.last(self.norm(self.first(x), scale, scale))


def wrapper() -> DiffusionWrapper:
    torch.manual_seed(0)
    facts = {"in_channels": 4, "out_channels": 1, "image_size": 16, "dims": 2}
    return DiffusionWrapper({"target": f"{__name__}.Backbone"}, facts).eval()


def inputs(items: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(items)
    x, condition = (torch.randn(items, n, 16, 16, generator=draw) for n in (1, 3))
    return x, torch.arange(items) * 100, condition


def of_spread(difference: torch.Tensor, expected: torch.Tensor) -> float:
    return float(difference.square().mean().sqrt() / expected.std())


@needs_compiler
def test_the_output_of_every_size_of_a_batch_is_as_without():
    network = wrapper()
    plain, names = copy.deepcopy(network), list(network.state_dict())
    compile_network(network, "cpu", "--runtime compile")
    frames = torch._dynamo.utils.counters["stats"]
    before = frames["unique_graphs"]
    with torch.no_grad():
        for items in (4, 3, 2, 5):
            torch.testing.assert_close(
                network(*inputs(items)), plain(*inputs(items)), rtol=1e-4, atol=1e-5
            )
    assert frames["unique_graphs"] - before == 2  # the first size, and all others
    assert list(network.state_dict()) == names
    assert copy.deepcopy(network).diffusion_model._compiled_call_impl is None  # as of an average


@needs_compiler
def test_the_gradients_are_as_without():
    network = wrapper().train()
    plain = copy.deepcopy(network)
    compile_network(network, "cpu", "lightning.compile")
    for each in (network, plain):
        each(*inputs(2)).square().sum().backward()
    for own, expected in zip(network.parameters(), plain.parameters(), strict=True):
        assert expected.grad.any()
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-3, atol=1e-3)


@needs_compiler
def test_in_bf16_the_first_call_is_compared_and_only_rounding_apart():
    network = wrapper()
    first = FirstCall(network)
    to_channels_last(network.to(torch.bfloat16))
    plain = copy.deepcopy(network)
    plain._forward_hooks.clear()
    compile_network(network, "cpu", "--runtime compile", graphs=True)
    with torch.no_grad():
        output, expected = network(*inputs(3)), plain(*inputs(3))
    assert 0 < first.difference < LIMIT
    assert 0 < of_spread(output - expected, expected) < LIMIT


def test_what_a_call_returned_is_never_overwritten_by_the_next():
    """A CUDA graph returns the same memory at each call, as this backbone does."""
    network, memory = wrapper(), torch.zeros(2, 1, 16, 16)
    network.diffusion_model.forward = lambda x, *_: memory.add_(1)
    first, second = network(*inputs(2)), network(*inputs(2))
    assert (first == 1).all() and (second == 2).all()


@pytest.mark.parametrize(
    ("kind", "graphs", "mode"),
    [("cuda", True, "reduce-overhead"), ("cuda", False, None), ("cpu", True, None)],
)
def test_only_calls_on_a_gpu_become_cuda_graphs(kind, graphs, mode, monkeypatch):
    asked = []
    network = SimpleNamespace(compile=lambda **options: asked.append(options))
    monkeypatch.setattr(compiling, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    compile_network(network, kind, "--runtime compile", graphs)
    assert asked == [{"mode": mode}]


def test_what_it_compiles_with_must_be_there(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="there is no no-such-compiler: install") as caught:
        compile_network(wrapper(), "cpu", "--runtime compile")
    assert caught.value.code == "CONFIG-MISSING" and "\n" not in str(caught.value)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="lightning.compile needs triton"):
        compile_network(wrapper(), "cuda", "lightning.compile")


def test_a_failure_of_the_compiler_is_one_line(monkeypatch):
    def broken(graph, inputs):
        raise ValueError("no\nsuch kernel")

    network = wrapper()
    network.compile(backend=broken)
    with pytest.raises(Exception, match="such kernel") as caught, torch.no_grad():
        network(*inputs(2))
    known = as_known_error(caught.value)
    assert known.code == "CONFIG-COMPILE"
    assert "no such kernel" in str(known) and "\n" not in str(known)
