"""Least squares GAN: Mao et al., arXiv:1611.04076."""

from __future__ import annotations

from dataclasses import dataclass

from poiesis.models.gans.dcgan import DCGAN

__all__ = ["LSGAN"]


class LSGAN(DCGAN):
    """Least squares GAN: a DCGAN whose discriminator is told by how much it is wrong.

    Its loss is the squared distance from 1 for real and 0 for fake, whose gradient grows with the
    distance also where the sign is right already.

    Good at: crisp small images, as a DCGAN, with gradients that do not vanish so soon.

    Not good at: large or very diverse images; likelihoods; saying by its loss how good samples are.

    Cost: as DCGAN: two network updates a step, one pass to sample.

    Paper: Mao et al., Least Squares Generative Adversarial Networks, arXiv:1611.04076.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(DCGAN.Config):
        """Options of the least squares GAN."""

        loss: str = "least-squares"
