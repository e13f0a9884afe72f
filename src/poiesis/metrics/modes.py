"""How samples lie about known modes or curves: for data whose true distribution is known.

What counts as covered and as of high quality is the convention of VEEGAN (Srivastava et al.,
arXiv:1705.07761, section 5.1) and PacGAN (Lin et al., arXiv:1712.04086, section 4.1).

Shape letters: n samples, k modes, p corners, d dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poiesis.config import check
from poiesis.errors import DataError
from poiesis.metrics.distances import squared_distances
from poiesis.metrics.estimate import Estimate, as_features, mean_estimate

__all__ = ["WITHIN", "ModeCount", "count_modes", "curve_distances", "within_round"]

WITHIN = 3.0
"""Standard deviations from a centre within which a sample is of high quality."""
_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class ModeCount:
    """How samples are shared out among modes.

    counts: high-quality samples of each mode, int64 (k,). nearest: samples, of any quality, that
    are nearest to each mode, int64 (k,). high_quality: share of high-quality samples, in [0, 1].
    kl: divergence, in nats, of the nearest modes from all modes alike.
    """

    counts: np.ndarray
    nearest: np.ndarray
    high_quality: Estimate
    kl: Estimate

    @property
    def covered(self) -> int:
        """Modes with at least one high-quality sample."""
        return int((self.counts > 0).sum())


def count_modes(
    samples: ArrayLike | Tensor,
    centres: ArrayLike | Tensor,
    sigma: float,
    *,
    within: float = WITHIN,
) -> ModeCount:
    """Count samples (n, d) by their nearest of the centres (k, d) of round Gaussian modes.

    One within so many standard deviations sigma of it is of high quality. Even true samples are so
    with probability `within_round` alone. Raises DataError for shapes that don't fit, ConfigError
    for a sigma or within that is not positive.
    """
    check("sigma", sigma, low=0, open_low=True)
    check("within", within, low=0, open_low=True)
    x, c = as_features(samples, "generated", least=1), as_features(centres, "mode", least=1)
    if x.shape[1] != c.shape[1]:
        raise DataError(f"samples of {x.shape[1]} dimensions but modes of {c.shape[1]}")
    squares, nearest = squared_distances(x, c).min(1)
    good = squares <= (within * sigma) ** 2
    members = torch.bincount(nearest, minlength=len(c))
    share = members.double() / len(x)
    return ModeCount(
        counts=torch.bincount(nearest[good], minlength=len(c)).numpy(),
        nearest=members.numpy(),
        high_quality=mean_estimate(good.double(), low=0, high=1),
        # The mean over the samples of log(share of their mode / (1 / k)).
        kl=mean_estimate((share[nearest] * len(c)).log(), low=0, high=math.log(len(c))),
    )


def within_round(within: float = WITHIN, *, dims: int = 2) -> float:
    """Return how likely a round normal in the plane (dims 2), or a normal on a line (1), is that
    near, in standard deviations: what `high_quality` is for true samples."""
    return -math.expm1(-(within**2) / 2) if dims == 2 else math.erf(within / math.sqrt(2))


def curve_distances(samples: ArrayLike | Tensor, curves: Sequence[ArrayLike | Tensor]) -> Tensor:
    """Return the distance (n,), float64, of samples (n, d) to the nearest point of any curve.

    curves: corners (p, d) of each; between them it is straight. Raises DataError for curves of
    fewer than two corners, or of another number of dimensions.
    """
    x = as_features(samples, "generated", least=1)
    corners = [as_features(curve, "curve") for curve in curves]
    if any(c.shape[1] != x.shape[1] for c in corners):
        raise DataError(f"samples of {x.shape[1]} dimensions but curves of {corners[0].shape[1]}")
    start = torch.cat([c[:-1] for c in corners])
    step = torch.cat([c.diff(dim=0) for c in corners])
    length = step.square().sum(1).clamp(min=1e-300)
    found = []
    for rows in x.split(_ROWS):
        gap = rows[:, None] - start  # (n, p, d)
        along = ((gap * step).sum(2) / length).clamp(0, 1)
        found.append((gap - along[..., None] * step).square().sum(2).min(1).values.sqrt())
    return torch.cat(found)
