"""Conditional GAN: Mirza & Osindero, arXiv:1411.1784."""

from __future__ import annotations

from dataclasses import dataclass

from poiesis.models.gans.gan import GAN

__all__ = ["CGAN"]


class CGAN(GAN):
    """Conditional GAN, dense networks: samples of the class you ask for.

    The generator gets an embedding of the class beside the noise, the discriminator one beside the
    data or, with `projection`, in a product with what it has found in them.

    Good at: showing what a condition does; samples by class of small images and vectors.

    Not good at: images above 28 px or in colour; data without classes, which it refuses.

    Cost: as the dense GAN, the cheapest of all models here.

    Papers: Mirza & Osindero, Conditional Generative Adversarial Nets, arXiv:1411.1784; Miyato &
    Koyama, cGANs with Projection Discriminator, arXiv:1802.05637.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(GAN.Config):
        """Options of the conditional GAN."""

        conditional: bool = True
