"""Denoising autoencoder: Vincent et al., JMLR 11 (2010) 3371-3408."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.models.autoencoders.autoencoder import Autoencoder
from poiesis.models.base import Batch, Loss, preset
from poiesis.spec import Grid, Spec, Vector

__all__ = ["DenoisingAutoencoder", "Spoiling", "spoil"]

Spoiling = Literal["gaussian", "salt-and-pepper", "masking"]


class _Random(Protocol):
    """A source of numbers for as many rows as there are: a `Batch` or a `Noise`."""

    def randn(self, *shape: int) -> Tensor:
        """Return standard normal numbers (b, *shape)."""
        ...

    def rand(self, *shape: int) -> Tensor:
        """Return uniform numbers (b, *shape)."""
        ...


class DenoisingAutoencoder(Autoencoder):
    """Denoising autoencoder: learns to bring back clean data from spoilt ones.

    Good at: removing noise of the kind it was trained with; codes that mind structure, not noise.

    Not good at: noise of another kind or strength; fine detail, which the code is too narrow for
    (more latent_dim helps); sampling, as all autoencoders.

    Cost: as the autoencoder.

    Papers: Vincent et al., Extracting and Composing Robust Features with Denoising Autoencoders,
    doi:10.1145/1390156.1390294; Stacked Denoising Autoencoders, JMLR 11 (2010) 3371-3408.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Autoencoder.Config):
        """Options of the denoising autoencoder."""

        noise: Spoiling = "gaussian"
        """gaussian: added; salt-and-pepper: values set to the lowest or highest; masking: values
        set to the lowest (of vectors and audio: to 0)."""
        level: float = 0.5
        """gaussian: standard deviation, where the range from black to white is 1 (of a vector's
        column its own spread, of audio the loudness of the training data); else the share of
        values that are spoilt."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check("level", self.level, low=0, high=100 if self.noise == "gaussian" else 1)

    @preset
    @classmethod
    def default(cls, spec: Spec) -> Any:
        """As the autoencoder's; in the plane with less noise, which would hide everything."""
        config = super().default(spec)
        return dataclasses.replace(config, level=0.1) if spec == Vector(features=2) else config

    def corrupt(self, batch: Batch) -> Tensor:
        """Return the data of a batch, spoilt."""
        return spoil(batch.x, self.spec, batch, noise=self.config.noise, level=self.config.level)

    def loss(self, batch: Batch, step: int) -> Loss:
        """Return the distance of the clean data from the spoilt ones' reconstruction (b,)."""
        output = self.decoder(self.code(self.corrupt(batch)), None)
        distance = self.distance(batch.x, output)
        return distance, {"distance": distance}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the distance and mean squared error of what was cleaned, each (b,)."""
        output = self.decoder(self.code(self.corrupt(batch)), None)
        error = (self.shown(output) - batch.x).float().square().flatten(1).mean(1)
        return {"distance": self.distance(batch.x, output), "mse": error}


def spoil(x: Tensor, spec: Spec, random: _Random, *, noise: Spoiling, level: float) -> Tensor:
    """Return data (b, *spec.shape) with noise; `DenoisingAutoencoder.Config` says which.

    Pictures stay in range, as files of them would.
    """
    x = x.float()
    if not isinstance(spec, Grid) or spec.domain == "real":
        if noise == "gaussian":
            return x + level * random.randn(*spec.shape)
        low, high, dark = float(x.min()), float(x.max()), 0.0
    else:
        low, high = (-1.0, 1.0) if spec.domain == "signed" else (0.0, 1.0)
        dark = low
        if noise == "gaussian":
            return (x + (high - low) * level * random.randn(*spec.shape)).clamp(low, high)
    u = random.rand(*spec.shape)
    if noise == "masking":
        return x.masked_fill(u < level, dark)
    return torch.where(u < level / 2, low, torch.where(u < level, high, x))
