"""A metric's value with what its sampling error is made of.

Every metric here is, to first order, a sum of means of per-sample contributions (its empirical
influence function), one mean for each sampled set. Resampling these contributions is the linearised
bootstrap, or infinitesimal jackknife (Efron, "The Jackknife, the Bootstrap and Other Resampling
Plans", 1982, ch. 6): it costs one pass, where a plain bootstrap of FID would need hundreds of
eigendecompositions and would be off besides, because resampled sets hold duplicates, which lower
the rank of a covariance and shrink neighbour distances to zero.

The interval covers sampling error alone; a bias (that of FID at a finite number of samples) stays
in the value.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poiesis.config import check
from poiesis.errors import DataError

__all__ = ["Estimate", "as_features", "mean_estimate"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The value of a metric, with per-sample contributions for its interval.

    parts: one float64 array of shape (n_i,) for each sampled set; to first order, the value moves
    with the sum of their means. low, high: bounds of the metric's range.
    """

    value: float
    parts: tuple[np.ndarray, ...] = field(repr=False)
    low: float = -np.inf
    high: float = np.inf

    def interval(
        self, level: float = 0.95, *, resamples: int = 1000, seed: int = 0
    ) -> tuple[float, float]:
        """Return the bootstrap interval (low, high) of the given level, in (0, 1).

        Deterministic for a seed; raises ConfigError for a level or number out of its bounds.
        """
        check("level", level, low=0, high=1, open_low=True)
        check("resamples", resamples, low=1)
        rng = np.random.default_rng(seed)
        shift = np.zeros(resamples)
        for part in self.parts:
            centred = part - part.mean()
            for i in range(resamples):
                shift[i] += centred[rng.integers(len(part), size=len(part))].mean()
        tail = (1 - level) / 2
        low, high = np.quantile(self.value + shift, [tail, 1 - tail]).round(12)
        return float(np.clip(low, self.low, self.high)), float(np.clip(high, self.low, self.high))


def mean_estimate(
    values: ArrayLike | Tensor, *, low: float = -np.inf, high: float = np.inf
) -> Estimate:
    """Return the mean of per-sample values of shape (n,), for which the interval is exact."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise DataError(f"per-sample values of shape {array.shape}: need one dimension, n ≥ 1")
    return Estimate(value=float(array.mean()), parts=(array,), low=low, high=high)


def as_features(values: ArrayLike | Tensor, name: str, *, least: int = 2) -> Tensor:
    """Return features as a float64 tensor of shape (n, d) on the CPU.

    Raises DataError, naming `name`, for another number of dimensions, fewer than `least` rows, or
    values that are not finite.
    """
    x = torch.as_tensor(values).detach().to(device="cpu", dtype=torch.float64)
    if x.ndim != 2 or not x.shape[1]:
        raise DataError(f"{name} features of shape {tuple(x.shape)}: need (samples, dims)")
    if len(x) < least:
        raise DataError(f"{len(x)} {name} samples: this metric needs at least {least}")
    bad = int((~torch.isfinite(x)).any(1).sum())
    if bad:
        raise DataError(f"{bad} of {len(x)} {name} samples have non-finite features")
    return x


def as_pair(
    real: ArrayLike | Tensor, generated: ArrayLike | Tensor, *, least: int = 2
) -> tuple[Tensor, Tensor]:
    """Return real and generated features as float64 of equal width; raises DataError."""
    x, y = as_features(real, "real", least=least), as_features(generated, "generated", least=least)
    if x.shape[1] != y.shape[1]:
        raise DataError(
            f"{x.shape[1]} real but {y.shape[1]} generated feature dims: use one extractor for both"
        )
    return x, y
