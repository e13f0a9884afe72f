"""Contractive autoencoder: Rifai et al., ICML 2011."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.models.autoencoders.autoencoder import Autoencoder
from poiesis.models.base import Batch, Loss

__all__ = ["ContractiveAutoencoder"]


class ContractiveAutoencoder(Autoencoder):
    """Contractive autoencoder: codes that hardly move when the data are disturbed a little.

    Good at: codes that follow the directions in which data vary and no others; robust features.

    Not good at: speed: the penalty differentiates twice; sampling, as all autoencoders.

    Cost: about three times the autoencoder's training.

    Papers: Rifai et al., Contractive Auto-Encoders: Explicit Invariance During Feature Extraction,
    ICML 2011; Learning invariant features through local space contraction, arXiv:1104.4153.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Autoencoder.Config):
        """Options of the contractive autoencoder."""

        weight: float = 0.1
        """Weight of the encoder's squared Jacobian norm beside the distance."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check("weight", self.weight, low=0)

    def loss(self, batch: Batch, step: int) -> Loss:
        """Return the distance plus the weighted penalty ||d code / d x||² (eq. 2) (b,).

        The norm is estimated without bias by one random direction: for v ~ N(0, I) the mean of
        ||v' J||² is the squared Frobenius norm of J (arXiv:1908.02729, which does so for
        classifiers). So deep encoders cost no more than shallow ones.
        """
        with torch.enable_grad(), torch.autocast(batch.x.device.type, enabled=False):
            x = batch.x.float().requires_grad_()
            code = self.code(x)
            penalty = squared_jacobian(code, x, batch.randn(code.size(1)))
        distance = self.distance(x.detach(), self.decoder(code, None))
        values = distance + self.config.weight * penalty
        return values, {"distance": distance, "penalty": penalty}


def squared_jacobian(code: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """Return ||v' d code / d x||² of each sample (b,). code, v: (b, z); differentiable."""
    (product,) = torch.autograd.grad(code, x, v, create_graph=True)
    return product.square().flatten(1).sum(1)
