"""Flow matching along straight lines from noise to data (arXiv 2210.02747, 2209.03003)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poiesis.models.base import Batch, preset
from poiesis.models.diffusion.continuous import ContinuousModel
from poiesis.models.diffusion.denoising import network_sizes, padded, side_of
from poiesis.sampling import diffusion
from poiesis.sampling.processes import straight
from poiesis.spec import Spec

__all__ = ["FlowMatching"]


class FlowMatching(ContinuousModel):
    """Flow matching: a network learns the velocity that carries noise to data in straight lines.

    Good at: images as diffusion makes them, in fewer and plainer steps; vectors and toy data; a
    simple squared error. Not good at: one-pass sampling (each step calls the network). Cost: as
    `ddpm`.

    Papers: Lipman et al. (arXiv 2210.02747), rectified flow (2209.03003), minibatch optimal
    transport (2302.00482).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ContinuousModel.Config):
        """Options of the network, the flow and its training."""

        times: Literal["uniform", "logit-normal"] = "uniform"
        """Which times are trained: all alike, or the middle more (arXiv 2403.03206)."""
        coupling: Literal["independent", "optimal-transport"] = "independent"
        """How noise is paired with data: at random, or within the batch so that the sum of squared
        distances is smallest, which straightens the flow (arXiv 2302.00482)."""

    known_as = "flow-matching"
    process = straight()

    @preset
    @staticmethod
    def default(spec: Spec) -> Config:
        """Small and quick: minutes on a CPU for images up to 32 px; deeper for larger ones."""
        return FlowMatching.Config(**network_sizes(spec, "flow-matching"))

    @preset
    @staticmethod
    def cifar10(spec: Spec) -> Config:
        """The usual network and training for CIFAR-10: 35.7M parameters, hours on a GPU."""
        sizes = [
            padded(side_of(spec, "flow-matching's preset cifar10"), 4) // 2**i for i in range(4)
        ]
        return FlowMatching.Config(
            channels=128,
            multipliers=(1, 2, 2, 2),
            blocks=2,
            attention=(16,) if 16 in sizes else (sizes[1],),
            groups=32,
            dropout=0.1,
            conditional=False,
            batch_size=128,
            learning_rate=2e-4,
            warmup=5000,
            decay="constant",
            ema=0.9999,
        )

    # -- the noise ------------------------------------------------------------------------------

    prediction: diffusion.Prediction = "velocity"  # pyright: ignore

    def draw_times(self, batch: Batch) -> Tensor:
        """Draw times in [0, 1), 0 being data."""
        if self.config.times == "logit-normal":
            return batch.randn().sigmoid()
        return batch.rand()

    def spread_times(self, shares: Tensor) -> Tensor:
        """Return times at shares of their distribution in training."""
        if self.config.times == "logit-normal":
            return torch.special.ndtri(shares.clamp(1e-3, 1 - 1e-3)).sigmoid()
        return shares

    def draw_noise(self, batch: Batch) -> Tensor:
        """Draw the noise, paired with the data as the configuration says."""
        eps = super().draw_noise(batch)
        if self.config.coupling == "independent":
            return eps
        return eps[matched(batch.x, eps, batch.condition if self.condition else None)]

    def network_level(self, t: Tensor) -> Tensor:
        """Return times on the scale of the embedding."""
        return 1000 * t


def matched(x: Tensor, eps: Tensor, condition: Tensor | None = None) -> Tensor:
    """Return the order of eps's rows (b,) with the least sum of squared distances to x's.

    Exact, by the Hungarian method. With classes (or captions), rows are exchanged within their
    class alone: each class's noise must stay normal, since sampling begins there.
    """
    from scipy.optimize import linear_sum_assignment

    order = torch.arange(len(x), device=x.device)
    groups = [order.clone()]
    if condition is not None:
        _, group = condition.unique(dim=0, return_inverse=True)
        groups = [order[group == number] for number in group.unique()]
    for rows in groups:
        cost = torch.cdist(x[rows].flatten(1).double(), eps[rows].flatten(1).double()).square()
        _, columns = linear_sum_assignment(cost.cpu().numpy())
        order[rows] = rows[torch.from_numpy(columns).to(x.device)]
    return order
