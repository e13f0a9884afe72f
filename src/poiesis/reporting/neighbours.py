"""Is it copying? Exact nearest training samples, and how near held-out data come by themselves.

A sample that lies closer to the training set than all but the closest 1% of held-out samples do is
suspiciously close. For a model that generalises about 1% are; for one that copies, all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poiesis.data.dataset import Split
from poiesis.metrics.distances import squared_distances
from poiesis.rng import generator

__all__ = ["Copying", "copying", "nearest"]

QUANTILE = 0.01
"""Held-out samples closer to the training set than this share of them count as near-copies."""
_MOST_HELD_OUT = 1000
_ROWS = 4096

Features = Callable[[Tensor], Tensor]
"""Takes native rows (n, …), returns rows (n, d)."""


@dataclass(frozen=True, kw_only=True)
class Copying:
    """Nearest training samples of some samples, in one space.

    index, distance: of each sample's nearest training row, shape (n,). threshold: the quantile of
    the held-out rows' nearest distances. close: whether each sample is nearer than that, or equal
    to a training row. held_out: how many held-out rows.
    """

    index: Tensor
    distance: Tensor
    threshold: float
    close: Tensor
    held_out: int

    @property
    def share(self) -> float:
        """Share of the samples that are suspiciously close, in [0, 1]."""
        return float(self.close.double().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the share (Wilson 1927): it says something at 0 and 1 as well."""
        n, p, z = len(self.close), self.share, 1.959964
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
        return max(0.0, centre - half), min(1.0, centre + half)


def nearest(rows: Tensor, split: Split, features: Features) -> tuple[Tensor, Tensor]:
    """Return (distance, position) of the nearest row of a split for each of `rows` (n, d).

    Exact, in float64, over the whole split; Euclidean distances (n,) in the space of `features`.
    """
    rows = rows.double()
    best = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    index = torch.zeros(len(rows), dtype=torch.int64)
    for start in range(0, len(split), _ROWS):
        positions = torch.arange(start, min(start + _ROWS, len(split)))
        native, _ = split.fetch(positions)
        squares, found = squared_distances(rows, features(native).double()).min(1)
        better = squares < best
        best[better], index[better] = squares[better], start + found[better]
    return best.sqrt(), index


def copying(
    samples: Tensor, splits: dict[str, Any], features: Features, *, seed: int = 0
) -> Copying:
    """Return the nearest training rows of native samples (n, …) in the space of `features`.

    splits: of a data set; the held-out ones are those of test, or else of validation, at most
    1,000 of them, drawn by seed.
    """
    held_out = splits["test"] if "test" in splits else splits["validation"]
    order = torch.randperm(len(held_out), generator=generator("held-out", seed))
    unseen, _ = held_out.fetch(order[:_MOST_HELD_OUT])
    reference, _ = nearest(features(unseen), splits["train"], features)
    threshold = float(torch.quantile(reference, QUANTILE))
    distance, index = nearest(features(samples), splits["train"], features)
    return Copying(
        index=index,
        distance=distance,
        threshold=threshold,
        close=(distance < threshold) | (distance == 0),
        held_out=len(reference),
    )
