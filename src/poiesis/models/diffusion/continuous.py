"""Denoising models in continuous time: paths of any spacing, likelihood by the flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.models.capabilities import LogProb
from poiesis.models.diffusion.denoising import DenoisingModel
from poiesis.rng import Noise
from poiesis.sampling import diffusion
from poiesis.sampling.likelihood import flow_log_likelihood
from poiesis.sampling.processes import Process
from poiesis.spec import Grid

__all__ = ["ContinuousModel"]

_EXACT = 8
"""Most values of a sample whose divergence is taken exactly, one derivative for each."""
_TOLERANCE = 1e-3
"""Of the solver; below the spread that the divergence's estimate has."""


class ContinuousModel(DenoisingModel):
    """Base of the models whose noise is a `Process`."""

    @dataclass(frozen=True, kw_only=True)
    class Sampling(DenoisingModel.Sampling):
        """How samples are drawn."""

        spacing: Literal["uniform", "logsnr", "karras"] = "uniform"
        """How the noise of the steps falls: evenly in time, in the log of its ratio to the signal,
        or by that ratio's 7th root (EDM's)."""

    process: Process

    @property
    def cleanest(self) -> float:
        """Lowest noise level."""
        return self.process.t_min

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return α and σ of times (b,)."""
        return self.process.marginal(t)

    def level_of(self, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Return the times (b,) with σ/α = ratio (b,) and their α (b,)."""
        times = [self.process.time(-math.log(value)) for value in ratio.tolist()]
        t = torch.tensor(times, dtype=ratio.dtype, device=ratio.device)
        return t, self.marginal(t)[0]

    def path(self, options: Any) -> diffusion.Path:
        """Return times from noise towards data."""
        return self.process.path(self.steps_of(options), options.spacing)

    def log_prob(
        self, x: Tensor, condition: Tensor | None = None, *, samples: int = 1, seed: int = 0
    ) -> LogProb:
        """Return log p(x) by the probability-flow equation (arXiv 2011.13456, eq. 39).

        For images a bound of the probability of their levels: to each value uniform noise of one
        level's width is added (arXiv 1511.01844, section 3.1). For vectors and audio the density.
        The divergence is exact for up to 8 values and else estimated by `samples` random
        directions; of two or more, `error` is the standard error.
        """
        check("samples", samples, low=1)
        path = self.process.path(2, "logsnr")
        noise = Noise(seed, range(len(x)), device=x.device)
        images = self.bounded
        width = 2 / (self.spec.levels - 1) if isinstance(self.spec, Grid) and images else 1.0
        if images:
            x = x + width * (noise.rand(*x.shape[1:]) - 0.5)

        def denoise(x_t: Tensor, level: float) -> Tensor:
            t = torch.full((len(x_t),), level, device=x_t.device)
            return self.denoiser(x_t.float(), t, condition).to(x_t)

        few = self.spec.dims <= _EXACT
        with torch.autocast(x.device.type, enabled=False):
            nats, error = flow_log_likelihood(
                denoise,
                path,
                x if x.device.type == "mps" else x.double(),
                noise=None if few else noise,
                probes=samples,
                tolerance=_TOLERANCE,
            )
        how = "exact divergence" if few else f"{samples} of Hutchinson's probes"
        return LogProb(
            nats=(nats + images * self.spec.dims * math.log(width)).float(),
            kind="bound" if images else "estimate",
            measure="discrete" if images else "density",
            dims=self.spec.dims,
            detail=f"probability flow, {how}",
            error=None if error is None else error.float(),
        )
