"""The first GAN, of dense networks: Goodfellow et al., arXiv:1406.2661."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from poiesis.config import check
from poiesis.errors import ConfigError, SpecError
from poiesis.models.base import Batch, GenerativeModel, Loss, Optim, Phase, Stage, preset
from poiesis.models.gans.losses import non_saturating_discriminator, non_saturating_generator
from poiesis.nn.mlp import mlp
from poiesis.rng import Noise
from poiesis.spec import Classes, Grid, Spec, Vector

__all__ = ["GAN"]


class GAN(GenerativeModel):
    """The first GAN, dense networks: the one to learn from.

    Good at: showing how adversarial training works; small images and low-dimensional vectors;
    sampling in one tiny pass.

    Not good at: images above 28 px or in colour; covering every mode of the data; stable training.

    Cost: the cheapest of all models here: thousands of 28 px images a second on a CPU core.

    Paper: Goodfellow et al., Generative Adversarial Nets, arXiv:1406.2661.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of the GAN."""

        latent_dim: int = 100
        """Dimensions of the normal noise that the generator turns into a sample."""
        generator_widths: tuple[int, ...] = (256, 512, 1024)
        """Hidden units of the generator."""
        discriminator_widths: tuple[int, ...] = (512, 256)
        """Hidden units of the discriminator."""
        dropout: float = 0.3
        """Dropout in the discriminator."""
        batch_norm: bool = False
        """BatchNorm in the generator: steadier training, more modes."""
        learning_rate: float = 2e-4
        """Learning rate of both Adams."""
        beta1: float = 0.5
        """First-moment decay of both Adams; the second is 0.999."""
        batch_size: int = 64
        """Samples per step."""
        ema: float = 0.0
        """Decay per step of the generator's averaged weights, with which it samples; 0 is none."""

        def __post_init__(self) -> None:
            check("latent_dim", self.latent_dim, low=1, high=65536)
            for name in ("generator_widths", "discriminator_widths"):
                if not getattr(self, name):
                    raise ConfigError(f"{name} = () is empty; give at least one, e.g. 256,512")
                for width in getattr(self, name):
                    check(name, width, low=1, high=65536)
            check("dropout", self.dropout, low=0, high=0.95)
            check("learning_rate", self.learning_rate, low=0, high=1, open_low=True)
            check("beta1", self.beta1, low=0, high=0.999)
            check("batch_size", self.batch_size, low=1)
            check("ema", self.ema, low=0, high=0.999999)

    @dataclass(frozen=True, kw_only=True)
    class Sampling:
        """Sampling options of the GAN."""

        temperature: float = 1.0
        """Standard deviation of the noise; below 1: fewer odd samples, less variety."""

        def __post_init__(self) -> None:
            check("temperature", self.temperature, low=0, high=100)

    @preset
    @staticmethod
    def default(spec: Spec) -> Config:
        """BatchNorm in the generator, a higher rate and averaged weights; smaller where tiny."""
        if spec.dims <= 256:
            return GAN.Config(
                generator_widths=(128, 256),
                discriminator_widths=(256, 128),
                batch_norm=True,
                learning_rate=1e-3,
                ema=0.999,
            )
        return GAN.Config(batch_norm=True, learning_rate=5e-4, ema=0.999)

    @preset
    @staticmethod
    def tutorial(spec: Spec) -> Config:
        """The dense GAN of many tutorials: 1,486,352 and 533,505 parameters at 28 px."""
        return GAN.Config()

    # -- data ------------------------------------------------------------------------------------

    @classmethod
    def view(cls, config: Config, spec: Spec) -> Spec:
        """Return images in [-1, 1], vectors as they are."""
        if isinstance(spec, Vector):
            return spec
        if not isinstance(spec, Grid) or len(spec.size) != 2 or not 1 <= spec.channels <= 4:
            raise SpecError(f"a GAN learns images of 1 to 4 channels or vectors, not {spec}")
        return Grid(channels=spec.channels, size=spec.size, domain="signed", levels=spec.levels)

    def __init__(self, config: Config, spec: Spec, condition: Classes | None = None) -> None:
        super().__init__(config, spec)
        leaky = partial(nn.LeakyReLU, 0.2)
        self.generator = mlp(
            (config.latent_dim, *config.generator_widths, spec.dims),
            leaky,
            norm=nn.BatchNorm1d if config.batch_norm else None,
        )
        self.discriminator = mlp(
            (spec.dims, *config.discriminator_widths, 1), leaky, dropout=config.dropout
        )

    # -- training --------------------------------------------------------------------------------

    def optimizers(self) -> Mapping[str, Optim]:
        """Return one Adam for each network."""
        c = self.config
        return {
            name: Optim(networks=(name,), lr=c.learning_rate, betas=(c.beta1, 0.999))
            for name in ("discriminator", "generator")
        }

    def stages(self) -> Sequence[Stage]:
        """Return one stage: a discriminator step, then a generator step (algorithm 1)."""
        phases = (
            Phase(name="discriminator", loss=self.discriminator_loss, step=("discriminator",)),
            Phase(name="generator", loss=self.generator_loss, step=("generator",)),
        )
        return [Stage(phases=phases, batch_size=self.config.batch_size)]

    def ema(self) -> Mapping[str, float]:
        """Average the generator."""
        return {"generator": self.config.ema}

    def discriminator_loss(self, batch: Batch, step: int) -> Loss:
        """Return -log D(x) - log(1 - D(G(z))) per sample."""
        with torch.no_grad():
            fake = self._generate(batch.randn(self.config.latent_dim))
        real_score, fake_score = self.discriminate(batch.x), self.discriminate(fake)
        loss = non_saturating_discriminator(real_score, fake_score)
        return loss, {"real_score": real_score.detach(), "fake_score": fake_score.detach()}

    def generator_loss(self, batch: Batch, step: int) -> Loss:
        """Return -log D(G(z)) per sample."""
        fake = self._generate(batch.randn(self.config.latent_dim))
        return non_saturating_generator(self.discriminate(fake)), {}

    def _generate(self, z: Tensor) -> Tensor:
        x = self.generator(z).unflatten(1, self.spec.shape)
        if self.spec.domain == "signed":
            return x.tanh()
        return x.sigmoid() if self.spec.domain in ("unit", "bits") else x

    # -- what it can do --------------------------------------------------------------------------

    def draw(self, noise: Noise, condition: Tensor | None, options: Any) -> Tensor:
        """Generate from normal noise, (n, *spec.shape)."""
        return self._generate(noise.randn(self.config.latent_dim) * options.temperature).float()

    def discriminate(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the discriminator's logits (b,), higher is more real."""
        return self.discriminator(x.flatten(1)).flatten()
