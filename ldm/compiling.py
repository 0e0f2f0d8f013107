"""torch.compile of a network: one owner of how it is asked for, and of what it needs."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from typing import Any

from torch import nn

from ldm.environment import prefers_channels_last
from ldm.errors import ConfigError
from ldm.modules.diffusionmodules.util import to_channels_last
from ldm.storage import cache_root

COMPILERS = {"darwin": "clang++", "win32": "cl"}  # elsewhere g++


def compile_network(network: nn.Module, kind: str, option: str, graphs: bool = False) -> None:
    """Let torch compile a network in place, at its first call.

    Weights, their names and copies of the network are as without, and so is what it returns, up to
    rounding. A first size of a batch is compiled for itself, a second one for all others.

    Args:
        kind: of device that it runs on: ``cpu``, ``cuda``, ...
        option: what the user gave for it, for messages.
        graphs: on ``cuda`` each call is one CUDA graph. What it returns is overwritten by the next
            call, so not for a training, where gradients are kept over steps.

    Raises:
        ConfigError: CONFIG-MISSING without what torch compiles with.
    """
    compiler = os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            "CONFIG-MISSING",
            f"{option} needs a C++ compiler, and there is no {compiler}: install one, name it in "
            f"the variable CXX, or leave {option} out",
        )
    if kind == "cuda" and find_spec("triton") is None:
        raise ConfigError(
            "CONFIG-MISSING", f"{option} needs triton: pip install triton, or leave {option} out"
        )
    # not in the folder for everyone's temporary files, where torch would keep what it runs again
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root() / "compiled"))
    network.compile(mode="reduce-overhead" if graphs and kind == "cuda" else None)


def make_fast(model: Any, precision: str, kind: str, is_compiled: bool) -> None:
    """Lay out the weights of a model as training on a device is fastest, and compile its network.

    Args:
        precision: of the trainer.
        kind: of device.
        is_compiled: ``lightning.compile``.

    Raises:
        ConfigError: see :func:`compile_network`.
    """
    if prefers_channels_last(precision, kind):
        to_channels_last(model)
    if is_compiled:
        compile_network(model.network, kind, "lightning.compile")
