"""The first GAN, of dense networks: Goodfellow et al., arXiv:1406.2661."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from poiesis.config import check, check_each
from poiesis.errors import SpecError
from poiesis.models.base import preset
from poiesis.models.gans.adversarial import Adversarial
from poiesis.models.gans.dense import DenseDiscriminator, DenseGenerator
from poiesis.spec import Condition, Grid, Spec, Vector

__all__ = ["GAN"]


class GAN(Adversarial):
    """The first GAN, dense networks: the one to learn from.

    Good at: showing how adversarial training works; small images and low-dimensional vectors;
    sampling in one tiny pass.

    Not good at: images above 28 px or in colour; covering every mode of the data; stable training.

    Cost: the cheapest of all models here: thousands of 28 px images a second on a CPU core.

    Paper: Goodfellow et al., Generative Adversarial Nets, arXiv:1406.2661.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Adversarial.Config):
        """Options of the GAN."""

        generator_widths: tuple[int, ...] = (256, 512, 1024)
        """Hidden units of the generator."""
        discriminator_widths: tuple[int, ...] = (512, 256)
        """Hidden units of the discriminator."""
        dropout: float = 0.3
        """Dropout in the discriminator."""
        batch_norm: bool = False
        """BatchNorm in the generator: steadier training, more modes."""
        label_dim: int = 50
        """Numbers that stand for a class, beside the noise and beside the data (conditional)."""
        projection: bool = False
        """Tell the discriminator the class by projection (arXiv:1802.05637) instead: its logit gets
        the product of a vector for the class and its last hidden units."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("generator_widths", "discriminator_widths"):
                check_each(name, getattr(self, name), low=1, high=65536)
            check("dropout", self.dropout, low=0, high=0.95)
            check("label_dim", self.label_dim, low=1, high=65536)

    @preset
    @classmethod
    def default(cls, spec: Spec) -> Any:
        """BatchNorm in the generator, a higher rate and averaged weights; smaller where tiny.

        In the plane none of it: small plain networks, which may collapse, and one can see it.
        """
        if spec == Vector(features=2):
            return cls.Config(
                latent_dim=16,
                generator_widths=(128, 128),
                discriminator_widths=(128, 128),
                dropout=0.0,
                generator_lr=1e-3,
                discriminator_lr=1e-3,
                batch_size=128,
            )
        if spec.dims <= 256:
            return cls.Config(
                generator_widths=(128, 256),
                discriminator_widths=(256, 128),
                batch_norm=True,
                generator_lr=1e-3,
                discriminator_lr=1e-3,
                ema=0.999,
            )
        return cls.Config(batch_norm=True, generator_lr=5e-4, discriminator_lr=5e-4, ema=0.999)

    @preset
    @classmethod
    def tutorial(cls, spec: Spec) -> Any:
        """The dense GAN of many tutorials: 1,486,352 and 533,505 parameters at 28 px."""
        return cls.Config()

    # -- data and networks -----------------------------------------------------------------------

    @classmethod
    def view(cls, config: Any, spec: Spec) -> Spec:
        """Return images in [-1, 1], vectors as they are."""
        if isinstance(spec, Vector):
            return spec
        if not isinstance(spec, Grid) or len(spec.size) != 2 or not 1 <= spec.channels <= 4:
            name = f"a {cls.__name__}"
            raise SpecError(f"{name} learns images of 1 to 4 channels or vectors, not {spec}")
        return Grid(channels=spec.channels, size=spec.size, domain="signed", levels=spec.levels)

    def __init__(self, config: Any, spec: Spec, condition: Condition | None = None) -> None:
        super().__init__(config, spec, condition)
        classes = self.condition.count if self.condition else 0
        self.generator = DenseGenerator(
            config.latent_dim,
            config.generator_widths,
            spec,
            classes=classes,
            label_dim=config.label_dim,
            batch_norm=config.batch_norm,
        )
        self.discriminator = DenseDiscriminator(
            config.discriminator_widths,
            spec,
            classes=classes,
            label_dim=config.label_dim,
            projection=config.projection,
            classify=bool(config.auxiliary_weight),
            dropout=config.dropout,
        )
