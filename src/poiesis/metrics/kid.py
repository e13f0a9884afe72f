"""Kernel Inception Distance (Bińkowski et al. 2018, 1801.01401): unbiased squared MMD with the
kernel k(x, y) = (x·y / d + 1)³, averaged over random subsets.
"""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poiesis.config import check
from poiesis.metrics.estimate import Estimate, as_pair
from poiesis.rng import generator

__all__ = ["kid", "polynomial_mmd2"]

_ROWS = 2048


def kid(
    real: ArrayLike | Tensor,
    generated: ArrayLike | Tensor,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Return KID of features of shape (n, d) and (m, d); lower is better, about 0 where equal.

    Mean over `subsets` draws without replacement of min(subset_size, n, m) samples a side; where
    that takes both sets whole, one subset says it all. Unbiased, so it may be negative, and can be
    compared between sample counts. Float64. Raises DataError and ConfigError.
    """
    check("subsets", subsets, low=1)
    check("subset_size", subset_size, low=2)
    x, y = as_pair(real, generated)
    size = min(subset_size, len(x), len(y))
    if size == len(x) == len(y):
        value = polynomial_mmd2(x, y)
    else:
        draws = generator("kid", seed)
        values = []
        for _ in range(subsets):
            rows_x = torch.randperm(len(x), generator=draws)[:size]
            rows_y = torch.randperm(len(y), generator=draws)[:size]
            values.append(polynomial_mmd2(x[rows_x], y[rows_y]))
        value = sum(values) / subsets
    # Hájek projection of the U-statistic: twice a sample's mean kernel against its own set less
    # that against the other.
    own_x = (_row_sums(x, x) - _kernel_diagonal(x)) / (len(x) - 1)
    own_y = (_row_sums(y, y) - _kernel_diagonal(y)) / (len(y) - 1)
    part_x = 2 * (own_x - _row_sums(x, y) / len(y))
    part_y = 2 * (own_y - _row_sums(y, x) / len(x))
    return Estimate(value=value, parts=(part_x.numpy(), part_y.numpy()))


def polynomial_mmd2(x: Tensor, y: Tensor) -> float:
    """Return the unbiased squared MMD of float64 features (n, d) and (m, d), n, m ≥ 2 (eq. 4)."""
    n, m = len(x), len(y)
    within_x = (_row_sums(x, x).sum() - _kernel_diagonal(x).sum()) / (n * (n - 1))
    within_y = (_row_sums(y, y).sum() - _kernel_diagonal(y).sum()) / (m * (m - 1))
    return float(within_x + within_y - 2 * _row_sums(x, y).sum() / (n * m))


def _row_sums(x: Tensor, y: Tensor) -> Tensor:
    """Return the kernel summed over the rows of y, shape (n,), in chunks that bound the memory."""
    return torch.cat([_cube(rows @ y.T / x.shape[1]).sum(1) for rows in x.split(_ROWS)])


def _kernel_diagonal(x: Tensor) -> Tensor:
    return _cube((x**2).sum(1) / x.shape[1])


def _cube(products: Tensor) -> Tensor:
    shifted = products.add_(1)
    return shifted * shifted * shifted
