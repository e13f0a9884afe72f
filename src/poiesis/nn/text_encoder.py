"""A small transformer that reads captions, trained with what it serves (arXiv 1706.03762).

Shape letters: b batch, t tokens of a caption, w width, h heads, e width of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poiesis.nn.attention import attend

__all__ = ["Text", "TextEncoder"]


class Text(NamedTuple):
    """Captions as vectors."""

    whole: Tensor
    """One vector of each caption, (b, out)."""
    tokens: Tensor
    """One vector of each token, a start symbol first, (b, 1 + t, w)."""
    mask: Tensor
    """Which tokens are there, bool (b, 1 + t); the start symbol always is."""


class TextEncoder(nn.Module):
    """Captions as tokens → a vector of the whole and one of each token.

    vocabulary: number of tokens, of which 0 fills up and is not seen. length: tokens of a caption.
    width: of the vectors, a multiple of `heads`. out: width of the vector of the whole, which is
    read off a start symbol before the caption; of an empty caption that is all there is.
    """

    def __init__(
        self, *, vocabulary: int, length: int, width: int, layers: int, out: int, heads: int = 4
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(1 + length, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Linear(width, out)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, tokens_bt: Tensor) -> Text:
        """Return the vectors of captions, int64 (b, t), t up to `length`."""
        places = self.positions[: 1 + tokens_bt.shape[1]]
        x_btw = F.pad(self.words(tokens_bt), (0, 0, 1, 0)) + places
        mask_bt = F.pad(tokens_bt != 0, (1, 0), value=True)
        for block in self.blocks:
            x_btw = block(x_btw, mask_bt)
        x_btw = self.norm(x_btw)
        return Text(self.pool(x_btw[:, 0]), x_btw, mask_bt)


class _Block(nn.Module):
    """norm, attention to the tokens that are there, + input; norm, dense layers, + input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_btw: Tensor, mask_bt: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x_btw)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # b h t e
        seen = attend(q, k, v, mask_bt[:, None, None])
        x_btw = x_btw + self.project(seen.transpose(1, 2).flatten(2))
        return x_btw + self.down(F.gelu(self.up(self.norm2(x_btw))))
