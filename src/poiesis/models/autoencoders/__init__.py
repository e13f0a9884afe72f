"""Autoencoders, one file per model."""
