"""EDM: diffusion with a preconditioned network and Heun's sampler (arXiv 2206.00364)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.models.base import Batch, preset
from poiesis.models.diffusion.continuous import ContinuousModel
from poiesis.models.diffusion.grids import padded, side_of
from poiesis.models.diffusion.sizes import fast_sizes, network_sizes
from poiesis.sampling import diffusion
from poiesis.sampling.processes import exploding
from poiesis.spec import Spec

__all__ = ["EDM"]


class EDM(ContinuousModel):
    """Diffusion as EDM has it: inputs and outputs of unit variance at every level of noise.

    Good at: the best images in few network calls; stable training without tuning. Not good at:
    one-pass sampling; likelihoods. Cost: as `ddpm`; samples in 18 steps of Heun, 35 calls.

    Paper: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models,
    arXiv:2206.00364.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ContinuousModel.Config):
        """Options of the network, the noise and its training."""

        noise_mean: float = -1.2
        """Mean of ln σ in training."""
        noise_std: float = 1.2
        """Standard deviation of ln σ in training."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check("noise_mean", self.noise_mean, low=-10, high=10)
            check("noise_std", self.noise_std, low=0, high=10, open_low=True)

    @dataclass(frozen=True, kw_only=True)
    class Sampling(ContinuousModel.Sampling):
        """How samples are drawn."""

        sampler: Literal[
            "ancestral",
            "ddim",
            "euler",
            "heun",
            "dpm-solver++",
            "dpm-solver++sde",
            "unipc",
            "adaptive",
        ] = "heun"
        """euler (ddim without noise), heun, dpm-solver++, unipc and adaptive are deterministic;
        ancestral and dpm-solver++sde add noise on the way, as ddim does by its eta."""
        spacing: Literal["karras", "logsnr", "uniform"] = "karras"
        """How the noise of the steps falls: by the paper's 7th root, in its log, or evenly."""
        clip: Literal["none", "static", "dynamic"] = "none"
        """Keep the clean estimate of images in range: clamp it, or (dynamic) shrink it when it
        overshoots."""

    known_as = "edm"
    process = exploding()

    @preset
    @staticmethod
    def default(spec: Spec) -> Config:
        """Small and quick: minutes on a CPU for images up to 32 px; deeper for larger ones."""
        return EDM.Config(**network_sizes(spec, "edm"))

    @preset
    @staticmethod
    def fast(spec: Spec) -> Config:
        """For minutes on a CPU also beyond 32 px: pixels are folded into channels."""
        return EDM.Config(**fast_sizes(spec, "edm"))

    @preset
    @staticmethod
    def cifar10(spec: Spec) -> Config:
        """The paper's training for CIFAR-10 with DDPM's block of 2x2x2 widths: hours on a GPU."""
        sizes = [padded(side_of(spec, "edm's preset cifar10"), 3) // 2**i for i in range(3)]
        return EDM.Config(
            channels=128,
            multipliers=(2, 2, 2),
            blocks=4,
            attention=(16,) if 16 in sizes else (sizes[1],),
            groups=32,
            dropout=0.13,
            batch_size=512,
            learning_rate=1e-3,
            warmup=20_000,
            decay="constant",
            ema=0.9993,
        )

    # -- the noise ------------------------------------------------------------------------------

    prediction: diffusion.Prediction = "F"  # pyright: ignore

    def draw_times(self, batch: Batch) -> Tensor:
        """Draw σ with ln σ ~ N(mean, std²) (table 1)."""
        c = self.config
        return (c.noise_mean + c.noise_std * batch.randn()).exp()

    def spread_times(self, shares: Tensor) -> Tensor:
        """Return σ at quantiles of that distribution."""
        c = self.config
        # Golden-ratio shares reach 0 exactly, where the quantile is -inf.
        normal = torch.special.ndtri(shares.clamp(1e-3, 1 - 1e-3))
        return (c.noise_mean + c.noise_std * normal).exp()

    def network_level(self, t: Tensor) -> Tensor:
        """Return ln σ / 4, stretched to the scale of the embedding."""
        low, high = (math.log(v) for v in (self.process.t_min, self.process.t_max))
        return 1000 * (t.log() - low) / (high - low)

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return c_in = 1 / sqrt(σ² + σ_data²)."""
        return (sigma.square() + diffusion.DATA_STD**2).rsqrt()
