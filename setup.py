"""Installation of dsdiff. ``configs`` travels inside the package, so verbs work from anywhere."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "ldm/__init__.py").read_text()).group(1)
CONFIGS = ["configs", *(f"configs/{p.name}" for p in (HERE / "configs").iterdir() if p.is_dir())]

setup(
    name="dsdiff",
    version=VERSION,
    description="Latent diffusion with swappable backbones for contrast-enhanced MRI synthesis",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    author="The DS-Diff developers",
    keywords=["MRI", "diffusion models", "contrast enhancement", "image synthesis"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["ldm*", "guided_diffusion*", "UNet_DS_Diff*"]),
        *(f"ldm.{folder.replace('/', '.')}" for folder in CONFIGS),
    ],
    package_dir={f"ldm.{folder.replace('/', '.')}": folder for folder in CONFIGS},
    package_data={"": ["*.yaml"], "ldm": ["py.typed"], "ldm.report": ["templates/*"]},
    py_modules=["dsdiff"],  # outside ldm, of which there are others
    entry_points={"console_scripts": ["dsdiff = dsdiff:main"]},
    install_requires=[
        "torch>=2.10",  # below, weights_only loading can be bypassed (CVE-2025-32434, -2026-24747)
        "pytorch-lightning>=2.6,!=2.6.2,!=2.6.3",  # stolen-credential releases
        "omegaconf>=2.4",
        "einops",
        "timm",
        "nibabel",
        "scikit-image",
        "scipy",
        "torchmetrics",
        "safetensors",
        "monai>=1.6",
        "matplotlib",
        "pillow",
        "jinja2",
        "tensorboard",
        "rich",
    ],
    extras_require={
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        "energy": ["nvidia-ml-py"],  # joules of a GPU in the benchmark
        "hdf5": ["h5py"],
        "hub": ["huggingface_hub"],
        "onnx": ["onnx", "onnxruntime", "onnxscript"],
        "dicom": ["pydicom", "dicom2nifti"],
        "register": ["SimpleITK"],
        "wandb": ["wandb"],
        "mlflow": ["mlflow-skinny"],
        "test": [
            *("pytest", "pytest-xdist", "hypothesis", "ruff", "mypy"),
            *("pytorch-msssim", "SimpleITK"),
            *("diffusers", "segmentation_models_pytorch"),  # networks that shipped YAMLs adapt
            *("h5py", "pydicom", "dicom2nifti", "pandas", "bids-validator-deno"),
            *("onnx", "onnxruntime", "onnxscript"),  # checked against torch
            *("wandb", "mlflow-skinny"),
        ],
    },
)
