"""Latent diffusion with swappable denoising backbones for contrast-enhanced MRI synthesis."""

from ldm._torchvision import define_missing_operators

__version__ = "0.1.0"

define_missing_operators()
