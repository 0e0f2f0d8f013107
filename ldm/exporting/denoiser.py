"""The denoiser of a model for other runtimes: an ONNX file, and a program of ``torch.export``.

Both are the backbone in its wrapper (conditioning, padding) with its weights, for any number of
images of the size that it was trained for. What is around it, the sampler and the preparation, is
not in them: ``dsdiff sample --runtime onnx`` has it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import CheckpointError
from ldm.extras import optional_module
from ldm.inference.onnx_denoiser import MADE_OF, ONNX_FILE, OnnxDenoiser, first_line

PROGRAM_FILE = "denoiser.pt2"
TOLERANCE = 1e-4  # largest difference from torch, of outputs of about 1
OF_SOURCE = ("stack_trace", "source_fn_stack", "torch_fn")  # of a node: places on this machine
MOST = 63  # images at once in a program: networks of diffusers take 64 and more another way


class Denoiser(nn.Module):
    """A wrapped backbone as a function of tensors alone.

    Args:
        wrapper: :class:`ldm.models.diffusion.wrapper.DiffusionWrapper`.
        others: names of its conditions beside the images, in the order of the call.
    """

    def __init__(self, wrapper: nn.Module, others: Sequence[str] = ()) -> None:
        super().__init__()
        self.wrapper, self.names = wrapper, tuple(others)

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Tensor, others: Sequence[Tensor]
    ) -> Tensor:
        """Return the output (B, C_out, *S) for x_t (B, C, *S), t (B,), condition (B, M, *S)."""
        return self.wrapper(x_t, t, condition, dict(zip(self.names, others, strict=True)))


def denoiser_of(model: Any) -> Denoiser:
    """Return the denoiser of a model that synthesises.

    Raises:
        CheckpointError: CKPT-UNSUPPORTED for a model without one.
    """
    if not hasattr(model, "synthesise"):
        raise CheckpointError(
            "CKPT-UNSUPPORTED",
            f"a {type(model).__name__} has no denoiser: export it without --onnx",
        )
    return Denoiser(model.model, list(model.model.blank_others(1))).eval()


def random_inputs(model: Any, batch: int, seed: int = 0) -> tuple[Any, ...]:
    """Return inputs of the denoiser for a batch: x_t, t, condition and the others."""
    blank, t, condition, *beside = model.network_inputs(batch)
    own = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=own)

    steps = torch.randint(len(model.schedule), t.shape, generator=own)
    others = [normal(value) for value in beside[0].values()] if beside else []
    return normal(blank), steps, normal(condition), others


def exported_program(model: Any) -> torch.export.ExportedProgram:
    """Return the denoiser as a program of torch.export, the size of a batch left open.

    Raises:
        CheckpointError: CKPT-UNSUPPORTED where torch cannot.
    """
    denoiser, arguments = denoiser_of(model), random_inputs(model, 2)
    batch = torch.export.Dim("batch", min=1, max=MOST)
    shapes = ({0: batch}, {0: batch}, {0: batch}, [{0: batch} for _ in arguments[3]])
    try:
        with torch.no_grad():
            return torch.export.export(denoiser, arguments, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # of whatever kind a compiler has
        fixed = "Constraints violated (batch)" in str(error)
        why = "the network takes the size of the batch for a number" if fixed else error
        raise _unsupported(model, "torch.export", why) from error


def onnx_bytes(model: Any, program: torch.export.ExportedProgram, digest: str) -> bytes:
    """Return a program as an ONNX file that names the weights, and nothing of this machine.

    Raises:
        ConfigError: CONFIG-EXTRA without the packages. CheckpointError: CKPT-UNSUPPORTED.
    """
    onnx: Any = optional_module("onnx", "--onnx")
    optional_module("onnxscript", "--onnx")  # the exporter's
    try:
        exported = torch.onnx.export(program, args=(), dynamo=True, verbose=False)
    except Exception as error:
        raise _unsupported(model, "ONNX", error) from error
    proto = exported.model_proto
    for node in (*proto.graph.node, *(n for f in proto.functions for n in f.node)):
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.metadata_props[:]
    onnx.helper.set_model_props(proto, {MADE_OF: digest})
    return proto.SerializeToString()


def program_bytes(program: torch.export.ExportedProgram) -> bytes:
    """Return a program as the file that ``torch.export.load`` reads."""
    for node in program.graph.nodes:
        for name in OF_SOURCE:
            node.meta.pop(name, None)
    stream = io.BytesIO()
    torch.export.save(program, stream)
    return stream.getvalue()


def denoiser_files(model: Any, digest: str) -> dict[str, bytes]:
    """Return ``denoiser.onnx`` and ``denoiser.pt2`` by name, each of which returns what torch does.

    Args:
        digest: of the weights.

    Raises:
        CheckpointError: CKPT-UNSUPPORTED where it does not export, or not to the same numbers.
        ConfigError: CONFIG-MISSING without onnx and onnxruntime.
    """
    program = exported_program(model)
    content = onnx_bytes(model, program, digest)
    runners = {
        ONNX_FILE: OnnxDenoiser(content, digest, denoiser_of(model).names),
        PROGRAM_FILE: program.module(),
    }
    for name, run in runners.items():
        if not (found := largest_difference(model, run)) <= TOLERANCE:
            raise _unsupported(model, name, f"it differs from torch by {found:.1e}")
    return {ONNX_FILE: content, PROGRAM_FILE: program_bytes(program)}


@torch.no_grad()
def largest_difference(model: Any, run: Any) -> float:
    """Return the largest absolute difference between the denoiser and what ``run`` makes of it."""
    denoiser, differences = denoiser_of(model), []
    for batch in (1, 3):
        inputs = random_inputs(model, batch, seed=batch)
        differences.append((denoiser(*inputs) - run(*inputs)).abs().max())
    return float(torch.stack(differences).max())


def _unsupported(model: Any, what: str, error: Exception | str) -> CheckpointError:
    network = type(model.model.diffusion_model).__name__
    return CheckpointError(
        "CKPT-UNSUPPORTED",
        f"{network} does not export to {what} ({first_line(error)}): export it without --onnx",
    )
