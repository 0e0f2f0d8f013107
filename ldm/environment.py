"""What machine this is: device, fast precision, versions."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import ldm


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def pick_device(name: str = "auto") -> str:
    """Return the device that ``auto`` means here, or ``name``."""
    if name != "auto":
        return name
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return current.type if current else "cpu"


def device_name() -> str:
    """Return the accelerator in words, or the processor."""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return f"{torch.cuda.get_device_name(0)} ({memory:.0f} GiB)"
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator().type
    return f"cpu ({torch.cpu.get_capabilities().get('cpu_name') or platform.processor()})"


def resolve_precision(precision: Any) -> str:
    """Return ``auto`` as bf16 where the hardware multiplies in bf16, else as 32 bit."""
    if precision != "auto":
        return str(precision)
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bf16-mixed" if fast else "32"


def prefers_channels_last(precision: str) -> bool:
    """Return whether training is faster in channels-last: with bf16 on tensor or tile units."""
    tiles = torch.cuda.is_available() or torch.cpu.get_capabilities().get("amx_bf16")
    return precision.startswith("bf16") and bool(tiles)


def environment() -> dict[str, Any]:
    """Return what a report says about where it was made."""
    packages = ("torch", "pytorch-lightning", "monai", "scikit-image", "nibabel")
    return {
        "dsdiff": ldm.__version__,
        "python": platform.python_version(),
        **{package: installed_version(package) for package in packages},
        "device": device_name(),
        "threads": torch.get_num_threads(),
    }
