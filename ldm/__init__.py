"""Latent diffusion with swappable denoising backbones for contrast-enhanced MRI synthesis.

The verbs of ``dsdiff`` as calls, which print nothing and raise the errors of :mod:`ldm.errors`:
docs/python.md shows them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ldm._torchvision import watch_for_torchvision

if TYPE_CHECKING:
    from ldm.benchmark.run import Benchmark
    from ldm.benchmark.sweep_cells import sweep
    from ldm.data.preparing import prepare
    from ldm.diagnosis.data import diagnose_data
    from ldm.diagnosis.run import diagnose_run
    from ldm.exporting.handover import export
    from ldm.importing.model import import_model
    from ldm.inference.brasyn import brasyn
    from ldm.inference.label_maps import segment
    from ldm.inference.sampling import sample
    from ldm.inference.segmentation import NetworkSegmenter as Segmenter
    from ldm.inference.synthesis import Synthesiser
    from ldm.phantom import write_phantoms
    from ldm.report.evaluation import evaluate
    from ldm.report.segmentation import evaluate_segmentations
    from ldm.training.distillation import distill
    from ldm.training.ensemble import ensemble
    from ldm.training.run import train

__version__ = "0.1.0"
__all__ = [
    "Benchmark",
    "Segmenter",
    "Synthesiser",
    "__version__",
    "brasyn",
    "diagnose_data",
    "diagnose_run",
    "distill",
    "ensemble",
    "evaluate",
    "evaluate_segmentations",
    "export",
    "import_model",
    "prepare",
    "sample",
    "segment",
    "sweep",
    "train",
    "write_phantoms",
]

# Imported when they are asked for: with them come torch and all that is built on it.
DOOR = {
    "Benchmark": ("ldm.benchmark.run", "Benchmark"),
    "Segmenter": ("ldm.inference.segmentation", "NetworkSegmenter"),
    "Synthesiser": ("ldm.inference.synthesis", "Synthesiser"),
    "brasyn": ("ldm.inference.brasyn", "brasyn"),
    "diagnose_data": ("ldm.diagnosis.data", "diagnose_data"),
    "diagnose_run": ("ldm.diagnosis.run", "diagnose_run"),
    "distill": ("ldm.training.distillation", "distill"),
    "ensemble": ("ldm.training.ensemble", "ensemble"),
    "evaluate": ("ldm.report.evaluation", "evaluate"),
    "evaluate_segmentations": ("ldm.report.segmentation", "evaluate_segmentations"),
    "export": ("ldm.exporting.handover", "export"),
    "import_model": ("ldm.importing.model", "import_model"),
    "prepare": ("ldm.data.preparing", "prepare"),
    "sample": ("ldm.inference.sampling", "sample"),
    "segment": ("ldm.inference.label_maps", "segment"),
    "sweep": ("ldm.benchmark.sweep_cells", "sweep"),
    "train": ("ldm.training.run", "train"),
    "write_phantoms": ("ldm.phantom", "write_phantoms"),
}

watch_for_torchvision()


def __getattr__(name: str) -> Any:
    if name not in DOOR:
        raise AttributeError(f"module 'ldm' has no attribute '{name}'")
    module, attribute = DOOR[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
