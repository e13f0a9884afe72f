"""The first GAN, of dense networks: Goodfellow et al., arXiv:1406.2661."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from poiesis.config import check
from poiesis.errors import ConfigError, SpecError
from poiesis.models.base import preset
from poiesis.models.gans.adversarial import Adversarial
from poiesis.nn.labels import Labels
from poiesis.nn.mlp import mlp
from poiesis.spec import Classes, Grid, Spec, Vector

__all__ = ["GAN"]

_leaky = partial(nn.LeakyReLU, 0.2)


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
                if not getattr(self, name):
                    raise ConfigError(f"{name} = () is empty; give at least one, e.g. 256,512")
                for width in getattr(self, name):
                    check(name, width, low=1, high=65536)
            check("dropout", self.dropout, low=0, high=0.95)
            check("label_dim", self.label_dim, low=1, high=65536)

    @preset
    @classmethod
    def default(cls, spec: Spec) -> Any:
        """BatchNorm in the generator, a higher rate and averaged weights; smaller where tiny."""
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
            raise SpecError(f"a GAN learns images of 1 to 4 channels or vectors, not {spec}")
        return Grid(channels=spec.channels, size=spec.size, domain="signed", levels=spec.levels)

    def __init__(self, config: Any, spec: Spec, condition: Classes | None = None) -> None:
        super().__init__(config, spec, condition)
        classes = self.condition.count if self.condition else 0
        self.generator = _Generator(config, spec, classes)
        self.discriminator = _Discriminator(config, spec, classes)


class _Generator(nn.Sequential):
    """z (b, z) → data (b, *shape) in the view's range."""

    def __init__(self, config: GAN.Config, spec: Spec, classes: int) -> None:
        beside = config.label_dim if classes else 0
        widths = (config.latent_dim + beside, *config.generator_widths, spec.dims)
        super().__init__(*mlp(widths, _leaky, norm=nn.BatchNorm1d if config.batch_norm else None))
        self.depth = len(self)
        self.label = Labels(classes, beside) if classes else None
        self.spec = spec

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        h = z if self.label is None else torch.cat((z, self.label(label)), dim=1)
        for layer in itertools.islice(self, self.depth):
            h = layer(h)
        x = h.unflatten(1, self.spec.shape)
        if self.spec.domain == "signed":
            return x.tanh()
        return x.sigmoid() if self.spec.domain in ("unit", "bits") else x


class _Discriminator(nn.Sequential):
    """Data (b, *shape) → logit (b,), and with classify also logits of the classes (b, k)."""

    def __init__(self, config: GAN.Config, spec: Spec, classes: int) -> None:
        auxiliary = bool(config.auxiliary_weight)
        told = classes if not auxiliary else 0
        beside = config.label_dim if told and not config.projection else 0
        last = config.discriminator_widths[-1]
        widths = (spec.dims + beside, *config.discriminator_widths, 1)
        super().__init__(*mlp(widths, _leaky, dropout=config.dropout))
        self.depth = len(self)
        self.label = Labels(told, beside) if beside else None
        self.projection = Labels(told, last) if told and config.projection else None
        self.classifier = nn.Linear(last, classes) if auxiliary else None

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, label: Tensor | None, classify: bool = False
    ) -> Any:
        h = x.flatten(1)
        if self.label is not None:
            h = torch.cat((h, self.label(label)), dim=1)
        for layer in itertools.islice(self, self.depth - 1):
            h = layer(h)
        logit = self[self.depth - 1](h).flatten()
        if self.projection is not None:
            logit = logit + (self.projection(label) * h).sum(1)
        if classify:
            assert self.classifier is not None
            return logit, self.classifier(h)
        return logit
