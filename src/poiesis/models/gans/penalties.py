"""Penalties on a discriminator's gradient or weights, pure functions in float32.

Gradients by the data are differentiable themselves (for a second backward pass) where autograd is
on. torch.compile can't differentiate twice: compute the scores within `twice_differentiable`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

__all__ = ["clip_", "gradient_penalty", "orthogonal", "squared_gradient", "twice_differentiable"]


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Record for autograd, even where it is off, and without compiled networks."""
    # The compiler takes seconds to load, and has nothing to do with networks that it did not make.
    compiled = "torch._dynamo" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    with torch.enable_grad(), eager:
        yield


def gradient_penalty(
    score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, epsilon: Tensor
) -> Tensor:
    """Return (‖∇score‖ − 1)² between real and fake, (b,) (arXiv:1704.00028, eq. 3).

    score: data (b, …) → (b,), or (b, k), whose penalties add up. epsilon: (b,) in [0, 1], the share
    of `real`.
    """
    share = epsilon.view(-1, *[1] * (real.dim() - 1))
    between = (share * real + (1 - share) * fake.float()).detach().requires_grad_()
    with twice_differentiable():
        scores = score(between)
    # At zero, the derivative of the root would be infinite.
    squares = (each.clamp(min=1e-24) for each in _squares(scores, between))
    return torch.stack([(square.sqrt() - 1).square() for square in squares]).sum(0)


def squared_gradient(scores: Tensor, x: Tensor) -> Tensor:
    """Return ‖∇score‖² by x, (b,): R1 at real x, R2 at fake x (arXiv:1801.04406, eq. 9).

    scores: (b,), or (b, k), whose squares add up; computed from x (b, …), which requires a
    gradient.
    """
    return torch.stack(list(_squares(scores, x))).sum(0)


def _squares(scores: Tensor, x: Tensor) -> Iterator[Tensor]:
    """Yield ‖∇score‖² (b,) of scores (b,), or of each column of scores (b, k)."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():  # a column cut out without would have no gradient
        columns = scores.unbind(1) if scores.dim() > 1 else (scores,)
    for number, column in enumerate(columns, 1):
        kept = again or number < len(columns)
        (gradient,) = torch.autograd.grad(
            column, x, torch.ones_like(column), create_graph=again, retain_graph=kept
        )
        yield gradient.float().square().sum(tuple(range(1, x.dim())))


def orthogonal(weights: Iterable[Tensor]) -> Tensor:
    """Return the sum of ‖W Wᵀ‖² off the diagonals, () (arXiv:1809.11096, eq. 3).

    Rows of W are a weight's outputs; tensors of fewer than two dimensions are left out.
    """
    total = torch.zeros(())
    for weight in weights:
        if weight.dim() > 1:
            rows = weight.float().flatten(1)
            products = rows @ rows.T
            total = total.to(rows.device) + (products - products.diag().diag()).square().sum()
    return total


@torch.no_grad()
def clip_(parameters: Iterable[Tensor], bound: float) -> None:
    """Clip parameters to [-bound, bound], in place (arXiv:1701.07875, algorithm 1)."""
    torch._foreach_clamp_min_(own := list(parameters), -bound)  # pyright: ignore
    torch._foreach_clamp_max_(own, bound)  # pyright: ignore
