"""Self-attention GAN: Zhang, Goodfellow, Metaxas & Odena, arXiv:1805.08318."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from poiesis.models.base import preset
from poiesis.models.gans.padding import padded_size
from poiesis.models.gans.resnet import ResidualGAN, fast_widths
from poiesis.spec import Spec

__all__ = ["SAGAN"]


class SAGAN(ResidualGAN):
    """Residual GAN whose maps attend to themselves: parts of an image that fit each other.

    Good at: images of 32 to 128 px with structure over the whole, by class too.

    Not good at: likelihoods, encoding; small simple images, where an SNGAN is as good and faster.

    Cost: an SNGAN's and the attention, which grows with the fourth power of its side.

    Paper: Zhang et al., Self-Attention Generative Adversarial Networks, arXiv:1805.08318.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ResidualGAN.Config):
        """Options of the SAGAN."""

        attention: tuple[int, ...] = (16,)
        spectral_norm: Literal["none", "discriminator", "both"] = "both"
        generator_lr: float = 1e-4
        discriminator_lr: float = 4e-4
        beta1: float = 0.0
        ema: float = 0.999

    @preset
    @staticmethod
    def default(spec: Spec) -> Config:
        """Narrow networks with attention at 32 px or half the size, higher rates: for a CPU."""
        generator, discriminator = fast_widths(spec, SAGAN.__name__)
        side = min(32, 2 ** len(generator))
        return SAGAN.Config(
            generator_widths=generator,
            discriminator_widths=discriminator,
            final_size=4,
            attention=(side,) if side > 4 else (),
            generator_lr=3e-4,
            discriminator_lr=6e-4,
            beta2=0.99,
        )

    @preset
    @staticmethod
    def paper(spec: Spec) -> Config:
        """The paper's networks for ImageNet, 128 px: 64 channels, attention at 32 px.

        At 64 px they have one block less.
        """
        blocks = 6 if padded_size(spec, SAGAN.__name__, most=128) > 64 else 5
        return SAGAN.Config(
            generator_widths=(1024, 1024, 512, 256, 128, 64)[-blocks:],
            discriminator_widths=(64, 128, 256, 512, 1024, 1024)[:blocks],
            final_size=4,
            attention=(32,),
            batch_size=256,
        )

    @preset
    @staticmethod
    def cifar10(spec: Spec) -> Config:
        """For 32 px: SNGAN's networks with attention at 16 px, five critic steps."""
        return SAGAN.Config(critic_steps=5, generator_lr=2e-4, discriminator_lr=2e-4, ema=0.9999)
