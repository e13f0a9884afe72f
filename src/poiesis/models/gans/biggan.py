"""BigGAN: Brock, Donahue & Simonyan, arXiv:1809.11096."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from poiesis.config import check
from poiesis.errors import ConfigError
from poiesis.models.base import Optim, preset
from poiesis.models.gans.padding import padded_size
from poiesis.models.gans.resnet import (
    Initialisation,
    ResidualGAN,
    ResidualGenerator,
    fast_widths,
)
from poiesis.spec import Condition, Grid, Spec

__all__ = ["BigGAN"]

_WIDTHS = {
    32: ((4, 4, 4, 4), (4, 4, 4, 4)),
    64: ((16, 16, 8, 4, 2), (1, 2, 4, 8, 16)),
    128: ((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16)),
}
"""Size → channels of generator and discriminator as multiples (tables 4 and 5, and their code)."""


class BigGAN(ResidualGAN):
    """Wide residual GAN by class: the best images of these GANs, variety traded for quality.

    Good at: images of 28 to 128 px by class; truncation, which makes samples more typical.

    Not good at: likelihoods, encoding; long training without collapse, data without classes.

    Cost: the presets of the paper need a GPU; `default` and `fast` learn small images on a CPU.

    Paper: Brock, Donahue & Simonyan, Large Scale GAN Training for High Fidelity Natural Image
    Synthesis, arXiv:1809.11096.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ResidualGAN.Config):
        """Options of the BigGAN."""

        conditional: bool = True
        """Generate by class, where the data has classes."""
        spectral_norm: Literal["none", "discriminator", "both"] = "both"
        initialisation: Initialisation = "orthogonal"
        shared_dim: int = 0
        """Width of one embedding of the class for all of the generator's normalisations; 0: each
        has its own."""
        hierarchical: bool = False
        """Cut the noise into chunks, the first for the first layer, one for each block's gains."""
        generator_lr: float = 1e-4
        discriminator_lr: float = 4e-4
        beta1: float = 0.0
        ema: float = 0.9999

        def __post_init__(self) -> None:
            super().__post_init__()
            check("shared_dim", self.shared_dim, low=0, high=8192)
            chunks = len(self.generator_widths)
            if self.hierarchical and self.latent_dim % chunks:
                raise ConfigError(
                    f"latent_dim = {self.latent_dim} can't be cut into {chunks} equal chunks for "
                    f"hierarchical noise; take {chunks * max(1, self.latent_dim // chunks)}"
                )
            if self.hierarchical and self.conditional and not self.shared_dim:
                raise ConfigError("hierarchical noise by class needs shared_dim, e.g. 128")

    @preset
    @staticmethod
    def default(spec: Spec) -> Config:
        """The preset fast."""
        return BigGAN.fast(spec)

    @preset
    @staticmethod
    def fast(spec: Spec) -> Config:
        """Narrow networks, one critic step, higher rates: small images by class on a CPU."""
        generator, discriminator = fast_widths(spec, BigGAN.__name__)
        return BigGAN.Config(
            generator_widths=generator,
            discriminator_widths=discriminator,
            final_size=4,
            latent_dim=16 * len(generator),
            shared_dim=32,
            hierarchical=True,
            generator_lr=4e-4,
            discriminator_lr=8e-4,
            beta2=0.99,
            ema=0.999,
        )

    @preset
    @staticmethod
    def paper(spec: Spec) -> Config:
        """The paper's networks for ImageNet at 64 and 128 px: 96 channels, two critic steps."""
        size = padded_size(spec, BigGAN.__name__, most=128)
        if size < 64:
            raise ConfigError(f"BigGAN's preset paper is for 64 or 128 px, not {size}; try cifar10")
        generator, discriminator = _WIDTHS[size]
        return BigGAN.Config(
            generator_widths=tuple(96 * w for w in generator),
            discriminator_widths=tuple(96 * w for w in discriminator),
            final_size=4,
            attention=(64,) if size == 128 else (32,),
            latent_dim=120,
            shared_dim=128,
            hierarchical=True,
            critic_steps=2,
            batch_size=2048,
        )

    @preset
    @staticmethod
    def cifar10(spec: Spec) -> Config:
        """The authors' network for CIFAR-10, 32 px: 4.30 and 4.21 million parameters."""
        generator, discriminator = _WIDTHS[32]
        return BigGAN.Config(
            generator_widths=tuple(64 * w for w in generator),
            discriminator_widths=tuple(64 * w for w in discriminator),
            initialisation="normal",
            generator_lr=2e-4,
            discriminator_lr=2e-4,
            critic_steps=4,
            batch_size=50,
        )

    def __init__(self, config: Config, spec: Spec, condition: Condition | None = None) -> None:
        if condition is None:
            config = dataclasses.replace(config, conditional=False)
        super().__init__(config, spec, condition)

    def build_generator(self, spec: Grid, classes: int) -> nn.Module:
        """Return the generator, with the class embedding and noise of this model."""
        c = self.config
        return ResidualGenerator(
            c.generator_widths,
            c.latent_dim,
            spec.channels,
            classes=classes,
            spectral=c.spectral_norm == "both",
            attention=c.attention,
            shared=c.shared_dim,
            hierarchical=c.hierarchical,
        )

    def optimizers(self) -> Mapping[str, Optim]:
        """Return one Adam for each network, with the paper's epsilon of 1e-6."""
        own = super().optimizers()
        return {name: dataclasses.replace(optim, eps=1e-6) for name, optim in own.items()}
