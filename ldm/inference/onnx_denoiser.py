"""A denoiser of :mod:`ldm.exporting.denoiser` that onnxruntime calls, in place of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import CheckpointError, DataError
from ldm.extras import optional_module

ONNX_FILE = "denoiser.onnx"
MADE_OF = "dsdiff_weights"  # in the metadata of an ONNX file: the digest of what it was made of


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
                "CKPT-CORRUPT", f"{ONNX_FILE} cannot be read ({first_line(error)}): export it again"
            ) from error
        told = self.session.get_modelmeta().custom_metadata_map.get(MADE_OF)
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


def first_line(error: Exception | str) -> str:
    """Return the first line of what an exporter says, which may go on for pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:160]
