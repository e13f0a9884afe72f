"""Score-based models in continuous time: VP, sub-VP and VE SDEs (arXiv 2011.13456)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from poiesis.models.base import Batch, preset
from poiesis.models.diffusion.continuous import ContinuousModel
from poiesis.models.diffusion.sizes import fast_sizes, network_sizes
from poiesis.sampling import diffusion
from poiesis.sampling.processes import Process, exploding, preserving, sub_preserving
from poiesis.spec import Condition, Spec

__all__ = ["ScoreSDE"]

_LOW, _HIGH = 0.01, 50.0
"""Range of σ of the variance exploding SDE (appendix C, CIFAR-10)."""


class ScoreSDE(ContinuousModel):
    """Score matching in continuous time: the noise is a stochastic differential equation.

    Good at: studying noises (variance preserving, sub-VP, exploding) with one network and any
    sampler. Not good at: being the quickest; `edm` and `flow-matching` need fewer steps. Cost: as
    `ddpm`.

    Paper: Song et al., Score-Based Generative Modeling through Stochastic Differential Equations,
    arXiv:2011.13456.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ContinuousModel.Config):
        """Options of the network, the noise and its training."""

        sde: Literal["vp", "sub-vp", "ve"] = "vp"
        """Variance preserving, its variant of smaller variance, or exploding."""
        prediction: Literal["F", "eps"] = "F"
        """What the network predicts: the noise, as in the paper, or EDM's mix of noise and data,
        which is well conditioned at every level."""

    @dataclass(frozen=True, kw_only=True)
    class Sampling(ContinuousModel.Sampling):
        """How samples are drawn."""

        spacing: Literal["logsnr", "uniform", "karras"] = "logsnr"
        """How the noise of the steps falls: in the log of its ratio to the signal, evenly in time,
        or by that ratio's 7th root."""

    known_as = "score-sde"

    def __init__(self, config: Config, spec: Spec, condition: Condition | None = None) -> None:
        super().__init__(config, spec, condition)
        self.process: Process = {
            "vp": preserving,
            "sub-vp": sub_preserving,
            "ve": lambda: exploding(_LOW, _HIGH),
        }[config.sde]()

    @preset
    @staticmethod
    def default(spec: Spec) -> Config:
        """Small and quick: minutes on a CPU for images up to 32 px; deeper for larger ones."""
        return ScoreSDE.Config(**network_sizes(spec, "score-sde"))

    @preset
    @staticmethod
    def fast(spec: Spec) -> Config:
        """For minutes on a CPU also beyond 32 px: pixels are folded into channels."""
        return ScoreSDE.Config(**fast_sizes(spec, "score-sde"))

    @preset
    @staticmethod
    def paper(spec: Spec) -> Config:
        """The same network trained to predict the noise, as the paper's."""
        return ScoreSDE.Config(**network_sizes(spec, "score-sde"), prediction="eps")

    # -- the noise ------------------------------------------------------------------------------

    @property
    def prediction(self) -> diffusion.Prediction:
        """What the network predicts."""
        return self.config.prediction

    def draw_times(self, batch: Batch) -> Tensor:
        """Draw times evenly; with the exploding SDE, ln σ evenly."""
        return self.spread_times(batch.rand())

    def spread_times(self, shares: Tensor) -> Tensor:
        """Return times at shares of that distribution."""
        low, high = self.process.t_min, self.process.t_max
        if self.config.sde == "ve":
            return low * (high / low) ** shares
        return low + (high - low) * shares

    def network_level(self, t: Tensor) -> Tensor:
        """Return times on the scale of the embedding."""
        low, high = self.process.t_min, self.process.t_max
        if self.config.sde == "ve":
            return 1000 * (t / low).log() / math.log(high / low)
        return 1000 * t

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return what gives the network's input unit variance at every level."""
        return (sigma.square() + (alpha * diffusion.DATA_STD).square()).rsqrt()
