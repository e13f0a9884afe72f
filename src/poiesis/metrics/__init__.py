"""Metrics: pure functions on arrays and features; feature extractors."""
