"""Diffusion models, one file per model."""
