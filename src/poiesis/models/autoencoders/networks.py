"""Encoders and decoders: residual and plain convolutions, of audio too, dense layers, matrices.

Each builder takes the model's options, its data, the values per latent dimension that the encoder
is to give (mean and variance: 2) and those per pixel that the decoder is to give, and returns the
parts of an encoder and of a decoder, to be put into `Labelled`.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Protocol

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
    "wave_shape",
    "waves",
]

_STEP = 16
"""Samples of audio from one step of its code to the next."""

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


class _Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), the identity at first."""

    def __init__(self, width: int, conv: type[nn.Conv1d | nn.Conv2d] = nn.Conv2d) -> None:
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
    """Return channels for as many halvings as bring the longer side to 7 px or less."""
    levels = max(1, math.ceil(math.log2(max(spec.shape[1:], default=7) / 7)))
    return tuple(min(first * 2**i, 256) for i in range(levels))


def fitting(name: str, config: NetworkConfig, spec: Spec, *, audio: bool = True) -> Grid:
    """Return the spec of images or audio; raises SpecError if it is neither, or too small or large.

    audio: whether the model takes windows of it too.
    """
    if audio and isinstance(spec, Grid) and len(spec.size) == 1:
        if config.network == "conv":
            raise SpecError(f"network 'conv' needs images; use residual or mlp for a {spec}")
        steps = _steps(spec)
        if config.network == "residual" and config.latent_dim % steps:
            raise SpecError(
                f"latent_dim = {config.latent_dim} is no multiple of {steps}, the steps of {_STEP} "
                f"samples in a {spec}; use {steps * max(1, round(config.latent_dim / steps))}"
            )
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

    Of audio: `waves`.
    """
    if len(spec.shape) == 2:
        return waves(config, spec, m, k)
    widths, z = config.widths, config.latent_dim
    sizes = _sizes(spec.shape[1:], len(widths))

    def blocks(width: int) -> list[nn.Module]:
        return [_Residual(width) for _ in range(config.blocks)]

    stem = nn.Conv2d(spec.shape[0], widths[0], 3, stride=2, padding=1)
    layers = blocks(widths[0])
    for a, b in itertools.pairwise(widths):
        layers += [nn.ReLU(), nn.Conv2d(a, b, 3, stride=2, padding=1), *blocks(b)]
    start = (widths[-1], *sizes[-1])
    inner = math.prod(start)
    layers += [nn.ReLU(), nn.Flatten(), nn.Linear(inner, m * z)]

    back: list[nn.Module] = [nn.Unflatten(1, start)]
    outputs = (*widths[-2::-1], k * spec.shape[0])
    for a, b, target in zip(widths[::-1], outputs, sizes[-2::-1], strict=True):
        shuffle = [nn.Conv2d(a, 4 * b, 3, padding=1), nn.PixelShuffle(2), _Crop(target)]
        back += [*blocks(a), nn.ReLU(), *shuffle]
    return (
        (stem, nn.Sequential(*layers), widths[0]),
        (nn.Linear(z, inner), nn.Sequential(*back), inner),
    )


def waves(config: NetworkConfig, spec: Spec, m: int, k: int) -> tuple[Part, Part]:
    """A learned bank of filters over samples, residual blocks along time, and filters back.

    The code is a few numbers for each step of 16 samples (as Conv-TasNet's encoder and decoder,
    arXiv:1809.07454), and what a step becomes does not depend on where it lies: with a code of the
    whole window the same networks learn a hundred times slower.
    """
    width, steps = config.widths[0], _steps(spec)
    lack = steps * _STEP - spec.shape[1]
    own = config.latent_dim // steps

    def blocks() -> list[nn.Module]:
        return [_Residual(width, nn.Conv1d) for _ in range(config.blocks)]

    def filters(kind: type[nn.Conv1d | nn.ConvTranspose1d], a: int, b: int) -> nn.Module:
        return kind(a, b, 2 * _STEP, stride=_STEP, padding=_STEP // 2)

    stem = nn.Sequential(nn.ConstantPad1d((0, lack), 0.0), filters(nn.Conv1d, spec.shape[0], width))
    body = nn.Sequential(*blocks(), nn.ReLU(), nn.Conv1d(width, m * own, 1), nn.Flatten())
    back = nn.Sequential(nn.Unflatten(1, (own, steps)), nn.Conv1d(own, width, 1))
    output = filters(nn.ConvTranspose1d, width, k * spec.shape[0])
    return (
        (stem, body, width),
        (back, nn.Sequential(*blocks(), output, _Crop(spec.shape[1:])), width),
    )


def wave_shape(spec: Spec) -> dict[str, Any]:
    """Return widths, blocks and latent_dim that suit `waves`: 8 numbers a step."""
    return {"widths": (64,), "blocks": 2, "latent_dim": 8 * _steps(spec)}


def _steps(spec: Spec) -> int:
    return -(-spec.shape[1] // _STEP)
