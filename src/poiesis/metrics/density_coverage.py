"""Density and coverage (Naeem et al. 2020, 2002.09797): precision and recall made robust.

Density counts how many real balls hold each generated sample, so one outlier's huge ball weighs
little; coverage is the share of real balls that hold any generated sample.
"""

from __future__ import annotations

import math

from numpy.typing import ArrayLike
from torch import Tensor

from poiesis.config import check
from poiesis.metrics.distances import in_balls, neighbour_radii
from poiesis.metrics.estimate import Estimate, as_pair, mean_estimate

__all__ = ["density_coverage", "expected_coverage"]


def density_coverage(
    real: ArrayLike | Tensor, generated: ArrayLike | Tensor, *, k: int = 5
) -> tuple[Estimate, Estimate]:
    """Return (density, coverage) of features of shape (n, d) and (m, d); higher is better.

    Density is at least 0 and about 1 for equal distributions, more where samples crowd around the
    modes; coverage is in [0, 1], about `expected_coverage` for equal distributions. Intervals take
    the real balls as given, and coverage's also the generated samples. Raises DataError where
    there are no more than k real samples.
    """
    x, y = as_pair(real, generated)
    per_point, per_ball = in_balls(x, neighbour_radii(x, k), y)
    return (
        mean_estimate(per_point.double() / k, low=0),
        mean_estimate(per_ball > 0, low=0, high=1),
    )


def expected_coverage(n_real: int, n_generated: int, k: int = 5) -> float:
    """Return the coverage expected when generated and real samples share one distribution.

    1 - ∏ᵢ₌₁ᵏ (N-i) / (M+N-i), whatever the distribution (Naeem et al. 2020, app. C).
    """
    check("k", k, low=1, high=n_real - 1)
    check("n_generated", n_generated, low=1)
    return 1 - math.prod((n_real - i) / (n_generated + n_real - i) for i in range(1, k + 1))
