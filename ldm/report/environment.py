"""Where a report was made: versions, and the device of networks, where any have run."""

from __future__ import annotations

import platform
import sys
from typing import Any

import ldm
from ldm.extras import installed_version

PACKAGES = ("torch", "pytorch-lightning", "monai", "scikit-image", "nibabel")


def environment() -> dict[str, Any]:
    """Return what a report says about where it was made.

    An evaluation without networks never imports torch, which takes longer than a patient does.
    """
    told = {"dsdiff": ldm.__version__, "python": platform.python_version()}
    told |= {package: installed_version(package) for package in PACKAGES}
    if "torch" not in sys.modules:
        return told
    import torch

    from ldm.environment import device_name

    return {**told, "device": device_name(), "threads": torch.get_num_threads()}
