"""Bits-back coding: levels without loss, at the rate of the bound that a VAE was trained on.

Townsend et al., arXiv:1901.04866; latents in layers: arXiv:1912.09953. To push images: pop latents
from their posterior, push the levels given the latents, push the latents by their prior. What the
first step takes, the others give back, and more. Networks see batches of one size, filled up with
zeros: in a batch of another size a product of matrices may round differently, and one last bit
that differs breaks all that follows. Shape letters: b batch, c channels, d values of a latent,
e edges, h height, n rows in use, w width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poiesis.apply.compress.coder import RADIUS, STEPS, Stack, integer_table, random_words
from poiesis.data.views import View
from poiesis.errors import CapabilityError
from poiesis.models.capabilities import Gaussian, LevelCdf
from poiesis.spec import Grid

__all__ = ["BitsBackCoder"]

_WIDE = 32
_BLOCK = 16
"""More levels than _WIDE are coded as a block of 16 levels, then the place in it: of 256 levels
that takes 34 values of the distribution function instead of 257."""
_SPARE = 64
"""Bits kept on the stack beyond what latents are expected to take."""


class BitsBackCoder:
    """Codes native rows, uint8 (n, c, h, w), with a model that has the capability bits_back.

    Raises CapabilityError for a model that sees images in another size than their own.
    """

    method = "bits-back"

    def __init__(self, model: Any, view: View, batch_size: int) -> None:
        spec = view.source
        if not isinstance(spec, Grid) or spec.shape != view.target.shape:
            raise CapabilityError(f"bits-back coding needs images in their own size, not {spec}")
        self.model, self.view, self.spec = model, view, spec
        self.batch_size = batch_size
        self._block = _BLOCK if spec.levels > _WIDE else 1
        # What a pixel is coded as, in the order of decoding: (channel, whether within its block).
        kinds = (False, True) if self._block > 1 else (False,)
        self._parts = [(i, within) for i in range(spec.channels) for within in kinds]

    @torch.no_grad()
    def encode(
        self, rows: Tensor, labels: Tensor | None = None, done: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, list[int]]:
        """Return words, uint32, and the sizes of the batches that the rows were pushed in.

        labels: classes, int64 (n,), if the model is conditional. done(n) hears of each batch.
        """
        need = self._expected(rows[:1], _part(labels, 0, 1)) + _SPARE
        stack, sizes, start = Stack(random_words(-(-need // 32))), [], 0
        while start < len(rows):
            # As many as the stack has bits for: latents from an empty one would be poor.
            n = max(1, min(self.batch_size, len(rows) - start, stack.bits // need))
            taken = self._push(stack, rows[start : start + n], _part(labels, start, start + n))
            need = max(need, taken // n + _SPARE)
            sizes.append(n)
            start += n
            if done is not None:
                done(n)
        return stack.words(), sizes

    @torch.no_grad()
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
        for n in reversed(sizes):
            found.append(self._pop(stack, n, _part(labels, end - n, end)))
            end -= n
            if done is not None:
                done(n)
        return torch.cat(found[::-1])

    def _expected(self, rows: Tensor, labels: Tensor | None) -> int:
        """Return the bits that popping the latents of rows is expected to take: their entropy."""
        bits = 0.0

        def middle(prior: Gaussian, posterior: Gaussian | None) -> Tensor:
            nonlocal bits
            assert posterior is not None
            _, sigma = _in_steps(prior, posterior, len(rows))
            bits += float(np.log2(sigma * math.sqrt(math.tau * math.e)).clip(min=0).sum())
            return posterior[0]

        self._look(middle, rows, labels)
        return round(bits)

    # -- one batch -------------------------------------------------------------------------------

    def _push(self, stack: Stack, rows: Tensor, labels: Tensor | None) -> int:
        """Push a batch; return the bits that its latents took off the stack before."""
        n, before = len(rows), stack.bits
        latents: list[np.ndarray] = []

        def pop(prior: Gaussian, posterior: Gaussian | None) -> Tensor:
            assert posterior is not None
            latents.append(stack.pop_normal(*_in_steps(prior, posterior, n)))
            return _value(prior, latents[-1], n)

        cdf = self._look(pop, rows, labels)
        taken = before - stack.bits
        pixels = self._padded(rows).long()
        for i, within in reversed(self._parts):
            values = pixels[:n, i].flatten()
            symbols = values % self._block if within else values // self._block
            stack.push(symbols.numpy(), self._table(cdf, pixels, i, within, n))
        for steps in reversed(latents):
            stack.push_normal(steps, *_standard(len(steps)))
        return taken

    def _pop(self, stack: Stack, n: int, labels: Tensor | None) -> Tensor:
        """Pop a batch of n rows, uint8 (n, c, h, w)."""
        latents: list[np.ndarray] = []
        values: list[Tensor] = []

        def pop(prior: Gaussian, posterior: Gaussian | None) -> Tensor:
            latents.append(stack.pop_normal(*_standard(prior[0][:n].numel())))
            values.append(_value(prior, latents[-1], n))
            return values[-1]

        cdf = self._look(pop, None, labels)
        pixels = torch.zeros(self.batch_size, *self.spec.shape, dtype=torch.long)
        for i, within in self._parts:
            symbols = stack.pop(self._table(cdf, pixels, i, within, n))
            found = torch.from_numpy(symbols.astype(np.int64)).view_as(pixels[:n, i])
            found = pixels[:n, i] + found if within else found * self._block
            # Words that are none of ours may say more than the highest level.
            pixels[:n, i] = found.clamp(max=self.spec.levels - 1)
        rows = pixels[:n].to(torch.uint8)
        normals: list[tuple[np.ndarray, np.ndarray]] = []

        def compare(prior: Gaussian, posterior: Gaussian | None) -> Tensor:
            assert posterior is not None
            normals.append(_in_steps(prior, posterior, n))
            return values[len(normals) - 1]

        self._look(compare, rows, labels)
        for steps, normal in zip(reversed(latents), reversed(normals), strict=True):
            stack.push_normal(steps, *normal)
        return rows

    def _look(self, choose: Any, rows: Tensor | None, labels: Tensor | None) -> LevelCdf:
        x = None if rows is None else self.view.apply(self._padded(rows))
        if labels is not None:
            labels = torch.cat((labels, labels.new_zeros(self.batch_size - len(labels))))
        return self.model.bits_back(self.batch_size, choose, x, labels)

    def _padded(self, rows: Tensor) -> Tensor:
        return torch.cat((rows, rows.new_zeros(self.batch_size - len(rows), *rows.shape[1:])))

    def _table(self, cdf: LevelCdf, pixels: Tensor, i: int, within: bool, n: int) -> np.ndarray:
        """Return the integer table (n h w, k) of the blocks of channel i, or of what is within.

        pixels: int64 (b, c, h, w); read are the channels before, and for the latter the blocks.
        """
        levels, block = self.spec.levels, self._block
        edges = torch.arange(0, levels + block, block)
        if within:
            start = pixels[:, i] // block * block
            edges = start[..., None] + torch.arange(block + 1)
        before = self.view.apply(pixels.to(torch.uint8))[:, :i]
        below = cdf(before, edges.clamp(max=levels))
        return integer_table(below[:n].diff(dim=-1).clamp(min=0).flatten(0, 2))


def _part(labels: Tensor | None, start: int, end: int) -> Tensor | None:
    return None if labels is None else labels[start:end]


def _in_steps(prior: Gaussian, posterior: Gaussian, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of n rows' posterior on the grid that the prior lays out."""
    (mean_p, log_p), (mean_q, log_q) = (
        (a[:n].double().flatten() for a in g) for g in (prior, posterior)
    )
    mean = ((mean_q - mean_p) * (-log_p).exp() * STEPS).nan_to_num(0.0).clamp(-RADIUS, RADIUS)
    sigma = ((log_q - log_p).exp() * STEPS).nan_to_num(1.0).clamp(0.25, 2 * RADIUS)
    return mean.numpy(), sigma.numpy()


def _standard(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of a prior on its own grid."""
    return np.zeros(count), np.full(count, float(STEPS))


def _value(prior: Gaussian, steps: np.ndarray, n: int) -> Tensor:
    """Return the latent of n rows' steps, filled up to (b, …) with the prior's mean."""
    mean, log_sigma = prior
    full = torch.zeros_like(mean)
    full[:n] = torch.from_numpy(steps).view_as(full[:n]) / STEPS
    return mean + log_sigma.exp() * full
