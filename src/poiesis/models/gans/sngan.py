"""Spectrally normalised GAN with residual networks: Miyato et al., arXiv:1802.05957.

Classes, where asked for, set the gains of the generator's batch normalisation and enter the
discriminator by projection (Miyato & Koyama, arXiv:1802.05637).
"""

from __future__ import annotations

from dataclasses import dataclass

from poiesis.models.base import preset
from poiesis.models.gans.resnet import ResidualGAN, fast_widths
from poiesis.spec import Spec

__all__ = ["SNGAN"]


class SNGAN(ResidualGAN):
    """Residual GAN with a spectrally normalised discriminator: steady training, varied images.

    Good at: images of 28 to 64 px, by class too; training that seldom collapses.

    Not good at: likelihoods, encoding; structure over the whole of large images.

    Cost: several times the DCGAN's per step, one pass to sample.

    Papers: Miyato et al., Spectral Normalization for Generative Adversarial Networks,
    arXiv:1802.05957; Miyato & Koyama, cGANs with Projection Discriminator, arXiv:1802.05637.
    """

    logit_bias = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ResidualGAN.Config):
        """Options of the SNGAN."""

        beta1: float = 0.0
        beta2: float = 0.9

    @preset
    @staticmethod
    def default(spec: Spec) -> Config:
        """Narrow networks, one critic step, higher rates and averaged weights: for a CPU."""
        generator, discriminator = fast_widths(spec, SNGAN.__name__)
        return SNGAN.Config(
            generator_widths=generator,
            discriminator_widths=discriminator,
            final_size=4,
            initialisation="orthogonal",
            generator_lr=4e-4,
            discriminator_lr=8e-4,
            beta2=0.99,
            ema=0.999,
        )

    @preset
    @staticmethod
    def paper(spec: Spec) -> Config:
        """The paper's networks for CIFAR-10, 32 px (tables 3 and 4), and its training."""
        return SNGAN.Config(critic_steps=5, decay=True)
