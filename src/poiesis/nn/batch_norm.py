"""Batch normalisation: with gains by condition, and over the rows of all processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from poiesis import processes

__all__ = ["ConditionalBatchNorm", "SyncedBatchNorm", "synchronise"]


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation of maps (b, c, h, w) whose gains and biases follow a condition.

    gain, bias: modules from the condition, of any kind, to (b, c). The gain is 1 + gain(condition)
    (arXiv:1707.00683; so written in arXiv:1809.11096, appendix C).
    """

    def __init__(self, channels: int, gain: nn.Module, bias: nn.Module) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = gain
        self.bias = bias

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the same shape and type."""
        gain, bias = 1 + self.gain(condition).float(), self.bias(condition)
        # Of one type: mixed ones would go through float32 copies of the maps.
        gain, bias = gain.to(x.dtype)[..., None, None], bias.to(x.dtype)[..., None, None]
        return torch.addcmul(bias, self.norm(x), gain)


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose mean and variance are those of the global batch, on any device.

    Input (b, c, …), this process's rows. Means and variances of the processes are combined by the
    parallel rule of Chan, Golub and LeVeque (1979), which does not cancel; gradients flow through
    them as in one process. Evaluating, and with one process, it is torch's own layer.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (b, c, …), got a tensor of {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised rows, shape (b, c, …)."""
        if not self.training or processes.size() == 1:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        over = [0, *range(2, x.dim())]
        var, mean = torch.var_mean(x, over, correction=0)
        own = torch.full_like(mean[:1], x.numel() / x.size(1))
        means, variances, counts = _of_all(torch.cat((mean, var, own))).split(
            [len(mean), len(mean), 1], dim=1
        )
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        var = (counts * (variances + (means - mean).square())).sum(0) / total
        if self.track_running_stats and self.running_mean is not None:
            self._follow(mean.detach(), var.detach() * total / (total - 1).clamp(min=1))
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = torch.rsqrt(var + self.eps)
        y = (x - mean.view(shape)) * scale.view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(var.to(self.running_var.dtype), momentum)


class _Gather(torch.autograd.Function):
    """Rows of all processes, stacked; the gradient of each goes back to its owner, added up."""

    @staticmethod
    def forward(ctx: Any, row: Tensor) -> Tensor:
        table = row.new_zeros(processes.size(), len(row))
        table[processes.rank()] = row
        processes.sum_([table])
        return table

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        processes.sum_([gradient])
        return gradient[processes.rank()]


def _of_all(row: Tensor) -> Tensor:
    """Return the rows (n,) of all processes as (processes, n), differentiable."""
    gathered = _Gather.apply(row)
    assert isinstance(gathered, Tensor)
    return gathered


def synchronise(model: nn.Module) -> None:
    """Turn torch's batch normalisations within a model into synchronised ones, in place."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    for module in model.modules():
        if type(module) in kinds:
            module.__class__ = SyncedBatchNorm
