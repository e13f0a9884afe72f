"""Networks of hierarchical VAEs: maps bottom up, then latent maps top down (arXiv:2011.10650).

Shape letters: b batch, c channels, d latent channels, h height, k values per pixel that the
likelihood needs, v a level's width, w width. `config` is that of `VDVAE`, or one with its options.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Decoder",
    "Encoder",
    "Gaussian",
    "TopDown",
    "gaussian_kl",
    "level_sizes",
    "reparameterised",
]

Size = tuple[int, int]
Gaussian = tuple[Tensor, Tensor]
"""(mean, log of the standard deviation), each (b, d, h, w), float32."""

Choose = Callable[[int, "TopDown", Tensor, Gaussian], Tensor]
"""(number of the block, the block, its input (b, v, h, w), its prior) → its z (b, d, h, w)."""


def level_sizes(size: tuple[int, ...], config: Any) -> list[Size]:
    """Return (height, width) of each level: the longer side as given, the other in proportion."""
    height, width = (-(-side // config.patch) for side in size)
    most = max(height, width)
    return [(-(-height * side // most), -(-width * side // most)) for side in config.sizes]


def _block(a: int, middle: int, b: int, size: Size, scale: float = 1.0) -> nn.Sequential:
    """1x1 down to `middle`, two 3x3, 1x1 up, GELU before each; the last one's weights scaled."""
    side = 3 if max(size) > 2 else 1
    channels, kernels = (a, middle, middle, middle, b), (1, side, side, 1)
    layers: list[nn.Module] = []
    for (before, after), kernel in zip(itertools.pairwise(channels), kernels, strict=True):
        conv = nn.Conv2d(before, after, kernel, padding=kernel // 2)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        layers += [nn.GELU(), conv]
    with torch.no_grad():
        layers[-1].weight.mul_(scale)  # type: ignore[operator, union-attr]
    return nn.Sequential(*layers)


def _windows(large: Size, small: Size) -> Size:
    """Return the size of the windows, one per position of the small map, that cover the large."""
    return -(-large[0] // small[0]), -(-large[1] // small[1])


class _Down(nn.Module):
    """Brings maps (b, a, *large) to (b, v, *small)."""

    def __init__(self, a: int, v: int, large: Size, small: Size, learned: bool) -> None:
        super().__init__()
        self.large, self.small, self.learned = large, small, learned
        self.window = _windows(large, small) if learned else (1, 1)
        alike = a == v and not learned
        self.change = nn.Identity() if alike else nn.Conv2d(a, v, self.window, self.window)

    def forward(self, x: Tensor) -> Tensor:
        if not self.learned:
            window = _windows(self.large, self.small)
            if self.large == tuple(w * n for w, n in zip(window, self.small, strict=True)):
                return self.change(F.avg_pool2d(x, window))  # ten times faster
            return self.change(F.adaptive_avg_pool2d(x, self.small))
        pads = [w * n - m for w, n, m in zip(self.window, self.small, self.large, strict=True)]
        return self.change(F.pad(x, (0, pads[1], 0, pads[0])) if any(pads) else x)


class _Up(nn.Module):
    """Brings maps (b, v, *small) to (b, a, *large)."""

    def __init__(self, v: int, a: int, small: Size, large: Size, learned: bool) -> None:
        super().__init__()
        self.large, self.learned = large, learned
        window = _windows(large, small) if learned else (1, 1)
        alike = a == v and not learned
        self.change = nn.Identity() if alike else nn.ConvTranspose2d(v, a, window, window)

    def forward(self, x: Tensor) -> Tensor:
        x = self.change(x)
        if not self.learned:
            return F.interpolate(x, size=self.large)
        return x[..., : self.large[0], : self.large[1]]


class Encoder(nn.Module):
    """Bottom up: images (b, c, h, w) in [-1, 1] to one map (b, v, h, w) per level."""

    def __init__(self, config: Any, channels: int, sizes: Sequence[Size]) -> None:
        super().__init__()
        self.patch = config.patch
        widths = config.widths
        # Overlaps one pixel with its neighbours; with patch 1 it is the paper's 3x3.
        self.stem = nn.Conv2d(channels, widths[0], self.patch + 2, self.patch, padding=1)
        scale = math.sqrt(1 / max(1, sum(config.encoder)))
        self.levels, self.downs = nn.ModuleList(), nn.ModuleList()
        learned = config.resampling == "learned"
        for level, (count, width, size) in enumerate(
            zip(config.encoder, widths, sizes, strict=True)
        ):
            if level:
                self.downs.append(_Down(widths[level - 1], width, sizes[level - 1], size, learned))
            middle = _middle(width, config)
            blocks = [_block(width, middle, width, size, scale) for _ in range(count)]
            self.levels.append(nn.ModuleList(blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps, from the largest to the smallest."""
        down, right = (-x.size(2) % self.patch, -x.size(3) % self.patch)
        x = self.stem(F.pad(x, (0, right, 0, down)))
        maps: list[Tensor] = []
        for level, blocks in enumerate(self.levels):
            x = self.downs[level - 1](x) if level else x
            for block in blocks:  # type: ignore[union-attr]
                x = x + block(x)
            maps.append(x)
        return maps


class TopDown(nn.Module):
    """One block of the way down: x → x + what z says, z from the prior or the posterior."""

    def __init__(self, config: Any, level: int, size: Size) -> None:
        super().__init__()
        self.level = level
        d, width = config.latent_channels, config.widths[level]
        middle = _middle(width, config)
        scale = math.sqrt(1 / sum(config.decoder))
        self.posterior = _block(2 * width, middle, 2 * d, size)
        # Zero at first: a standard normal prior, and no features of its own.
        self.prior = _block(width, middle, 2 * d + width, size, 0.0)
        self.project = nn.Conv2d(d, width, 1)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.project.weight.mul_(scale)
        self.residual = _block(width, middle, width, size, scale)
        self.d = d

    def q(self, x: Tensor, above: Tensor) -> Gaussian:
        """Return q(z | maps of the encoder, the z before)."""
        return _gaussian(self.posterior(torch.cat((x, above), 1)))

    def forward(self, x: Tensor, index: int, choose: Choose) -> Tensor:
        """Return maps (b, v, h, w), with the latent map that `choose` returns for block `index`."""
        out = self.prior(x)
        z = choose(index, self, x, _gaussian(out[:, : 2 * self.d]))
        x = x + out[:, 2 * self.d :] + self.project(z)
        return x + self.residual(x)


class Decoder(nn.Module):
    """Top down: from learnt constants, through the blocks' z, to what the likelihood needs."""

    def __init__(self, config: Any, k: int, sizes: Sequence[Size], classes: int) -> None:
        super().__init__()
        self.sizes, widths = sizes, config.widths
        order = range(len(sizes) - 1, -1, -1)
        self.blocks = nn.ModuleList(
            TopDown(config, level, sizes[level])
            for level in order
            for _ in range(config.decoder[level])
        )
        learned = config.resampling == "learned"
        self.ups = nn.ModuleList(
            _Up(widths[level + 1], widths[level], sizes[level + 1], sizes[level], learned)
            for level in range(len(sizes) - 1)
        )
        self.bias = nn.ParameterList(
            nn.Parameter(torch.zeros(1, width, *size))
            for width, size in zip(widths, sizes, strict=True)
        )
        self.label = nn.Embedding(classes, widths[-1]) if classes else None
        if self.label is not None:
            nn.init.zeros_(self.label.weight)
        self.gain = nn.Parameter(torch.ones(1, widths[0], 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, widths[0], 1, 1))
        self.out = nn.Conv2d(widths[0], k * config.patch**2, 1)
        self.spread = nn.PixelShuffle(config.patch)

    def forward(self, rows: int, label: Tensor | None, choose: Choose) -> Tensor:
        """Return the likelihood's values (b, k, h, w), whole patches of them."""
        level = len(self.sizes) - 1
        x = self.bias[level].expand(rows, -1, -1, -1)
        if self.label is not None:
            x = x + self.label(label)[:, :, None, None]
        for index, block in enumerate(self.blocks):
            if block.level != level:
                level = int(block.level)  # type: ignore[arg-type]
                x = self.ups[level](x) + self.bias[level]
            x = block(x, index, choose)
        return self.spread(self.out(x * self.gain + self.shift))


def _middle(width: int, config: Any) -> int:
    return max(1, round(width * config.bottleneck))


def _gaussian(values: Tensor) -> Gaussian:
    mean, log_sigma = values.float().chunk(2, dim=1)
    # The bound keeps exp finite when training starts far off.
    return mean, log_sigma.clamp(-10, 10)


def reparameterised(gaussian: Gaussian, eps: Tensor) -> Tensor:
    """Return the draw that belongs to standard normal eps (b, d, h, w)."""
    mean, log_sigma = gaussian
    return mean + log_sigma.exp() * eps


def gaussian_kl(q: Gaussian, p: Gaussian) -> Tensor:
    """Return KL(q || p) of normals (mean, log of the standard deviation), elementwise, in nats."""
    (mean_q, log_q), (mean_p, log_p) = q, p
    scaled = (mean_q - mean_p) * (-log_p).exp()
    return log_p - log_q + 0.5 * ((2 * (log_q - log_p)).exp() + scaled.square() - 1)
