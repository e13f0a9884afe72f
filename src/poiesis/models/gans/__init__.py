"""Generative adversarial networks, one file per model."""
