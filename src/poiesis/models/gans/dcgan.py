"""Deep convolutional GAN: Radford, Metz & Chintala, arXiv:1511.06434.

Classes, where asked for, enter the generator beside the noise and the discriminator by projection
(Miyato & Koyama, arXiv:1802.05637).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from poiesis.config import check
from poiesis.errors import ConfigError, SpecError
from poiesis.models.base import preset
from poiesis.models.gans.adversarial import Adversarial
from poiesis.nn.labels import Labels
from poiesis.spec import Classes, Grid, Spec

__all__ = ["DCGAN"]


class DCGAN(Adversarial):
    """Convolutional GAN: sharp images in one pass.

    Good at: crisp small images (8 to 64 px) after minutes of training; the fastest sampling.

    Not good at: likelihoods, encoding; large or very diverse images; covering rare modes.

    Cost: two network updates a step, one pass to sample.

    Paper: Radford, Metz & Chintala, Unsupervised Representation Learning with Deep Convolutional
    Generative Adversarial Networks, arXiv:1511.06434.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Adversarial.Config):
        """Options of the DCGAN."""

        widths: tuple[int, ...] = (256, 128, 64)
        """Channels of the generator at 4 px, 8 px, …; the discriminator mirrors them. They end at
        half the image size, or at its full size (one more 3x3 convolution then makes the image)."""
        batch_size: int = 128

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 1 <= len(self.widths) <= 7:
                raise ConfigError(f"widths = {self.widths} has not 1 to 7 values, e.g. 256,128,64")
            for width in self.widths:
                check("widths", width, low=1, high=8192)
            check("batch_size", self.batch_size, low=2)

    @preset
    @staticmethod
    def default(spec: Spec) -> Config:
        """Narrow enough for a CPU, with small batches, a higher rate and averaged weights."""
        size = _padded(spec)
        # At 8 px the paper's scheme leaves one layer; one at full size besides makes digits.
        widths = (64, 32) if size == 8 else _widths(size, last=32, most=256)
        return DCGAN.Config(
            widths=widths, batch_size=64, generator_lr=5e-4, discriminator_lr=5e-4, ema=0.999
        )

    @preset
    @staticmethod
    def paper(spec: Spec) -> Config:
        """The paper's widths at 64 px (1024 down to 128), its usual ones at 32 px (512 to 64)."""
        size = _padded(spec)
        if size == 32:
            return DCGAN.Config(widths=(512, 256, 128, 64))
        return DCGAN.Config(widths=_widths(size, last=128, most=1024))

    # -- data ------------------------------------------------------------------------------------

    @classmethod
    def view(cls, config: Config, spec: Spec) -> Spec:
        """Return square images in [-1, 1], padded to the next power of two of at least 8."""
        size = _padded(spec)
        if 4 * 2 ** len(config.widths) not in (size, 2 * size):
            known = int(math.log2(size)) - 2
            raise ConfigError(
                f"widths = {config.widths} has {len(config.widths)} values; images of {size} px "
                f"need {known} or {known + 1}"
            )
        assert isinstance(spec, Grid)
        return Grid(channels=spec.channels, size=(size, size), domain="signed", levels=spec.levels)

    def __init__(self, config: Config, spec: Spec, condition: Classes | None = None) -> None:
        super().__init__(config, spec, condition)
        classes = self.condition.count if self.condition else 0
        assert isinstance(spec, Grid)
        self.generator = _Generator(config, spec, classes)
        self.discriminator = _Discriminator(config, spec, classes)
        self.apply(_initialise)


class _Generator(nn.Module):
    """z (b, z) → image (b, c, s, s) in [-1, 1]."""

    def __init__(self, config: DCGAN.Config, spec: Grid, classes: int) -> None:
        super().__init__()
        widths, latent = config.widths, config.latent_dim
        self.label = Labels(classes, latent) if classes else None
        inputs = 2 * latent if classes else latent
        layers: list[nn.Module] = [nn.ConvTranspose2d(inputs, widths[0], 4, bias=False)]
        for a, b in itertools.pairwise(widths):
            layers += [
                nn.BatchNorm2d(a),
                nn.ReLU(),
                nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=False),
            ]
        layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU()]
        if 2 ** (len(widths) + 1) == spec.size[0]:
            layers.append(nn.Conv2d(widths[-1], spec.channels, 3, padding=1))
        else:
            layers.append(nn.ConvTranspose2d(widths[-1], spec.channels, 4, stride=2, padding=1))
        self.body = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        if self.label is not None:
            z = torch.cat((z, self.label(label)), dim=1)
        return self.body(z[..., None, None])


class _Discriminator(nn.Module):
    """image (b, c, s, s) → logit (b,), and with classify also logits of the classes (b, k)."""

    def __init__(self, config: DCGAN.Config, spec: Grid, classes: int) -> None:
        super().__init__()
        widths, back = config.widths, config.widths[::-1]
        if 2 ** (len(widths) + 1) == spec.size[0]:
            layers: list[nn.Module] = [nn.Conv2d(spec.channels, back[0], 3, padding=1)]
        else:
            layers = [nn.Conv2d(spec.channels, back[0], 4, stride=2, padding=1)]
        layers.append(nn.LeakyReLU(0.2))
        for a, b in itertools.pairwise(back):
            layers += [
                nn.Conv2d(a, b, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(b),
                nn.LeakyReLU(0.2),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(back[-1], 1, 4)
        auxiliary = bool(config.auxiliary_weight)
        self.label = Labels(classes, back[-1]) if classes and not auxiliary else None
        self.classifier = nn.Linear(back[-1], classes) if auxiliary else None

    def forward(self, x: Tensor, label: Tensor | None, classify: bool = False) -> Any:
        h = self.body(x)
        logit = self.head(h).flatten()
        if self.label is not None:
            logit = logit + (self.label(label) * h.sum((2, 3))).sum(1)
        if classify:
            assert self.classifier is not None
            return logit, self.classifier(h.mean((2, 3)))
        return logit


def _initialise(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02), BatchNorm's from N(1, 0.02) (section 3 of the paper)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)


def _padded(spec: Spec) -> int:
    """Return the side of the padded square image; raises SpecError."""
    if not isinstance(spec, Grid) or len(spec.size) != 2 or not 1 <= spec.channels <= 4:
        raise SpecError(f"a DCGAN learns images of 1 to 4 channels, not {spec}")
    if max(spec.size) > 256:
        raise SpecError(f"a DCGAN takes images up to 256 px, not {spec.size}; resize them")
    return max(8, 2 ** math.ceil(math.log2(max(spec.size))))


def _widths(size: int, *, last: int, most: int) -> tuple[int, ...]:
    """Return channels at 4 px … size / 2, doubling downwards from `last` up to `most`."""
    count = int(math.log2(size)) - 2
    return tuple(min(most, last * 2**i) for i in reversed(range(count)))
