"""Makes a CUDA-labelled torchvision importable beside a CPU build of torch.

PyPI has one torchvision wheel for Linux and it is linked against the CUDA build of torch. Beside a
CPU torch its binary extension cannot be loaded, so the operators that it registers fakes for do
not exist and ``import torchvision`` raises ``operator torchvision::nms does not exist``. timm,
torchmetrics and Lightning import torchvision, so they fail with it. Nothing here calls those
operators: defining their schemas is enough. That waits until somebody looks for torchvision, so
that importing this package does not import torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

_libraries = []  # a torch Library undoes its definitions when it is collected


class BeforeTorchvision(MetaPathFinder):
    """Finds nothing: acts once, when torchvision is first looked for, and leaves."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Define the missing operators; the finders that follow find torchvision."""
        if name == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            define_missing_operators()


def torchvision_state() -> str:
    """Return ``absent``, ``matched`` or ``remedied``: what :func:`define_missing_operators` does.

    ``remedied`` means a CUDA build of torchvision stands beside a CPU build of torch.
    """
    import torch

    if find_spec("torchvision") is None:
        return "absent"
    try:
        cpu_wheel = version("torchvision").endswith("+cpu")
    except PackageNotFoundError:
        return "absent"
    return "matched" if torch.version.cuda or torch.version.hip or cpu_wheel else "remedied"


def define_missing_operators() -> None:
    """Define the schemas of ``torchvision::nms`` and ``qnms`` where they are missing."""
    if _libraries or torchvision_state() != "remedied":
        return
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def watch_for_torchvision() -> None:
    """Let :class:`BeforeTorchvision` act when torchvision is first looked for."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, BeforeTorchvision())
