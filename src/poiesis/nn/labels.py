"""Vectors that stand for classes."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Labels"]


class Labels(nn.Embedding):
    """An embedding of classes, and of mixtures of them.

    Input int64 (b,), or weights of the classes (b, k), float, for a way from one class to another.
    Output (b, d).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the vector of each row's class, or the weighted sum of all."""
        if input.is_floating_point():
            return input.to(self.weight.dtype) @ self.weight
        return super().forward(input)
