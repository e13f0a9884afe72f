"""Encoders and decoders: residual and plain convolutions, dense layers, matrices.

Each builder takes the model's options, its data, the values per latent dimension that the encoder
is to give (mean and variance: 2) and those per pixel that the decoder is to give, and returns the
parts of an encoder and of a decoder, to be put into `Labelled`.
"""

from __future__ import annotations

import itertools
import math
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from poiesis.errors import SpecError
from poiesis.nn.mlp import mlp
from poiesis.spec import Grid, Spec

__all__ = [
    "Labelled",
    "NetworkConfig",
    "Part",
    "dense",
    "fitting",
    "level_widths",
    "linear",
    "plain",
    "residual",
]

Part = tuple[nn.Module, nn.Module, int]
"""Stem, body, and the width of the stem's output."""


class NetworkConfig(Protocol):
    """The options that the builders read."""

    @property
    def network(self) -> str:
        """Which of the builders."""
        ...

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, or hidden units."""
        ...

    @property
    def blocks(self) -> int:
        """Residual blocks per level."""
        ...

    @property
    def latent_dim(self) -> int:
        """Dimensions of the latent code."""
        ...


class Labelled(nn.Module):
    """A stem, then a body; a class adds a vector between, as if its one-hot were an input."""

    def __init__(self, part: Part, classes: int) -> None:
        super().__init__()
        self.stem, self.body, width = part
        self.label = nn.Embedding(classes, width) if classes else None
        if self.label is not None:
            nn.init.zeros_(self.label.weight)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        """Return body(stem(x) + vector of the label); label int64 (b,), unread without classes."""
        h = self.stem(x)
        if self.label is not None:
            h = h + self.label(label).reshape(len(h), -1, *[1] * (h.ndim - 2))
        return self.body(h)


class _Crop(nn.Module):
    """Cuts (b, c, *sides) to a size: halving rounds up, so doubling may overshoot."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[(..., *(slice(side) for side in self.size))]


class _Shuffle(nn.Module):
    """Twice the length from twice the channels: (b, 2 c, t) to (b, c, 2 t)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)).transpose(2, 3).flatten(2)


class _Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), the identity at first."""

    def __init__(self, width: int, conv: type[nn.Conv1d | nn.Conv2d]) -> None:
        super().__init__()
        self.first = conv(width, width, 3, padding=1)
        self.second = conv(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def _sizes(size: tuple[int, ...], levels: int) -> list[tuple[int, ...]]:
    """Return the size at each level, halved and rounded up each time."""
    sizes = [size]
    for _ in range(levels):
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    return sizes


def level_widths(spec: Spec, first: int = 32) -> tuple[int, ...]:
    """Return channels for as many halvings as bring the longer side to 7 px or less.

    Of audio: to 32 samples or less.
    """
    end = 32 if len(spec.shape) == 2 else 7
    levels = max(1, math.ceil(math.log2(max(spec.shape[1:], default=end) / end)))
    return tuple(min(first * 2**i, 256) for i in range(levels))


def fitting(name: str, config: NetworkConfig, spec: Spec, *, audio: bool = True) -> Grid:
    """Return the spec of images or audio; raises SpecError if it is neither, or too small or large.

    audio: whether the model takes windows of it too.
    """
    if audio and isinstance(spec, Grid) and len(spec.size) == 1:
        if config.network == "conv":
            raise SpecError(f"network 'conv' needs images; use residual or mlp for a {spec}")
        return spec
    if not isinstance(spec, Grid) or len(spec.size) != 2 or not 1 <= spec.channels <= 4:
        what = ", vectors or audio" if audio else " or vectors"
        raise SpecError(f"{name} learns images of 1 to 4 channels{what}, not {spec}")
    # Unpadded convolutions need something left at the deepest level.
    lowest = 2 ** (len(config.widths) + 1) - 1 if config.network == "conv" else 4
    if min(spec.size) < lowest or max(spec.size) > 512:
        raise SpecError(
            f"{name} with network {config.network!r} takes images of {lowest} to 512 px, "
            f"not {spec.size}; resize them"
        )
    return spec


def linear(config: NetworkConfig, spec: Spec, m: int, k: int) -> tuple[Part, Part]:
    """One matrix each way."""
    z, shape = config.latent_dim, (k * spec.shape[0], *spec.shape[1:])
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(spec.dims, m * z))
    return (
        (encoder, nn.Identity(), m * z),
        (nn.Linear(z, math.prod(shape)), nn.Unflatten(1, shape), math.prod(shape)),
    )


