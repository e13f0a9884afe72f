"""Batches by number: which rows batch k holds is a pure function of (seed, k).

So a resumed run continues with the very next batch and any number of processes sees the same
order. The rows of one epoch are a permutation; batches run on over the end of an epoch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from poiesis.data.dataset import Split, TextSplit, WindowSplit
from poiesis.data.views import View, is_picture
from poiesis.errors import DataError
from poiesis.rng import Draws, generator
from poiesis.spec import Spec

__all__ = ["Loader", "Rows", "positions"]

Rows = tuple[Tensor, Tensor | None, Tensor]
"""(rows in the view, conditions as of `View.condition` or None, positions)."""
Key = tuple[int, int, int]


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=generator("order", seed, epoch))


def positions(n: int, batch_size: int, seed: int, number: int) -> tuple[Tensor, Tensor]:
    """Return (positions, epochs), int64 (batch_size,), of global batch `number` of n rows."""
    first = number * batch_size
    picked, epochs = [], []
    while first < (number + 1) * batch_size:
        epoch, offset = divmod(first, n)
        count = min(n - offset, (number + 1) * batch_size - first)
        picked.append(_permutation(n, seed, epoch)[offset : offset + count])
        epochs.append(torch.full((count,), epoch))
        first += count
    return torch.cat(picked), torch.cat(epochs)


class Loader:
    """Batches of a split in a model's view."""

    def __init__(
        self,
        split: Split,
        source: Spec,
        view: Spec,
        *,
        batch_size: int,
        seed: int = 0,
        augment: tuple[str, ...] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        if isinstance(split, TextSplit):
            split = split.windows(view.length)  # type: ignore[union-attr]
        if len(split) == 0:
            raise DataError("the split has no samples: use more data or another split")
        self.split = split
        self.view = View(source, view)
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.device = device
        self._last: tuple[Key, Rows] | None = None
        self._ahead: dict[Key, Future[Rows]] = {}
        streams = not hasattr(split, "x") and not isinstance(split, WindowSplit)
        self._reader = ThreadPoolExecutor(1, "poiesis-ahead") if streams else None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.split)

    def batch(self, number: int, *, start: int = 0, size: int | None = None) -> Rows:
        """Return (view rows, conditions or None, positions) of rows start…start+size of batch k.

        The phases of a step share a batch, so the last one is kept; of a set that is read from
        files, the next batch is read while the current one is used.
        """
        key = (number, start, self.batch_size - start if size is None else size)
        if self._last is None or self._last[0] != key:
            ahead = self._ahead.pop(key, None)
            self._last = (key, self._make(*key) if ahead is None else ahead.result())
            if self._reader is not None:
                following = (number + 1, start, key[2])
                self._ahead = {following: self._reader.submit(self._make, *following)}
        return self._last[1]

    def _make(self, number: int, start: int, size: int) -> Rows:
        where, epochs = positions(len(self.split), self.batch_size, self.seed, number)
        where, epochs = where[start : start + size], epochs[start : start + size]
        x, y = self.split.fetch(where, epochs)
        draws = Draws(("data", self.seed, number), total=self.batch_size, start=start, size=size)
        if self.augment:
            from poiesis.data.augment import augment

            if y is None or not is_picture(y):
                x = augment(self.augment, x, draws)
            else:
                # A pair is one picture: both change alike.
                both = augment(self.augment, torch.cat([x, y], 1), draws)
                x, y = both.split([x.shape[1], y.shape[1]], 1)
        x = self.view.apply(x, draws.rand)
        return self._move(x), self._condition(y), where

    def in_order(self, limit: int | None = None) -> Iterator[Rows]:
        """Yield batches of all rows in order, each once, unaugmented; at most `limit` rows.

        A limit takes rows spread evenly over the split.
        """
        n = len(self.split)
        rows = torch.arange(n)
        if limit is not None and limit < n:
            rows = torch.linspace(0, n - 1, limit).round().long()
        for where in rows.split(self.batch_size):
            x, y = self.split.fetch(where)
            yield self._move(self.view.apply(x)), self._condition(y), where

    def _condition(self, y: Tensor | None) -> Tensor | None:
        y = self.view.condition(y)
        return None if y is None else self._move(y)

    def _move(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)
