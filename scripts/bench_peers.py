"""One U-Net in this project, MONAI and diffusers: the same weights and output, which is faster?

``python scripts/bench_peers.py [--size 256] [--batches 1 4] [--rounds 5] [--compile]`` maps the
weights into the networks of the peers, requires that the outputs agree within 1e-4 of their
spread, so that the work is provably the same, and times plain use and each side's best in turns:
read the ratios. Beside them stands what the machine itself reaches, measured in the same run.
Writes ``peers.md`` and ``peers.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.compiling import compile_network
from ldm.cost.network import count_flops, count_parameters
from ldm.cost.timing import in_turns
from ldm.environment import (
    multiplies_bf16,
    pick_device,
    prefers_channels_last,
)
from ldm.memory import keep_freed_memory
from ldm.modules.diffusionmodules.blocks import AttentionBlock
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.diffusionmodules.util import fill_zeros, to_channels_last
from ldm.report.environment import environment
from ldm.report.tables import markdown_table
from ldm.storage import write_file, write_json

TOLERANCE = 1e-4  # of the spread of the output
Call = Callable[[], Any]
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """What the networks have in common: three conditions and one noisy channel go in."""

    width: int = 96
    mult: Sequence[int] = (1, 1, 2, 2, 3, 3)
    attention: Sequence[bool] = (False, False, False, True, True, True)
    head: int = 48
    blocks: int = 2

    @property
    def channels(self) -> list[int]:
        return [self.width * factor for factor in self.mult]


def our_network(shape: Shape) -> UNetModel:
    """Return this project's U-Net with random weights everywhere, its zeros included."""
    network = UNetModel(
        in_channels=4,
        out_channels=1,
        model_channels=shape.width,
        num_res_blocks=shape.blocks,
        channel_mult=shape.mult,
        attention_resolutions=[2**i for i, here in enumerate(shape.attention) if here],
        num_head_channels=shape.head,
        use_new_attention_order=True,
    )
    return fill_zeros(network)


def monai_network(shape: Shape) -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet  # behind ldm, which mends torchvision

    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=4,
        out_channels=1,
        channels=shape.channels,
        num_res_blocks=shape.blocks,
        attention_levels=list(shape.attention),
        num_head_channels=shape.head,
        norm_num_groups=32,
        norm_eps=1e-5,
    )


def diffusers_network(shape: Shape) -> nn.Module:
    from diffusers import UNet2DModel

    kinds = ["AttnDownBlock2D" if here else "DownBlock2D" for here in shape.attention]
    network = UNet2DModel(
        in_channels=4,
        out_channels=1,
        layers_per_block=shape.blocks,
        block_out_channels=shape.channels,
        down_block_types=kinds,
        up_block_types=[kind.replace("Down", "Up") for kind in reversed(kinds)],
        attention_head_dim=shape.head,
        norm_num_groups=32,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
    )
    network.register_forward_hook(lambda *call: call[-1].sample)  # it returns an object
    return network


def in_order_of_use(network: nn.Module, *inputs: Tensor) -> list[nn.Module]:
    """Return the layers that hold weights, as a call meets them."""
    kinds = (nn.Conv2d, nn.Linear, nn.GroupNorm, AttentionBlock)
    met: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: met.append(module))
        for module in network.modules()
        if isinstance(module, kinds)
    ]
    with torch.no_grad():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return met


