"""Packages that only some work needs, and what installs them."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from ldm.errors import ConfigError, DataError

EXTRAS = {
    "SimpleITK": "register",
    "dicom2nifti": "dicom",
    "h5py": "hdf5",
    "huggingface_hub": "hub",
    "mlflow": "mlflow",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "pydicom": "dicom",
    "wandb": "wandb",
}  # module -> extra of this project


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def how_to_install(module: str) -> str:
    """Return the command that installs a module."""
    return (
        f"pip install 'dsdiff[{EXTRAS[module]}]'" if module in EXTRAS else f"pip install {module}"
    )


def optional_module(module: str, use: str, *, reads_data: bool = False) -> ModuleType:
    """Return a module that is not always installed.

    Args:
        use: what needs it, for the message.
        reads_data: whether that is a file of the user, not a wish.

    Raises:
        ConfigError: CONFIG-EXTRA, it is not installed. DataError: DATA-EXTRA, the same.
    """
    try:
        return import_module(module)
    except ImportError as error:
        lacks = f"{use} needs {module}, which is missing: {how_to_install(module)}"
        if reads_data:
            raise DataError("DATA-EXTRA", lacks) from error
        raise ConfigError("CONFIG-EXTRA", lacks) from error
