"""Checkpoints of public implementations become models of this project.

Reading order: ``files`` (what is in a file, safely), ``names`` (keys of a state dict),
``research_yaml`` (the configuration of latent-diffusion), ``model`` (all of it together).
"""
