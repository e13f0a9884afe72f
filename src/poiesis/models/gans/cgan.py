"""Conditional GAN: Mirza & Osindero, arXiv:1411.1784."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from poiesis.models.base import preset
from poiesis.models.gans.gan import GAN
from poiesis.spec import Spec

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

    @preset
    @classmethod
    def default(cls, spec: Spec) -> Any:
        """As the dense GAN's, with projection and no dropout: samples keep closer to their class.

        MNIST, 5,000 steps: 95% are seen as the class asked for, with dropout 91%.
        """
        return dataclasses.replace(super().default(spec), projection=True, dropout=0.0)
