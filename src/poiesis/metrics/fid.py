"""Fréchet distance between Gaussians fitted to features (FID; Heusel et al. 2017, 1706.08500).

d² = |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½), in float64: float32 statistics are off by several per
cent. No matrix square root is formed. With centred samples A = X_c / √(n-1), so that Σ = AᵀA, the
trace of (Σ₁Σ₂)^½ is the sum of the singular values of A₁A₂ᵀ, which also shows how it changes
with the weight of each sample, hence its sampling error.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poiesis.metrics.estimate import Estimate, as_pair

__all__ = ["fid", "frechet_distance"]

_BLOCK = 256
"""Rows and columns of a block of the product below."""


def frechet_distance(
    mean1: ArrayLike | Tensor,
    cov1: ArrayLike | Tensor,
    mean2: ArrayLike | Tensor,
    cov2: ArrayLike | Tensor,
) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance of two Gaussians.

    Means of shape (d,), covariances (d, d), symmetric positive semi-definite, taken to float64.
    Source: Dowson & Landau 1982; Heusel et al. 2017, eq. 6.
    """
    m1, c1, m2, c2 = (
        torch.as_tensor(v).detach().to(device="cpu", dtype=torch.float64)
        for v in (mean1, cov1, mean2, cov2)
    )
    root, failed = torch.linalg.cholesky_ex(c1)
    if failed:
        # Dead feature units make a covariance singular: take a root that allows it.
        values, vectors = torch.linalg.eigh(c1)
        root = vectors * values.clamp_min(0).sqrt()
        product = root.T @ c2 @ root
    else:
        product = _congruence(root, c2)
    trace = torch.linalg.eigvalsh(product).clamp_min(0).sqrt().sum()  # reads the lower triangle
    return float(((m1 - m2) ** 2).sum() + c1.trace() + c2.trace() - 2 * trace)


def _congruence(low: Tensor, c: Tensor) -> Tensor:
    """Return LᵀCL for a lower triangular L and a symmetric C, in its lower triangle only.

    By blocks, without the products with L's zeros and those that only make the upper triangle: a
    third of the arithmetic. What is above the diagonal of blocks is left zero.
    """
    cuts = list(range(0, len(low), _BLOCK))
    half = torch.empty_like(c)
    for start in cuts:
        end = start + _BLOCK
        torch.mm(c[:, start:], low[start:, start:end], out=half[:, start:end])
    product = torch.zeros_like(c)
    for start in cuts:
        end = start + _BLOCK
        product[start:end, :end] = low[start:, start:end].T @ half[start:, :end]
    return product


def fid(real: ArrayLike | Tensor, generated: ArrayLike | Tensor) -> Estimate:
    """Return the Fréchet distance of two feature sets of shape (n, d) and (m, d); lower is better.

    The value is biased upwards, the more so the fewer the samples: compare equal n only. Time is
    O(min(n, d)² max(n, d)): some 15 s for 5,000 samples of 2,048 dims on one core. Raises
    DataError for features that don't match or are not finite.
    """
    x, y = as_pair(real, generated)
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = (x - mean_x), (y - mean_y)
    basis_x, factor_x = _factor(x)
    basis_y, factor_y = _factor(y)
    u, s, vt = torch.linalg.svd(factor_x @ factor_y.T, full_matrices=False)
    shift = mean_x - mean_y
    squares_x = (x**2).sum(1) * (len(x) / (len(x) - 1))
    squares_y = (y**2).sum(1) * (len(y) / (len(y) - 1))
    value = (shift**2).sum() + squares_x.mean() + squares_y.mean() - 2 * s.sum()
    # d(sum of singular values)/d(weight of sample i) = ½ (U S Uᵀ)_ii, and likewise with V.
    cross_x = len(x) * ((basis_x @ u) ** 2 @ s)
    cross_y = len(y) * ((basis_y @ vt.T) ** 2 @ s)
    part_x = squares_x - cross_x + 2 * (x @ shift)
    part_y = squares_y - cross_y - 2 * (y @ shift)
    return Estimate(value=float(value), parts=(part_x.numpy(), part_y.numpy()), low=0.0)


def _factor(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Split A = X_c / √(n-1) into Z (n, r), orthonormal columns, times F (r, d), r = min(n, d)."""
    n, d = centred.shape
    a = centred / np.sqrt(n - 1)
    if n <= d:
        return torch.eye(n, dtype=a.dtype), a
    return torch.linalg.qr(a)
