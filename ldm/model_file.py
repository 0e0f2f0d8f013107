"""The slim model that sampling needs: ``model.safetensors``, EMA weights and plain metadata.

A digest of the tensors stands in the metadata and is verified whenever the file is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ldm.environment import require_safe_libraries
from ldm.errors import CheckpointError
from ldm.storage import MODEL_FILE, atomic_path, head_of, refused_write, require_part

FORMAT_VERSION = 1


def save_model(folder: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write ``model.safetensors``: weights with their digest and plain metadata, atomically.

    Raises:
        OutputError: OUT-IO.
    """
    tensors = dict(_apart(state))
    described = {"format": FORMAT_VERSION, "sha256": tensor_digest(tensors), **metadata}
    texts = {name: json.dumps(value, sort_keys=True) for name, value in described.items()}
    try:
        with atomic_path(folder / MODEL_FILE) as temporary:
            save_file(tensors, temporary, metadata=texts)
    except SafetensorError as error:  # how it reports a full disk
        raise refused_write(folder / MODEL_FILE, error) from error


def _apart(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield name and values of each weight in memory of its own: a file holds tied ones twice."""
    seen: set[int] = set()
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        memory = value.untyped_storage()
        is_alone = memory.data_ptr() not in seen and memory.nbytes() == value.nbytes
        seen.add(memory.data_ptr())
        yield name, value if is_alone else value.clone()


def read_model(path: Path, own: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of a model file, its digest verified.

    Args:
        own: the file must be one of this project's; others have no digest and no metadata.

    Raises:
        CheckpointError: CKPT-MISSING, CKPT-FORMAT, CKPT-CORRUPT, CKPT-VERSION or CKPT-NONFINITE.
    """
    require_safe_libraries()
    require_part(path, f"there is no {path}: give a run folder or a model")
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            ours = own or "sha256" in texts
            metadata = {k: json.loads(v) for k, v in texts.items()} if ours else {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        looks = looks_like(head_of(path))
        raise CheckpointError(
            "CKPT-FORMAT", f"{path.name} cannot be read ({error}): it {looks}"
        ) from error
    require_known_format(metadata.get("format", 0), path.name)
    if ours and metadata.get("sha256") != tensor_digest(tensors):
        raise CheckpointError("CKPT-CORRUPT", f"{path.name} is damaged: its digest differs")
    require_finite(tensors, path.name)
    return tensors, metadata


def told_digest(path: Path) -> str | None:
    """Return the digest that a model file tells of itself; None where it tells none."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError):
        return None


def require_known_format(version: int, source: str) -> None:
    """Refuse a file of a later version of this package.

    Raises:
        CheckpointError: CKPT-VERSION.
    """
    if version > FORMAT_VERSION:
        raise CheckpointError("CKPT-VERSION", f"{source} has format {version}: update this package")


def require_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        CheckpointError: CKPT-NONFINITE.
    """
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CheckpointError("CKPT-NONFINITE", f"{source}: {name} holds NaN or infinity")


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def looks_like(head: bytes) -> str:
    """Return in words what the first bytes of a file look like."""
    if not head:
        return "is empty"
    if head.lstrip()[:1] == b"<":
        return "looks like an HTML page: the download failed"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer: fetch the file itself"
    if head[8:9] == b"{":
        return "looks like a safetensors file"
    if head.startswith(b"PK"):
        return "looks like a torch checkpoint"
    return "has an unknown format"
