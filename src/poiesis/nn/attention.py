"""Attention, causal blocks of both recipes, and the cache that makes generating fast.

Shape letters: b batch, t tokens, d width, h heads, e width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poiesis.nn.dropout import add_dropped, causal_attention

__all__ = ["Block", "Cache", "attend", "rms_norm", "rotary_table", "rotate"]


_FEW = 512
"""Most keys for which the plain product is the faster way to train in bfloat16 on a CPU."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q k' / sqrt(e)) v, of shape (..., t, e).

    q: (..., t, e); k, v: (..., s, e). mask: Booleans that broadcast to (..., t, s), True where a
    key is seen; every query sees one. Source: arXiv 1706.03762, equation 1.
    """
    few = k.shape[-2] <= _FEW and q.dtype == torch.bfloat16 and q.device.type == "cpu"
    if not (few and torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # There the fused backward takes two to four times as long as these products.
    with torch.autocast("cpu", enabled=False):
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return torch.softmax(scores, -1) @ v


def rms_norm(x: Tensor) -> Tensor:
    """Return x / rms(x) over the last dimension, float32 (arXiv 1910.07467, without a gain)."""
    # Two thirds of the time of F.rms_norm on a CPU, forwards and backwards.
    x = x.float()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * (math.sqrt(x.size(-1)) / (norm + 1e-6))


def rotary_table(length: int, width: int, base: float = 1e4) -> Tensor:
    """Return cosines and sines (length, width / 2, 2) of rotary positions (arXiv 2104.09864)."""
    angle = torch.arange(length)[:, None] * base ** -(torch.arange(0, width, 2) / width)
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Return x (b, t, …, e), float32, its pairs turned by rows of a rotary table (t, e/2, 2)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    turn = torch.view_as_complex(rotary)
    turn = turn.view(turn.size(0), *[1] * (x.ndim - 3), turn.size(1))
    return torch.view_as_real(pairs * turn).flatten(-2)


class Cache:
    """Keys and values of one layer, allocated once and written in place.

    Each head's lie together in memory: a new token reads them all, a third faster so.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.kv: Tensor | None = None

    def append(self, k: Tensor, v: Tensor, filled: int) -> tuple[Tensor, Tensor]:
        """Write k, v (b, h, t, e) after the first `filled`; return all (b, h, filled + t, e)."""
        if self.kv is None:
            b, h, _, e = k.shape
            self.kv = k.new_empty(2, b, h, self.size, e)
        end = filled + k.size(2)
        self.kv[0, :, :, filled:end] = k
        self.kv[1, :, :, filled:end] = v
        return self.kv[0, :, :, :end], self.kv[1, :, :, :end]


class Block(nn.Module):
    """Attention, then a dense network of 4 d, each added to the stream that it read normalised.

    modern: RMSNorm without gain, rotary positions on normalised queries and keys (arXiv
    2010.04245), ReLU² (2109.08668). Otherwise GPT-2's: LayerNorm and GELU. No biases. Dropout acts
    on both branches; of GPT-2's on the attention weights too, for which a CPU has no fast kernel.
    """

    def __init__(self, d: int, heads: int, *, modern: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.modern, self.dropout = heads, modern, dropout
        self.norm1 = rms_norm if modern else nn.LayerNorm(d, bias=False)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.project = nn.Linear(d, d, bias=False)
        self.norm2 = rms_norm if modern else nn.LayerNorm(d, bias=False)
        self.up = nn.Linear(d, 4 * d, bias=False)
        self.down = nn.Linear(4 * d, d, bias=False)

    def forward(
        self, x: Tensor, rotary: Tensor | None, cache: Cache | None = None, filled: int = 0
    ) -> Tensor:
        """Return the stream (b, t, d) after this block; with a cache, t tokens after `filled`.

        rotary: rows of the table for these t tokens, (t, e/2, 2), for modern.
        """
        branch = self.attend(self.norm1(x), rotary, cache, filled)
        x = add_dropped(x, branch, self.dropout, self.training)
        hidden = self.up(self.norm2(x))
        hidden = F.relu(hidden).square() if self.modern else F.gelu(hidden)
        return add_dropped(x, self.down(hidden), self.dropout, self.training)

    def attend(self, x: Tensor, rotary: Tensor | None, cache: Cache | None, filled: int) -> Tensor:
        """Return causal self-attention of (b, t, d)."""
        b, t, d = x.shape
        qkv = self.qkv(x).view(b, t, 3, self.heads, d // self.heads)
        if self.training and self.dropout and not self.modern:
            return self.project(causal_attention(qkv, self.dropout).reshape(b, t, d))
        q, k, v = qkv.unbind(2)
        if rotary is not None:
            q, k = rotate(rms_norm(qkv[:, :, :2]), rotary).to(v.dtype).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # b h t e
        if cache is not None:
            k, v = cache.append(k, v, filled)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
        return self.project(y.transpose(1, 2).reshape(b, t, d))
