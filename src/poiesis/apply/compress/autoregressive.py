"""Coding images one value after another, with a model of the next value: no latents, no bits back.

Encoder and decoder feed the model in the same way, a value at a time in batches of one size, so
that both see the same probabilities to the last bit. Shape letters: n rows in use, t values,
v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poiesis.apply.compress.coder import Stack, integer_table
from poiesis.data.views import View
from poiesis.errors import CapabilityError
from poiesis.spec import Grid, Tokens

__all__ = ["AutoregressiveCoder"]


class AutoregressiveCoder:
    """Codes native rows, uint8 (n, c, h, w), with a model that has the capability conditionals.

    Raises CapabilityError for a model of other data than whole images as tokens.
    """

    method = "autoregressive"

    def __init__(self, model: Any, view: View, batch_size: int) -> None:
        spec = view.source
        if not isinstance(spec, Grid) or not isinstance(view.target, Tokens):
            raise CapabilityError(f"it codes images by their values, not {spec}")
        self.model, self.view, self.spec = model, view, spec
        self.batch_size = batch_size

    @torch.inference_mode()
    def encode(
        self, rows: Tensor, labels: Tensor | None = None, done: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, list[int]]:
        """Return words, uint32, and the sizes of the batches that the rows were pushed in.

        labels: classes, int64 (n,), if the model is conditional. done(n) hears of each batch.
        """
        stack, sizes = Stack(), []
        for start in range(0, len(rows), self.batch_size):
            tokens = self.view.apply(rows[start : start + self.batch_size])
            n, tables = len(tokens), self._tables(tokens, labels, start)
            for t in reversed(range(len(tables))):
                stack.push(tokens[:, t].numpy(), tables[t])
            sizes.append(n)
            if done is not None:
                done(n)
        return stack.words(), sizes

    @torch.inference_mode()
    def decode(
        self,
        words: np.ndarray,
        sizes: list[int],
        labels: Tensor | None = None,
        done: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Return the rows of what `encode` returned; of other words it returns other rows."""
        stack, end = Stack(words), sum(sizes)
        found: list[Tensor] = []

        def pop(t: int, table: np.ndarray) -> Tensor:
            return torch.from_numpy(stack.pop(table).astype(np.int64))

        for n in reversed(sizes):
            end -= n
            found.append(self.view.invert(self._walk(pop, n, labels, end)))
            if done is not None:
                done(n)
        return torch.cat(found[::-1])

    def _tables(self, tokens: Tensor, labels: Tensor | None, start: int) -> list[np.ndarray]:
        """Return the table (n, v) of each place of tokens (n, t)."""
        tables: list[np.ndarray] = []

        def known(t: int, table: np.ndarray) -> Tensor:
            tables.append(table)
            return tokens[:, t]

        self._walk(known, len(tokens), labels, start)
        return tables

    def _walk(
        self,
        following: Callable[[int, np.ndarray], Tensor],
        n: int,
        labels: Tensor | None,
        start: int,
    ) -> Tensor:
        """Return tokens (n, t): each is what `following` makes of its place and table (n, v)."""
        spare = self.batch_size - n
        if labels is not None:
            labels = torch.cat((labels[start : start + n], labels.new_zeros(spare)))
        feed = self.model.feeder(labels)
        new = torch.empty(self.batch_size, 0, dtype=torch.long)
        columns = []
        for t in range(self.view.target.dims):
            # Levels beyond those of the data are in no image: they get no share.
            p = feed(new)[:n, : self.spec.levels].double().softmax(-1)
            columns.append(following(t, integer_table(p)))
            new = torch.cat((columns[-1], columns[-1].new_zeros(spare)))[:, None]
        return torch.stack(columns, 1)
