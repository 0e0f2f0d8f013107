"""What a network costs: parameters, FLOPs of one call, memory.

FLOPs and activations are counted on the ``meta`` device, where tensors have shapes but no data, so
that the count of a large network takes no memory and little time. A network that looks at values
in its forward cannot run there and is run for real.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ADAM_STATES = 2  # first and second moment
BACKWARD = 2  # a backward pass costs two forwards: gradients of inputs and of weights
PROCESS_STATUS = Path("/proc/self/status")
PROCESS_RESET = Path("/proc/self/clear_refs")


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, trainable or not; a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_flops(module: nn.Module, *inputs: Any) -> int:
    """Floating-point operations of ``module(*inputs)``: matrix products and convolutions.

    A multiply-add counts as 2 FLOPs (fvcore, ptflops and many papers print multiply-adds, half of
    it, under the same name). Attention is counted as its two matrix products, because counters
    skip the fused kernels of the CPU. Bias, normalisation and activation functions do not count.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides whole layers from the counter
    try:
        # in eval mode: a batch norm cannot train on the one pixel of a coarsest map
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _mode(module, training=False):
            return _first_that_runs(_flops, module, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def training_flops(forward: int, batch: int, steps: int) -> int:
    """Floating-point operations of a training: 3 forwards an image (Kaplan et al. 2020, 2.1).

    Args:
        forward: FLOPs of one network call at batch 1, see :func:`count_flops`.
        batch: images an optimizer step.
        steps: optimizer steps.
    """
    return (1 + BACKWARD) * forward * batch * steps


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training step holds at its peak, by owner."""

    parameters: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all parts, in bytes; without workspaces, fragmentation and the program itself."""
        return sum(asdict(self).values())


def training_memory_estimate(module: nn.Module, *inputs: Any) -> MemoryEstimate:
    """Memory of a training step with Adam and EMA at the batch size of ``inputs``.

    Activations are the tensors that autograd saves in one forward in training mode, each storage
    counted once, parameters left out. What is held inside gradient checkpointing is not seen: with
    it the figure is a lower bound.

    Args:
        module: the network, on any device.
        inputs: arguments of its forward, batch first.
    """
    parameters = _nbytes(module.parameters())
    trainable = _nbytes(p for p in module.parameters() if p.requires_grad)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]), _mode(module, training=True):
        activations = _first_that_runs(_saved_bytes, module, inputs)
    return MemoryEstimate(
        parameters=parameters,
        gradients=trainable,
        optimizer=ADAM_STATES * trainable,
        ema=parameters,
        activations=activations,
    )


def peak_memory(device: torch.device | str) -> int:
    """Largest memory in bytes since :func:`reset_peak_memory`, or since the start of the process.

    On CUDA the memory allocated on the device, elsewhere the resident memory of this process, with
    program and libraries.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        # ru_maxrss of a child starts at the size of its parent on Linux; VmHWM does not
        for line in PROCESS_STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return _peak_working_set()
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _peak_working_set() -> int:
    """Ask Windows; PROCESS_MEMORY_COUNTERS is two numbers of 4 bytes, then sizes."""
    counters = (ctypes.c_size_t * 9)(72)  # the first of 8 bytes holds cb, its own size, and faults
    ctypes.windll.kernel32.K32GetProcessMemoryInfo(ctypes.c_void_p(-1), counters, 72)
    return counters[1]


def peak_memory_label(device: torch.device | str) -> str:
    """What :func:`peak_memory` measures on ``device``, for the head of a column."""
    on_gpu = torch.device(device).type == "cuda"
    return "peak VRAM" if on_gpu else "peak resident memory (cpu)"


def reset_peak_memory(device: torch.device | str) -> None:
    """Start a new peak. Off CUDA and Linux the peak stays that of the whole process."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif PROCESS_RESET.exists():
        with contextlib.suppress(OSError):
            PROCESS_RESET.write_text("5")  # see proc(5): resets the peak resident set size


@contextlib.contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    modes = {child: child.training for child in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


def _nbytes(tensors: Iterator[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _first_that_runs(count: Any, module: nn.Module, inputs: tuple[Any, ...]) -> int:
    """``count`` on the meta device, or on real tensors of batch 1, scaled to the batch."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    try:
        return count(
            module,
            {name: _to_meta(tensor) for name, tensor in state.items()},
            tuple(_to_meta(value) for value in inputs),
        )
    except Exception:  # an error of the network itself comes again below
        batch = next((len(v) for v in inputs if isinstance(v, torch.Tensor) and v.ndim), 1)
        single = (_first_item(v) for v in inputs)
        # running statistics are written to copies
        buffers = {name: tensor.clone() for name, tensor in module.named_buffers()}
        return batch * count(module, {**state, **buffers}, tuple(single))


def _first_item(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _first_item(item) for key, item in value.items()}
    return value[:1] if isinstance(value, torch.Tensor) and value.ndim else value


def _to_meta(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_meta(item) for key, item in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_like(value, device="meta").requires_grad_(value.requires_grad)


def _flops(module: nn.Module, state: dict[str, torch.Tensor], inputs: tuple[Any, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        functional_call(module, state, inputs)
    return counter.get_total_flops()


def _saved_bytes(module: nn.Module, state: dict[str, torch.Tensor], inputs: tuple[Any, ...]) -> int:
    owned = {tensor.untyped_storage()._cdata for tensor in state.values()}
    saved: dict[int, torch.UntypedStorage] = {}  # holding them keeps the keys unique

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        functional_call(module, state, inputs)
    return sum(storage.nbytes() for storage in saved.values())
