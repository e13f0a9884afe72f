"""Muon: momentum, orthogonalised, for hidden matrices (Jordan 2024; arXiv 2502.16982).

torch.optim.Muon computes in bfloat16, which is slow on processors without it; this one computes in
float32 there, with the Newton-Schulz steps on the small Gram matrix and all matrices of one shape
at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from poiesis.training.distribution import place, whole

__all__ = ["Muon", "orthogonalize"]

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Coefficients of the quintic iteration (Jordan 2024), chosen for steepness at zero."""
_STEPS = 5


def orthogonalize(x: Tensor) -> Tensor:
    """Return about U Vᵀ of each matrix U S Vᵀ; shape (n, rows, columns), float32.

    The iteration X ← aX + b(XXᵀ)X + c(XXᵀ)²X leaves singular values near 1 (0.7…1.2), not at it.
    X stays P X₀ for a polynomial P of the Gram matrix X₀X₀ᵀ, so only that small matrix is iterated.
    """
    wide = x.size(1) <= x.size(2)
    x = x if wide else x.mT
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    gram = x @ x.mT
    product: Tensor | None = None
    for step in range(_STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        factor.diagonal(dim1=1, dim2=2).add_(_A)
        product = factor if product is None else factor @ product
        if step < _STEPS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    x = product @ x
    return x if wide else x.mT


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised, scaled by sqrt(max(1, rows / columns)).

    params: matrices only. weight_decay: decoupled. Raises ValueError for other shapes.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    shape = tuple(parameter.shape)
                    raise ValueError(f"Muon steps matrices; a parameter has shape {shape}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take one step from the gradients."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                average = state["momentum"]
                average.lerp_(parameter.grad, 1 - momentum)
                update = parameter.grad.lerp(average, momentum)
                by_shape.setdefault(parameter.shape, []).append((parameter, update))
            for shape, pairs in by_shape.items():
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                updates = orthogonalize(torch.stack([whole(u).float() for _, u in pairs]))
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    if group["weight_decay"]:
                        parameter.mul_(1 - lr * group["weight_decay"])
                    parameter.add_(place(update, parameter), alpha=-lr * scale)
