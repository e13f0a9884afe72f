"""Improved precision and recall (Kynkäänniemi et al. 2019, 1904.06991).

Precision is the share of generated samples that lie among the real ones (fidelity), recall the
share of real samples that lie among the generated ones (variety); "among" means within the
distance of some sample of the other set to its k-th neighbour there.
"""

from __future__ import annotations

from numpy.typing import ArrayLike
from torch import Tensor

from poiesis.metrics.distances import in_balls, neighbour_radii
from poiesis.metrics.estimate import Estimate, as_pair, mean_estimate

__all__ = ["precision_recall"]


def precision_recall(
    real: ArrayLike | Tensor, generated: ArrayLike | Tensor, *, k: int = 3
) -> tuple[Estimate, Estimate]:
    """Return (precision, recall), each in [0, 1] and higher is better, of features (n, d), (m, d).

    Intervals take the other set's balls as given. Both depend on n and m: compare equal counts.
    Raises DataError where a set has no more than k samples.
    """
    x, y = as_pair(real, generated)
    among_real, _ = in_balls(x, neighbour_radii(x, k), y)
    among_generated, _ = in_balls(y, neighbour_radii(y, k), x)
    return (
        mean_estimate(among_real > 0, low=0, high=1),
        mean_estimate(among_generated > 0, low=0, high=1),
    )