def weights_in_order(layers: Sequence[nn.Module]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (weight, bias); an AttentionBlock is query, key, value and projection to the peers."""
    for layer in layers:
        if isinstance(layer, AttentionBlock):
            qkv = layer.qkv.weight.flatten(1).chunk(3), layer.qkv.bias.chunk(3)
            yield from zip(*qkv, strict=True)
            yield layer.proj_out.weight.flatten(1), layer.proj_out.bias
        else:
            yield layer.weight, layer.bias


def map_weights(ours: UNetModel, theirs: nn.Module, side: int) -> float:
    """Give a peer's network our weights; return the difference of outputs in units of their spread.

    Raises:
        SystemExit: where that is above 1e-4.
    """
    inputs = torch.randn(1, ours.in_channels, side, side), torch.tensor([500])
    layers = in_order_of_use(theirs, *inputs)
    own = weights_in_order(in_order_of_use(ours, *inputs))
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, own, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        expected = ours(*inputs)
        error = ((theirs(*inputs) - expected).abs().max() / expected.std()).item()
    if error > TOLERANCE:
        name = type(theirs).__name__
        raise SystemExit(f"the output of {name} differs by {error:.1e} of its spread")
    return error


def same_networks(shape: Shape) -> dict[str, nn.Module]:
    """Return the three networks with one set of weights, see :func:`map_weights`."""
    ours = our_network(shape)
    peers = {"MONAI": monai_network(shape), "diffusers": diffusers_network(shape)}
    for network in peers.values():
        map_weights(ours, network, side=2 ** (len(shape.mult) + 1))
    return peers | {"dsdiff": ours}


def limits(device: str, rounds: int, side: int = 256) -> dict[str, float]:
    """Return GFLOP/s of matrix products and of 3 x 3 convolutions of 96 channels, the best call."""
    calls: dict[str, Call] = {}
    work: dict[str, float] = {}
    for name, dtype in TYPES.items():
        if name == "bf16" and not multiplies_bf16(torch.device(device).type):
            continue
        matrix = torch.randn(2048, 2048, device=device, dtype=dtype)
        calls[f"GEMM {name}"] = lambda matrix=matrix: matrix @ matrix
        work[f"GEMM {name}"] = 2 * 2048**3
        for layout, memory in LAYOUTS.items():
            x = torch.randn(1, 96, side, side, device=device, dtype=dtype)
            weight = torch.randn(96, 96, 3, 3, device=device, dtype=dtype)
            x, weight = x.contiguous(memory_format=memory), weight.contiguous(memory_format=memory)
            key = f"convolution {name} {layout}"
            calls[key] = lambda x=x, weight=weight: F.conv2d(x, weight, padding=1)
            work[key] = 2 * 9 * 96 * 96 * side * side
    with torch.inference_mode():
        seconds = in_turns(calls, max(rounds, 5), device)
    return {name: work[name] / min(times) / 1e9 for name, times in seconds.items()}


def forwards(
    networks: dict[str, nn.Module], inputs: tuple[Tensor, Tensor], compiled: bool = False
) -> dict[str, Call]:
    """Return a call of each network as its documentation uses it, and at its best.

    Args:
        compiled: of ours too as ``dsdiff sample --runtime compile`` runs it.
    """
    calls: dict[str, Call] = {}
    fast = torch.bfloat16 if multiplies_bf16(inputs[0].device.type) else torch.float32
    for name, network in networks.items():
        best = to_channels_last(copy.deepcopy(network).to(fast))
        x = inputs[0].to(fast).contiguous(memory_format=torch.channels_last)
        own = inputs[0] if name == "dsdiff" else x  # ours casts and returns the type of its input
        calls[f"{name}, plain"] = lambda network=network: network(*inputs)
        calls[f"{name}, best"] = lambda best=best, own=own: best(own, inputs[1])
        if compiled and name == "dsdiff":
            other = copy.deepcopy(best)
            compile_network(other, inputs[0].device.type, "--compile", graphs=True)
            calls["dsdiff, compiled"] = lambda other=other, own=own: other(own, inputs[1])
    return calls


def training_step(
    network: nn.Module, inputs: tuple[Tensor, Tensor], best: bool, compiled: bool = False
) -> Call:
    """Return a step of AdamW on a squared error: plain fp32, or as ``dsdiff train`` does it."""
    kind = inputs[0].device.type
    mixed = best and multiplies_bf16(kind)
    network = copy.deepcopy(network).train()
    if best and prefers_channels_last("bf16-mixed" if mixed else "32", kind):
        to_channels_last(network)
    if compiled:
        compile_network(network, kind, "--compile")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=best)
    target = torch.randn_like(inputs[0][:, :1])

    def step() -> None:
        precision = torch.autocast(kind, torch.bfloat16) if mixed else contextlib.nullcontext()
        with precision:
            loss = F.mse_loss(network(*inputs).float(), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def training_steps(
    networks: dict[str, nn.Module], inputs: tuple[Tensor, Tensor], compiled: bool = False
) -> dict[str, Call]:
    steps = {f"{name}, plain": training_step(n, inputs, False) for name, n in networks.items()}
    own = {"best": False, "compiled": True} if compiled else {"best": False}
    ours = networks["dsdiff"]
    return steps | {f"dsdiff, {n}": training_step(ours, inputs, True, c) for n, c in own.items()}


def compare(calls: dict[str, Call], rounds: int, device: str) -> dict[str, float]:
    """Return the best seconds of each call, timed in turns."""
    return {name: min(times) for name, times in in_turns(calls, rounds, device).items()}


def table(results: dict[str, Any]) -> str:
    """Return the page: limits, seconds, speed against MONAI's plain use, share of the limit."""
    measured = results["limits"]
    limit = {
        name: max(measured[f"convolution {name} {layout}"] for layout in LAYOUTS)
        for name in TYPES
        if f"GEMM {name}" in measured
    }
    rows = []
    for task, seconds in results["seconds"].items():
        flops = results["gflop"] * int(task.split()[-1]) * (3 if "training" in task else 1)
        for name, value in seconds.items():
            fast = not name.endswith("plain") and "bf16" in limit
            share = flops / value / limit["bf16" if fast else "fp32"]
            rows.append([task, name, value, seconds["MONAI, plain"] / value, f"{share:.0%}"])
    return "\n".join(
        (
            f"{results['network']}; {results['environment']}\n",
            markdown_table(
                ["limit of the machine", "GFLOP/s"], [[k, round(v)] for k, v in measured.items()]
            ),
            markdown_table(
                ["task, batch", "network", "s", "speed, MONAI plain 1", "of the convolution limit"],
                rows,
            ),
        )
    )


def run(
    shape: Shape, side: int, batches: Sequence[int], rounds: int, compiled: bool = False
) -> dict[str, Any]:
    """Return limits, seconds of every call, and what they were measured on."""
    keep_freed_memory()
    torch.manual_seed(0)
    device = pick_device()
    networks = {name: n.to(device).eval() for name, n in same_networks(shape).items()}

    def inputs(batch: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(batch, 4, side, side, device=device)
        return x, torch.full((batch,), 500, device=device)

    ours, seconds = networks["dsdiff"], {}
    for batch in batches:
        with torch.inference_mode():
            calls = forwards(networks, inputs(batch), compiled and batch == batches[0])
            seconds[f"forward, {batch}"] = compare(calls, rounds, device)
    steps = training_steps(networks, inputs(batches[0]), compiled)
    seconds[f"training step, {batches[0]}"] = compare(steps, rounds, device)
    return {
        "network": f"U-Net of {count_parameters(ours) / 1e6:.1f} M parameters at {side} x {side}",
        "environment": environment(),
        "gflop": count_flops(ours, *inputs(1)) / 1e9,
        "limits": limits(device, rounds),
        "seconds": seconds,
    }


def publish(folder: Path, name: str, page: str, results: dict[str, Any]) -> None:
    """Write ``NAME.json`` and ``NAME.md`` anew, and print the page."""
    write_json(folder / f"{name}.json", results, replace=True)
    write_file(folder / f"{name}.md", page, replace=True)
    sys.stdout.write(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="side of a slice in pixels")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5, help="calls of each, in turns")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile of ours too, of the first batch"
    )
    parser.add_argument("--output", type=Path, default=Path("bench"))
    arguments = parser.parse_args()
    asked = (arguments.size, arguments.batches, arguments.rounds, arguments.compile)
    results = run(Shape(), *asked)
    page = table(results)
    publish(arguments.output, "peers", page, results)


if __name__ == "__main__":
    main()
