"""Latent diffusion with swappable denoising backbones for contrast-enhanced MRI synthesis."""

from ldm._torchvision import watch_for_torchvision

__version__ = "0.1.0"
__all__ = ["__version__"]

watch_for_torchvision()
