"""Sparse autoencoder: of many units in the code only few are active for one sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from poiesis.config import check
from poiesis.errors import ConfigError
from poiesis.models.autoencoders.autoencoder import Autoencoder
from poiesis.models.base import Batch, Loss, preset
from poiesis.spec import Spec, Vector

__all__ = ["SparseAutoencoder"]


class SparseAutoencoder(Autoencoder):
    """Sparse autoencoder: a wide code of which few units are active; features one can look at.

    Good at: features (strokes, edges) that a simple classifier can use; codes one can read.

    Not good at: sampling: the density fitted to such wide codes is coarse.

    Cost: as the autoencoder.

    Papers: Ng, Sparse autoencoder, CS294A lecture notes (kl); Makhzani & Frey, k-Sparse
    Autoencoders, arXiv:1312.5663 (top-k).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Autoencoder.Config):
        """Options of the sparse autoencoder."""

        sparsity: Literal["kl", "l1", "top-k"] = "top-k"
        """kl: sigmoid units, each drawn towards a mean activity of `target`; l1: rectified units,
        the sum of the code is penalised; top-k: only the `active` largest units are kept."""
        weight: float = 1.0
        """Weight of the penalty (kl and l1) beside the distance, which is summed over values."""
        target: float = 0.05
        """Mean activity of each unit (kl)."""
        active: int = 25
        """Units that are kept (top-k)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check("weight", self.weight, low=0)
            check("target", self.target, low=0, high=1, open_low=True)
            if self.sparsity == "kl" and self.target == 1:
                raise ConfigError("target = 1 is no sparsity; give one below 1, e.g. 0.05")
            check("active", self.active, low=1)
            if self.sparsity == "top-k" and self.active > self.latent_dim:
                raise ConfigError(
                    f"active = {self.active} is more than latent_dim = {self.latent_dim}; "
                    "give fewer active units or a wider code"
                )

    @preset
    @classmethod
    def default(cls, spec: Spec) -> Any:
        """One layer each way and a code of 512 units, 25 of them active; in the plane fewer."""
        if spec == Vector(features=2):
            return cls.Config(network="mlp", widths=(256, 256), latent_dim=32, active=4)
        return cls.Config(network="linear", widths=(), latent_dim=512)

    def constrain(self, code: Tensor) -> Tensor:
        """Bring codes (b, z) to where those of data lie: few active units."""
        if self.config.sparsity == "kl":
            return code.sigmoid()
        if self.config.sparsity == "l1":
            return F.relu(code)
        found = code.topk(self.config.active, dim=1)
        return torch.zeros_like(code).scatter(1, found.indices, found.values)

    def loss(self, batch: Batch, step: int) -> Loss:
        """Return the distance plus the weighted penalty (b,).

        The mean activity that kl looks at is of the process's own part of the batch.
        """
        code = self.code(batch.x)
        distance = self.distance(batch.x, self.decoder(code, None))
        logs: dict[str, Tensor | float] = {"distance": distance}
        code = code.float()
        if self.config.sparsity == "top-k":
            return distance, logs
        if self.config.sparsity == "l1":
            penalty = code.abs().sum(1)
        else:
            penalty = bernoulli_kl(self.config.target, code.mean(0)).sum().expand(len(code))
        logs["penalty"] = penalty
        return distance + self.config.weight * penalty, logs


def bernoulli_kl(target: float, mean: Tensor) -> Tensor:
    """Return KL(Bernoulli(target) || Bernoulli(mean)) in nats, elementwise."""
    mean = mean.clamp(1e-6, 1 - 1e-6)
    wanted = mean.new_tensor(target)
    return wanted * (wanted / mean).log() + (1 - wanted) * ((1 - wanted) / (1 - mean)).log()
