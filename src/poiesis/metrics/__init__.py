"""Metrics: pure functions on arrays and features, in float64; feature extractors.

Each returns an `Estimate`: the value, and what a bootstrap interval of it needs.
"""

from poiesis.metrics.density_coverage import density_coverage, expected_coverage
from poiesis.metrics.estimate import Estimate, mean_estimate
from poiesis.metrics.fid import fid, frechet_distance
from poiesis.metrics.inception_score import inception_score
from poiesis.metrics.kid import kid
from poiesis.metrics.precision_recall import precision_recall

__all__ = [
    "Estimate",
    "density_coverage",
    "expected_coverage",
    "fid",
    "frechet_distance",
    "inception_score",
    "kid",
    "mean_estimate",
    "precision_recall",
]
