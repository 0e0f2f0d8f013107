"""What machine this is: device, fast precision, safe versions."""

from __future__ import annotations

import logging
import platform
import re
from typing import Any

import torch

from ldm.errors import UnsafeError, bad_value
from ldm.extras import installed_version

log = logging.getLogger(__name__)

SAFE_TORCH = (2, 10)
STOLEN = ("2.6.2", "2.6.3")  # releases of Lightning made with stolen credentials


def require_safe_libraries() -> None:
    """Refuse libraries with which reading a foreign file, or installing, runs foreign code.

    Raises:
        UnsafeError: UNSAFE-VERSION for a torch below 2.10, whose ``weights_only`` can be bypassed
            (CVE-2025-32434, CVE-2026-24747), and for the stolen releases of Lightning.
    """
    found = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if found < SAFE_TORCH:
        raise UnsafeError(
            "UNSAFE-VERSION",
            f"torch is {torch.__version__}: below {'.'.join(map(str, SAFE_TORCH))} a checkpoint "
            "can run code; pip install --upgrade torch",
        )
    for package in ("pytorch-lightning", "lightning"):
        if installed_version(package) in STOLEN:
            raise UnsafeError(
                "UNSAFE-VERSION",
                f"{package} {installed_version(package)} is a compromised release: "
                f"pip install '{package}!={',!='.join(STOLEN)}'",
            )


def pick_device(name: str = "auto") -> str:
    """Return the device that ``auto`` means here, or ``name``.

    Raises:
        ConfigError: CONFIG-VALUE for a device that is not here.
    """
    if name != "auto":
        try:
            torch.zeros(1, device=name).item()  # `meta` has no numbers
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise bad_value(
                f"device is '{name}', which is not here ({str(error).splitlines()[0][:80]}): give "
                "auto or cpu"
            ) from error
        return name
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return current.type if current else "cpu"


def device_name(kind: str | None = None) -> str:
    """Return a device in words; by default the accelerator, or where there is none the processor.

    Args:
        kind: ``cuda``, ``mps``, ``cpu``, ...; None: what ``auto`` means here.
    """
    kind = kind or pick_device()
    if kind == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return f"{torch.cuda.get_device_name(0)} ({memory:.0f} GiB)"
    if kind != "cpu":
        return kind
    return f"cpu ({torch.cpu.get_capabilities().get('cpu_name') or platform.processor()})"


def multiplies_bf16(kind: str) -> bool:
    """Return whether a kind of device (``cuda``, ``cpu``, ...) multiplies in bf16 in hardware."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return kind == "cpu" and bool(fast)


def resolve_precision(precision: Any, accelerator: str = "auto") -> str:
    """Return what ``auto`` means for a training: bf16 where it is fast, else 32 bit.

    Args:
        precision: ``lightning.trainer.precision``.
        accelerator: ``lightning.trainer.accelerator``: where it trains.
    """
    if precision != "auto":
        return str(precision)
    kind = {"auto": "cpu"}.get(accelerator, accelerator)
    if torch.cuda.is_available() and accelerator in ("auto", "gpu"):
        kind = "cuda"
    is_here = kind != "cuda" or torch.cuda.is_available()  # else Lightning refuses it
    return "bf16-mixed" if is_here and multiplies_bf16(kind) else "32"


def resolve_weights(precision: str, kind: str) -> str:
    """Return what ``auto`` means for weights that sample: bf16 where it is fast, else 32.

    Args:
        precision: ``auto``, ``32`` or ``bf16``; an explicit bf16 that is slow is warned of.
        kind: of device: ``cuda``, ``mps``, ``cpu``, ...
    """
    fast = multiplies_bf16(kind)
    if precision == "auto":
        return "bf16" if fast else "32"
    if precision == "bf16" and kind == "cpu" and not fast:
        log.warning(
            "this processor does not multiply in bf16, which is 5 to 10 times slower than 32 bit "
            "here: give precision auto or 32"
        )
    return precision


def prefers_channels_last(precision: str, kind: str) -> bool:
    """Return whether training is faster in channels-last: with bf16 on tensor or tile units.

    Args:
        precision: of the trainer.
        kind: of device: ``cuda``, ``cpu``, ...
    """
    tiles = kind == "cuda" or (kind == "cpu" and torch.cpu.get_capabilities().get("amx_bf16"))
    return precision.startswith("bf16") and bool(tiles)
