"""How far a discriminator has learned the training data by heart, and how well it separates.

r_t and r_v are the two heuristics of ADA (Karras et al. 2020, 2006.06676, eq. 1): 0 is no
overfitting, 1 complete overfitting. `separation` asks for order alone, so it is the same for
logits of any loss, a critic without a zero included.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poiesis.errors import DataError

__all__ = ["separation", "separation_error", "sign_overfitting", "validation_overfitting"]


def sign_overfitting(train: Tensor) -> float:
    """Return r_t = E[sign D(x)] over logits (n,) of training data, in [-1, 1]; ADA aims at 0.6."""
    return float(_scores(train).sign().mean())


def validation_overfitting(train: Tensor, validation: Tensor, generated: Tensor) -> float:
    """Return r_v = (E D(train) - E D(validation)) / (E D(train) - E D(generated)), of logits.

    0 where held-out data look as real as training data, 1 where as fake as generated ones. NaN
    where training and generated data have the same mean.
    """
    means = [float(_scores(s).mean()) for s in (train, validation, generated)]
    gap = means[0] - means[2]
    return (means[0] - means[1]) / gap if gap else math.nan


def separation(high: Tensor, low: Tensor) -> float:
    """Return P(a > b) + P(a = b) / 2 for a from `high` (n,), b from `low` (m,), in [0, 1].

    The area under the ROC curve, or Mann-Whitney's U / (n m): 1/2 for equal distributions.
    """
    a, b = _scores(high), _scores(low).sort().values
    below = torch.searchsorted(b, a.contiguous())
    up_to = torch.searchsorted(b, a.contiguous(), right=True)
    return float((below + up_to).double().mean()) / 2 / len(b)


def separation_error(n: int, m: int) -> float:
    """Return the standard deviation of `separation` for equal, continuous distributions."""
    return math.sqrt((n + m + 1) / (12 * n * m))


def _scores(values: Tensor) -> Tensor:
    if values.ndim != 1 or not len(values):
        raise DataError(f"scores of shape {tuple(values.shape)}: need one dimension, n ≥ 1")
    return values.detach().double().cpu()
