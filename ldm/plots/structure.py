"""Structure of a network, read from the network itself: its blocks and the data flow.

:func:`trace` runs a network once on the ``meta`` device and finds which block reads the output of
which other block by walking the autograd graph, so that skips and parallel streams appear for any
``nn.Module``, also one of another package.
:mod:`ldm.plots.structure_picture` draws it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

INPUT = -1  # stands among the sources of a block for the input of the network
LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

# Names that tell a kind; what they do not tell is seen from shapes
ONE_BLOCK = re.compile(
    r"Attention(Block)?$|Gate$|SpatialTransformer|Transformer2D"
)  # not opened further
FEATURE_HEAD = re.compile(r"FeatureHead|conv_common|conv_distinct")
FUSION = re.compile(r"Gate|SE_Attention|_proj(\.\d+)?$|dim_reduction")
ATTENTION = re.compile(r"Attention|Attn|SABlock|Transformer")
RESIDUAL = re.compile(r"Res(Block|net|idual)|BasicBlock|Bottleneck")

ATTENDING = "attention or transformer"


@dataclass(frozen=True)
class Block:
    """One call of a block in a forward pass."""

    path: str  # name of the module within the network
    name: str  # its class
    kind: str  # a key of `COLOURS`
    channels: int  # of its output
    # spatial size (H, W) or (D, H, W) of a map, (N,) of N tokens, () of a vector
    size: tuple[int, ...]
    sources: tuple[int, ...]  # places in `Structure.blocks` of the blocks that it reads, or `INPUT`
    # which channels of the images that the network takes, in order, it reads
    reads: tuple[int, ...] = ()

    @property
    def side(self) -> float:
        """Positions along one axis; of tokens, as if they were those of one square image."""
        axes = 2 if len(self.size) == 1 else max(1, len(self.size))
        return math.prod(self.size) ** (1 / axes)


@dataclass(frozen=True)
class Structure:
    """Blocks in the order in which they run."""

    blocks: tuple[Block, ...]  # one entry for each call of a block
    # places in `blocks` of those that the output of the network comes from
    outputs: tuple[int, ...]


@dataclass(eq=False)
class _Call:
    path: str
    module: nn.Module
    sources: set[int]
    before: Tensor
    after: Tensor
    channels_read: set[int] = field(default_factory=set)


class _Recorder:
    """Forward hooks that note every call of a block and whose outputs it reads."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self.calls: list[_Call] = []
        # Nodes are the keys, so that they stay alive: a dead one would give its identity away.
        self.owners: dict[Any, int] = {image.grad_fn: INPUT for image in images}

    def attach(self, path: str, module: nn.Module) -> Any:
        """Hook ``module``; return what removes the hook."""

        def leave(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before, outputs = next(_tensors([args, kwargs, output])), list(_tensors(output))
            # from the outputs, not the inputs: what is passed in but not used is no source
            self.calls.append(_Call(path, module, self.sources(outputs), before, outputs[0]))
            for tensor in outputs:
                if tensor.grad_fn is not None:
                    self.owners.setdefault(tensor.grad_fn, len(self.calls) - 1)

        return module.register_forward_hook(leave, with_kwargs=True)

    def sources(self, tensors: Sequence[Tensor]) -> set[int]:
        """Return the nearest blocks that the tensors were computed from."""
        found, seen = set(), set()
        stack = [tensor.grad_fn for tensor in tensors]
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in self.owners:
                found.add(self.owners[node])
            else:
                stack.extend(following for following, _ in node.next_functions)
        return found


def trace(module: nn.Module, *inputs: Any) -> Structure:
    """Return the structure of ``module`` as ``module(*inputs)`` runs it; ``module`` is not changed.

    Shapes and data flow come from one run on the ``meta`` device, or on the device of the network
    if it looks at values. A block is a residual, transformer or similar unit: containers and
    whatever holds lists of such units are opened, norms and activations between blocks are left
    out, and so is what happens in functions (mean, concatenation).

    Args:
        inputs: arguments of the forward; images are those in floating point, (B, C, *S).
    """
    try:
        recorder, outputs = _run(module, inputs, torch.device("meta"))
    except (NotImplementedError, RuntimeError):  # an error of the network itself comes again here
        recorder, outputs = _run(module, inputs, next(_tensors(inputs)).device)
    _note_channels(module, inputs, recorder.calls)
    return _structure(recorder.calls, outputs)


def _run(module: nn.Module, inputs: tuple, device: torch.device) -> tuple[_Recorder, set[int]]:
    state = {name: p.detach().to(device).requires_grad_() for name, p in module.named_parameters()}
    state |= {name: b.detach().to(device, copy=True) for name, b in module.named_buffers()}
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        # a clone has a node, where the walk ends
        images = {i: inputs[i].to(device).requires_grad_().clone() for i in _images(inputs)}
        recorder = _Recorder(list(images.values()))
        hooks = [recorder.attach(path, block) for path, block in blocks_of(module)]
        try:
            moved = [v.to(device) if isinstance(v, Tensor) else v for v in inputs]
            given = tuple(images.get(place, value) for place, value in enumerate(moved))
            output = functional_call(module, state, given)
        finally:
            for hook in hooks:
                hook.remove()
        return recorder, recorder.sources(list(_tensors(output)))


def blocks_of(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, block) for the blocks of a network, none within another."""
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if _is_opened(child):
            yield from blocks_of(child, child_path)
        else:
            yield child_path, child


def _is_opened(module: nn.Module) -> bool:
    """Whether a reader wants to see the parts: of lists of units, and of what holds such lists."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):  # never called
        return True
    if ONE_BLOCK.search(type(module).__name__):
        return False
    if isinstance(module, nn.Sequential):
        convolutions = [part for part in module if "Conv" in type(part).__name__]
        return len(convolutions) > 1 or any(list(part.children()) for part in module)
    lists = [part for part in module.children() if isinstance(part, LISTS)]
    others = [part for part in module.children() if not isinstance(part, LISTS)]
    holds_units = any(list(unit.children()) for part in lists for unit in part.children())
    return holds_units or any(map(_is_opened, others))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _images(inputs: tuple) -> list[int]:
    """Return which of the arguments are images."""
    tensors = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
    return [i for i in tensors if inputs[i].is_floating_point() and inputs[i].ndim > 2]


class _AllSeen(Exception):  # noqa: N818
    """No error: ends a run of which the rest is of no interest."""


def _note_channels(module: nn.Module, inputs: tuple, calls: list[_Call]) -> None:
    """Note which channels of the images each block that reads them gets.

    Values tell what the graph does not: channel c is 1 + c everywhere, as far as such a block.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        return
    waiting = {call.module: call for call in reversed(calls) if INPUT in call.sources}
    given, count, seen = list(inputs), 0, set()
    for place in _images(inputs):
        image = inputs[place]
        channels = torch.arange(image.shape[1]).view(-1, *[1] * (image.ndim - 2))
        given[place] = torch.zeros_like(image) + (1 + count + channels).to(image)
        count += image.shape[1]

    def note(block: nn.Module, args: tuple, kwargs: dict) -> None:
        low, high = next(_tensors([args, kwargs])).transpose(0, 1).flatten(1).aminmax(dim=1)
        constant = {float(value) for value in low[low == high]}
        waiting[block].channels_read = {i for i in range(count) if i + 1 in constant}
        seen.add(block)
        if len(seen) == len(waiting):
            raise _AllSeen

    hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in waiting]
    state = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), suppress(_AllSeen):
            functional_call(module, state, tuple(given))
    finally:
        for hook in hooks:
            hook.remove()


def _structure(calls: list[_Call], outputs: set[int]) -> Structure:
    """Leave out the calls that are no block for a reader, and join what they were between."""
    places, blocks = {INPUT: INPUT}, []

    def kept(sources: set[int]) -> tuple[int, ...]:
        found = set()
        for source in sources:
            found |= {places[source]} if source in places else set(kept(calls[source].sources))
        return tuple(sorted(found))

    for number, call in enumerate(calls):
        block = _block(call, kept(call.sources))
        read = [blocks[source].size for source in block.sources if source != INPUT]
        further = not block.size and read and not any(read)  # an embedding of an embedding
        if block.channels and not further:
            places[number] = len(blocks)
            blocks.append(block)
    return Structure(tuple(blocks), kept(outputs))


def _block(call: _Call, sources: tuple[int, ...]) -> Block:
    """Return the block of a call; one without channels for what is no block, such as a norm."""
    layers = _layers(call.module)
    before, _ = _shape_of(call.before, None)
    size, channels = _shape_of(call.after, layers[-1] if layers else None)
    is_wrapped = isinstance(call.module, nn.Sequential) and len(layers) == 1
    name = type(layers[0] if is_wrapped else call.module).__name__
    reads = tuple(sorted(call.channels_read))
    block = Block(call.path, name, "", channels, size, sources, reads)
    side = replace(block, size=before).side
    resampled = bool(before and size) and not math.isclose(side, block.side)
    if not layers and not resampled:
        return replace(block, channels=0)
    return replace(block, kind=_kind(call.module, block, len(layers), resampled))


def _layers(module: nn.Module) -> list[nn.Module]:
    """Return the parts that own parameters, but for norms."""
    return [
        part
        for part in module.modules()
        if next(part.parameters(recurse=False), None) is not None
        and "Norm" not in type(part).__name__
    ]


def _shape_of(tensor: Tensor, last: nn.Module | None) -> tuple[tuple[int, ...], int]:
    """Return spatial size and channels of a map, tokens or a vector; ``last`` layer made it."""
    shape = tuple(tensor.shape)
    width = getattr(last, "out_channels", getattr(last, "out_features", None))
    channels_last = len(shape) == 3 or shape[-1] == width != (*shape, 1)[1]
    return (shape[1:-1], shape[-1]) if channels_last else (shape[2:], (*shape, 1)[1])


def _kind(module: nn.Module, block: Block, layers: int, resampled: bool) -> str:
    if not block.size:
        return "embedding"
    if FEATURE_HEAD.search(f"{block.name} {block.path}"):
        return "feature head"
    if FUSION.search(block.name) or FUSION.search(block.path):
        return "gate or fusion"
    names = [type(part).__name__ for part in module.modules() if _layers(part)]
    if any(ATTENTION.search(name) and not FUSION.search(name) for name in names):
        return ATTENDING
    if RESIDUAL.search(block.name):
        return "residual block"
    return "down- or upsampling" if resampled and layers <= 1 else "convolution or linear"
