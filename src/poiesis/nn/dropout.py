"""Dropout whose random numbers are cheap on a processor, alone and inside attention.

torch draws one number per element (11 ns on a CPU, as long as multiplying a thousand). Here one
64-bit draw serves four elements, 16 bits each: 2 ns. The share dropped is therefore a multiple of
2⁻¹⁶, and what is kept is scaled by exactly that share. In a training step every row draws from a
generator of its own, keyed by its place in the global batch (`rng.Draws.streams`), so that neither
micro-batches nor the number of processes change a mask. On other devices torch's own kernels do
the work, from the global generator. Shape letters: b batch, t tokens, h heads, e width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from poiesis.rng import row_streams

__all__ = ["Dropout", "add_dropped", "causal_attention", "dropout"]

Streams = list[torch.Generator] | None

_LEVELS = 1 << 16
_ROWS = 128
"""Queries at a time in attention: earlier ones need not see the keys of later ones."""


def _scale(p: float) -> float:
    """Return 1 / (share kept)."""
    return _LEVELS / (_LEVELS - round(p * _LEVELS))


def _keep(shape: torch.Size | tuple[int, ...], p: float, streams: Streams = None) -> Tensor:
    """Return a mask, true where an element is kept.

    streams: a generator for each row of the first axis; None draws from torch's global one.
    """
    n = math.prod(shape)
    if streams is None:
        words = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(1 << 63), None)
    else:
        words = torch.empty(len(streams), -(-n // len(streams) // 4), dtype=torch.int64)
        for row, stream in zip(words, streams, strict=True):
            row.random_(-(1 << 63), None, generator=stream)
    lanes = words.view(torch.int16)
    lanes = lanes[:n] if streams is None else lanes[:, : n // len(streams)]
    return lanes.ge(round(p * _LEVELS) - _LEVELS // 2).view(shape)


class _AddDropped(Function):
    """x + dropout(branch), or dropout(branch) where x is None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor | None, branch: Tensor, p: float) -> Tensor:
        keep = _keep(branch.shape, p, row_streams(len(branch)))
        ctx.save_for_backward(keep)
        ctx.p, ctx.dtype = p, branch.dtype
        if x is None:
            return (branch * keep.to(branch.dtype)).mul_(_scale(p))
        # One pass over memory for mask, scale and sum.
        return torch.addcmul(x, branch.to(x.dtype), keep.to(x.dtype), value=_scale(p))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (keep,) = ctx.saved_tensors
        branch = keep.to(ctx.dtype).mul_(_scale(ctx.p)).mul_(grad)
        return grad if ctx.needs_input_grad[0] else None, branch, None


def _cheap(x: Tensor, p: float) -> bool:
    """Say whether the cheap masks serve: on a CPU, for a share that leaves something."""
    return x.device.type == "cpu" and 0 < round(p * _LEVELS) < _LEVELS


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Return x with a share p of its elements zeroed and the others scaled by 1 / (1 − p)."""
    if training and _cheap(x, p):
        return _AddDropped.apply(None, x, p)  # type: ignore[return-value]
    return F.dropout(x, p, training)


def add_dropped(x: Tensor, branch: Tensor, p: float, training: bool = True) -> Tensor:
    """Return x + dropout(branch): the end of a residual branch."""
    if training and _cheap(x, p):
        return _AddDropped.apply(x, branch, p)  # type: ignore[return-value]
    return x + F.dropout(branch, p, training)


class Dropout(nn.Dropout):
    """`dropout` as a module."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the same shape."""
        return dropout(input, self.p, self.training)


class _DroppedAttention(Function):
    """Causal attention with dropped weights, one sequence at a time, so that scores stay in cache.

    Its memory is one float and one byte per weight below the diagonal of blocks; torch's own path
    keeps three times that.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, p: float) -> Tensor:
        b, t, _, h, e = qkv.shape
        out = qkv.new_empty(b, t, h, e)
        future = torch.full((t, t), -torch.inf, dtype=qkv.dtype).triu(1)
        saved = [qkv]
        streams = row_streams(b)
        exact = torch.promote_types(qkv.dtype, torch.float32)
        for row in range(b):
            own = None if streams is None else streams[row : row + 1]
            q, k, v = qkv[row].permute(1, 2, 0, 3)  # each h t e
            for start in range(0, t, _ROWS):
                end = min(t, start + _ROWS)
                scores = torch.baddbmm(
                    future[start:end, :end], q[:, start:end], k[:, :end].mT, alpha=e**-0.5
                )
                weights = torch.softmax(scores, -1, dtype=exact)
                keep = _keep((1, *weights.shape), p, own)[0]
                kept = (weights * keep.to(exact)).to(v.dtype)
                y = torch.bmm(kept, v[:, :end]).mul_(_scale(p))
                out[row, start:end] = y.transpose(0, 1)
                saved += [weights, keep]
        ctx.save_for_backward(*saved)
        ctx.p = p
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        qkv, *saved = ctx.saved_tensors
        b, t, _, _, e = qkv.shape
        grad = grad * _scale(ctx.p)
        result = torch.zeros_like(qkv)
        blocks = iter(saved)
        for row in range(b):
            q, k, v = qkv[row].permute(1, 2, 0, 3)
            dq, dk, dv = result[row].permute(1, 2, 0, 3)
            for start in range(0, t, _ROWS):
                end = min(t, start + _ROWS)
                weights = next(blocks)
                keep = next(blocks).to(weights.dtype)
                dy = grad[row, start:end].transpose(0, 1)  # h t e
                dv[:, :end] += torch.bmm((weights * keep).to(dy.dtype).mT, dy)
                dw = torch.bmm(dy, v[:, :end].mT).to(weights.dtype).mul_(keep)
                ds = torch.ops.aten._softmax_backward_data(dw, weights, -1, weights.dtype)
                ds = ds.to(qkv.dtype).mul_(e**-0.5)
                dq[:, start:end] = torch.bmm(ds, k[:, :end])
                dk[:, :end] += torch.bmm(ds.mT, q[:, start:end])
        return result, None


def causal_attention(qkv: Tensor, p: float) -> Tensor:
    """Return causal self-attention (b, t, h, e) of qkv (b, t, 3, h, e), weights dropped by p."""
    if _cheap(qkv, p):
        return _DroppedAttention.apply(qkv, p)  # type: ignore[return-value]
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))  # b h t e
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
    return y.transpose(1, 2)
