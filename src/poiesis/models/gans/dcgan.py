"""Deep convolutional GAN: Radford, Metz & Chintala, arXiv:1511.06434.

Classes, where asked for, enter the generator beside the noise and the discriminator by projection
(Miyato & Koyama, arXiv:1802.05637).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from poiesis.config import check
from poiesis.errors import ConfigError
from poiesis.models.base import Batch, GenerativeModel, Loss, Optim, Phase, Stage, preset
from poiesis.models.gans.losses import non_saturating_discriminator, non_saturating_generator
from poiesis.models.gans.padding import padded_size, padded_view
from poiesis.rng import Noise
from poiesis.spec import Classes, Grid, Spec

__all__ = ["DCGAN"]


class DCGAN(GenerativeModel):
    """Convolutional GAN: sharp images in one pass.

    Good at: crisp small images (8 to 64 px) after minutes of training; the fastest sampling.

    Not good at: likelihoods, encoding; large or very diverse images; covering rare modes.

    Cost: two network updates a step, one pass to sample.

    Paper: Radford, Metz & Chintala, Unsupervised Representation Learning with Deep Convolutional
    Generative Adversarial Networks, arXiv:1511.06434.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the DCGAN."""

        latent_dim: int = 100
        """Dimensions of the normal noise that the generator turns into an image."""
        widths: tuple[int, ...] = (256, 128, 64)
        """Channels of the generator at 4 px, 8 px, …; the discriminator mirrors them. They end at
        half the image size, or at its full size (one more 3x3 convolution then makes the image)."""
        conditional: bool = False
        """Generate by class; needs data with classes."""
        generator_lr: float = 2e-4
        """Learning rate of the generator's Adam."""
        discriminator_lr: float = 2e-4
        """Learning rate of the discriminator's Adam."""
        beta1: float = 0.5
        """First-moment decay of both Adams; the second is 0.999."""
        batch_size: int = 128
        """Samples per step."""
        ema: float = 0.0
        """Decay per step of the generator's averaged weights, with which it samples; 0 is none."""

        def __post_init__(self) -> None:
            check("latent_dim", self.latent_dim, low=1, high=65536)
            if not 1 <= len(self.widths) <= 7:
                raise ConfigError(f"widths = {self.widths} has not 1 to 7 values, e.g. 256,128,64")
            for width in self.widths:
                check("widths", width, low=1, high=8192)
            check("generator_lr", self.generator_lr, low=0, high=1, open_low=True)
            check("discriminator_lr", self.discriminator_lr, low=0, high=1, open_low=True)
            check("beta1", self.beta1, low=0, high=0.999)
            check("batch_size", self.batch_size, low=2)
            check("ema", self.ema, low=0, high=0.999999)

    @dataclass(frozen=True, kw_only=True)
    class Sampling:
        """Sampling options of the DCGAN."""

        temperature: float = 1.0
        """Standard deviation of the noise; below 1: fewer odd samples, less variety."""

        def __post_init__(self) -> None:
            check("temperature", self.temperature, low=0, high=100)

    @preset
    @staticmethod
    def default(spec: Spec) -> Config:
        """Narrow enough for a CPU, with small batches, a higher rate and averaged weights."""
        size = padded_size(spec, "a DCGAN")
        # At 8 px the paper's scheme leaves one layer; one at full size besides makes digits.
        widths = (64, 32) if size == 8 else _widths(size, last=32, most=256)
        return DCGAN.Config(
            widths=widths, batch_size=64, generator_lr=5e-4, discriminator_lr=5e-4, ema=0.999
        )

    @preset
    @staticmethod
    def paper(spec: Spec) -> Config:
        """The paper's widths at 64 px (1024 down to 128), its usual ones at 32 px (512 to 64)."""
        size = padded_size(spec, "a DCGAN")
        if size == 32:
            return DCGAN.Config(widths=(512, 256, 128, 64))
        return DCGAN.Config(widths=_widths(size, last=128, most=1024))

    # -- data ------------------------------------------------------------------------------------

    @classmethod
    def view(cls, config: Config, spec: Spec) -> Spec:
        """Return square images in [-1, 1], padded to the next power of two of at least 8."""
        size = padded_size(spec, "a DCGAN")
        if 4 * 2 ** len(config.widths) not in (size, 2 * size):
            known = int(math.log2(size)) - 2
            raise ConfigError(
                f"widths = {config.widths} has {len(config.widths)} values; images of {size} px "
                f"need {known} or {known + 1}"
            )
        return padded_view(spec, size)

    def __init__(self, config: Config, spec: Spec, condition: Classes | None = None) -> None:
        if config.conditional and condition is None:
            raise ConfigError("conditional = True needs data with classes; set it to False")
        super().__init__(config, spec, condition if config.conditional else None)
        classes = self.condition.count if self.condition else 0
        assert isinstance(spec, Grid)
        self.generator = _Generator(config.widths, config.latent_dim, spec, classes)
        self.discriminator = _Discriminator(config.widths, spec, classes)
        self.apply(_initialise)

    # -- training --------------------------------------------------------------------------------

    def optimizers(self) -> Mapping[str, Optim]:
        """Return one Adam for each network."""
        c = self.config
        rates = {"discriminator": c.discriminator_lr, "generator": c.generator_lr}
        return {
            name: Optim(networks=(name,), lr=lr, betas=(c.beta1, 0.999))
            for name, lr in rates.items()
        }

    def stages(self) -> Sequence[Stage]:
        """Return one stage: a discriminator step, then a generator step."""
        phases = (
            Phase(name="discriminator", loss=self.discriminator_loss, step=("discriminator",)),
            Phase(name="generator", loss=self.generator_loss, step=("generator",)),
        )
        return [Stage(phases=phases, batch_size=self.config.batch_size)]

    def ema(self) -> Mapping[str, float]:
        """Average the generator."""
        return {"generator": self.config.ema}

    def discriminator_loss(self, batch: Batch, step: int) -> Loss:
        """Return -log D(x) - log(1 - D(G(z))); real and fake are separate batches to BatchNorm."""
        with torch.no_grad():
            fake = self.generator(batch.randn(self.config.latent_dim), batch.condition)
        real_score = self.discriminate(batch.x, batch.condition)
        fake_score = self.discriminate(fake, batch.condition)
        loss = non_saturating_discriminator(real_score, fake_score)
        return loss, {"real_score": real_score.detach(), "fake_score": fake_score.detach()}

    def generator_loss(self, batch: Batch, step: int) -> Loss:
        """Return -log D(G(z)) per sample."""
        fake = self.generator(batch.randn(self.config.latent_dim), batch.condition)
        return non_saturating_generator(self.discriminate(fake, batch.condition)), {}

    # -- what it can do --------------------------------------------------------------------------

    def draw(self, noise: Noise, condition: Tensor | None, options: Any) -> Tensor:
        """Generate from normal noise, (n, *spec.shape)."""
        z = noise.randn(self.config.latent_dim) * options.temperature
        return self.generator(z, condition).float()

    def discriminate(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the discriminator's logits (b,), higher is more real."""
        if self.condition is not None and condition is None:
            raise ConfigError("this DCGAN is conditional; give the class of each sample")
        return self.discriminator(x, condition)


class _Generator(nn.Module):
    """z (b, z) → image (b, c, s, s) in [-1, 1]."""

    def __init__(self, widths: tuple[int, ...], latent: int, spec: Grid, classes: int) -> None:
        super().__init__()
        self.label = nn.Embedding(classes, latent) if classes else None
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
    """image (b, c, s, s) → logit (b,)."""

    def __init__(self, widths: tuple[int, ...], spec: Grid, classes: int) -> None:
        super().__init__()
        back = widths[::-1]
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
        self.label = nn.Embedding(classes, back[-1]) if classes else None

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        h = self.body(x)
        logit = self.head(h).flatten()
        if self.label is not None:
            logit = logit + (self.label(label) * h.sum((2, 3))).sum(1)
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


def _widths(size: int, *, last: int, most: int) -> tuple[int, ...]:
    """Return channels at 4 px … size / 2, doubling downwards from `last` up to `most`."""
    count = int(math.log2(size)) - 2
    return tuple(min(most, last * 2**i) for i in reversed(range(count)))
