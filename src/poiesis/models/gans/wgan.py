"""Wasserstein GAN: Arjovsky, Chintala & Bottou, arXiv:1701.07875."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from poiesis.config import check, check_each
from poiesis.errors import ConfigError
from poiesis.models.base import preset
from poiesis.models.gans.adversarial import Adversarial
from poiesis.models.gans.convolutional import (
    ConvDiscriminator,
    ConvGenerator,
    check_widths,
    doubling,
    initialise,
    initialise_he,
)
from poiesis.models.gans.dense import DenseDiscriminator, DenseGenerator
from poiesis.models.gans.padding import padded_size, padded_view
from poiesis.models.gans.resnet import ResidualDiscriminator, ResidualGenerator
from poiesis.models.gans.resnet import initialise as initialise_residual
from poiesis.spec import Condition, Grid, Spec, Vector

__all__ = ["WGAN"]


class WGAN(Adversarial):
    """Wasserstein GAN: a critic whose loss measures how far samples are from data.

    The critic's weights are clipped, so that it can't grow steeply, and it learns ahead of the
    generator. The logged earth_mover falls as samples get better.

    Good at: a training curve that means something; few collapses, whatever the networks.

    Not good at: speed: five critic steps to one of the generator; clipping wastes the critic's
    capacity (wgan-gp does not).

    Cost: about three times a DCGAN's step; one pass to sample.

    Paper: Arjovsky, Chintala & Bottou, Wasserstein GAN, arXiv:1701.07875.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Adversarial.Config):
        """Options of the Wasserstein GAN."""

        network: Literal["convolutional", "residual", "mlp"] = "convolutional"
        """convolutional: DCGAN's, without BatchNorm in the critic; residual: blocks with a shortcut
        and averages of the critic's last maps; mlp: dense layers."""
        widths: tuple[int, ...] = (256, 128, 64)
        """Channels of the generator at 4 px, 8 px, …, which the critic mirrors; they end at half
        or full the image size. residual: up to the full size, and the critic has half of them.
        mlp: hidden units of both."""
        loss: str = "wasserstein"
        penalty: Literal["none", "clip", "gradient", "r1", "r2", "zero-centred"] = "clip"
        critic_steps: int = 5
        optimizer: Literal["adam", "rmsprop"] = "rmsprop"
        generator_lr: float = 5e-5
        discriminator_lr: float = 5e-5
        beta2: float = 0.99

        def __post_init__(self) -> None:
            super().__post_init__()
            check_each("widths", self.widths, low=1, high=8192, most=16, example="256,128,64")
            # The generator normalises over the batch.
            check("batch_size", self.batch_size, low=2)

    @preset
    @classmethod
    def default(cls, spec: Spec) -> Any:
        """Small networks and averaged weights; for images higher rates, fewer critic steps."""
        return cls._small(spec)

    @preset
    @classmethod
    def paper(cls, spec: Spec) -> Any:
        """The paper's rates; DCGAN's widths, or four layers of 512 units for vectors."""
        if isinstance(spec, Vector):
            return cls.Config(network="mlp", widths=(512, 512, 512, 512))
        size = padded_size(spec, f"a {cls.__name__}")
        return cls.Config(widths=doubling(size, last=128 if size > 32 else 64, most=1024))

    @classmethod
    def _small(cls, spec: Spec, **changes: Any) -> Any:
        if isinstance(spec, Vector):
            few = min(32, max(4, 2 * spec.dims))
            changes = {"network": "mlp", "latent_dim": few, **changes}
            return cls.Config(widths=(128, 128, 128), ema=0.999, **changes)
        size = padded_size(spec, f"a {cls.__name__}")
        widths = (64, 32) if size == 8 else doubling(size, last=32, most=256)
        # At the recipe's rates, minutes on a CPU are too few steps to leave gray blobs behind.
        rates = {"generator_lr": 5e-4, "discriminator_lr": 5e-4, "critic_steps": 2}
        return cls.Config(widths=widths, ema=0.999, **{**rates, **changes})

    # -- data and networks -----------------------------------------------------------------------

    @classmethod
    def view(cls, config: Any, spec: Spec) -> Spec:
        """Return images in [-1, 1], square and padded to a power of two; vectors as they are."""
        if isinstance(spec, Vector):
            if config.network != "mlp":
                raise ConfigError(f"network = {config.network} is for images; use mlp for a {spec}")
            return spec
        size = padded_size(spec, f"a {cls.__name__}")
        if config.network == "convolutional":
            check_widths(config.widths, size)
        elif config.network == "residual" and 4 * 2 ** (len(config.widths) - 1) != size:
            raise ConfigError(
                f"widths = {config.widths} has {len(config.widths)} values; images of {size} px "
                f"need {size.bit_length() - 2} in network residual"
            )
        return padded_view(spec, size)

    def __init__(self, config: Any, spec: Spec, condition: Condition | None = None) -> None:
        super().__init__(config, spec, condition)
        classes = self.condition.count if self.condition else 0
        told = {"classes": classes, "classify": bool(config.auxiliary_weight)}
        if config.network == "mlp":
            self.generator = DenseGenerator(
                config.latent_dim, config.widths, spec, classes=classes, batch_norm=True
            )
            self.discriminator = DenseDiscriminator(config.widths, spec, projection=True, **told)
            return
        assert isinstance(spec, Grid)
        if config.network == "residual":
            self.generator = ResidualGenerator(
                config.widths, config.latent_dim, spec.channels, classes=classes
            )
            self.discriminator = ResidualDiscriminator(
                [max(1, width // 2) for width in config.widths[::-1]],
                spec.channels,
                halved=max(0, spec.size[0].bit_length() - 4),  # down to 8 px
                spectral=False,
                pool="mean",
                **told,
            )
            for network in (self.generator, self.discriminator):
                initialise_residual(network, "xavier")
        else:
            self.generator = ConvGenerator(config.latent_dim, config.widths, spec, classes=classes)
            self.discriminator = ConvDiscriminator(config.widths, spec, batch_norm=False, **told)
            self.generator.apply(initialise)
            # Unclipped and without BatchNorm, N(0, 0.02) would leave the critic flat for long.
            self.discriminator.apply(initialise if config.penalty == "clip" else initialise_he)
