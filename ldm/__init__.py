"""Latent diffusion with swappable denoising backbones for contrast-enhanced MRI synthesis."""

from ldm._torchvision import define_missing_operators, torchvision_state

__version__ = "0.1.0"
__all__ = ["__version__", "torchvision_state"]

define_missing_operators()
