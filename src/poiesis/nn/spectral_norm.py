"""Layers with weights divided by their largest singular value: Miyato et al., arXiv:1802.05957.

Numbers are those of torch's parametrisation (one power iteration in each training forward, none
when evaluating), computed in float32 whatever autocast says, with two products by the matrix
instead of four and no copy of weights whose channels lie last in memory. `weight` stays the plain
parameter, `u` and `v` are buffers: checkpoints, averages and initialisations need nothing special.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from poiesis.nn.labels import LabelEmbedding, rows

__all__ = ["SpectralConv2d", "SpectralLabels", "SpectralLinear", "SpectralNorm"]

_EPS = 1e-6
"""Least norm of a singular vector before it is scaled; BigGAN's."""
_ITERATIONS = 15
"""Power iterations on fresh weights; torch's."""


def _matrix(weight: Tensor) -> Tensor:
    """Return (o, rest) of a weight (o, i, …), a view where channels lie last in memory.

    The order of the columns is that of channels last in any layout, so that `v` means the same.
    """
    return weight.flatten(1) if weight.dim() < 3 else weight.movedim(1, -1).flatten(1)


def _full(x: Tensor) -> Tensor:
    """Return x in float32, or float64 if it is so."""
    return x if x.dtype == torch.float64 else x.float()


class _Divide(Function):
    """W / (u' W v), with constant u and v; the gradient in three passes over the weights."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, sigma: Tensor, u: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(weight, sigma, u, v)
        return _full(weight) / sigma

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, sigma, u, v = ctx.saved_tensors
        g = _matrix(grad)
        along = (g * _matrix(weight)).sum() / sigma
        d = torch.addr(g, u * -along, v) / sigma
        if weight.dim() > 2:
            d = d.unflatten(1, (*weight.shape[2:], weight.size(1))).movedim(-1, 1)
        return d, None, None, None


class SpectralNorm(nn.Module):
    """Mixin of layers with a `weight`: its estimate of the largest singular value."""

    weight: nn.Parameter
    u: Tensor
    v: Tensor

    def start(self) -> None:
        """Estimate the singular vectors of fresh weights."""
        matrix = _matrix(self.weight.detach())
        for name, n in (("u", matrix.size(0)), ("v", matrix.size(1))):
            vector = F.normalize(torch.randn(n, device=matrix.device), dim=0, eps=_EPS)
            self.register_buffer(name, vector)
        if not matrix.is_meta:  # which has shapes only, and takes long over them
            for _ in range(_ITERATIONS):
                self._iterate(matrix)

    def _iterate(self, matrix: Tensor) -> Tensor:
        """Do one power iteration and return u' W v."""
        u = F.normalize(torch.mv(matrix, self.v), dim=0, eps=_EPS)
        back = torch.mv(matrix.T, u)
        v = F.normalize(back, dim=0, eps=_EPS)
        self.u.copy_(u)
        self.v.copy_(v)
        return torch.dot(back, v)

    def normalised(self) -> Tensor:
        """Return weight / sigma, float32; when training, after one power iteration."""
        with torch.no_grad(), torch.autocast(self.weight.device.type, enabled=False):
            matrix = _matrix(_full(self.weight.detach()))
            if self.training:
                sigma, u, v = self._iterate(matrix), self.u.clone(), self.v.clone()
            else:
                # Averaged vectors are shorter than 1.
                u, v = F.normalize(self.u, dim=0, eps=_EPS), F.normalize(self.v, dim=0, eps=_EPS)
                sigma = torch.dot(u, torch.mv(matrix, v))
        weight = _Divide.apply(self.weight, sigma, u, v)
        assert isinstance(weight, Tensor)
        return weight


class SpectralConv2d(nn.Conv2d, SpectralNorm):
    """nn.Conv2d of spectral norm 1, as a matrix (out channels, rest)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.start()

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of (b, c, h, w)."""
        return self._conv_forward(input, self.normalised(), self.bias)


class SpectralLinear(nn.Linear, SpectralNorm):
    """nn.Linear of spectral norm 1."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.start()

    def forward(self, input: Tensor) -> Tensor:
        """Return the map of (…, inputs)."""
        return F.linear(input, self.normalised(), self.bias)


class SpectralLabels(LabelEmbedding, SpectralNorm):
    """A LabelEmbedding whose table has spectral norm 1."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.start()

    def forward(self, input: Tensor) -> Tensor:
        """Return (b, width) of classes (b,) or attributes (b, k)."""
        return rows(self.normalised(), input)
