"""Strided convolutions down to a grid of vectors, and back: what codes of images are made with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["strided", "upwards"]


class _Block(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))): the residual block of VQ-VAE (arXiv:1711.00937)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def strided(channels: int, widths: Sequence[int], blocks: int, outputs: int) -> nn.Sequential:
    """Return a network (b, channels, h, w) → (b, outputs, h / 2^n, w / 2^n) with n = len(widths).

    Strided convolutions to each width, each halving, then residual blocks.
    """
    layers: list[nn.Module] = []
    for before, width in zip((channels, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), nn.ReLU()]
    layers.pop()  # a block begins with its own
    layers += [_Block(widths[-1]) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(widths[-1], outputs, 1))


def upwards(inputs: int, widths: Sequence[int], blocks: int, channels: int) -> nn.Sequential:
    """Return the mirror of `strided`, with transposed convolutions, from `inputs` to `channels`."""
    back = widths[::-1]
    layers: list[nn.Module] = [nn.Conv2d(inputs, back[0], 3, padding=1)]
    layers += [_Block(back[0]) for _ in range(blocks)]
    for width, after in zip(back, (*back[1:], channels), strict=True):
        layers += [nn.ReLU(), nn.ConvTranspose2d(width, after, 4, stride=2, padding=1)]
    return nn.Sequential(*layers)
