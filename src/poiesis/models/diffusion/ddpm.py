"""Denoising diffusion probabilistic models, with the refinements that became standard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.errors import ConfigError
from poiesis.models.base import Batch, preset
from poiesis.models.capabilities import LogProb
from poiesis.models.diffusion.denoising import DenoisingModel, network_sizes, padded, side_of
from poiesis.rng import Noise
from poiesis.sampling import diffusion
from poiesis.spec import Condition, Grid, Spec

__all__ = ["DDPM"]


class DDPM(DenoisingModel):
    """Denoising diffusion: a U-Net learns to remove noise, sampling removes it step by step.

    Good at: the most faithful and varied images here, stable training with one plain squared
    error, class guidance. Not good at: speed of sampling (20 network calls instead of one; the
    original sampler takes 1000), a compact latent space. Cost: one U-Net pass and back per step.
    x0, ε and v targets, linear, cosine and sigmoid schedules; all samplers but the adaptive one.

    Papers: DDPM (arXiv 2006.11239), improved DDPM (2102.09672), DDIM (2010.02502),
    DPM-Solver++ (2211.01095), classifier-free guidance (2207.12598), v target (2202.00512).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(DenoisingModel.Config):
        """Options of the network, the diffusion and its training."""

        timesteps: int = 1000
        """Number of noise levels T."""
        schedule: Literal["linear", "scaled-linear", "cosine", "sigmoid"] = "cosine"
        """Noise schedule; cosine keeps more signal, which small images need."""
        betas: tuple[float, float] = (1e-4, 0.02)
        """First and last variance that a step adds, at 1000 levels (schedules linear and
        scaled-linear)."""
        zero_snr: bool = False
        """Stretch the schedule so that its last level is pure noise (arXiv 2305.08891); needs
        prediction v or x0."""
        prediction: Literal["eps", "x0", "v"] = "v"
        """What the network predicts: the noise, the clean image, or α ε − σ x0."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check("timesteps", self.timesteps, low=10, high=100_000)
            for beta in self.betas:
                check("betas", beta, low=0, high=1, open_low=True)
            if self.zero_snr and self.prediction == "eps":
                raise ConfigError(
                    "zero_snr = True needs prediction v or x0: pure noise says nothing of the data "
                    "through eps"
                )

    @dataclass(frozen=True, kw_only=True)
    class Sampling(DenoisingModel.Sampling):
        """How samples are drawn."""

        spacing: Literal["uniform", "trailing", "quadratic", "logsnr"] = "trailing"
        """Which levels the steps visit: DDIM's uniform and quadratic, evenly from pure noise
        (trailing), or even in the log of the signal-to-noise ratio."""

    known_as = "ddpm"

    def __init__(self, config: Config, spec: Spec, condition: Condition | None = None) -> None:
        super().__init__(config, spec, condition)
        self.schedule = diffusion.noise_schedule(config.schedule, config.timesteps, config.betas)
        if config.zero_snr:
            self.schedule = self.schedule.to_zero_snr()
        # Follow from the configuration alone, so they stay out of the checkpoint.
        self.alpha: Tensor
        self.sigma: Tensor
        self.register_buffer("alpha", self.schedule.alpha.float(), persistent=False)
        self.register_buffer("sigma", self.schedule.sigma.float(), persistent=False)

    # -- presets --------------------------------------------------------------------------------

    @preset
    @staticmethod
    def default(spec: Spec) -> DDPM.Config:
        """Small and quick: minutes on a CPU for images up to 32 px; deeper for larger ones."""
        return DDPM.Config(**network_sizes(spec, "ddpm"))

    @preset
    @staticmethod
    def paper(spec: Spec) -> DDPM.Config:
        """DDPM's network and training for CIFAR-10: 35.7M parameters, unconditional."""
        sizes = [padded(side_of(spec, "ddpm's preset paper"), 4) // 2**i for i in range(4)]
        return DDPM.Config(
            channels=128,
            multipliers=(1, 2, 2, 2),
            blocks=2,
            attention=(16,) if 16 in sizes else (sizes[1],),
            groups=32,
            dropout=0.1,
            conditional=False,
            schedule="linear",
            prediction="eps",
            batch_size=128,
            learning_rate=2e-4,
            warmup=5000,
            decay="constant",
            ema=0.9999,
        )

    @preset
    @staticmethod
    def cifar10(spec: Spec) -> DDPM.Config:
        """The same as `paper`, under the name of its data."""
        return DDPM.paper(spec)

    # -- the noise ------------------------------------------------------------------------------

    @property
    def prediction(self) -> diffusion.Prediction:
        """What the network predicts."""
        return self.config.prediction

    def draw_times(self, batch: Batch) -> Tensor:
        """Draw levels 0…T−1 uniformly."""
        return batch.randint(self.config.timesteps)

    def spread_times(self, shares: Tensor) -> Tensor:
        """Return levels at shares of T."""
        return (shares * self.config.timesteps).long()

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return α and σ of levels (b,)."""
        return self.alpha[t], self.sigma[t]

    def level_of(self, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Return the levels nearest in log(σ/α) to ratio (b,) and their α (b,)."""
        own = (self.sigma / self.alpha).log()
        t = (own[None] - ratio.log()[:, None]).abs().argmin(dim=1)
        return t, self.alpha[t]

    def path(self, options: Sampling) -> diffusion.Path:
        """Return the levels to sample over."""
        total = self.config.timesteps
        steps = options.steps or min(self.default_steps[options.sampler], total)
        return diffusion.make_path(self.schedule, steps, options.spacing)

    def prior_std(self, path: diffusion.Path) -> float:
        """Return 1: noised data have about the variance of noise."""
        return 1.0

    # -- likelihood -----------------------------------------------------------------------------

    @torch.no_grad()
    def log_prob(
        self, x: Tensor, condition: Tensor | None = None, *, samples: int = 50, seed: int = 0
    ) -> LogProb:
        """Return the variational bound of images as integer levels (arXiv 2006.11239, eq. 5).

        Of vectors and audio it is a bound of the density: the chain ends with N(x̂0, σ²) at the
        lowest level.

        samples: how many of its terms are evaluated per image, each at one draw of noise; T or
        more is all. Fewer are drawn in strata of the log signal-to-noise ratio and weighted, which
        leaves the bound's expectation as it is; `error` is then its standard error.
        """
        check("samples", samples, low=2)
        noise = Noise(seed, range(len(x)), device=x.device)
        levels = self.spec.levels if isinstance(self.spec, Grid) and self._bounded else None
        end, sigma_end = diffusion.decoder_level(self.schedule, levels)

        def estimate(t: Tensor) -> Tensor:
            alpha, sigma = self._level(t)
            x_t = alpha * x + sigma * noise.randn(*x.shape[1:])
            x0 = self.denoiser(x_t, t, condition)
            return x0 if levels is None else x0.clamp(-1, 1)

        def level(t: int) -> Tensor:
            return torch.full((len(x),), t, device=x.device)

        decoded = estimate(level(end))
        nats = diffusion.decoder_log_likelihood(x, decoded, sigma_end, levels)
        nats -= diffusion.prior_kl(self.schedule, x)
        error = None
        total = self.config.timesteps - end
        everything = samples >= total
        if everything:
            for i in range(end + 1, self.config.timesteps):
                nats -= diffusion.step_kl(self.schedule, level(i), x, estimate(level(i)))
        else:
            # A term is about as large as the fall of log(α/σ) over its step, so draw by that.
            share = -self.schedule.log_snr[end:].diff().to(x.device)
            share = share / share.sum()
            terms = []
            for i in range(samples - 1):
                place = (i + noise.rand().double()) / (samples - 1)
                index = torch.searchsorted(share.cumsum(0), place).clamp(max=len(share) - 1)
                t = index + end + 1
                kl = diffusion.step_kl(self.schedule, t, x, estimate(t))
                terms.append(kl / share[index])
            stacked = torch.stack(terms)
            nats -= stacked.mean(0)
            # Neighbouring strata stand in for two draws of one: a little above the true error.
            pairs = stacked[: len(terms) // 2 * 2].unflatten(0, (-1, 2))
            error = (pairs[:, 0] - pairs[:, 1]).square().sum(0).sqrt().float() / len(terms)
        detail = "VLB" if everything else f"VLB, {samples} of {total} steps"
        return LogProb(
            nats=nats.float(),
            kind="bound",
            measure="discrete" if levels else "density",
            dims=self.spec.dims,
            detail=detail,
            error=error,
        )
