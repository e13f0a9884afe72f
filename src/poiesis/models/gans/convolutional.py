"""Convolutional generators and discriminators, after DCGAN (arXiv:1511.06434).

Shape letters: b batch, c channels, s side of the square image, a power of two.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poiesis.errors import ConfigError
from poiesis.nn.dropout import Dropout
from poiesis.nn.labels import LabelEmbedding
from poiesis.spec import Grid

__all__ = [
    "ConvDiscriminator",
    "ConvGenerator",
    "TutorialDiscriminator",
    "TutorialGenerator",
    "check_widths",
    "doubling",
    "full_size",
    "initialise",
    "initialise_he",
]


class ConvGenerator(nn.Module):
    """z (b, z) → image (b, c, s, s) in [-1, 1]. widths: channels at 4 px, 8 px, …"""

    def __init__(self, latent: int, widths: Sequence[int], spec: Grid, *, classes: int = 0) -> None:
        super().__init__()
        self.label = LabelEmbedding(classes, latent) if classes else None
        inputs = 2 * latent if classes else latent
        layers: list[nn.Module] = [nn.ConvTranspose2d(inputs, widths[0], 4, bias=False)]
        for a, b in itertools.pairwise(widths):
            layers += [
                nn.BatchNorm2d(a),
                nn.ReLU(),
                nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=False),
            ]
        layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU()]
        if full_size(widths, spec):
            layers.append(nn.Conv2d(widths[-1], spec.channels, 3, padding=1))
        else:
            layers.append(nn.ConvTranspose2d(widths[-1], spec.channels, 4, stride=2, padding=1))
        self.body = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        """Return images; label: int64 (b,) or float (b, k), None without classes."""
        if self.label is not None:
            z = torch.cat((z, self.label(label)), dim=1)
        return self.body(z[..., None, None])


class ConvDiscriminator(nn.Module):
    """image (b, c, s, s) → logits (b,); with ``classify=True`` also logits of the classes (b, k).

    widths: those of the generator, which it mirrors. Classes are projected (arXiv:1802.05637), or
    told by a second head (classify). batch_norm: without it, a sample's logit is its own.
    """

    def __init__(
        self,
        widths: Sequence[int],
        spec: Grid,
        *,
        classes: int = 0,
        classify: bool = False,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        back = widths[::-1]
        if full_size(widths, spec):
            layers: list[nn.Module] = [nn.Conv2d(spec.channels, back[0], 3, padding=1)]
        else:
            layers = [nn.Conv2d(spec.channels, back[0], 4, stride=2, padding=1)]
        layers.append(nn.LeakyReLU(0.2))
        for a, b in itertools.pairwise(back):
            layers.append(nn.Conv2d(a, b, 4, stride=2, padding=1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(b)] if batch_norm else []
            layers.append(nn.LeakyReLU(0.2))
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(back[-1], 1, 4)
        self.label = LabelEmbedding(classes, back[-1]) if classes and not classify else None
        self.classifier = nn.Linear(back[-1], classes) if classify else None

    def forward(self, x: Tensor, label: Tensor | None, classify: bool = False) -> Any:
        """Return logits, or both kinds of them."""
        h = self.body(x)
        logit = self.head(h).flatten()
        if self.label is not None:
            logit = logit + (self.label(label) * h.sum((2, 3))).sum(1)
        if classify:
            assert self.classifier is not None
            return logit, self.classifier(h.mean((2, 3)))
        return logit


class TutorialGenerator(nn.Module):
    """z (b, z) → image (b, c, s, s) in [-1, 1]: dense, then 4x4 convolutions without normalisation.

    widths: channels at 4 px, 8 px, … up to the full size.
    """

    def __init__(self, latent: int, widths: Sequence[int], spec: Grid, *, classes: int = 0) -> None:
        super().__init__()
        self.label = LabelEmbedding(classes, latent) if classes else None
        self.input = nn.Linear(2 * latent if classes else latent, 16 * widths[0])
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.output = nn.Conv2d(widths[-1], spec.channels, 3, padding=1)

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        """Return images; label: int64 (b,) or float (b, k), None without classes."""
        if self.label is not None:
            z = torch.cat((z, self.label(label)), dim=1)
        h = F.leaky_relu(self.input(z), 0.2).unflatten(1, (-1, 4, 4))
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.2)
        return self.output(h).tanh()


class TutorialDiscriminator(nn.Module):
    """image (b, c, s, s) → logits (b,): 3x3 convolutions without normalisation, dropout, dense.

    widths: channels at the full size, its half, …, 4 px. Classes as in `ConvDiscriminator`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        spec: Grid,
        *,
        classes: int = 0,
        classify: bool = False,
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2 if number else 1, padding=1)
            for number, (a, b) in enumerate(itertools.pairwise((spec.channels, *widths)))
        )
        self.dropout = Dropout(dropout)
        units = 16 * widths[-1]
        self.output = nn.Linear(units, 1)
        self.label = LabelEmbedding(classes, units) if classes and not classify else None
        self.classifier = nn.Linear(units, classes) if classify else None

    def forward(self, x: Tensor, label: Tensor | None, classify: bool = False) -> Any:
        """Return logits, or both kinds of them."""
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        h = self.dropout(x.flatten(1))
        logit = self.output(h).flatten()
        if self.label is not None:
            logit = logit + (self.label(label) * h).sum(1)
        if classify:
            assert self.classifier is not None
            return logit, self.classifier(h)
        return logit


def initialise(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02), BatchNorm's from N(1, 0.02) (section 3 of the paper)."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
        nn.init.normal_(module.weight, 1.0, 0.02)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)


def initialise_he(module: nn.Module) -> None:
    """Draw weights that keep the spread of LeakyReLU units (arXiv:1502.01852), biases 0."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, a=0.2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_widths(widths: Sequence[int], size: int) -> None:
    """Raise ConfigError unless `widths` end at half or full the size of the images."""
    if 4 * 2 ** len(widths) not in (size, 2 * size):
        known = int(math.log2(size)) - 2
        raise ConfigError(
            f"widths = {widths} has {len(widths)} values; images of {size} px "
            f"need {known} or {known + 1}"
        )


def doubling(size: int, *, last: int, most: int) -> tuple[int, ...]:
    """Return channels at 4 px … size / 2, doubling downwards from `last` up to `most`."""
    count = int(math.log2(size)) - 2
    return tuple(min(most, last * 2**i) for i in reversed(range(count)))


def full_size(widths: Sequence[int], spec: Grid) -> bool:
    """Return whether `widths` end at the full size of the images."""
    return 2 ** (len(widths) + 1) == spec.size[0]
