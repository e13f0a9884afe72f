"""The birthday test (Arora & Zhang 2017, 1706.08224): how many different samples can a model draw?

Among s draws from N equally likely things there is a pair of equals in half of the cases when
s² / (2 ln 2) = N, so duplicates in small batches betray a small support. Two samples are equal
where they are nearer than a threshold; distances are exact (see `distances`), since those of
half precision call near samples equal.
"""

from __future__ import annotations

import math

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poiesis.config import check
from poiesis.errors import DataError
from poiesis.metrics.distances import squared_distances
from poiesis.metrics.estimate import as_features

__all__ = ["birthday_support", "duplicate_threshold", "duplicates", "effective_support"]


def duplicates(samples: ArrayLike | Tensor, threshold: float = 0.0) -> int:
    """Return how many pairs of samples (n, d) are at most `threshold` apart (Euclidean)."""
    check("threshold", threshold, low=0)
    return int((_pairs(samples) <= threshold**2).sum())


def duplicate_threshold(samples: ArrayLike | Tensor, share: float) -> float:
    """Return the distance that `share` of all pairs of samples (n, d) do not exceed."""
    check("share", share, low=0, high=1, open_low=True)
    pairs = _pairs(samples)
    rank = max(1, math.ceil(share * len(pairs)))
    return float(pairs.kthvalue(rank).values) ** 0.5


def effective_support(samples: ArrayLike | Tensor, threshold: float = 0.0) -> float:
    """Return the support size that explains the duplicates among samples (n, d).

    One over the share of pairs at most `threshold` apart: an unbiased estimate of Σ p² is behind
    it, so N equally likely things give N. Infinite where there is no such pair.
    """
    n = len(as_features(samples, "given"))
    found = duplicates(samples, threshold)
    return n * (n - 1) / 2 / found if found else math.inf


def birthday_support(
    samples: ArrayLike | Tensor, size: int, threshold: float = 0.0
) -> tuple[float, float]:
    """Return (share of batches with a duplicate, the support size that follows from it).

    The samples (n, d) are cut into batches of `size`; with p the share of those that hold a pair
    at most `threshold` apart, the support is size (size - 1) / (-2 ln(1 - p)), which for a half is
    about size² / (2 ln 2). It is infinite where no batch holds a pair, and 1 where all do.
    """
    check("size", size, low=2)
    x = as_features(samples, "given", least=2)
    batches = [batch for batch in x.split(size) if len(batch) == size]
    if not batches:
        raise DataError(f"{len(x)} samples make no batch of {size}; take a smaller one")
    share = sum(duplicates(batch, threshold) > 0 for batch in batches) / len(batches)
    if share == 0:
        return share, math.inf
    if share == 1:
        return share, 1.0
    return share, size * (size - 1) / (-2 * math.log(1 - share))


def _pairs(samples: ArrayLike | Tensor) -> Tensor:
    """Return the squared distances of all pairs, (n (n - 1) / 2,)."""
    x = as_features(samples, "given")
    above = torch.triu_indices(len(x), len(x), offset=1)
    return squared_distances(x, x)[above[0], above[1]]
