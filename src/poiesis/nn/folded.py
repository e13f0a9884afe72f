"""Neighbouring samples or pixels as channels of one step, around a network: less to compute."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Folded", "fold", "unfold"]


def fold(x: Tensor, size: int, axes: int) -> Tensor:
    """Return (b, c · sizeᵃ, …) with each of the last `axes` axes, a, shorter by `size`."""
    for axis in range(-axes, 0):
        x = x.unflatten(axis, (-1, size)).movedim(axis, 2).flatten(1, 2)
    return x


def unfold(x: Tensor, size: int, axes: int) -> Tensor:
    """Return what `fold` was given."""
    for axis in reversed(range(-axes, 0)):
        x = x.unflatten(1, (-1, size)).movedim(2, axis).flatten(axis - 1, axis)
    return x


class Folded(nn.Module):
    """A denoising network that sees folded data: (x_t, noise level, condition) → x_t's shape.

    network: for sizeᵃ times the channels, a being the number of axes.
    """

    def __init__(self, network: nn.Module, size: int, axes: int) -> None:
        super().__init__()
        self.network = network
        self.size, self.axes = size, axes

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the shape of x (b, c, …), whose last axes `size` divides."""
        out = self.network(fold(x, self.size, self.axes), t, condition)
        return unfold(out, self.size, self.axes)
