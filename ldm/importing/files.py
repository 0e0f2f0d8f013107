"""Reading the checkpoint of another project: tensors only, whatever else is pickled with them.

Training checkpoints in the wild hold objects beside the weights: the arguments of the script, numpy
scalars, callbacks. The few that are known stand-ins replace by :class:`Inert`, so that the class
itself is never imported or called; everything else is refused.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from ldm.checkpoint import OWN, verify_archive
from ldm.errors import CheckpointError, UnsafeError
from ldm.storage import head_of

# Keys under which checkpoints keep the weights, and their moving average; the first one counts.
RAW_KEYS = ("state_dict", "model", "module", "model_state_dict")
EMA_KEYS = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema")
# torch.save before 1.6, and still optional
LEGACY_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


class Inert:
    """Stands in for an object that is not needed: takes any arguments, keeps and does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __new__(cls, *args: Any) -> Inert:  # noqa: D102 - NEWOBJ passes it the arguments too
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _empty_dict(*args: Any) -> dict:
    return {}


def _stand_ins() -> list[tuple[Any, str]]:
    """Return (stand-in, qualified name in the file) for ``torch.serialization.safe_globals``."""
    inert = ["argparse.Namespace", "typing.Any", "numpy.dtype", "numpy.ndarray"]
    inert += [f"builtins.{name}" for name in ("dict", "list", "int", "float", "bool", "str")]
    for numpy in ("numpy.core", "numpy._core"):
        inert += [f"{numpy}.multiarray.scalar", f"{numpy}.multiarray._reconstruct"]
    for path in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"):
        inert += [f"pathlib.{path}", f"pathlib._local.{path}"]
    inert += ["omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"]
    inert += ["omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"]
    for kind in ("Any", "String", "Integer", "Float", "Boolean"):
        inert.append(f"omegaconf.nodes.{kind}Node")
    dicts = []
    for lightning in ("pytorch_lightning", "lightning.pytorch"):
        for callback in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping"):
            inert.append(f"{lightning}.callbacks.{callback}")
        inert.append(f"{lightning}.callbacks.lr_monitor.LearningRateMonitor")
        dicts += [f"{lightning}.utilities.parsing.AttributeDict"]
    dicts += ["lightning_fabric.utilities.data.AttributeDict"]
    return [
        *((Inert, name) for name in inert),
        *((OrderedDict, name) for name in dicts),
        (_empty_dict, "collections.defaultdict"),
    ]


@dataclass(frozen=True)
class PublicCheckpoint:
    """The weights in a file, by the names that they have there.

    Attributes:
        raw: the trained weights; empty where the file holds an average only.
        ema: their moving average, where the file keeps it as a state dict of its own.
    """

    raw: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]


def read_public_checkpoint(path: Path) -> PublicCheckpoint:
    """Return the weights of a torch file (ZIP or legacy) or a safetensors file, on the CPU.

    Raises:
        CheckpointError: CKPT-MISSING, CKPT-FORMAT (nothing of the kind, no weights inside, or a
            model of this project) or CKPT-CORRUPT. UnsafeError: UNSAFE-PICKLE, UNSAFE-ARCHIVE.
    """
    head = head_of(path) if path.is_file() else b""
    if head[8:9] == b"{":
        content = _read_safetensors(path)
    else:
        is_legacy = head.startswith(LEGACY_HEAD)
        if not is_legacy:
            verify_archive(path)
        content = _read_torch(path, mmap=not is_legacy)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            "CKPT-FORMAT", f"{path.name} holds a {type(content).__name__}: expected a state dict"
        )
    if OWN in content:
        raise _of_this_project(path)
    raw, ema = _inner(content, RAW_KEYS), _inner(content, EMA_KEYS)
    if not raw and not ema:
        raw = _tensors(content)
    if not raw and not ema:
        keys = ", ".join(map(str, list(content)[:5])) or "none"
        raise CheckpointError(
            "CKPT-FORMAT", f"{path.name} holds no weights (its keys: {keys}): give the model's file"
        )
    return PublicCheckpoint(raw, ema)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if "sha256" in (file.metadata() or {}):  # as ldm.model_file writes it
                raise _of_this_project(path)
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError("CKPT-CORRUPT", f"{path.name} is damaged: {error}") from error


def _of_this_project(path: Path) -> CheckpointError:
    """Return the refusal of what sampled otherwise than it was trained, by a YAML not its own."""
    return CheckpointError(
        "CKPT-FORMAT",
        f"{path.name} is a model of this project, which needs no import: dsdiff sample takes its "
        "folder as it is, dsdiff train --from goes on from its weights",
    )


def _read_torch(path: Path, mmap: bool) -> Any:
    """Return what ``torch.save`` wrote; with ``mmap`` an optimizer state costs no memory."""
    try:
        with safe_globals(_stand_ins()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise UnsafeError(
            "UNSAFE-PICKLE",
            f"{path.name} holds {named[1] if named else 'objects'}, which is neither a tensor nor "
            "a plain value and could run code; nothing was run. If you trust its author, save the "
            "weights alone, as safetensors, where they were made",
        ) from error
    except Exception as error:  # a pickle that was cut off or tampered with can raise anything
        if isinstance(error, OSError | MemoryError) or "DefaultCPUAllocator" in str(error):
            raise
        raise CheckpointError(
            "CKPT-CORRUPT", f"{path.name} is no complete torch checkpoint: {error}"
        ) from error


def _inner(content: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the first state dict that ``content`` has under one of ``keys``."""
    inner = (content[key] for key in keys if isinstance(content.get(key), Mapping))
    return next(filter(None, map(_tensors, inner)), {})


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
