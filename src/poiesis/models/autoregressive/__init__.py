"""Autoregressive models, one file per model."""
