"""Lossy coding: a model's latents, rounded to a grid, under tables that adapt to what was coded.

Tables are made of counts, whole numbers alone, so a file decodes to the same latents on any
machine. Shape letters: d numbers of a sample's latents, k values of a number, n rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poiesis.apply.compress.coder import Stack
from poiesis.errors import DataError

__all__ = ["LatentCoder", "flat", "parts", "step_size", "unflat"]

_MOST = 2047
"""Numbers beyond are cut off: coarse steps on latents of one size never get there."""
_CELLS = 1 << 24
"""Most counts that a file may ask for."""
_SEEN = 256
"""Weight of having seen a number once, where never having seen it weighs 1."""


def parts(latent: Any) -> dict[str, Tensor]:
    """Return what `decode` needs of what `encode` returned: codes or z, or all by their names."""
    if not isinstance(latent, Mapping):
        return {"z": latent}
    for name in ("codes", "z"):
        if name in latent:
            return {name: latent[name]}
    return dict(latent)


def step_size(latents: Mapping[str, Tensor], quality: float) -> float:
    """Return the distance of the grid: 1/4 of the latents' deviation at quality 50, half at 60."""
    values = torch.cat([v.double().flatten(1) for v in latents.values()], 1)
    spread = float((values - values.mean(0)).square().mean().sqrt())
    return max(spread, 1e-6) * 0.25 * 2 ** ((50 - quality) / 10)


def flat(latents: Mapping[str, Tensor], step: float) -> np.ndarray:
    """Return whole numbers (n, d), int32: codes as they are, others rounded to the grid."""
    columns = []
    for values in latents.values():
        values = values.flatten(1)
        if values.is_floating_point():
            values = (values.double() / step).round().nan_to_num(0.0).clamp(-_MOST, _MOST)
        columns.append(values.to(torch.int32))
    return torch.cat(columns, 1).numpy()


def unflat(numbers: np.ndarray, shapes: Mapping[str, list[int]], step: float) -> Any:
    """Return the latents of numbers (n, d), as `decode` takes them."""
    found: dict[str, Tensor] = {}
    start = 0
    for name, shape in shapes.items():
        width = math.prod(shape)
        values = torch.from_numpy(numbers[:, start : start + width].copy())
        start += width
        values = values.long() if name == "codes" else values.float() * step
        found[name] = values.unflatten(1, tuple(shape))
    return next(iter(found.values())) if len(found) == 1 else found


class LatentCoder:
    """Codes rows of d whole numbers in [low, high], each number by a table of its own.

    A table is what was seen of this number, and a little of what was seen of all; the first is
    flat. Encoder and decoder count alike.
    """

    def __init__(self, d: int, low: int, high: int) -> None:
        k = high - low + 1
        if not (1 <= d <= _CELLS and 1 <= k <= _CELLS and d * max(k, 2) <= _CELLS):
            raise DataError(f"latents of {d} numbers from {low} to {high} are too many to code")
        self.low, self.k = low, max(k, 2)
        self.d = d

    def encode(self, numbers: np.ndarray) -> np.ndarray:
        """Return words, uint32, for numbers (n, d)."""
        symbols = numbers - self.low
        stack, pushes = Stack(), []
        counts = np.zeros((self.d, self.k), np.int64)
        for start, end in _blocks(len(symbols)):
            tables = self._tables(counts)
            block = symbols[start:end]
            pushes.append((block, tables))
            self._count(counts, block)
        for block, tables in reversed(pushes):
            for column in range(self.d - 1, -1, -1):
                stack.push_alike(block[:, column], tables[column])
        return stack.words()

    def decode(self, words: np.ndarray, n: int) -> np.ndarray:
        """Return numbers (n, d), int32; of other words it returns other numbers."""
        stack = Stack(words)
        counts = np.zeros((self.d, self.k), np.int64)
        found = np.empty((n, self.d), np.int32)
        for start, end in _blocks(n):
            tables = self._tables(counts)
            for column in range(self.d):
                found[start:end, column] = stack.pop_alike(end - start, tables[column])
            self._count(counts, found[start:end])
        return found + np.int32(self.low)

    def _count(self, counts: np.ndarray, block: np.ndarray) -> None:
        columns = np.broadcast_to(np.arange(self.d), block.shape)
        np.add.at(counts, (columns, block), 1)

    def _tables(self, counts: np.ndarray) -> np.ndarray:
        """Return tables (d, k), float32, of whole numbers below 2^24 in all."""
        # What was seen of all numbers, as much as k/16 rows of one's own.
        shared = _SEEN // 16 * self.k * counts.sum(0) // max(1, int(counts.sum()))
        total = _SEEN * counts + shared
        # Counts of long files are brought down: sums must stay exact in float32.
        over = int(total.sum(1).max()) // (1 << 22) + 1
        return (total // over + 1).astype(np.float32)


def _blocks(n: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of blocks, between which the tables are renewed; their sizes double."""
    start, end = 0, 1
    while start < n:
        yield start, min(n, end)
        start, end = end, 2 * end + 1
