"""``dsdiff doctor``: what is installed, what can be used, what to repair."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import ldm
from ldm.errors import ConfigError, UnsafeError

ENOUGH_DISK = 5 << 30

TORCHVISION = {
    "absent": "not installed, nor needed",
    "matched": "of the same build as torch",
    "remedied": "a CUDA build beside a CPU build of torch, which dsdiff makes work",
}


EXAMPLES = ("dsdiff doctor",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments."""


def required() -> list[tuple[str, bool, str]]:
    """Return each package of setup.py, whether it is here as it is required, and the repair."""
    from packaging.requirements import Requirement

    from ldm.extras import installed_version

    try:
        told = [Requirement(text) for text in requires("dsdiff") or ()]
    except PackageNotFoundError:
        return [("dsdiff", False, "pip install -e .  # in the clone of dsdiff")]
    own = [r for r in told if r.marker is None or r.marker.evaluate({"extra": ""})]
    found = [(r, installed_version(r.name)) for r in own]
    return [
        (r.name, version is not None and r.specifier.contains(version, True), f"pip install '{r}'")
        for r, version in found
    ]


def run(args: argparse.Namespace) -> int:
    """Print versions, devices and repairs; exit 2 for something to repair, 10 if it is unsafe."""
    import torch

    from ldm._torchvision import torchvision_state
    from ldm.environment import (
        device_name,
        pick_device,
        require_safe_libraries,
        resolve_precision,
        resolve_weights,
    )
    from ldm.extras import installed_version
    from ldm.storage import cache_root

    repairs = []
    print(f"dsdiff {ldm.__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package, is_in_order, repair in (*required(), ("torchvision", True, "")):
        print(f"  {package:20} {installed_version(package) or 'MISSING'}")
        if not is_in_order:
            repairs.append(repair)
    code = ConfigError.exit_code
    try:
        require_safe_libraries()
    except UnsafeError as error:
        code = error.exit_code
        repairs.append(error.message)
    print(f"torchvision: {TORCHVISION[torchvision_state()]}")
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        repairs.append(f"pip uninstall torchvision  # it does not import: {error}")
    print(f"device: {device_name()}; {torch.get_num_threads()} threads")
    sampling = resolve_weights("auto", pick_device())
    print(f"precision: auto means {resolve_precision('auto')} to train, {sampling} to sample")
    for label, folder in (("here", Path.cwd()), ("cache", cache_root())):
        existing = next(p for p in (folder, *folder.parents) if p.is_dir())
        free = shutil.disk_usage(existing).free
        print(f"free disk, {label} ({folder}): {free / 2**30:.0f} GiB")
        if free < ENOUGH_DISK:
            repairs.append(f"free some space under {existing}")
        if not os.access(existing, os.W_OK):
            repairs.append(
                f"make {existing} writable" + ", or set DSDIFF_CACHE" * (label == "cache")
            )
    for repair in repairs:
        print(f"repair: {repair}")
    print("everything is in order" if not repairs else f"{len(repairs)} to repair")
    return code if repairs else 0
