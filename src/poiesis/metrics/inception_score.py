"""Inception Score (Salimans et al. 2016, 1606.03498): exp E_x KL(p(y|x) ‖ p(y))."""

from __future__ import annotations

import math

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poiesis.config import check
from poiesis.errors import DataError
from poiesis.metrics.estimate import Estimate, as_features
from poiesis.rng import generator

__all__ = ["inception_score"]


def inception_score(logits: ArrayLike | Tensor, *, splits: int = 10, seed: int = 0) -> Estimate:
    """Return the mean score over shuffled splits of classifier logits (n, classes).

    Between 1 and the number of classes; higher is better. It sees neither the real data nor
    copies within a class. Raises DataError for fewer samples than splits, ConfigError.
    """
    check("splits", splits, low=1)
    x = as_features(logits, "logits of the generated", least=1)
    if len(x) < splits:
        raise DataError(f"{len(x)} samples in {splits} splits: generate more or lower the splits")
    x = x[torch.randperm(len(x), generator=generator("inception-score", seed))]
    scores, parts = [], []
    for rows in x.tensor_split(splits):
        log_p = rows.log_softmax(1)
        log_marginal = log_p.logsumexp(0) - math.log(len(rows))
        kl = (log_p.exp() * (log_p - log_marginal)).sum(1)
        scores.append(math.exp(float(kl.mean())))
        # First order: the marginal's own change cancels out of d E KL, leaving each sample's KL.
        parts.append(scores[-1] * (kl - kl.mean()))
    value = sum(scores) / splits
    return Estimate(value=value, parts=(torch.cat(parts).numpy(),), low=1.0, high=float(x.shape[1]))
