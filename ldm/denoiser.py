"""The denoiser of a model for other runtimes: an ONNX file, and a program of ``torch.export``.

Both are the backbone in its wrapper (conditioning, padding) with its weights, for any number of
images of the size that it was trained for. What is around it, the sampler and the preparation, is
not in them: ``dsdiff sample --runtime onnx`` has it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import CheckpointError, DataError
from ldm.extras import optional_module

ONNX_FILE, PROGRAM_FILE = "denoiser.onnx", "denoiser.pt2"
TOLERANCE = 1e-4  # largest difference from torch, of outputs of about 1
WEIGHTS = "dsdiff_weights"  # in the metadata of an ONNX file: the digest of what it was made of
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
    onnx.helper.set_model_props(proto, {WEIGHTS: digest})
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


class OnnxDenoiser:
    """Calls an ONNX file in place of a backbone in its wrapper.

    Args:
        file: ``denoiser.onnx``, or its content.
        digest: of the weights that it must have been made of.
        others: names of the conditions beside the images.
        device: ``cuda`` where onnxruntime shall use a GPU, if it can.

    Raises:
        ConfigError: CONFIG-EXTRA without onnxruntime. CheckpointError: CKPT-MISSING without the
            file, CKPT-CORRUPT, CKPT-MISMATCH for one of other weights.
    """

    def __init__(
        self, file: Path | bytes, digest: str, others: Sequence[str] = (), device: str = "cpu"
    ) -> None:
        onnxruntime: Any = optional_module("onnxruntime", "ONNX")
        if isinstance(file, Path) and not file.is_file():
            raise CheckpointError(
                "CKPT-MISSING",
                f"there is no {file}: write it by dsdiff export RUN --output FOLDER --onnx",
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        wanted = ["CUDAExecutionProvider"] * (device == "cuda") + ["CPUExecutionProvider"]
        there = [name for name in wanted if name in onnxruntime.get_available_providers()]
        content = file.read_bytes() if isinstance(file, Path) else file
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=there)
        except Exception as error:  # its classes are those of its C++ binding
            raise CheckpointError(
                "CKPT-CORRUPT", f"{ONNX_FILE} cannot be read ({_short(error)}): export it again"
            ) from error
        told = self.session.get_modelmeta().custom_metadata_map.get(WEIGHTS)
        if told != digest:
            raise CheckpointError(
                "CKPT-MISMATCH", f"{ONNX_FILE} is not of the weights beside it: export it again"
            )
        self.others = tuple(others)
        image, *_ = self.session.get_inputs()
        self.size = tuple(image.shape[2:])
        self.names = [node.name for node in self.session.get_inputs()]

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor, others: Any = None) -> Tensor:
        """Return the output (B, C_out, *S) of a batch.

        Args:
            others: by name, or in their order.

        Raises:
            DataError: DATA-SHAPE for images of another size.
        """
        if tuple(x_t.shape[2:]) != self.size:
            sizes = (" x ".join(map(str, size)) for size in (self.size, x_t.shape[2:]))
            raise DataError(
                "DATA-SHAPE",
                "{} takes images of {}, and this patient's are {}: leave out --runtime onnx".format(
                    ONNX_FILE, *sizes
                ),
            )
        if isinstance(others, Mapping):
            others = [others[name] for name in self.others]
        values = (x_t, t, condition, *(others or ()))
        feed = {n: v.cpu().numpy() for n, v in zip(self.names, values, strict=True)}
        (output,) = self.session.run(None, feed)
        return torch.from_numpy(output).to(x_t.device)


def _unsupported(model: Any, what: str, error: Exception | str) -> CheckpointError:
    network = type(model.model.diffusion_model).__name__
    return CheckpointError(
        "CKPT-UNSUPPORTED",
        f"{network} does not export to {what} ({_short(error)}): export it without --onnx",
    )


def _short(error: Exception | str) -> str:
    """Return the first line of what an exporter says, which may go on for pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:160]
