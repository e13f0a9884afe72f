"""The matrix root inside a Fréchet distance of 2,048 features, against scipy's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from poiesis.metrics.fid import frechet_distance
from workloads.common import OURS, Gate, Side, Workload

__all__ = ["WORKLOADS"]

FEATURES, SAMPLES = 2_048, 10_000

Gaussian = tuple[np.ndarray, np.ndarray]


@functools.cache
def _gaussians() -> tuple[Gaussian, Gaussian]:
    """Return (mean, covariance) of two sets of correlated features."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((FEATURES, FEATURES)) / np.sqrt(FEATURES)
    a = rng.standard_normal((SAMPLES, FEATURES)) @ mix
    b = 0.1 + 1.1 * rng.standard_normal((SAMPLES, FEATURES)) @ mix
    return (a.mean(0), np.cov(a, rowvar=False)), (b.mean(0), np.cov(b, rowvar=False))


def ours(device: torch.device) -> Callable[[], Any]:
    """`frechet_distance`."""
    (m1, c1), (m2, c2) = _gaussians()
    return lambda: frechet_distance(m1, c1, m2, c2)


def scipy_root(device: torch.device) -> Callable[[], Any]:
    """What FID scripts do: the root of the product, as a matrix."""
    import scipy.linalg

    (m1, c1), (m2, c2) = _gaussians()

    def distance() -> float:
        root = np.asarray(scipy.linalg.sqrtm(c1 @ c2)).real
        return float(((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root))

    return distance


def equal(results: dict[str, Any]) -> dict[str, Any]:
    """Compare the two distances; their relative difference may be 1e-6."""
    a, b = results[OURS], results["scipy.linalg.sqrtm"]
    difference = abs(a - b) / abs(b)
    return {"agree": difference < 1e-6, "relative_difference": difference}


WORKLOADS = [
    Workload(
        name="fid-root",
        title="Fréchet distance of two covariances, 2,048 features",
        unit="roots/min",
        items=60.0,
        sides={
            OURS: Side(build=ours),
            "scipy.linalg.sqrtm": Side(build=scipy_root, modules=("scipy.linalg",)),
        },
        gates=[Gate(against="scipy.linalg.sqrtm", factor=12.0)],
        check=equal,
        count=False,
    )
]
