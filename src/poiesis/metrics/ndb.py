"""Number of statistically different bins (Richardson & Weiss 2018, 1805.12462): which parts of the
data are drawn too rarely or too often.

Real data are cut into K bins by k-means; in each bin a two-proportion z-test compares the share of
real with that of generated samples. For equal distributions a share alpha of the bins differs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poiesis.config import check
from poiesis.errors import DataError
from poiesis.metrics.distances import squared_distances
from poiesis.metrics.estimate import as_features, as_pair
from poiesis.rng import generator

__all__ = ["NDB", "bin_counts", "compare_bins", "fit_bins", "ndb"]

_ROUNDS = 30
"""Most rounds of k-means: bins need not be optimal, only fixed."""


@dataclass(frozen=True, kw_only=True)
class NDB:
    """What the bins say. All are shares in [0, 1]."""

    different: float
    """Bins that differ significantly, over K; about alpha for equal distributions."""
    lost: float
    """Real samples in bins that are drawn less than half as often as they should be, significantly
    (one-sided, alpha / 2); about 0 for equal distributions."""


def ndb(
    real: ArrayLike | Tensor,
    generated: ArrayLike | Tensor,
    *,
    bins: int = 100,
    alpha: float = 0.05,
    seed: int = 0,
) -> NDB:
    """Cut real features (n, d) into bins and compare generated ones (m, d) with them.

    Deterministic for a seed. Raises DataError where there are fewer real samples than bins.
    """
    x, y = as_pair(real, generated)
    centres = fit_bins(x, bins, seed=seed)
    return compare_bins(bin_counts(centres, x), bin_counts(centres, y), alpha=alpha)


def fit_bins(features: ArrayLike | Tensor, bins: int, *, seed: int = 0) -> Tensor:
    """Return the centres (bins, d) of k-means, begun by k-means++ (Arthur & Vassilvitskii 2007).

    An empty cluster keeps its centre. Raises DataError for fewer samples than bins.
    """
    x = as_features(features, "real")
    check("bins", bins, low=1)
    if len(x) < bins:
        raise DataError(f"{len(x)} real samples can't be cut into {bins} bins; ask for fewer")
    source = generator("bins", seed)
    chosen = [int(torch.randint(len(x), (), generator=source))]
    nearest = squared_distances(x, x[chosen])[:, 0]
    while len(chosen) < bins:
        weights = nearest if float(nearest.sum()) > 0 else torch.ones_like(nearest)
        chosen.append(int(torch.multinomial(weights, 1, generator=source)))
        nearest = torch.minimum(nearest, squared_distances(x, x[chosen[-1:]])[:, 0])
    centres = x[chosen].clone()
    before = None
    for _ in range(_ROUNDS):
        where = squared_distances(x, centres).argmin(1)
        if before is not None and torch.equal(where, before):
            break
        before = where
        counts = torch.bincount(where, minlength=bins)
        sums = torch.zeros_like(centres).index_add_(0, where, x)
        full = counts > 0
        centres[full] = sums[full] / counts[full, None]
    return centres


def bin_counts(centres: Tensor, features: ArrayLike | Tensor) -> Tensor:
    """Return how many features (n, d) are nearest to each centre (k, d): int64 (k,)."""
    x = as_features(features, "given", least=1)
    return torch.bincount(squared_distances(x, centres).argmin(1), minlength=len(centres))


def compare_bins(real: Tensor, generated: Tensor, *, alpha: float = 0.05) -> NDB:
    """Compare the counts (k,) of two sets in the same bins by pooled two-proportion z-tests."""
    check("alpha", alpha, low=0, high=1, open_low=True)
    n, m = int(real.sum()), int(generated.sum())
    p, q = real.double() / n, generated.double() / m
    pooled = (real + generated).double() / (n + m)
    error = (pooled * (1 - pooled) * (1 / n + 1 / m)).sqrt()
    # Where both sets fill no bin, or one bin alone, there is nothing to compare.
    z = torch.where(error > 0, (q - p) / error, torch.zeros_like(p))
    level = float(torch.special.ndtri(torch.tensor(1 - alpha / 2, dtype=torch.float64)))
    assert math.isfinite(level)
    # Is q below p / 2? Of q - p / 2 the variance is q (1 - q) / m + p (1 - p) / 4 n, with the q and
    # p that fit both the counts and q = p / 2 best: those of all counts together.
    share = (real + generated).double() / (n + m / 2)
    spread = (share / 2 * (1 - share / 2) / m + share * (1 - share) / (4 * n)).clamp(min=0).sqrt()
    below = (q - p / 2) < -level * spread
    return NDB(
        different=float((z.abs() > level).double().mean()),
        lost=float(p[below].sum()),
    )