def dense(config: NetworkConfig, spec: Spec, m: int, k: int) -> tuple[Part, Part]:
    """Dense layers with LayerNorm and SiLU, which learn about twice as fast as ReLU alone."""
    widths, z = config.widths, config.latent_dim
    shape = (k * spec.shape[0], *spec.shape[1:])

    def after(sizes: tuple[int, ...]) -> list[nn.Module]:
        return [nn.LayerNorm(sizes[0]), nn.SiLU(), mlp(sizes, nn.SiLU, norm=nn.LayerNorm)]

    encoder = nn.Sequential(nn.Flatten(), nn.Linear(spec.dims, widths[0]))
    back = widths[::-1]
    decoder_body = nn.Sequential(*after((*back, math.prod(shape))), nn.Unflatten(1, shape))
    return (
        (encoder, nn.Sequential(*after((*widths, m * z))), widths[0]),
        (nn.Linear(z, back[0]), decoder_body, back[0]),
    )


def plain(config: NetworkConfig, spec: Spec, m: int, k: int) -> tuple[Part, Part]:
    """Strided convolutions without padding, transposed ones back, as in TensorFlow's tutorial."""
    widths, z = config.widths, config.latent_dim
    stem = nn.Conv2d(spec.shape[0], widths[0], 3, stride=2)
    layers: list[nn.Module] = [nn.ReLU()]
    size = tuple((side - 1) // 2 for side in spec.shape[1:])
    for a, b in itertools.pairwise(widths):
        layers += [nn.Conv2d(a, b, 3, stride=2), nn.ReLU()]
        size = tuple((side - 1) // 2 for side in size)
    layers += [nn.Flatten(), nn.Linear(widths[-1] * math.prod(size), m * z)]

    sizes = _sizes(spec.shape[1:], len(widths))
    start = (widths[0], *sizes[-1])
    back: list[nn.Module] = [nn.ReLU(), nn.Unflatten(1, start)]
    channels = widths[0]
    for width, target in zip(widths[::-1], sizes[-2::-1], strict=True):
        back += [
            nn.ConvTranspose2d(channels, width, 3, stride=2, padding=1, output_padding=1),
            _Crop(target),
            nn.ReLU(),
        ]
        channels = width
    back.append(nn.ConvTranspose2d(channels, k * spec.shape[0], 3, padding=1))
    inner = math.prod(start)
    return (
        (stem, nn.Sequential(*layers), widths[0]),
        (nn.Linear(z, inner), nn.Sequential(*back), inner),
    )


def residual(config: NetworkConfig, spec: Spec, m: int, k: int) -> tuple[Part, Part]:
    """Strided convolutions and residual blocks; back by pixel shuffling, all below full size.

    Of images or, in one dimension, of audio.
    """
    widths, z = config.widths, config.latent_dim
    sizes = _sizes(spec.shape[1:], len(widths))
    images = len(sizes[0]) == 2
    conv, times = (nn.Conv2d, 4) if images else (nn.Conv1d, 2)

    def blocks(width: int) -> list[nn.Module]:
        return [_Residual(width, conv) for _ in range(config.blocks)]

    stem = conv(spec.shape[0], widths[0], 3, stride=2, padding=1)
    layers = blocks(widths[0])
    for a, b in itertools.pairwise(widths):
        layers += [nn.ReLU(), conv(a, b, 3, stride=2, padding=1), *blocks(b)]
    start = (widths[-1], *sizes[-1])
    inner = math.prod(start)
    layers += [nn.ReLU(), nn.Flatten(), nn.Linear(inner, m * z)]

    back: list[nn.Module] = [nn.Unflatten(1, start)]
    outputs = (*widths[-2::-1], k * spec.shape[0])
    for a, b, target in zip(widths[::-1], outputs, sizes[-2::-1], strict=True):
        up = nn.PixelShuffle(2) if images else _Shuffle()
        back += [*blocks(a), nn.ReLU(), conv(a, times * b, 3, padding=1), up, _Crop(target)]
    return (
        (stem, nn.Sequential(*layers), widths[0]),
        (nn.Linear(z, inner), nn.Sequential(*back), inner),
    )
