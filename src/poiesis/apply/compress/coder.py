"""The stack that symbols are pushed on and popped from: ANS, of the package constriction.

What was pushed last is popped first. A symbol of probability p takes -log2 p bits; popping from a
distribution that nothing was pushed with draws from it, which is what bits-back coding needs
(Townsend et al., arXiv:1901.04866). Shape letters: k symbols of a table, n symbols coded.
"""

from __future__ import annotations

import numpy as np
from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

__all__ = ["RADIUS", "STEPS", "Stack", "integer_table", "random_words"]

_TOTAL = 1 << 20
"""What the entries of an integer table add up to, about. Sums stay exact in float32 (2^24)."""

STEPS = 64
"""Steps of the grid of a latent per standard deviation of its prior.

Every step of the grid gets at least 2^-24 of each distribution. A finer or wider one would make
latents that are far from their posterior, and bad for the levels, more frequent.
"""
RADIUS = 6 * STEPS
"""Outermost step of that grid; beyond 6 deviations lies 2e-9 of the prior."""


def integer_table(p: Tensor) -> np.ndarray:
    """Return whole numbers ≥ 1 in proportion to p (n, k), as float32, k ≥ 2.

    p: probabilities up to a factor, none negative; rows of zeros give equal parts. Whole numbers
    below 2^24 add up exactly in any order, so that the coder's own arithmetic can't vary.
    """
    p = p.double().nan_to_num(0.0, 0.0, 0.0)
    share = p / p.sum(-1, keepdim=True).clamp(min=1e-30)
    return (share * _TOTAL).round().add_(1).float().numpy()


class Stack:
    """An ANS coder over 32-bit words.

    Popping from an empty one gives symbols too, poor but not wrong: pushing them back empties it
    again.
    """

    def __init__(self, words: np.ndarray | None = None) -> None:
        self._ans = stream.stack.AnsCoder() if words is None else stream.stack.AnsCoder(words)
        self._categorical = stream.model.Categorical(perfect=False)
        self._normal = stream.model.QuantizedGaussian(-RADIUS, RADIUS)
        self._fixed = stream.model.Categorical

    @property
    def bits(self) -> int:
        """How full it is."""
        return int(self._ans.num_valid_bits())

    def words(self) -> np.ndarray:
        """Return its content, uint32, the last of which is not 0."""
        return self._ans.get_compressed()

    def push(self, symbols: np.ndarray, table: np.ndarray) -> None:
        """Push symbols (n,), each by its row of an integer table (n, k); popped in this order."""
        self._ans.encode_reverse(symbols.astype(np.int32), self._categorical, table)

    def pop(self, table: np.ndarray) -> np.ndarray:
        """Pop a symbol (n,) by each row of an integer table (n, k); int32."""
        return self._ans.decode(self._categorical, table)

    def push_alike(self, symbols: np.ndarray, table: np.ndarray) -> None:
        """Push symbols (n,), all by one integer table (k,)."""
        model = self._fixed(table, perfect=False)
        self._ans.encode_reverse(symbols.astype(np.int32), model)

    def pop_alike(self, n: int, table: np.ndarray) -> np.ndarray:
        """Pop n symbols, all by one integer table (k,); int32."""
        return self._ans.decode(self._fixed(table, perfect=False), n)

    def push_normal(self, steps: np.ndarray, mean: np.ndarray, sigma: np.ndarray) -> None:
        """Push steps (n,) in [-RADIUS, RADIUS] by normals, float64 (n,), in units of steps."""
        self._ans.encode_reverse(steps.astype(np.int32), self._normal, mean, sigma)

    def pop_normal(self, mean: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        """Pop a step (n,) by each normal, float64 (n,), in units of steps; int32."""
        return self._ans.decode(self._normal, mean, sigma)


def random_words(count: int) -> np.ndarray:
    """Return so many random words, always the same, for a stack to begin with."""
    words = np.random.default_rng(0).integers(1, 1 << 32, count, dtype=np.uint64)
    return words.astype(np.uint32)
