"""Latent diffusion with swappable denoising backbones for contrast-enhanced MRI synthesis.

The jobs of ``dsdiff`` as calls: ``train``, ``Synthesiser``, ``brasyn``, ``evaluate``,
``Benchmark``, ``Segmenter``, ``ensemble`` and ``export``. They print nothing and raise the errors
of :mod:`ldm.errors`; see docs/python.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ldm._torchvision import watch_for_torchvision

if TYPE_CHECKING:
    from ldm.averaging import ensemble
    from ldm.benchmark.run import Benchmark
    from ldm.evaluation.folder import evaluate
    from ldm.handover import export
    from ldm.inference.brasyn import brasyn
    from ldm.inference.segmentation import NetworkSegmenter as Segmenter
    from ldm.inference.synthesis import Synthesiser
    from ldm.training import train

__version__ = "0.1.0"
__all__ = [
    "Benchmark",
    "Segmenter",
    "Synthesiser",
    "__version__",
    "brasyn",
    "ensemble",
    "evaluate",
    "export",
    "train",
]

# Imported when they are asked for: with them come torch and all that is built on it.
DOOR = {
    "Benchmark": ("ldm.benchmark.run", "Benchmark"),
    "Segmenter": ("ldm.inference.segmentation", "NetworkSegmenter"),
    "Synthesiser": ("ldm.inference.synthesis", "Synthesiser"),
    "brasyn": ("ldm.inference.brasyn", "brasyn"),
    "ensemble": ("ldm.averaging", "ensemble"),
    "evaluate": ("ldm.evaluation.folder", "evaluate"),
    "export": ("ldm.handover", "export"),
    "train": ("ldm.training", "train"),
}

watch_for_torchvision()


def __getattr__(name: str) -> Any:
    if name not in DOOR:
        raise AttributeError(f"module 'ldm' has no attribute '{name}'")
    module, attribute = DOOR[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *DOOR})
