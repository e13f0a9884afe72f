"""Anomaly detection: what a model of normal data says about other data."""

from poiesis.apply.detect.verb import Detection, detect

__all__ = ["Detection", "detect"]
