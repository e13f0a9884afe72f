"""Deep convolutional GAN: Radford, Metz & Chintala, arXiv:1511.06434.

Classes, where asked for, enter the generator beside the noise and the discriminator by projection
(Miyato & Koyama, arXiv:1802.05637).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from poiesis.config import check, check_each
from poiesis.errors import ConfigError
from poiesis.models.base import Batch, Loss, Phase, Stage, preset
from poiesis.models.gans.adversarial import Adversarial
from poiesis.models.gans.convolutional import (
    ConvDiscriminator,
    ConvGenerator,
    TutorialDiscriminator,
    TutorialGenerator,
    check_widths,
    doubling,
    initialise,
)
from poiesis.models.gans.padding import padded_size, padded_view
from poiesis.spec import Condition, Grid, Spec

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

        network: Literal["paper", "tutorial"] = "paper"
        """paper: convolutions throughout, BatchNorm; tutorial: dense layers at the latent and the
        logit, LeakyReLU, 3x3 convolutions and dropout in the discriminator, no normalisation."""
        widths: tuple[int, ...] = (256, 128, 64)
        """Channels of the generator at 4 px, 8 px, …; the discriminator mirrors them. They end at
        half the image size, or at its full size (one more 3x3 convolution then makes the image)."""
        discriminator_widths: tuple[int, ...] = ()
        """Channels of the tutorial's discriminator at the full size, its half, … 4 px."""
        dropout: float = 0.4
        """Dropout in the tutorial's discriminator."""
        separate_steps: bool = False
        """Step the discriminator on real and then on fake samples, and the generator on twice as
        many, as where a batch is of half real and half fake ones."""
        batch_size: int = 128

        def __post_init__(self) -> None:
            super().__post_init__()
            check_each("widths", self.widths, low=1, high=8192, most=7, example="256,128,64")
            for width in self.discriminator_widths:
                check("discriminator_widths", width, low=1, high=8192)
            tutorial = self.network == "tutorial"
            if len(self.discriminator_widths) != (len(self.widths) if tutorial else 0):
                raise ConfigError(
                    f"discriminator_widths = {self.discriminator_widths}: network tutorial needs "
                    "as many values as widths, network paper none (it mirrors them)"
                )
            check("dropout", self.dropout, low=0, high=0.95)
            check("batch_size", self.batch_size, low=2)
            if self.separate_steps and self.critic_steps > 1:
                raise ConfigError(
                    "separate_steps allows for one critic step only, critic_steps = 1"
                )
            if self.separate_steps and self.penalty not in ("none", "clip"):
                raise ConfigError(f"separate_steps does not go with penalty = {self.penalty}")

    @preset
    @classmethod
    def default(cls, spec: Spec) -> Any:
        """Narrow enough for a CPU, with small batches, a higher rate and averaged weights."""
        size = cls._size(spec)
        # At 8 px the paper's scheme leaves one layer; one at full size besides makes digits.
        widths = (64, 32) if size == 8 else doubling(size, last=32, most=256)
        return cls.Config(
            widths=widths, batch_size=64, generator_lr=5e-4, discriminator_lr=5e-4, ema=0.999
        )

    @preset
    @classmethod
    def paper(cls, spec: Spec) -> Any:
        """The paper's widths at 64 px (1024 down to 128), its usual ones at 32 px (512 to 64)."""
        size = cls._size(spec)
        if size == 32:
            return cls.Config(widths=(512, 256, 128, 64))
        return cls.Config(widths=doubling(size, last=128, most=1024))

    @preset
    @classmethod
    def cifar10_tutorial(cls, spec: Spec) -> Any:
        """The GAN of many CIFAR-10 tutorials: 1,466,115 and 522,497 parameters in colour.

        Each step takes 64 real samples, 64 fake ones, and 128 for the generator.
        """
        size = cls._size(spec)
        if size != 32:
            raise ConfigError(f"preset cifar10-tutorial is for images of 32 px, not {size}")
        return cls.Config(
            network="tutorial",
            widths=(256, 128, 128, 128),
            discriminator_widths=(64, 128, 128, 256),
            separate_steps=True,
            batch_size=64,
        )

    # -- data and networks -----------------------------------------------------------------------

    @classmethod
    def _size(cls, spec: Spec) -> int:
        return padded_size(spec, f"a {cls.__name__}")

    @classmethod
    def view(cls, config: Any, spec: Spec) -> Spec:
        """Return square images in [-1, 1], padded to the next power of two of at least 8."""
        size = cls._size(spec)
        check_widths(config.widths, size)
        if config.network == "tutorial" and 2 * 2 ** len(config.widths) != size:
            raise ConfigError(
                f"widths = {config.widths} must reach the full {size} px in network tutorial, "
                f"which takes {int(math.log2(size)) - 1} values"
            )
        return padded_view(spec, size)

    def __init__(self, config: Any, spec: Spec, condition: Condition | None = None) -> None:
        super().__init__(config, spec, condition)
        assert isinstance(spec, Grid)
        classes = self.condition.count if self.condition else 0
        told = {"classes": classes, "classify": bool(config.auxiliary_weight)}
        if config.network == "tutorial":
            self.generator = TutorialGenerator(
                config.latent_dim, config.widths, spec, classes=classes
            )
            self.discriminator = TutorialDiscriminator(
                config.discriminator_widths, spec, dropout=config.dropout, **told
            )
            self.apply(_glorot)
        else:
            self.generator = ConvGenerator(config.latent_dim, config.widths, spec, classes=classes)
            self.discriminator = ConvDiscriminator(config.widths, spec, **told)
            self.apply(initialise)

    # -- training with separate steps ------------------------------------------------------------

    def stages(self) -> Sequence[Stage]:
        """Return one stage; with separate steps, its phases are real, fake and generator."""
        (stage,) = super().stages()
        if not self.config.separate_steps:
            return [stage]
        if self.adversarial.paired:
            raise ConfigError(f"separate_steps needs a loss of single samples: {self.config.loss}")
        if self.adaptation is not None and self.adversarial.boundary is None:
            raise ConfigError(
                f"augment = ada can't adapt to loss = {self.config.loss} in separate_steps: real "
                "scores alone don't show its line; use augment = diffaugment or another loss"
            )
        own = ("discriminator",)
        phases = (
            Phase(name="real", loss=self.real_loss, step=own),
            Phase(name="fake", loss=self.fake_loss, step=own),
            *stage.phases[1:],
        )
        return [Stage(phases=phases, batch_size=stage.batch_size)]

    def real_loss(self, batch: Batch, step: int) -> Loss:
        """Return the discriminator's loss on real samples (b,)."""
        score, cost = self._judge(batch.x, batch, step)
        return self._game(score, None) + cost, self._note(score.detach(), None)

    def fake_loss(self, batch: Batch, step: int) -> Loss:
        """Return the discriminator's loss on fake samples (b,)."""
        with torch.no_grad():
            fake = self._fake(batch)
        score, cost = self._judge(fake, batch, step)
        return self._game(None, score) + cost, self._note(None, score.detach())

    def generator_loss(self, batch: Batch, step: int) -> Loss:
        """Return the generator's loss (b,): on one fake sample, with separate steps on two."""
        values, logs = super().generator_loss(batch, step)
        if self.config.separate_steps:
            values = (values + super().generator_loss(batch, step)[0]) / 2
        return values, logs


def _glorot(module: nn.Module) -> None:
    """Draw weights as Keras does unasked: uniform by Glorot & Bengio (2010), biases 0."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
