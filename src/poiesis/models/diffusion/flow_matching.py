"""Flow matching along straight lines from noise to data (arXiv 2210.02747, 2209.03003)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.errors import ConfigError
from poiesis.models.base import Batch, preset
from poiesis.models.diffusion.continuous import ContinuousModel
from poiesis.models.diffusion.grids import padded, side_of
from poiesis.models.diffusion.sizes import fast_sizes, network_sizes
from poiesis.rng import Noise
from poiesis.sampling import diffusion
from poiesis.sampling.processes import straight
from poiesis.spec import Condition, Spec

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
        teacher: str = ""
        """Run of flow-matching to straighten (reflow, arXiv 2209.03003): its network goes on to
        learn lines from noise to what the teacher makes of it; empty: learn from the data."""
        teacher_steps: int = 18
        """Steps of Heun's method, two calls each, in which the teacher makes its data."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check("teacher_steps", self.teacher_steps, low=1, high=1000)
            if self.teacher and self.coupling != "independent":
                raise ConfigError(
                    f"coupling = {self.coupling!r} has no use with a teacher, which pairs noise "
                    "with data itself: leave it out"
                )

    known_as = "flow-matching"
    process = straight()

    @preset
    @staticmethod
    def default(spec: Spec) -> Config:
        """Small and quick: minutes on a CPU for images up to 32 px; deeper for larger ones."""
        return FlowMatching.Config(**network_sizes(spec, "flow-matching"))

    @preset
    @staticmethod
    def fast(spec: Spec) -> Config:
        """For minutes on a CPU also beyond 32 px: pixels are folded into channels."""
        return FlowMatching.Config(**fast_sizes(spec, "flow-matching"))

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

    @classmethod
    def parts(cls, config: Config) -> Mapping[str, str]:
        """Return the teacher, if there is one."""
        return {"teacher": config.teacher} if config.teacher else {}

    @classmethod
    def view_with(cls, config: Config, spec: Spec, parts: Mapping[str, Any]) -> Spec:
        """Return the teacher's view; raises ConfigError for a model that is no flow."""
        teacher = parts.get("teacher")
        if teacher is None:
            return cls.view(config, spec)
        if not isinstance(teacher, FlowMatching):
            raise ConfigError(
                f"teacher = {config.teacher!r} is a {type(teacher).__name__}; give a run of "
                "flow-matching"
            )
        return teacher.spec

    def __init__(
        self,
        config: Config,
        spec: Spec,
        condition: Condition | None = None,
        *,
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        teacher = (parts or {}).get("teacher")
        if teacher is not None:
            # It goes on with a network of that kind.
            kind = {
                name: getattr(teacher.config, name) for name in ("network", "dit", "self_condition")
            }
            config = dataclasses.replace(config, **kind)
        super().__init__(config, spec, condition)
        self.teacher = teacher
        if teacher is not None:
            self.told = teacher.told
            if self.classifier is None:
                self.condition = self.told
            network = copy.deepcopy(getattr(teacher, self.network_name))
            setattr(self, self.network_name, network.requires_grad_(True))

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
        return eps[matched(batch.x, eps, batch.condition if self.told else None)]

    def draw_pair(self, batch: Batch, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return data and noise; with a teacher the data are what it makes of the noise."""
        x, eps = super().draw_pair(batch, condition)
        if self.teacher is None:
            return x, eps
        with torch.no_grad():
            return self.teacher.made_of(eps, condition, self.config.teacher_steps), eps

    def made_of(self, eps: Tensor, condition: Tensor | None = None, steps: int = 18) -> Tensor:
        """Return where the flow leads noise (b, *spec.shape), by Heun's method in float32."""
        options = self.Sampling(sampler="heun", steps=steps)
        path = self.path(options)
        still = Noise(0, range(len(eps)), device=eps.device)  # Heun's method draws nothing.
        return self._solved(path, eps * self.prior_std(path), still, condition, options)

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
