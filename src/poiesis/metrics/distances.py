"""Exact distances between feature sets, in float64 and in chunks that bound the memory.

Half precision is wrong here: squared distances cancel. The sets are centred first, and what
rounding leaves between duplicates is set to zero, so that a copy is found to be one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.errors import DataError

__all__ = ["in_balls", "neighbour_radii", "squared_distances"]

_ROWS = 1024
_ROUNDING = 1e-13
"""Share of |x|² + |y|² below which a squared distance in float64 is rounding, not distance."""


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return squared Euclidean distances (n, m) between float64 rows of (n, d) and (m, d)."""
    centre = y.mean(0)
    x, y = x - centre, y - centre
    scale = (x**2).sum(1)[:, None] + (y**2).sum(1)
    squares = torch.addmm(scale, x, y.T, alpha=-2)
    return squares.masked_fill_(squares < _ROUNDING * scale, 0)


def neighbour_radii(x: Tensor, k: int) -> Tensor:
    """Return the squared distance of each row to its k-th nearest other row, shape (n,).

    Raises ConfigError for k < 1, DataError where there are not more than k rows.
    """
    check("k", k, low=1)
    if len(x) <= k:
        raise DataError(f"{len(x)} samples have no {k} nearest neighbours each: use more than {k}")
    radii = []
    for start, squares in _chunks(x, x):
        rows = torch.arange(len(squares))
        squares[rows, start + rows] = torch.inf
        radii.append(squares.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def in_balls(centres: Tensor, radii: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Count membership of points (m, d) in closed balls about centres (n, d).

    radii: squared, shape (n,). Returns (balls around each point (m,), points in each ball (n,)).
    """
    per_point = []
    per_ball = torch.zeros(len(centres), dtype=torch.int64)
    for _, squares in _chunks(points, centres):
        inside = squares <= radii
        per_point.append(inside.sum(1))
        per_ball += inside.sum(0)
    return torch.cat(per_point), per_ball


def _chunks(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(x), _ROWS):
        yield start, squared_distances(x[start : start + _ROWS], y)
