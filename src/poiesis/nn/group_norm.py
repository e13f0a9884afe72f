"""Group normalisation (Wu & He, arXiv:1803.08494) that stays fast in bf16 with channels last.

On a CPU two of torch's kernels for that layout fall behind float32 by a factor of three and more:
both passes over maps of fewer than 1,024 places if a group has fewer than 16 channels, and the
backward pass over larger maps. Those are computed in float32, a few samples at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["GroupNorm"]

_PLACES = 1024
"""Places of a map from which on torch changes its method."""
_CHANNELS = 16
"""Channels of a group below which its method for small maps goes number by number."""
_CHUNK = 1 << 18
"""Numbers turned to float32 at a time: a megabyte, which stays in cache."""


def _chunks(x: Tensor) -> Iterator[slice]:
    """Yield slices of the rows of x, (b, c, …)."""
    rows = max(1, _CHUNK // x[0].numel())
    for start in range(0, len(x), rows):
        yield slice(start, min(len(x), start + rows))


class _Mixed(Function):
    """The layer with each pass in float32 where that is faster."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        channels, places = x.size(1), x[0, 0].numel()
        ctx.sizes = (channels, places, groups)
        if places < _PLACES:
            y = torch.empty_like(x)
            means, rstds = [], []
            for part in _chunks(x):
                rows = x[part].float()
                own, mean, rstd = torch.native_group_norm(
                    rows, weight, bias, len(rows), *ctx.sizes, eps
                )
                y[part] = own
                means.append(mean)
                rstds.append(rstd)
            mean, rstd = torch.cat(means), torch.cat(rstds)
        else:
            y, mean, rstd = torch.native_group_norm(x, weight, bias, len(x), *ctx.sizes, eps)
        ctx.save_for_backward(x, mean.float(), rstd.float(), weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight = ctx.saved_tensors
        dx = torch.empty_like(x)
        dweight, dbias = torch.zeros_like(weight), torch.zeros_like(weight)
        for part in _chunks(x):
            rows = x[part].float()
            own, own_weight, own_bias = torch.ops.aten.native_group_norm_backward(
                grad[part].float(),
                rows,
                mean[part],
                rstd[part],
                weight,
                len(rows),
                *ctx.sizes,
                [True, True, True],
            )
            dx[part] = own
            dweight += own_weight
            dbias += own_bias
        return dx, dweight, dbias, None, None


class GroupNorm(nn.GroupNorm):
    """torch's layer with gains; the same numbers up to rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the same shape (b, c, …)."""
        low = input.device.type == "cpu" and input.dtype == torch.bfloat16
        if low and not input.is_contiguous() and self.weight.dtype == torch.float32:
            few = self.num_channels // self.num_groups < _CHANNELS
            if few or (input[0, 0].numel() >= _PLACES and torch.is_grad_enabled()):
                y = _Mixed.apply(input, self.weight, self.bias, self.num_groups, self.eps)
                assert isinstance(y, Tensor)
                return y
        return super().forward(input)
